//! What an action asks of a worker.

use std::sync::Arc;

use gf_nix_formats::{StoreDir, StorePath, StorePathError};
use gf_reapi::execution::{Action, Command, platform};

use super::ActionError;
use crate::scheduler::{Platform, Property, Resources};

/// How many cores an action takes: a decimal number, such as `2` or `0.5`. One, unless it says.
const CPUS: &str = "cpus";
/// How much memory an action takes and may take: bytes, or a number with `K`, `M`, `G` (powers of 1024), such as `4G`.
/// An action that does not say is counted as taking none, and may take all that the worker has.
const MEMORY: &str = "memory";
/// What Bazel says of the process that could do the action faster than a new one, and in which language. A worker that
/// keeps no such process runs the action all the same, so no worker has to offer it.
const PERSISTENT_WORKER: [&str; 2] = ["persistentWorkerKey", "persistentWorkerProtocol"];

/// The Nix store paths that an action sees at `/nix/store`, with all that they refer to: full paths or base names, one or
/// several with spaces between them. It may stand more than once. It asks for workers that offer
/// [`SHOWS_STORE_PATHS`].
const NIX_CLOSURE: &str = "nix-closure";
/// The value with which a worker offers to show store paths.
const SHOWS_STORE_PATHS: &str = "supported";
/// Store paths that one action names. What they refer to has a bound of its own.
const MAX_STORE_PATHS: usize = 256;

const ONE_CORE: u32 = 1000;
const MAX_CORES: f64 = 1024.0;

/// What an action asks for.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the worker must have.
    pub(super) platform: Platform,
    /// What it takes of a worker.
    pub(super) demand: Resources,
    /// What it is to find at `/nix/store`.
    pub(super) store_paths: Vec<StorePath>,
}

/// The platform of an action, and of its command where it has none; what it takes and what it sees are no properties of
/// a worker.
pub(super) fn read(action: &Action, command: &Command) -> Result<Asked, ActionError> {
    #[expect(deprecated, reason = "clients before REAPI 2.2 send it with the command")]
    let asked = action.platform.as_ref().or(command.platform.as_ref());
    let mut demand = Resources { milli_cores: ONE_CORE, memory_bytes: 0 };
    let mut properties = Vec::new();
    let mut store_paths = Vec::new();
    for platform::Property { name, value } in asked.map(|platform| platform.properties.as_slice()).unwrap_or_default() {
        match name.as_str() {
            CPUS => demand.milli_cores = cores(value)?,
            MEMORY => demand.memory_bytes = memory(value)?,
            NIX_CLOSURE => add_store_paths(value, &mut store_paths)?,
            name if PERSISTENT_WORKER.contains(&name) => {}
            _ => properties.push(Property { name: Arc::from(name.as_str()), value: Arc::from(value.as_str()) }),
        }
    }
    if !store_paths.is_empty() {
        properties.push(Property { name: Arc::from(NIX_CLOSURE), value: Arc::from(SHOWS_STORE_PATHS) });
    }
    let platform = Platform::new(properties).map_err(ActionError::invalid)?;
    Ok(Asked { platform, demand, store_paths })
}

fn add_store_paths(value: &str, paths: &mut Vec<StorePath>) -> Result<(), ActionError> {
    let store = StoreDir::default();
    for text in value.split_ascii_whitespace() {
        let path = if text.starts_with('/') { store.parse(text) } else { StorePath::parse(text) };
        let wrong = |error: StorePathError| {
            ActionError::Invalid(format!("the platform property {NIX_CLOSURE} names {text:?}, no store path: {error}"))
        };
        paths.push(path.map_err(wrong)?);
    }
    if paths.len() > MAX_STORE_PATHS {
        let count = paths.len();
        return Err(ActionError::Invalid(format!(
            "the platform property {NIX_CLOSURE} names {count} store paths; at most {MAX_STORE_PATHS} may be named, and what \
             they refer to comes along"
        )));
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 1,024,000")]
fn cores(value: &str) -> Result<u32, ActionError> {
    match value.parse::<f64>() {
        Ok(cores) if cores > 0.0 && cores <= MAX_CORES => Ok(((cores * f64::from(ONE_CORE)).round() as u32).max(1)),
        _ => Err(ActionError::Invalid(format!(
            "the platform property {CPUS}={value:?} is no number of cores: write 2 or 0.5"
        ))),
    }
}

fn memory(value: &str) -> Result<u64, ActionError> {
    let wrong = || {
        ActionError::Invalid(format!("the platform property {MEMORY}={value:?} is no size: write 4G, 512M or bytes"))
    };
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K') => (&value[..value.len() - 1], 10),
        Some(b'M') => (&value[..value.len() - 1], 20),
        Some(b'G') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let bytes = digits.parse::<u64>().map_err(|_| wrong())?.checked_mul(1 << shift).ok_or_else(wrong)?;
    if bytes == 0 { Err(wrong()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(properties: &[(&str, &str)]) -> Option<gf_reapi::execution::Platform> {
        let property =
            |&(name, value): &(&str, &str)| platform::Property { name: name.to_owned(), value: value.to_owned() };
        Some(gf_reapi::execution::Platform { properties: properties.iter().map(property).collect() })
    }

    fn of_action(properties: &[(&str, &str)]) -> Result<Asked, String> {
        let action = Action { platform: asked(properties), ..Action::default() };
        read(&action, &Command::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn resources_are_no_properties() {
        let asked = of_action(&[("cpus", "0.5"), ("memory", "4G"), ("OSFamily", "linux")]).unwrap();
        assert_eq!(asked.demand, Resources { milli_cores: 500, memory_bytes: 4 << 30 });
        assert_eq!(asked.platform.properties().len(), 1);
        assert_eq!(of_action(&[]).unwrap().demand, Resources { milli_cores: 1000, memory_bytes: 0 });
        for wrong in
            [("cpus", "0"), ("cpus", "-1"), ("cpus", "NaN"), ("cpus", "many"), ("memory", "0"), ("memory", "G")]
        {
            assert!(of_action(&[wrong]).unwrap_err().contains(wrong.0), "{wrong:?}");
        }
        assert!(of_action(&[("memory", "99999999999999999999G")]).is_err());
    }

    #[test]
    fn a_process_to_ask_is_no_property() {
        let asked = [("persistentWorkerKey", "f00"), ("persistentWorkerProtocol", "json"), ("OSFamily", "linux")];
        let platform = of_action(&asked).unwrap().platform;
        let names: Vec<&str> = platform.properties().iter().map(|property| &*property.name).collect();
        assert_eq!(names, ["OSFamily"]);
    }

    #[test]
    fn store_paths_ask_for_workers_that_show_them_and_are_no_properties() {
        const HASH: &str = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4";
        let (full, base) = (format!(" /nix/store/{HASH}-zig  {HASH}-b\t"), format!("{HASH}-c"));
        let asked = of_action(&[("nix-closure", &full), ("nix-closure", &base)]).unwrap();
        let names: Vec<&str> = asked.store_paths.iter().map(StorePath::name).collect();
        assert_eq!(names, ["zig", "b", "c"]);
        let properties: Vec<String> = asked.platform.properties().iter().map(ToString::to_string).collect();
        assert_eq!(properties, ["nix-closure=supported"]);

        let none = of_action(&[("nix-closure", " ")]).unwrap();
        assert!(none.store_paths.is_empty() && none.platform.properties().is_empty());
        let inside = format!("/nix/store/{HASH}-zig/bin/zig");
        for wrong in ["zig", "/usr/bin/zig", "/nix/store", inside.as_str()] {
            let error = of_action(&[("nix-closure", wrong)]).unwrap_err();
            assert!(error.contains(wrong) && error.contains("nix-closure"), "{error}");
        }
        let many = vec![base; MAX_STORE_PATHS + 1].join(" ");
        assert!(of_action(&[("nix-closure", &many)]).unwrap_err().contains("257"));
    }

    #[test]
    fn the_action_wins_over_the_command() {
        #[expect(deprecated, reason = "clients before REAPI 2.2 send it with the command")]
        let command = Command { platform: asked(&[("a", "command")]), ..Command::default() };
        let action = Action { platform: asked(&[("a", "action")]), ..Action::default() };
        assert_eq!(&*read(&action, &command).unwrap().platform.properties()[0].value, "action");
        assert_eq!(&*read(&Action::default(), &command).unwrap().platform.properties()[0].value, "command");
    }
}

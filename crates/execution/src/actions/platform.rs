//! What an action asks of a worker.

use std::sync::Arc;

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

const ONE_CORE: u32 = 1000;
const MAX_CORES: f64 = 1024.0;

/// The platform of an action, and of its command where it has none; what it takes is no property of a worker.
pub(super) fn read(action: &Action, command: &Command) -> Result<(Platform, Resources), ActionError> {
    #[expect(deprecated, reason = "clients before REAPI 2.2 send it with the command")]
    let asked = action.platform.as_ref().or(command.platform.as_ref());
    let mut demand = Resources { milli_cores: ONE_CORE, memory_bytes: 0 };
    let mut properties = Vec::new();
    for platform::Property { name, value } in asked.map(|platform| platform.properties.as_slice()).unwrap_or_default() {
        match name.as_str() {
            CPUS => demand.milli_cores = cores(value)?,
            MEMORY => demand.memory_bytes = memory(value)?,
            name if PERSISTENT_WORKER.contains(&name) => {}
            _ => properties.push(Property { name: Arc::from(name.as_str()), value: Arc::from(value.as_str()) }),
        }
    }
    Ok((Platform::new(properties).map_err(ActionError::invalid)?, demand))
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

    fn of_action(properties: &[(&str, &str)]) -> Result<(Platform, Resources), String> {
        let action = Action { platform: asked(properties), ..Action::default() };
        read(&action, &Command::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn resources_are_no_properties() {
        let (platform, demand) = of_action(&[("cpus", "0.5"), ("memory", "4G"), ("OSFamily", "linux")]).unwrap();
        assert_eq!(demand, Resources { milli_cores: 500, memory_bytes: 4 << 30 });
        assert_eq!(platform.properties().len(), 1);
        assert_eq!(of_action(&[]).unwrap().1, Resources { milli_cores: 1000, memory_bytes: 0 });
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
        let (platform, _) = of_action(&asked).unwrap();
        let names: Vec<&str> = platform.properties().iter().map(|property| &*property.name).collect();
        assert_eq!(names, ["OSFamily"]);
    }

    #[test]
    fn the_action_wins_over_the_command() {
        #[expect(deprecated, reason = "clients before REAPI 2.2 send it with the command")]
        let command = Command { platform: asked(&[("a", "command")]), ..Command::default() };
        let action = Action { platform: asked(&[("a", "action")]), ..Action::default() };
        assert_eq!(&*read(&action, &command).unwrap().0.properties()[0].value, "action");
        assert_eq!(&*read(&Action::default(), &command).unwrap().0.properties()[0].value, "command");
    }
}

//! The clients of the demo: what the machine has, or the chroot.

use std::{process::Command, time::Duration};

use anyhow::Result;
use gf_tests::{Place, run_within};

use crate::{chroot_recipe, packages, tools};

/// The oldest Bazel that the demo's workspace is written for.
const OLDEST_BAZEL: u32 = 7;

/// A client for the demo.
pub(crate) enum Client {
    /// Bazel, of this version, at this place.
    Bazel { version: String, place: Place },
    /// None; the reason.
    BuiltIn { reason: String },
}

/// Makes the chroot if it is not there.
pub(crate) fn make() -> Result<gf_tests::Chroot> {
    let chroot = chroot_recipe::find_or_make()?;
    println!("clients are in {}", chroot.root().display());
    Ok(chroot)
}

/// Finds a Bazel, or makes the chroot for one.
pub(crate) fn find() -> Result<Client> {
    let host = Place::host()?;
    let why_not_host = match bazel_version(&host) {
        Ok(version) if major(&version) >= OLDEST_BAZEL => return Ok(Client::Bazel { version, place: host }),
        Ok(version) => format!("bazel on the PATH is {version}, older than {OLDEST_BAZEL}"),
        Err(_) if tools::on_path("bazel").is_none() => "there is no bazel on the PATH".to_owned(),
        Err(error) => format!("bazel on the PATH does not work: {error:#}"),
    };
    if gf_tests::Chroot::find().is_err() && !packages::can_install() {
        let reason = format!(
            "{why_not_host}; install Bazel {OLDEST_BAZEL} or newer from https://bazel.build, or run this as root on \
             Debian, where it makes a chroot with one"
        );
        return Ok(Client::BuiltIn { reason });
    }
    let place = Place::Chroot(chroot_recipe::find_or_make()?.enter()?);
    Ok(Client::Bazel { version: bazel_version(&place)?, place })
}

fn bazel_version(place: &Place) -> Result<String> {
    let mut command: Command = place.command(place.work(), &[], "bazel");
    command.arg("--version");
    let finished = run_within(command, Duration::from_secs(30))?.success()?;
    Ok(finished.stdout.trim().trim_start_matches("bazel ").to_owned())
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_first_number() {
        assert_eq!(major("7.7.1- (@non-git)"), 7);
        assert_eq!(major("4.2.3-dist"), 4);
        assert_eq!(major("no_version"), 0);
    }
}

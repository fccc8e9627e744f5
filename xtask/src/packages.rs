//! Debian packages on this machine.

use std::{path::Path, process::Command, sync::Mutex, thread, time::Duration};

use anyhow::{Context, Result, bail};
use gf_tests::run_within;

const LIMIT: Duration = Duration::from_secs(900);
const ATTEMPTS: u32 = 3;
/// A mirror that is being updated, or a proxy that starts again, wants a moment.
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);
/// Options that make apt wait for others, try again, take a mirror's slightly old index, and fail when it got none:
/// by default an update that fetched nothing counts as done.
pub(crate) const APT_OPTIONS: [&str; 8] = [
    "-o",
    "DPkg::Lock::Timeout=300",
    "-o",
    "Acquire::Retries=5",
    "-o",
    "Acquire::Check-Valid-Until=false",
    "-o",
    "APT::Update::Error-Mode=any",
];

/// Installs what is missing of `names`. On a machine that is not Debian, or without root, that is an error which names
/// them.
pub(crate) fn install(names: &[&str]) -> Result<()> {
    // Two threads may want packages; dpkg serves one at a time, and the second then finds its own already there.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !can_install() {
        bail!("these Debian packages are needed: {}; install them, or run as root on Debian", missing.join(" "));
    }
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&missing);
    retried(&missing.join(" "), || {
        let updated = apt(&["update", "-qq"]);
        // An index that nothing here needs may be out of reach: installing tells. When it fails too, that is why.
        apt(&arguments).or_else(|error| updated.and(Err(error)))
    })
}

/// Tries what depends on the network a few times.
pub(crate) fn retried(what: &str, step: impl Fn() -> Result<()>) -> Result<()> {
    for attempt in 1..ATTEMPTS {
        match step() {
            Ok(()) => return Ok(()),
            Err(error) => println!("    attempt {attempt} of {ATTEMPTS} at {what}: {error:#}"),
        }
        thread::sleep(BETWEEN_ATTEMPTS);
    }
    step().with_context(|| format!("cannot install {what}"))
}

/// Whether this is Debian (or its kin) and we are root.
pub(crate) fn can_install() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(APT_OPTIONS).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run_within(command, LIMIT)?.success().map(|_| ())
}

fn is_installed(name: &str) -> bool {
    let mut command = Command::new("dpkg-query");
    command.args(["--show", "--showformat=${db:Status-Status}", name]);
    let status = run_within(command, Duration::from_secs(30));
    status.is_ok_and(|finished| finished.status.success() && finished.stdout == "installed")
}

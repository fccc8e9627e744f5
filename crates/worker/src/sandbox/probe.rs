//! What the kernel allows here, found by trying it: sandboxes are made in which nothing runs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cgroup;
use super::factory::Factory;
use super::wire::{Failure, Outcome, Ready, Setup, Start};

/// Tries everything; an error if a sandbox of the simplest kind cannot be made.
pub(super) fn probe(setup: &Setup, factory: &mut Factory) -> Result<Ready, Failure> {
    let mut limitations = Vec::new();
    let folder = Path::new(OsStr::from_bytes(&setup.folder)).join("sandbox-probe");
    try_one(factory, &folder, Kind { overlay: false, own_network: false })?;
    let own_network = try_one(factory, &folder, Kind { overlay: false, own_network: true });
    if let Err(failure) = &own_network {
        limitations.push(format!(
            "no network namespaces ({}: {}): only actions that ask for the network can run; raise user.max_net_namespaces",
            failure.doing, failure.error()
        ));
    }
    let overlay = try_one(factory, &folder, Kind { overlay: true, own_network: false });
    if let Err(failure) = &overlay {
        limitations.push(format!(
            "no overlays in user namespaces ({}: {}): inputs are copied, which is slow; use Linux 5.11 or newer and a data folder on ext4, xfs or btrfs",
            failure.doing, failure.error()
        ));
    }
    if setup.use_cgroups {
        match cgroup::Parent::make(setup.memory_bytes) {
            Ok(groups) => factory.cgroups = Some(groups),
            Err(reason) => limitations.push(format!(
                "no control group for memory ({reason}): the memory of each process is bounded, not that of all together; \
                 run as root with cgroups writable, or in a systemd unit with Delegate=memory and DelegateSubgroup=worker"
            )),
        }
    }
    Ok(Ready {
        overlay: overlay.is_ok(),
        own_network: own_network.is_ok(),
        cgroup_version: factory.cgroups.as_ref().map_or(0, cgroup::Parent::version),
        limitations,
        privileged: factory.privileged(),
    })
}

struct Kind {
    overlay: bool,
    own_network: bool,
}

fn try_one(factory: &mut Factory, folder: &Path, kind: Kind) -> Result<(), Failure> {
    let answer = try_in(factory, folder, kind);
    // Left behind, it is in nobody's way.
    let _ = super::remove_scratch(folder);
    answer
}

fn try_in(factory: &mut Factory, folder: &Path, kind: Kind) -> Result<(), Failure> {
    use super::wire::Doing;
    let (inputs, scratch) = (folder.join("inputs"), folder.join("scratch"));
    super::remove_scratch(folder).doing("empty the folder for trials")?;
    fs::create_dir_all(&inputs).doing("create a folder for trials")?;
    fs::create_dir_all(&scratch).doing("create a folder for trials")?;
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let start = Start {
        layers: if kind.overlay { vec![bytes(&inputs)] } else { Vec::new() },
        private: (!kind.overlay).then(|| bytes(&inputs)),
        scratch: bytes(&scratch),
        host_network: !kind.own_network,
        ..Start::default()
    };
    let sandbox = factory.make(&start)?;
    match factory.conclude(sandbox) {
        Outcome::Failed(failure) => Err(failure),
        _ => Ok(()),
    }
}

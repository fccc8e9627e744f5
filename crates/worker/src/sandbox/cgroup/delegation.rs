//! Which group of version 2 is ours to divide.
//!
//! There, a group that hands controllers down to groups in it has no processes of its own, and whoever manages groups says
//! which of them are given away: systemd marks those of units with `Delegate=`, and a container sees its own as the root.
//! What always holds: groups are made, and processes moved, only within a group that is given away, or in the root of the
//! machine, which may have processes beside groups.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::place::Place;

/// The controller that bounds memory.
pub(super) const MEMORY: &str = "memory";
/// Where the processes of a group that is ours go, so that it has none of its own.
const PROCESSES: &str = "gf-processes";
/// How systemd marks a group that it gives away, to users and to root.
const MARKS: [&str; 2] = ["user.delegate", "trusted.delegate"];
/// Processes may begin while others are moved; who begins them faster than this is not worth following.
const ROUNDS: usize = 16;

/// The group below which others may be made that bound their memory. Processes are moved out of its way if need be.
pub(super) fn base(place: &Place) -> Result<PathBuf, String> {
    divide(&place.mount, &place.path, MEMORY, is_marked)
}

fn divide(mount: &Path, own: &Path, controller: &str, is_marked: impl Fn(&Path) -> bool) -> Result<PathBuf, String> {
    let base = find(mount, own, is_marked)?;
    if is_root_of_machine(&base) {
        return hand_down(&base, controller).map(|()| base);
    }
    move_processes(&base).map_err(|error| format!("the processes of {} cannot be moved: {error}", base.display()))?;
    hand_down(&base, controller).map(|()| base)
}

/// This group, or the one around it if that is the one that was given away.
fn find(mount: &Path, own: &Path, is_marked: impl Fn(&Path) -> bool) -> Result<PathBuf, String> {
    let is_ours = |group: &Path| group == mount || is_marked(group);
    if is_ours(own) {
        return Ok(own.to_path_buf());
    }
    let around = own.parent().filter(|around| around.starts_with(mount));
    // A service of systemd with `DelegateSubgroup=`, or one that another worker moved.
    match around.filter(|around| is_marked(around) || (own.ends_with(PROCESSES) && is_ours(around))) {
        Some(around) => Ok(around.to_path_buf()),
        None => Err(format!("the control group {} is not given to this process to divide", own.display())),
    }
}

/// Every other group has a type.
fn is_root_of_machine(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

fn is_marked(group: &Path) -> bool {
    let mut value = [0; 1];
    MARKS.iter().any(|mark| matches!(rustix::fs::getxattr(group, *mark, &mut value), Ok(1) if value == *b"1"))
}

/// Moves what is in a group itself to one in it.
fn move_processes(group: &Path) -> io::Result<()> {
    let target = group.join(PROCESSES);
    for _ in 0..ROUNDS {
        let processes = fs::read_to_string(group.join("cgroup.procs"))?;
        if processes.trim().is_empty() {
            return Ok(());
        }
        match fs::create_dir(&target) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for process in processes.lines() {
            match write(&target.join("cgroup.procs"), process) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                moved => moved?,
            }
        }
    }
    Err(io::Error::other("new ones come all the time"))
}

/// Lets the groups in a group use a controller.
pub(super) fn hand_down(group: &Path, controller: &str) -> Result<(), String> {
    let has = |file: &str| {
        let names = fs::read_to_string(group.join(file)).unwrap_or_default();
        names.split_ascii_whitespace().any(|name| name == controller)
    };
    if has("cgroup.subtree_control") {
        return Ok(());
    }
    if !has("cgroup.controllers") {
        return Err(format!("{} has no {controller} controller", group.display()));
    }
    let file = group.join("cgroup.subtree_control");
    write(&file, &format!("+{controller}")).map_err(|error| format!("{}: {error}", file.display()))
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;

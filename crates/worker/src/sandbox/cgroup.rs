//! Control groups, where this machine has them for us: they bound the memory of all processes of a run together.
//!
//! Version 1 and 2. Deliberately absent: processor shares, which the scheduler decides, and counts of processes, which
//! a limit of the user namespace bounds without a control group. What always holds: a group is removed when its run is
//! over, and groups that a killed launcher left behind are removed by the next.

mod delegation;
mod place;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use place::Place;

/// Which of the two interfaces there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Version {
    const fn limit_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.limit_in_bytes",
            Self::V2 => "memory.max",
        }
    }

    /// Without it, memory beyond the limit would go to swap. Absent where swap is not accounted for.
    const fn swap_limit(self, bytes: u64) -> (&'static str, u64) {
        match self {
            Self::V1 => ("memory.memsw.limit_in_bytes", bytes),
            Self::V2 => ("memory.swap.max", 0),
        }
    }

    const fn peak_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.max_usage_in_bytes",
            Self::V2 => "memory.peak",
        }
    }

    const fn kills_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.oom_control",
            Self::V2 => "memory.events",
        }
    }
}

/// A group of ours below which every run gets one of its own.
pub(super) struct Parent {
    path: PathBuf,
    version: Version,
    next: AtomicU64,
}

impl Parent {
    /// Finds the group in which this process may make others, and makes one in which all runs together get no more than
    /// `memory_bytes`. An error says what is in the way.
    pub(super) fn make(memory_bytes: u64) -> Result<Self, String> {
        let place = Place::find()?;
        let version = place.version;
        let base = match version {
            Version::V1 => place.path,
            Version::V2 => delegation::base(&place)?,
        };
        remove_left_behind(&base);
        let path = base.join(format!("{GROUP_PREFIX}{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{} cannot be made: {error}", path.display()))?;
        let parent = Self { path, version, next: AtomicU64::new(0) };
        if version == Version::V2 {
            delegation::hand_down(&parent.path, delegation::MEMORY)?;
        }
        if !parent.path.join(version.limit_file()).exists() {
            return Err(format!("{} has no memory controller", base.display()));
        }
        limit_memory(&parent.path, version, memory_bytes)
            .map_err(|error| format!("the memory of {} cannot be bounded: {error}", parent.path.display()))?;
        Ok(parent)
    }

    /// 1 or 2.
    pub(super) const fn version(&self) -> u32 {
        match self.version {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }

    /// A group for one run.
    pub(super) fn group(&self, memory_bytes: u64) -> io::Result<Group> {
        let path = self.path.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path)?;
        let group = Group { path, version: self.version };
        limit_memory(&group.path, self.version, memory_bytes)?;
        Ok(group)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // What is still in it now is removed by the next launcher.
        let _ = fs::remove_dir(&self.path);
    }
}

/// The control group of one run. Dropping it removes it, if its processes are gone.
pub(super) struct Group {
    path: PathBuf,
    version: Version,
}

impl Group {
    /// What the first process of the run needs to join it.
    pub(super) fn membership(&self) -> io::Result<Membership> {
        let processes = OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?;
        let kills = File::open(self.path.join(self.version.kills_file()))?;
        Ok(Membership { processes: processes.into(), kills: kills.into() })
    }

    /// The most memory that all processes together used, where the kernel tells.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        fs::read_to_string(self.path.join(self.version.peak_file())).ok()?.trim().parse().ok()
    }

    /// Whether the kernel ended a process of it for want of memory.
    pub(super) fn killed_any(&self) -> bool {
        fs::read_to_string(self.path.join(self.version.kills_file())).is_ok_and(|text| counts_kills(&text))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // One that is still in use is removed by the next launcher.
        let _ = fs::remove_dir(&self.path);
    }
}

/// Open files of a [`Group`], of use in every mount namespace.
pub(super) struct Membership {
    processes: OwnedFd,
    kills: OwnedFd,
}

impl Membership {
    /// Moves this process into the group.
    pub(super) fn join(&self) -> io::Result<()> {
        rustix::io::write(&self.processes, b"0")?;
        Ok(())
    }

    /// The count of processes that the kernel ended.
    pub(super) fn kills(&self) -> io::Result<Kills> {
        Ok(Kills { file: self.kills.try_clone()?.into() })
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.processes.as_fd(), self.kills.as_fd()]
    }
}

/// How many processes of a group the kernel ended.
pub(super) struct Kills {
    file: File,
}

impl Kills {
    /// Whether it ended any.
    pub(super) fn any(&self) -> bool {
        let mut text = String::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)).is_ok() && counts_kills(&text)
    }
}

fn counts_kills(text: &str) -> bool {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.is_some_and(|count| count.trim() != "0")
}

const GROUP_PREFIX: &str = "gf-worker-";

/// Bounds the memory of a group and of all groups in it together.
fn limit_memory(group: &Path, version: Version, bytes: u64) -> io::Result<()> {
    write(&group.join(version.limit_file()), bytes)?;
    let (swap_file, swap_bytes) = version.swap_limit(bytes);
    match write(&group.join(swap_file), swap_bytes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

fn write(file: &Path, number: u64) -> io::Result<()> {
    // Opened without creating: a file that the kernel does not offer is "not found" and not "denied".
    OpenOptions::new().write(true).open(file)?.write_all(number.to_string().as_bytes())
}

/// Removes the groups of launchers that are no more.
fn remove_left_behind(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let is_left_behind =
        |name: &str| name.strip_prefix(GROUP_PREFIX).is_some_and(|process| !Path::new("/proc").join(process).exists());
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_left_behind)) {
        if let Ok(runs) = fs::read_dir(entry.path()) {
            for run in runs.flatten().filter(|run| run.path().is_dir()) {
                let _ = fs::remove_dir(run.path());
            }
        }
        let _ = fs::remove_dir(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_either_version() {
        assert!(counts_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"));
        assert!(!counts_kills("low 0\nhigh 0\nmax 12\noom 1\noom_kill 0\noom_group_kill 0\n"));
    }
}

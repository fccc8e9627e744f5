//! Control groups, where this machine has them for us: they bound the memory of all processes of a run together.
//!
//! Version 1 and 2. Groups are kept for the next run, because to make and remove one costs as much as the rest of what a
//! launcher does for a small command. Deliberately absent: processor shares, which the scheduler decides, and counts of
//! processes, which a limit of the user namespace bounds without a control group.
//!
//! What always holds: a group has one run at a time; it is kept only if the kernel killed nobody in it, holds next to
//! nothing that is charged to it, and forgets what the most was; another is removed when its run is over, and groups that
//! a killed launcher left behind are removed by the next.

mod delegation;
mod place;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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

    const fn usage_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
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

/// More are not kept.
const MOST_KEPT: usize = 64;
/// Of a run before, what may still be charged to a group that is kept, and so by how much the peak of the next may be told
/// too high.
const MOST_LEFT_BYTES: u64 = 1 << 20;

/// A group of ours below which every run gets one of its own.
pub(super) struct Parent {
    path: PathBuf,
    version: Version,
    next: u64,
    /// What nobody uses.
    unused: Vec<Group>,
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
        let parent = Self { path, version, next: 0, unused: Vec::new() };
        if version == Version::V2 {
            delegation::hand_down(&parent.path, delegation::MEMORY)?;
        }
        if !parent.path.join(version.limit_file()).exists() {
            return Err(format!("{} has no memory controller", base.display()));
        }
        limit_memory(&parent.path, version, u64::MAX, memory_bytes)
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

    /// A group for one run, whose bound is still to be said.
    pub(super) fn group(&mut self) -> io::Result<Group> {
        if let Some(kept) = self.unused.pop() {
            return Ok(kept);
        }
        let path = self.path.join(self.next.to_string());
        self.next += 1;
        Group::make(path, self.version)
    }

    /// Takes back that of a run that is over.
    pub(super) fn give_back(&mut self, group: Group) {
        if self.unused.len() < MOST_KEPT && group.is_as_new() {
            self.unused.push(group);
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.unused.clear();
        // What is still in it now is removed by the next launcher.
        let _ = fs::remove_dir(&self.path);
    }
}

/// The control group of one run. Dropping it removes it, if its processes are gone.
pub(super) struct Group {
    path: PathBuf,
    version: Version,
    /// As much as those around it, before anything is said.
    memory_bytes: u64,
    processes: File,
    kills: Kills,
    usage: File,
    /// Nothing where the kernel does not tell.
    peak: Option<Peak>,
}

/// What tells the most that was used.
struct Peak {
    file: File,
    /// Whether it forgets that when it is written to, which it does on newer kernels.
    forgets: bool,
}

impl Group {
    fn make(path: PathBuf, version: Version) -> io::Result<Self> {
        fs::create_dir(&path)?;
        let made = Self::open(&path, version);
        if made.is_err() {
            let _ = fs::remove_dir(&path);
        }
        made
    }

    fn open(path: &Path, version: Version) -> io::Result<Self> {
        let peak = path.join(version.peak_file());
        let forgetful = OpenOptions::new().read(true).write(true).open(&peak).ok();
        let forgets = forgetful.is_some();
        let peak = forgetful.or_else(|| File::open(peak).ok()).map(|file| Peak { file, forgets });
        Ok(Self {
            processes: OpenOptions::new().write(true).open(path.join("cgroup.procs"))?,
            kills: Kills { file: File::open(path.join(version.kills_file()))? },
            usage: File::open(path.join(version.usage_file()))?,
            peak,
            path: path.to_owned(),
            version,
            memory_bytes: u64::MAX,
        })
    }

    /// Gives it another bound.
    pub(super) fn limit(&mut self, memory_bytes: u64) -> io::Result<()> {
        if memory_bytes != self.memory_bytes {
            limit_memory(&self.path, self.version, self.memory_bytes, memory_bytes)?;
            self.memory_bytes = memory_bytes;
        }
        Ok(())
    }

    /// What the first process of the run needs to join it.
    pub(super) fn membership(&self) -> io::Result<Membership> {
        let (processes, kills) = (self.processes.try_clone()?, self.kills.file.try_clone()?);
        Ok(Membership { processes: processes.into(), kills: kills.into() })
    }

    /// The most memory that all processes together used, where the kernel tells.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        read_number(&self.peak.as_ref()?.file)
    }

    /// Whether the kernel ended a process of it for want of memory.
    pub(super) fn killed_any(&self) -> bool {
        self.kills.any()
    }

    /// Makes it forget its run, and says whether it did.
    fn is_as_new(&self) -> bool {
        let forgot = self.peak.as_ref().is_none_or(|peak| peak.forgets && peak.file.write_at(b"0", 0).is_ok());
        forgot && !self.killed_any() && read_number(&self.usage).is_some_and(|bytes| bytes <= MOST_LEFT_BYTES)
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
        let mut text = [0; 512];
        self.file.read_at(&mut text, 0).is_ok_and(|length| counts_kills(as_text(&text, length)))
    }
}

fn read_number(file: &File) -> Option<u64> {
    let mut text = [0; 64];
    let length = file.read_at(&mut text, 0).ok()?;
    as_text(&text, length).trim().parse().ok()
}

/// What the kernel wrote.
fn as_text(bytes: &[u8], length: usize) -> &str {
    bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
}

fn counts_kills(text: &str) -> bool {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.is_some_and(|count| count.trim() != "0")
}

const GROUP_PREFIX: &str = "gf-worker-";

/// Bounds the memory of a group and of all groups in it together. At no time may version 1 have more memory than memory
/// and swap together.
fn limit_memory(group: &Path, version: Version, before: u64, bytes: u64) -> io::Result<()> {
    let (swap_file, swap_bytes) = version.swap_limit(bytes);
    let limit_swap = || match write(&group.join(swap_file), swap_bytes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    };
    if bytes > before {
        limit_swap()?;
        return write(&group.join(version.limit_file()), bytes);
    }
    write(&group.join(version.limit_file()), bytes)?;
    limit_swap()
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

//! Whether a sandbox is within its limits on memory, disk and logs: looked at often, and measured seldom.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::cgroup;
use super::command::Streams;
use super::wire::{EndedBy, Start};

/// How often the cheap things are looked at: the sizes of two files, and a counter.
const TICK: Duration = Duration::from_millis(25);
/// How often processes are listed where no control group bounds memory.
const MEMORY_TICKS: u32 = 4;
/// Folders are measured as often as keeps measuring below this share of the time, and at most this seldom.
const MEASURING_SHARE: u32 = 20;
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(10);
/// Deeper folders are as good as a full disk.
const DEEPEST: usize = 256;
const SIGXFSZ: i32 = 25;

/// The limits of one sandbox, and what to look at.
pub(super) struct Watch {
    memory_bytes: u64,
    disk_bytes: u64,
    log_bytes: u64,
    logs: Vec<OwnedFd>,
    folders: Vec<OwnedFd>,
    /// What was in the folders before the command began.
    there_before: u64,
    memory: MemoryWatch,
    next_tick: Instant,
    next_measuring: Instant,
    ticks: u32,
}

enum MemoryWatch {
    /// The kernel bounds it and counts the processes that it ended.
    Kernel(cgroup::Kills),
    /// Processes are looked at one by one in here.
    Processes(OwnedFd),
}

impl Watch {
    /// Of a sandbox that has been entered.
    pub(super) fn new(
        start: &Start,
        folders: Vec<OwnedFd>,
        streams: &Streams,
        cgroup: Option<&cgroup::Membership>,
    ) -> io::Result<Self> {
        let mut logs = vec![streams.stderr.try_clone()?];
        if !start.stdout_is_pipe {
            logs.push(streams.stdout.try_clone()?);
        }
        let memory = match cgroup {
            Some(membership) => MemoryWatch::Kernel(membership.kills()?),
            None => MemoryWatch::Processes(open_folder(rustix::fs::CWD, c"/proc")?),
        };
        let there_before = if start.private.is_some() { measure(&folders).unwrap_or(0) } else { 0 };
        let now = Instant::now();
        Ok(Self {
            memory_bytes: start.memory_bytes,
            disk_bytes: start.disk_bytes,
            log_bytes: start.log_bytes,
            logs,
            folders,
            there_before,
            memory,
            next_tick: now + TICK,
            next_measuring: now + SHORTEST_REST,
            ticks: 0,
        })
    }

    /// How long until there is something to look at.
    pub(super) fn next(&self) -> Duration {
        self.next_tick.saturating_duration_since(Instant::now())
    }

    /// The limit that is exceeded, if one is; `ended` is the exit code of the command if it has ended.
    pub(super) fn look(&mut self, ended: Option<i32>) -> Option<EndedBy> {
        let now = Instant::now();
        if ended.is_none() && now < self.next_tick {
            return None;
        }
        self.next_tick = now + TICK;
        self.ticks = self.ticks.wrapping_add(1);
        if self.memory_exceeded(ended.is_some()) {
            return Some(EndedBy::Memory);
        }
        if self.logs_exceeded() {
            return Some(EndedBy::Log);
        }
        // A file that may not grow further ends whoever writes to it.
        (ended == Some(128 + SIGXFSZ) || (ended.is_none() && self.disk_exceeded(now))).then_some(EndedBy::Disk)
    }

    /// Cuts logs to what they may have at most, which is what a report on a flood can use.
    pub(super) fn shorten_logs(&self) {
        for log in &self.logs {
            if size(log) > self.log_bytes {
                // A log that cannot be shortened is only long.
                let _ = rustix::fs::ftruncate(log, self.log_bytes);
            }
        }
    }

    fn memory_exceeded(&self, ended: bool) -> bool {
        match &self.memory {
            MemoryWatch::Kernel(kills) => kills.any(),
            MemoryWatch::Processes(proc) => {
                !ended && self.ticks.is_multiple_of(MEMORY_TICKS) && largest_process(proc) > self.memory_bytes
            }
        }
    }

    fn logs_exceeded(&self) -> bool {
        self.logs.iter().any(|log| size(log) > self.log_bytes)
    }

    fn disk_exceeded(&mut self, now: Instant) -> bool {
        if now < self.next_measuring {
            return false;
        }
        let written = measure(&self.folders).map_or(u64::MAX, |all| all.saturating_sub(self.there_before));
        let rest = (now.elapsed() * MEASURING_SHARE).clamp(SHORTEST_REST, LONGEST_REST);
        self.next_measuring = Instant::now() + rest;
        written > self.disk_bytes
    }
}

fn size(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

/// The bytes on the disk below folders, or nothing if they are too deep to tell.
fn measure(folders: &[OwnedFd]) -> Option<u64> {
    let mut all = 0_u64;
    for folder in folders {
        all = all.saturating_add(measure_folder(folder.as_fd(), 0)?);
    }
    Some(all)
}

/// Whatever disappears while it is looked at, counts as nothing.
fn measure_folder(folder: std::os::fd::BorrowedFd<'_>, depth: usize) -> Option<u64> {
    if depth > DEEPEST {
        return None;
    }
    let mut all = 0_u64;
    let Ok(entries) = Dir::read_from(folder) else { return Some(0) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        all = all.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Ok(inner) = open_folder(folder, name)
        {
            all = all.saturating_add(measure_folder(inner.as_fd(), depth + 1)?);
        }
    }
    Some(all)
}

fn open_folder(parent: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// The memory of the largest process, without what it shares with files.
fn largest_process(proc: &OwnedFd) -> u64 {
    let Ok(entries) = Dir::read_from(proc) else { return 0 };
    let processes =
        entries.flatten().filter(|entry| entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit));
    processes.filter_map(|entry| memory_of(proc, entry.file_name())).max().unwrap_or(0)
}

fn memory_of(proc: &OwnedFd, process: &CStr) -> Option<u64> {
    let path = [process.to_bytes(), b"/statm"].concat();
    let file = rustix::fs::openat(proc, path.as_slice(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0_u8; 128];
    let length = rustix::io::read(&file, &mut text).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    Some(resident.saturating_sub(shared).saturating_mul(page_bytes))
}

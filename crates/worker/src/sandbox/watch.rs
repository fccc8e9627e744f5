//! Whether a sandbox is within its limits on memory, processes, disk and logs: looked at often, and measured seldom.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::cgroup;
use super::command::Streams;
use super::measure::{Folders, Free, Processes, Written};
use super::wire::{EndedBy, Start};

/// How often the cheap things are looked at: the sizes of two files, and a counter.
const TICK: Duration = Duration::from_millis(25);
/// How often processes are listed: to count them, and to measure them where no control group bounds memory.
const LIST_TICKS: u32 = 4;
/// Folders are measured when the disk was filled meanwhile, and at least as often as the longest rest; but not so often
/// that measuring takes more than one part in so many of the time.
const MEASURING_SHARE: u32 = 20;
const SHORTEST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(10);
const SIGXFSZ: i32 = 25;

/// The limits of one sandbox, and what to look at.
pub(super) struct Watch {
    memory_bytes: u64,
    most_processes: u64,
    /// What may be written.
    allowed: Written,
    log_bytes: u64,
    logs: Vec<OwnedFd>,
    folders: Folders,
    processes: Processes,
    /// What was in the folders before the command began.
    there_before: Written,
    kills: Option<cgroup::Kills>,
    next_tick: Instant,
    ticks: u32,
    measured: Measured,
}

/// The last measuring of the folders.
struct Measured {
    written: Written,
    free: Free,
    earliest_next: Instant,
    latest_next: Instant,
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
        let (folders, processes) = (Folders::new(folders)?, Processes::open()?);
        let there_before = start.private.as_ref().and_then(|_| folders.content()).unwrap_or_default();
        let now = Instant::now();
        let measured = Measured {
            written: Written::default(),
            free: folders.free(),
            earliest_next: now + SHORTEST_REST,
            latest_next: now + LONGEST_REST,
        };
        Ok(Self {
            memory_bytes: start.memory_bytes,
            most_processes: start.processes.into(),
            allowed: Written { bytes: start.disk_bytes, files: start.files },
            log_bytes: start.log_bytes,
            logs,
            folders,
            processes,
            there_before,
            kills: cgroup.map(cgroup::Membership::kills).transpose()?,
            next_tick: now + TICK,
            ticks: 0,
            measured,
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
        let is_listing = ended.is_none() && self.ticks.is_multiple_of(LIST_TICKS);
        if self.memory_exceeded(is_listing) {
            return Some(EndedBy::Memory);
        }
        if is_listing && self.processes.count() > self.most_processes {
            return Some(EndedBy::Processes);
        }
        if self.logs_exceeded() {
            return Some(EndedBy::Log);
        }
        // A file that may not grow further ends whoever writes to it.
        match ended {
            Some(code) => (code == 128 + SIGXFSZ).then_some(EndedBy::Disk),
            None => self.disk_exceeded(now),
        }
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

    fn memory_exceeded(&self, is_listing: bool) -> bool {
        match &self.kills {
            Some(kills) => kills.any(),
            None => is_listing && self.processes.largest_bytes() > self.memory_bytes,
        }
    }

    fn logs_exceeded(&self) -> bool {
        self.logs.iter().any(|log| size(log) > self.log_bytes)
    }

    fn disk_exceeded(&mut self, now: Instant) -> Option<EndedBy> {
        if now < self.measured.earliest_next || (now < self.measured.latest_next && !self.is_worth_measuring()) {
            return None;
        }
        let written = self.folders.measure(&self.processes).map(|all| all.without(self.there_before));
        let rest = (now.elapsed() * MEASURING_SHARE).clamp(SHORTEST_REST, LONGEST_REST);
        let now = Instant::now();
        let (free, is_too_deep) = (self.folders.free(), written.is_none());
        let written = written.unwrap_or_default();
        self.measured = Measured { written, free, earliest_next: now + rest, latest_next: now + LONGEST_REST };
        if is_too_deep || written.bytes > self.allowed.bytes {
            return Some(EndedBy::Disk);
        }
        if written.files > self.allowed.files {
            return Some(EndedBy::Files);
        }
        let must_go = free.is_used_up_by(written) || (free.is_low() && self.folders.are_not_all(&self.processes));
        must_go.then_some(EndedBy::FullDisk)
    }

    /// Whether the disk is about to be full, or somebody filled it so much that it may have been this sandbox.
    fn is_worth_measuring(&self) -> bool {
        let (before, now) = (self.measured.free, self.folders.free());
        let left = self.allowed.without(self.measured.written);
        let filled = before.without(now);
        now.is_low() || filled.bytes > left.bytes / 2 || filled.files > left.files / 2
    }
}

fn size(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

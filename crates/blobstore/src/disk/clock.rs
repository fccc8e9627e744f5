//! The time that leases are counted in: seconds since 1970, never going back from one start of the store to the next,
//! whatever is done to the clock of the machine.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the time comes from: the machine, or a test that lets a lease run out.
pub trait TimeSource: Send + Sync + 'static {
    /// Seconds since 1970; never fewer than at an earlier call.
    fn now_s(&self) -> u64;
}

/// The machine's time when this was made, and what has passed since: it does not jump when the clock is set.
#[derive(Clone, Copy, Debug)]
pub struct MachineTime {
    /// Since 1970; with its fraction, so that two starts in a row count the same seconds.
    start: Duration,
    started: Instant,
}

impl Default for MachineTime {
    fn default() -> Self {
        Self { start: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), started: Instant::now() }
    }
}

impl TimeSource for MachineTime {
    fn now_s(&self) -> u64 {
        (self.start + self.started.elapsed()).as_secs()
    }
}

pub(crate) struct Clock {
    source: Arc<dyn TimeSource>,
    ahead_s: u64,
}

impl Clock {
    /// Starts at the source's time, or at `not_before` if that is later: a clock that was set back between two runs
    /// must not make fresh touches look as if they lay in the future.
    pub(crate) fn start(source: Arc<dyn TimeSource>, not_before: u32) -> Self {
        let ahead_s = u64::from(not_before).saturating_sub(source.now_s());
        Self { source, ahead_s }
    }

    /// The second of this clock, perhaps beyond its end, by which the source shows `time`.
    pub(crate) fn at(&self, time: SystemTime) -> u64 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let rounded_up = since.as_secs().saturating_add(u64::from(since.subsec_nanos() > 0));
        rounded_up.saturating_add(self.ahead_s)
    }

    pub(crate) fn now(&self) -> u32 {
        u32::try_from(self.source.now_s() + self.ahead_s).unwrap_or(u32::MAX)
    }
}

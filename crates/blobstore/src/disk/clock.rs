//! The time that leases are counted in: seconds since 1970, never going back while the process lives, whatever is done
//! to the clock of the machine.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(crate) struct Clock {
    started_s: u64,
    started: Instant,
}

impl Clock {
    /// Starts at the machine's time, or at `not_before` if that is later: a clock that was set back between two runs
    /// must not make fresh touches look as if they lay in the future.
    pub(crate) fn start(not_before: u32) -> Self {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        Self { started_s: now_s.max(u64::from(not_before)), started: Instant::now() }
    }

    pub(crate) fn now(&self) -> u32 {
        u32::try_from(self.started_s + self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

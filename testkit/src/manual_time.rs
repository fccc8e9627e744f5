//! Time that passes only when a test says so.

use std::sync::atomic::{AtomicU64, Ordering};

use gf_blobstore::TimeSource;

/// A clock set by hand.
#[derive(Debug)]
pub struct ManualTime(AtomicU64);

impl ManualTime {
    /// Begins at `now_s` seconds since 1970.
    #[must_use]
    pub const fn new(now_s: u64) -> Self {
        Self(AtomicU64::new(now_s))
    }

    /// Lets time pass.
    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl TimeSource for ManualTime {
    fn now_s(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

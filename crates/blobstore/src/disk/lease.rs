//! How long a blob is promised. Pure: time is an argument, in seconds since 1970.
//!
//! A touch is written only when the one on record is older than the grain, so that asking for the same blob a
//! thousand times costs one write. The promise is kept by counting the grain in: what is on record may be that much
//! too old.
//!
//! A written touch survives a killed process at once, and a power cut after the next checkpoint: what was promised in the
//! half minute before a power cut may go that much too early, and no earlier.

use std::time::Duration;

/// The promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasePolicy {
    lease_s: u32,
    grain_s: u32,
}

impl LeasePolicy {
    /// Blobs are kept for at least `lease` after they were reported present, in whole seconds.
    #[must_use]
    pub fn new(lease: Duration) -> Self {
        let lease_s = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX / 4);
        Self { lease_s, grain_s: lease_s / 16 }
    }

    /// Whether a touch at `now` must be written, given the one on record.
    #[must_use]
    pub const fn must_write(&self, touched: u32, now: u32) -> bool {
        now > touched && now - touched >= if self.grain_s == 0 { 1 } else { self.grain_s }
    }

    /// Whether a blob with this touch on record may go at `now`.
    #[must_use]
    pub const fn may_evict(&self, touched: u32, now: u32) -> bool {
        touched < self.horizon(now)
    }

    /// The last moment at which nothing may go that was touched, or needed no touch, at `asked` or later.
    #[must_use]
    pub const fn covers(&self, asked: u32) -> u32 {
        asked.saturating_add(self.lease_s)
    }

    /// Whether what was asked for at `asked`, to keep it, is to be asked for again.
    #[must_use]
    pub const fn is_due_again(&self, asked: u32, now: u32) -> bool {
        now.saturating_sub(asked) > self.lease_s / 4
    }

    /// What was touched before this moment is out of its lease.
    #[must_use]
    pub const fn horizon(&self, now: u32) -> u32 {
        // A touch within the second `t` may have come at its end, and was perhaps followed by one that was not
        // written: it is promised until t + 1 + grain + lease.
        now.saturating_sub(self.lease_s).saturating_sub(self.grain_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unwritten_touch_is_still_kept() {
        for lease in [0, 1, 15, 16, 160, 21_600] {
            let policy = LeasePolicy::new(Duration::from_secs(lease));
            let written = 1_000_000;
            // The last moment at which a touch is not written.
            let mut last = written;
            while !policy.must_write(written, last + 1) {
                last += 1;
            }
            let lease = u32::try_from(lease).unwrap();
            assert!(!policy.may_evict(written, last + lease), "lease {lease}: gone within the lease of a touch");
            assert!(!policy.may_evict(written, policy.covers(last)));
            assert!(policy.may_evict(written, last + lease + 2 + policy.grain_s), "lease {lease}: never goes");
        }
    }
}

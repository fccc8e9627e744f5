//! What one tenant uses, beside what it may. Pure: time is an argument.
//!
//! What always holds: uploads under way count as if they had ended, so that many at once exceed nothing together; what was
//! not yet seen when the store was last looked at counts as large as it came; before the first look of this process counts
//! what an earlier one knew.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

/// What a tenant may use; what has no number has no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that the store keeps for it, as they lie on the disk.
    pub stored_bytes: Option<u64>,
    /// Bytes that come for it from midnight to midnight, UTC.
    pub uploaded_bytes_a_day: Option<u64>,
    /// Actions that run for it at one time; further ones wait.
    pub executions: Option<NonZeroU32>,
    /// Requests in a second, on average over [`BURST_S`].
    pub requests_a_second: Option<u32>,
}

/// Requests of so many seconds may come at once.
pub const BURST_S: u32 = 5;

const DAY_S: u64 = 86_400;

/// Writes since the last look at the store that are told apart by when they came.
const MAX_TOLD_APART: usize = 4096;

/// What is exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It stores so much already.
    Stored { used_bytes: u64, limit_bytes: u64 },
    /// So much came today.
    Uploaded {
        used_bytes: u64,
        limit_bytes: u64,
        /// Until the next day begins.
        wait: Duration,
    },
    /// Too many requests.
    Requests {
        limit: u32,
        /// Until there is room for another one.
        wait: Duration,
    },
}

/// What a tenant uses.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    quota: Quota,
    /// What the last look at the store found, or what an earlier process knew; `None` if nobody looked ever.
    found_bytes: Option<u64>,
    /// Whether this process has looked.
    has_looked: bool,
    /// What came since, in the order of time: when, after the beginning, and how much.
    since: VecDeque<(Duration, u64)>,
    since_bytes: u64,
    /// Uploads under way.
    reserved_bytes: u64,
    /// The day that is counted, since 1970.
    day: u64,
    uploaded_bytes: u64,
    /// Requests that were admitted and not yet worked off, in thousandths, at this time since the beginning.
    backlog: u64,
    backlog_at: Duration,
}

/// What a tenant uses at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) stored_bytes: u64,
    pub(crate) uploaded_bytes: u64,
}

impl Meter {
    pub(crate) fn new(quota: Quota) -> Self {
        Self { quota, ..Self::default() }
    }

    pub(crate) const fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Sets space aside for an upload, which ends with [`Self::settle`] or [`Self::release`].
    pub(crate) fn reserve(&mut self, bytes: u64, now_s: u64) -> Result<(), Excess> {
        let used = self.used(now_s);
        self.check_stored(used, bytes)?;
        let coming = used.uploaded_bytes.saturating_add(self.reserved_bytes);
        if let Some(limit_bytes) = self.quota.uploaded_bytes_a_day
            && coming.saturating_add(bytes) > limit_bytes
        {
            let wait = Duration::from_secs(DAY_S - now_s % DAY_S);
            return Err(Excess::Uploaded { used_bytes: coming, limit_bytes, wait });
        }
        self.reserved_bytes = self.reserved_bytes.saturating_add(bytes);
        Ok(())
    }

    /// Sets space aside for what is made of what is here, which ends with [`Self::settle_put_together`] or
    /// [`Self::release`].
    pub(crate) fn reserve_stored(&mut self, bytes: u64, now_s: u64) -> Result<(), Excess> {
        let used = self.used(now_s);
        self.check_stored(used, bytes)?;
        self.reserved_bytes = self.reserved_bytes.saturating_add(bytes);
        Ok(())
    }

    fn check_stored(&self, used: Use, bytes: u64) -> Result<(), Excess> {
        match self.quota.stored_bytes {
            Some(limit_bytes) if used.stored_bytes.saturating_add(bytes) > limit_bytes => {
                Err(Excess::Stored { used_bytes: used.stored_bytes, limit_bytes })
            }
            _ => Ok(()),
        }
    }

    /// An upload has ended well.
    pub(crate) fn settle(&mut self, bytes: u64, now_s: u64, at: Duration) {
        self.begin_day(now_s);
        self.uploaded_bytes += bytes;
        self.settle_put_together(bytes, at);
    }

    /// What was made of what is here is stored: nothing came for it.
    pub(crate) fn settle_put_together(&mut self, bytes: u64, at: Duration) {
        self.release(bytes);
        self.since_bytes += bytes;
        // No earlier than those before, though clocks of threads may differ.
        let at = self.since.back().map_or(at, |(last, _)| at.max(*last));
        self.since.push_back((at, bytes));
        // Two that are told apart no more count for as long as the later one.
        if self.since.len() > MAX_TOLD_APART
            && let Some((_, first)) = self.since.pop_front()
            && let Some((_, second)) = self.since.front_mut()
        {
            *second += first;
        }
    }

    /// An upload came to nothing.
    pub(crate) fn release(&mut self, bytes: u64) {
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
    }

    /// The store was looked at, beginning at this time: everything that had come before was seen.
    pub(crate) fn found(&mut self, bytes: u64, began: Duration) {
        self.found_bytes = Some(bytes);
        self.has_looked = true;
        while let Some((_, seen)) = self.since.front().filter(|(at, _)| *at < began) {
            self.since_bytes = self.since_bytes.saturating_sub(*seen);
            self.since.pop_front();
        }
    }

    /// Counts a request.
    pub(crate) fn request(&mut self, now: Duration) -> Result<(), Excess> {
        const ONE: u64 = 1000;
        let Some(limit) = self.quota.requests_a_second else { return Ok(()) };
        let passed_ms = u64::try_from(now.saturating_sub(self.backlog_at).as_millis()).unwrap_or(u64::MAX);
        let worked_off = passed_ms.saturating_mul(u64::from(limit));
        // Less than a thousandth may have passed: then it counts next time.
        if worked_off > 0 {
            self.backlog = self.backlog.saturating_sub(worked_off);
            self.backlog_at = now;
        }
        let most = ONE * u64::from(limit) * u64::from(BURST_S);
        if self.backlog + ONE > most {
            let wait_ms = (self.backlog + ONE - most).div_ceil(u64::from(limit.max(1)));
            return Err(Excess::Requests { limit, wait: Duration::from_millis(wait_ms) });
        }
        self.backlog += ONE;
        Ok(())
    }

    /// What is used now.
    pub(crate) fn used(&mut self, now_s: u64) -> Use {
        self.begin_day(now_s);
        let known = self.found_bytes.unwrap_or(0).saturating_add(self.since_bytes);
        let stored_bytes = known.saturating_add(self.reserved_bytes);
        Use { stored_bytes, uploaded_bytes: self.uploaded_bytes }
    }

    /// The day that is counted, and what came on it: what a restart must not forget.
    pub(crate) const fn today(&self) -> (u64, u64) {
        (self.day, self.uploaded_bytes)
    }

    /// What is stored, as far as it is known: what a restart must not forget.
    pub(crate) fn stored(&self) -> Option<u64> {
        self.found_bytes.map(|found| found.saturating_add(self.since_bytes))
    }

    /// What an earlier process knew to be stored: it counts until the store was looked at.
    pub(crate) fn resume_stored(&mut self, bytes: u64) {
        self.found_bytes.get_or_insert(bytes);
    }

    /// Whether what is stored was counted by this process: what an earlier one knew may have gone since.
    pub(crate) const fn has_looked(&self) -> bool {
        self.has_looked
    }

    /// What an earlier process counted.
    pub(crate) fn resume(&mut self, day: u64, uploaded_bytes: u64, now_s: u64) {
        self.begin_day(now_s);
        if day == self.day {
            self.uploaded_bytes = self.uploaded_bytes.saturating_add(uploaded_bytes);
        }
    }

    fn begin_day(&mut self, now_s: u64) {
        let day = now_s / DAY_S;
        // A clock that is set back begins no day anew.
        if day > self.day {
            (self.day, self.uploaded_bytes) = (day, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 20_000 * DAY_S + DAY_S / 2;

    fn meter(stored: Option<u64>, uploaded: Option<u64>) -> Meter {
        Meter::new(Quota { stored_bytes: stored, uploaded_bytes_a_day: uploaded, ..Quota::default() })
    }

    #[test]
    fn uploads_under_way_count_together() {
        let mut meter = meter(Some(100), None);
        meter.reserve(60, NOON).unwrap();
        assert_eq!(meter.reserve(60, NOON), Err(Excess::Stored { used_bytes: 60, limit_bytes: 100 }));
        meter.release(60);
        meter.reserve(100, NOON).unwrap();
        meter.settle(100, NOON, Duration::ZERO);
        assert_eq!(meter.reserve(1, NOON), Err(Excess::Stored { used_bytes: 100, limit_bytes: 100 }));
    }

    #[test]
    fn a_look_at_the_store_replaces_what_came_before_it() {
        let mut meter = meter(Some(100), None);
        let ms = Duration::from_millis;
        for (bytes, at) in [(30, ms(700)), (20, ms(705))] {
            meter.reserve(bytes, NOON).unwrap();
            meter.settle(bytes, NOON, at);
        }
        // It was compressed; what came later was perhaps not seen.
        meter.found(10, ms(705));
        assert_eq!(meter.used(NOON + 6), Use { stored_bytes: 30, uploaded_bytes: 50 });
        meter.found(15, ms(706));
        assert_eq!(meter.used(NOON + 6).stored_bytes, 15);
        for number in 0..10_000 {
            meter.settle(1, NOON, ms(1000 + number));
        }
        assert_eq!((meter.used(NOON).stored_bytes, meter.since.len()), (10_015, MAX_TOLD_APART));
        meter.found(7, ms(1000 + 9_999));
        assert_eq!(meter.used(NOON).stored_bytes, 8);
    }

    #[test]
    fn a_day_ends_at_midnight_and_not_when_the_server_restarts() {
        let mut meter = meter(None, Some(100));
        meter.resume(NOON / DAY_S, 70, NOON);
        meter.reserve(30, NOON).unwrap();
        meter.settle(30, NOON, Duration::ZERO);
        let wait = Duration::from_secs(DAY_S / 2);
        assert_eq!(meter.reserve(1, NOON), Err(Excess::Uploaded { used_bytes: 100, limit_bytes: 100, wait }));
        assert_eq!(meter.today(), (NOON / DAY_S, 100));
        meter.reserve(100, NOON + DAY_S).unwrap();
        meter.resume(NOON / DAY_S, 70, NOON + DAY_S);
        assert_eq!(meter.used(NOON + DAY_S).uploaded_bytes, 0, "yesterday's");
        assert_eq!(meter.used(NOON).uploaded_bytes, 0, "a clock that is set back");
    }

    #[test]
    fn what_an_earlier_process_knew_counts_until_the_store_was_looked_at() {
        let mut meter = meter(Some(100), None);
        assert_eq!(meter.stored(), None, "nobody knows");
        meter.resume_stored(90);
        meter.settle(5, NOON, Duration::from_secs(1));
        assert_eq!((meter.stored(), meter.has_looked()), (Some(95), false));
        assert_eq!(meter.reserve(6, NOON), Err(Excess::Stored { used_bytes: 95, limit_bytes: 100 }));
        meter.found(20, Duration::from_secs(2));
        assert_eq!((meter.stored(), meter.has_looked()), (Some(20), true));
        meter.resume_stored(90);
        assert_eq!(meter.stored(), Some(20), "it comes too late");
        meter.reserve(80, NOON).unwrap();
        assert_eq!(meter.stored(), Some(20), "what is under way may come to nothing");
    }

    #[test]
    fn what_is_put_together_takes_space_and_nothing_of_the_day() {
        let mut meter = meter(Some(100), Some(10));
        meter.reserve_stored(60, NOON).unwrap();
        assert_eq!(meter.reserve_stored(60, NOON), Err(Excess::Stored { used_bytes: 60, limit_bytes: 100 }));
        meter.settle_put_together(60, Duration::ZERO);
        assert_eq!(meter.used(NOON), Use { stored_bytes: 60, uploaded_bytes: 0 });
        meter.reserve(10, NOON).unwrap();
    }

    #[test]
    fn requests_are_counted_on_average() {
        let mut meter = Meter::new(Quota { requests_a_second: Some(10), ..Quota::default() });
        let admitted = |meter: &mut Meter, at_ms: u64| {
            (0..1000).take_while(|_| meter.request(Duration::from_millis(at_ms)).is_ok()).count()
        };
        assert_eq!(admitted(&mut meter, 0), 50, "five seconds' worth");
        assert_eq!(admitted(&mut meter, 99), 0);
        let refused = meter.request(Duration::from_millis(99));
        assert_eq!(refused, Err(Excess::Requests { limit: 10, wait: Duration::from_millis(1) }));
        assert_eq!(admitted(&mut meter, 1100), 11);
        assert_eq!(admitted(&mut meter, 100_000), 50, "no more is saved up");
    }
}

//! A latency histogram of atomics. The one of `prometheus-client` takes a lock for each observation, which many
//! connections would wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds: one cache hit is tens of them, a large upload is seconds.
const BOUNDS_US: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000, 60_000_000];

const SLOTS: usize = BOUNDS_US.len() + 1;

/// Counts durations by size. The last slot takes what is above all bounds.
#[derive(Debug, Default)]
pub(super) struct LatencyHistogram {
    slots: [AtomicU64; SLOTS],
    sum_us: AtomicU64,
}

/// The state of a [`LatencyHistogram`] at one moment.
pub(super) struct Snapshot {
    pub(super) sum_seconds: f64,
    pub(super) count: u64,
    /// Upper bound in seconds and the count of this slot alone.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl LatencyHistogram {
    pub(super) fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let slot = BOUNDS_US.partition_point(|bound| *bound < us);
        if let Some(count) = self.slots.get(slot) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let bounds = BOUNDS_US.iter().map(|us| Duration::from_micros(*us).as_secs_f64()).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.slots.iter().map(|slot| slot.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum_seconds = Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64();
        Snapshot { sum_seconds, count, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_nothing_is_lost() {
        let histogram = LatencyHistogram::default();
        for us in [0, 50, 51, 60_000_000, 60_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let snapshot = histogram.snapshot();
        let counts: Vec<u64> = snapshot.buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(snapshot.count, 5);
        assert!((snapshot.sum_seconds - 120.000_102).abs() < 1e-9);
    }
}

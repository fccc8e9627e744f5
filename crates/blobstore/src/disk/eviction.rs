//! Which blobs go when space is needed. Pure: a histogram of the index in, a plan out.

use std::collections::BTreeMap;

use super::lease::LeasePolicy;

/// Bytes by the second in which they were last touched.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    by_second: BTreeMap<u32, u64>,
}

impl Histogram {
    /// Counts one blob or entry.
    pub fn add(&mut self, touched: u32, bytes: u64) {
        *self.by_second.entry(touched).or_default() += bytes;
    }

    /// Bytes under lease at `now`.
    #[must_use]
    pub fn leased_bytes(&self, policy: LeasePolicy, now: u32) -> u64 {
        self.by_second.range(policy.horizon(now)..).map(|(_, bytes)| bytes).sum()
    }

    /// All bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.by_second.values().sum()
    }
}

/// What to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionPlan {
    /// Everything touched before this second goes.
    pub before: u32,
    /// Of what was touched in that very second, this many bytes go too.
    pub and_bytes: u64,
    /// Bytes that the plan frees.
    pub freed_bytes: u64,
}

/// Plans to free `needed_bytes`: least recently touched first, nothing within its lease. Frees less when there is not
/// enough; `None` when nothing may go.
#[must_use]
pub fn plan(histogram: &Histogram, needed_bytes: u64, policy: LeasePolicy, now: u32) -> Option<EvictionPlan> {
    let mut plan = EvictionPlan { before: 0, and_bytes: 0, freed_bytes: 0 };
    for (&second, &bytes) in histogram.by_second.range(..policy.horizon(now)) {
        if plan.freed_bytes >= needed_bytes {
            break;
        }
        plan.before = second;
        plan.and_bytes = bytes.min(needed_bytes - plan.freed_bytes);
        plan.freed_bytes += plan.and_bytes;
    }
    (plan.freed_bytes > 0).then_some(plan)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frees_what_is_needed_oldest_first_and_nothing_leased(
            blobs in prop::collection::vec((0_u32..1000, 1_u64..100), 0..200),
            needed in 1_u64..5000,
            lease in 0_u64..900,
        ) {
            let policy = LeasePolicy::new(Duration::from_secs(lease));
            let now = 1000;
            let mut histogram = Histogram::default();
            blobs.iter().for_each(|(touched, bytes)| histogram.add(*touched, *bytes));
            let evictable: u64 =
                blobs.iter().filter(|(touched, _)| policy.may_evict(*touched, now)).map(|(_, bytes)| bytes).sum();
            prop_assert_eq!(histogram.leased_bytes(policy, now), histogram.total_bytes() - evictable);

            match plan(&histogram, needed, policy, now) {
                None => prop_assert_eq!(evictable, 0),
                Some(plan) => {
                    prop_assert_eq!(plan.freed_bytes, needed.min(evictable));
                    prop_assert!(policy.may_evict(plan.before, now));
                    let older: u64 = blobs.iter().filter(|(t, _)| *t < plan.before).map(|(_, bytes)| bytes).sum();
                    prop_assert_eq!(older + plan.and_bytes, plan.freed_bytes);
                }
            }
        }
    }
}

//! Ends that are remembered for clients that come back: for a time, and up to a number and a size. The oldest is
//! forgotten first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::operations::OperationName;
use crate::scheduler::Now;

const MAX_COUNT: usize = 4096;
/// Of results, as they are encoded: one may hold 4 MiB of what a client wanted in it.
const MAX_BYTES: usize = 64 << 20;

/// The names of operations that ended, oldest first.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    ends: VecDeque<(Now, OperationName, usize)>,
    bytes: usize,
}

impl Remembered {
    pub(super) fn add(&mut self, now: Now, name: OperationName, bytes: usize) {
        self.bytes += bytes;
        self.ends.push_back((now, name, bytes));
    }

    /// The next one to forget, if one is due.
    pub(super) fn take(&mut self, now: Now, retention: Duration) -> Option<OperationName> {
        let (ended, _, _) = self.ends.front()?;
        let is_due = now.since(*ended) >= retention || self.ends.len() > MAX_COUNT || self.bytes > MAX_BYTES;
        if !is_due {
            return None;
        }
        let (_, name, bytes) = self.ends.pop_front()?;
        self.bytes -= bytes;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use gf_digest::InstanceName;

    use super::*;

    const RETENTION: Duration = Duration::from_secs(300);

    fn forgotten(sizes: &[usize], after: Duration) -> usize {
        let mut remembered = Remembered::default();
        let instance = InstanceName::new("").unwrap();
        sizes.iter().for_each(|size| remembered.add(Now::default(), OperationName::new(&instance), *size));
        std::iter::from_fn(|| remembered.take(Now(after), RETENTION)).count()
    }

    #[test]
    fn what_is_remembered_is_bounded_in_time_number_and_size() {
        assert_eq!(forgotten(&[1000; 10], RETENTION / 2), 0);
        assert_eq!(forgotten(&[1000; 10], RETENTION), 10);
        assert_eq!(forgotten(&[0; MAX_COUNT + 3], Duration::ZERO), 3);
        assert_eq!(forgotten(&[MAX_BYTES / 4; 6], Duration::ZERO), 2);
    }
}

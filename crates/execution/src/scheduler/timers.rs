//! What is due when.
//!
//! Who sets a timer remembers its time and takes it back when the cause is gone, so that there are never more timers
//! than executions, workers, lanes and tenants, each a few.

use std::collections::BTreeSet;

use super::queue::Lane;
use super::workers::ClassId;
use super::{ExecutionId, Now, Payer, WorkerId};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// Was the worker heard since?
    Silence(WorkerId),
    /// The worker may be trusted with work again.
    Rested(WorkerId),
    /// Should something that the worker runs have ended?
    Overstayed(WorkerId),
    /// Nobody waited for the execution for so long.
    Abandoned(ExecutionId),
    /// The execution may go to the worker that failed it.
    Forgiven(ExecutionId),
    /// A worker was kept free for the tenant for so long, or none was.
    KeptFree(Payer),
    /// Is there a worker for what waits in the lane?
    Unserved(Lane),
    /// The last worker of the class left long ago.
    Forgotten(ClassId),
}

/// Everything that is due some time.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Now, Due)>);

impl Timers {
    /// Something is due then.
    pub(super) fn set(&mut self, at: Now, due: Due) {
        self.0.insert((at, due));
    }

    /// It is not.
    pub(super) fn unset(&mut self, at: Option<Now>, due: Due) {
        if let Some(at) = at {
            self.0.remove(&(at, due));
        }
    }

    /// The first time at which something is due.
    pub(super) fn next(&self) -> Option<Now> {
        self.0.first().map(|(at, _)| *at)
    }

    /// What is due now, first things first, each once.
    pub(super) fn take(&mut self, now: Now) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, due)| due)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

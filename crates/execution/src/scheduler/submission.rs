//! The words of the seam: who, what, how much, when.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use gf_digest::Digest;

use super::{Platform, Property};

/// Time since some fixed moment, never running backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub Duration);

impl Now {
    /// So much later, as far as time goes.
    #[must_use]
    pub const fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// How long ago `earlier` was.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

ids! {
    /// One execution of an action, whatever number of clients wait for it. Given by the shell, never used twice.
    ExecutionId,
    /// A worker, from its arrival until its stream ends. Given by the shell, never used twice.
    WorkerId,
    /// One attempt to run an execution on a worker. Given by the scheduler, never used twice.
    AssignmentId,
}

/// Who pays: the number of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Payer(pub u32);

/// What an action takes of a worker while it runs, or what a worker has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cores: u32,
    /// Bytes.
    pub memory_bytes: u64,
}

impl Resources {
    /// Whether there is as much of everything in `room`.
    #[must_use]
    pub const fn fits(&self, room: &Self) -> bool {
        self.milli_cores <= room.milli_cores && self.memory_bytes <= room.memory_bytes
    }

    pub(super) const fn plus(self, other: Self) -> Self {
        Self {
            milli_cores: self.milli_cores.saturating_add(other.milli_cores),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    pub(super) const fn minus(self, other: Self) -> Self {
        Self {
            milli_cores: self.milli_cores.saturating_sub(other.milli_cores),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }
}

/// What identical executions have in common; two of the same key are run as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MergeKey {
    /// The tenant.
    pub payer: Payer,
    /// The REAPI instance.
    pub instance: Arc<str>,
    /// The action.
    pub action: Digest,
}

/// The priorities that are told apart; what is beyond counts like the nearest of them. Each step counts like having waited
/// for so long ([`SchedulerConfig::ageing_step`](super::SchedulerConfig)), so there has to be an end to how long the least
/// urgent waits for what comes after it: with these and the usual step, five and a half hours.
pub const PRIORITIES: RangeInclusive<i32> = -1000..=1000;

/// An execution as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Who pays.
    pub payer: Payer,
    /// What one command of a client started; its executions share fairly with those of other invocations.
    pub invocation: Arc<str>,
    /// REAPI: lower runs first. Within one tenant, and within [`PRIORITIES`].
    pub priority: i32,
    /// What the worker must have.
    pub platform: Arc<Platform>,
    /// What it takes of a worker.
    pub demand: Resources,
    /// `None` for `do_not_cache`: never merged.
    pub merge: Option<MergeKey>,
    /// From the start of the process to its end. An attempt that overstays it by far is withdrawn.
    pub timeout: Duration,
}

/// What a worker has.
#[derive(Clone, Debug)]
pub struct Offer {
    /// For people.
    pub name: Arc<str>,
    /// What actions may ask for.
    pub properties: Vec<Property>,
    /// All that it has, when idle.
    pub capacity: Resources,
    /// What its sandbox lacks there, in sentences for the operator. Nothing is decided by it.
    pub limitations: Arc<[String]>,
}

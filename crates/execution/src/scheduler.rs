//! Who runs what, where and when: a pure state machine, `apply(event, now) -> effects`.
//!
//! It decides; it does not act. No clock, no socket, no task: the shell passes time in and performs the effects.
//! Deliberately absent: what an action is, how its result is stored, who the clients are.
//!
//! What always holds: an execution is in exactly one state; it runs on at most one worker at a time; every execution
//! that was submitted is completed exactly once; what is kept is bounded by the number of executions and workers that
//! live, and by [`SchedulerConfig::max_queued`].

mod platform;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gf_digest::Digest;

pub use platform::{Platform, PlatformError, Property};

/// Time since some fixed moment, never running backwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub Duration);

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// Thousandths of a core.
    pub milli_cores: u32,
    /// Bytes.
    pub memory_bytes: u64,
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

/// An execution as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Who pays.
    pub payer: Payer,
    /// What one command of a client started; its executions share fairly with those of other invocations.
    pub invocation: Arc<str>,
    /// REAPI: lower runs first. Within one tenant.
    pub priority: i32,
    /// What the worker must have.
    pub platform: Arc<Platform>,
    /// What it takes of a worker.
    pub demand: Resources,
    /// `None` for `do_not_cache`: never merged.
    pub merge: Option<MergeKey>,
    /// From the start of the process to its end. A worker that overstays it by far is taken for lost.
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
}

/// Where an assignment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunStage {
    /// Given to the worker, or fetching inputs.
    Fetching,
    /// The process runs.
    Running,
    /// Outputs are stored.
    Uploading,
}

/// How an assignment ended on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is an answer for the client, whatever it is: the shell has it.
    Answered,
    /// The worker failed; another may succeed.
    WorkerFailed,
    /// The worker ended it because it was told to.
    Cancelled,
}

/// What happens to the scheduler.
#[derive(Clone, Debug)]
pub enum Event {
    /// An action is to be run for a client that waits. Answered by [`Effect::Queued`], [`Effect::Merged`],
    /// [`Effect::Assign`] or [`Effect::Complete`].
    Submit {
        /// Its name from now on.
        execution: ExecutionId,
        /// What to run.
        submission: Submission,
    },
    /// One more client waits for it.
    WaiterJoined(ExecutionId),
    /// A client does not wait any more. When none is left for [`SchedulerConfig::abandon_after`], it is cancelled.
    WaiterLeft(ExecutionId),
    /// Somebody with the right to do so wants it ended.
    Cancel(ExecutionId),
    /// A worker came.
    WorkerJoined {
        /// Its name from now on.
        worker: WorkerId,
        /// What it has.
        offer: Offer,
    },
    /// A worker is alive.
    WorkerHeard(WorkerId),
    /// A worker takes nothing more.
    WorkerDraining(WorkerId),
    /// A worker is gone: what it ran is queued again, or failed when that happened too often.
    WorkerLeft(WorkerId),
    /// An assignment goes on. Ignored when it is not this worker's.
    Progressed {
        /// Who says so.
        worker: WorkerId,
        /// Of which assignment.
        assignment: AssignmentId,
        /// Where it is.
        stage: RunStage,
    },
    /// An assignment ended. Ignored when it is not this worker's: a late answer of a worker that was given up.
    Finished {
        /// Who says so.
        worker: WorkerId,
        /// Which assignment.
        assignment: AssignmentId,
        /// How.
        outcome: Outcome,
    },
    /// Time passed: what is due is done. Wanted at [`Scheduler::wake_at`].
    Tick,
}

/// What the shell is to do. In order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It waits for a worker; said again when it goes back to the queue.
    Queued(ExecutionId),
    /// The submitted execution is the same as this one, which has the new client as one more waiter: `submitted` is
    /// forgotten.
    Merged {
        /// The name just given.
        submitted: ExecutionId,
        /// The one to wait for.
        into: ExecutionId,
    },
    /// Give it to the worker.
    Assign {
        /// To whom.
        worker: WorkerId,
        /// The attempt.
        assignment: AssignmentId,
        /// What.
        execution: ExecutionId,
    },
    /// It goes on.
    Stage {
        /// Which.
        execution: ExecutionId,
        /// Where it is.
        stage: RunStage,
    },
    /// Tell the worker that the result is not wanted. What it still says of the assignment is ignored, but the
    /// worker's resources count as taken until it answers or leaves.
    Withdraw {
        /// Whom.
        worker: WorkerId,
        /// Which attempt.
        assignment: AssignmentId,
    },
    /// Hang up on a worker that was silent for too long, or overstayed.
    Dismiss(WorkerId),
    /// It is over; nothing more is said of it.
    Complete {
        /// Which.
        execution: ExecutionId,
        /// How.
        end: End,
    },
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With the answer of this assignment, which the shell holds.
    Answered(AssignmentId),
    /// Somebody cancelled it, or nobody waited any more.
    Cancelled,
    /// It cannot be run here, ever, as things are.
    NoWorker(NoWorker),
    /// Workers were lost, or failed, this many times while they ran it.
    GivenUp {
        /// How often it was tried.
        attempts: u32,
    },
    /// Too much waits already.
    QueueFull,
}

/// Why no worker can take an execution, and which one comes nearest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoWorker {
    /// How many workers are known.
    pub workers: usize,
    /// The one that lacks least.
    pub nearest: Option<Nearest>,
}

/// The worker that lacks least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Its name.
    pub worker: Arc<str>,
    /// What it has not: wanted, and what the worker has under that name.
    pub differs: Vec<(Property, Vec<Arc<str>>)>,
    /// Wanted and present, when it is too small.
    pub too_small: Option<(Resources, Resources)>,
}

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerConfig {
    /// More executions are refused.
    pub max_queued: usize,
    /// How often an execution is tried when workers fail or vanish.
    pub max_attempts: u32,
    /// A worker that is silent for so long is lost.
    pub worker_silence: Duration,
    /// Fetching and uploading may take so long beyond the action's own timeout.
    pub overstay: Duration,
    /// How long an execution goes on when nobody waits: clients come back after a broken connection.
    pub abandon_after: Duration,
    /// How long an execution may wait for a kind of worker that was here lately, or that may be about to come just
    /// after the start; after that it fails for want of one.
    pub worker_return: Duration,
    /// One step of priority counts like having waited so much longer.
    pub ageing_step: Duration,
    /// An execution that waited so long because smaller ones took the room has a worker kept free for it.
    pub patience: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_queued: 100_000,
            max_attempts: 3,
            worker_silence: Duration::from_secs(30),
            overstay: Duration::from_secs(600),
            abandon_after: Duration::from_secs(20),
            worker_return: Duration::from_secs(60),
            ageing_step: Duration::from_secs(10),
            patience: Duration::from_secs(30),
        }
    }
}

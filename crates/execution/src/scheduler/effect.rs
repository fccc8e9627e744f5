//! What the shell is to do.

use std::sync::Arc;

use super::{AssignmentId, ExecutionId, Property, Resources, RunStage, WorkerId};

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
    /// Hang up on a worker that was silent for too long, or did not stop what was withdrawn.
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
    /// Workers were lost, or failed, too often while they ran it.
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

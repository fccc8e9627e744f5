//! What happens to the scheduler.

use super::{AssignmentId, Cap, ExecutionId, Offer, Payer, Submission, WorkerId};

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
    /// A tenant may have so many executions on workers from now on, or any number. What runs beyond it runs on.
    Capped {
        /// Which tenant.
        payer: Payer,
        /// `None` for any number.
        cap: Option<Cap>,
    },
    /// Time passed: what is due is done. Wanted at [`Scheduler::wake_at`].
    Tick,
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
    /// The worker did not begin it, since it is about to leave: another one will do. No failure of anybody.
    HandedBack,
    /// The worker ended it because it was told to.
    Cancelled,
}

//! What is known of each execution and of each attempt to run one.

use std::time::Duration;

use super::invocations::{Invocation, InvocationId};
use super::matching::PlatformId;
use super::queue::{Lane, Ticket};
use super::{AssignmentId, ExecutionId, MergeKey, Now, Payer, Resources, RunStage, Submission, WorkerId};

/// One execution, from its submission until it is completed.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) payer: Payer,
    pub(super) invocation: Invocation,
    pub(super) invocation_id: InvocationId,
    pub(super) priority: i32,
    pub(super) lane: Lane,
    pub(super) merge: Option<MergeKey>,
    pub(super) timeout: Duration,
    pub(super) enqueued: Now,
    pub(super) number: u64,
    pub(super) attempts: u32,
    pub(super) setbacks: Setbacks,
    pub(super) waiters: usize,
    /// When it is cancelled if nobody comes back.
    pub(super) abandoned: Option<Now>,
    pub(super) state: State,
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Setback {
    /// The worker is gone.
    WorkerLost,
    /// It failed, or did not come to an end.
    WorkerFailed(WorkerId),
    /// It did not begin.
    HandedBack(WorkerId),
}

/// How often attempts came to nothing, each cause by itself: what is no fault of the execution does not use up what it
/// may be tried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setbacks {
    lost: u32,
    failed: u32,
    handed_back: u32,
}

impl Setbacks {
    /// Once more. How often for that cause.
    pub(super) fn count(&mut self, setback: Setback) -> u32 {
        let count = match setback {
            Setback::WorkerLost => &mut self.lost,
            Setback::WorkerFailed(_) => &mut self.failed,
            Setback::HandedBack(_) => &mut self.handed_back,
        };
        *count = count.saturating_add(1);
        *count
    }
}

/// Where an execution is.
#[derive(Debug)]
pub(super) enum State {
    /// In line.
    Queued(Wishes),
    /// On a worker.
    Running(AssignmentId),
}

/// What an execution in line may have of its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wishes {
    /// The worker that failed it last, and until when it gets it only if there is no other.
    pub(super) avoids: Option<(WorkerId, Now)>,
    /// The worker that is kept free for it.
    pub(super) reserved: Option<WorkerId>,
}

impl Execution {
    pub(super) fn new(
        submission: Submission,
        platform: PlatformId,
        invocation_id: InvocationId,
        enqueued: Now,
        number: u64,
    ) -> Self {
        Self {
            payer: submission.payer,
            invocation: (submission.payer, submission.invocation),
            invocation_id,
            priority: submission.priority,
            lane: Lane { platform, demand: counted(submission.demand) },
            merge: submission.merge,
            timeout: submission.timeout,
            enqueued,
            number,
            attempts: 0,
            setbacks: Setbacks::default(),
            waiters: 1,
            abandoned: None,
            state: State::Queued(Wishes::default()),
        }
    }

    pub(super) fn ticket(&self, execution: ExecutionId) -> Ticket {
        Ticket {
            execution,
            payer: self.payer,
            invocation: self.invocation_id,
            priority: self.priority,
            enqueued: self.enqueued,
            number: self.number,
        }
    }

    pub(super) fn wishes(&self) -> Wishes {
        match self.state {
            State::Queued(wishes) => wishes,
            State::Running(_) => Wishes::default(),
        }
    }

    pub(super) fn wishes_mut(&mut self) -> Option<&mut Wishes> {
        match &mut self.state {
            State::Queued(wishes) => Some(wishes),
            State::Running(_) => None,
        }
    }
}

impl Wishes {
    /// The worker that must not get it now.
    pub(super) fn avoided(&self) -> Option<WorkerId> {
        self.avoids.map(|(worker, _)| worker)
    }
}

/// Whatever runs takes at least so many thousandths of a core: starting it alone does.
const LEAST_MILLI_CORES: u32 = 50;

/// What a demand counts as.
pub(super) fn counted(demand: Resources) -> Resources {
    Resources { milli_cores: demand.milli_cores.max(LEAST_MILLI_CORES), ..demand }
}

/// One attempt to run an execution.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) worker: WorkerId,
    pub(super) payer: Payer,
    /// `None` once it was withdrawn.
    pub(super) execution: Option<ExecutionId>,
    pub(super) demand: Resources,
    pub(super) stage: RunStage,
    pub(super) since: Now,
    /// Of its process.
    pub(super) timeout: Duration,
    /// When it should have ended.
    pub(super) overstays: Now,
}

//! What must be true of the effects, whatever the scheduler thinks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gf_execution::scheduler::{
    AssignmentId, Effect, End, ExecutionId, Now, Offer, PRIORITIES, Payer, Resources, Submission, WorkerId,
};

use super::shares::Shares;

/// An execution that lives.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) submission: Submission,
    pub(crate) submitted: Now,
    pub(crate) running: Option<(WorkerId, AssignmentId)>,
    pub(crate) attempts: u32,
}

/// A worker that lives.
#[derive(Debug)]
pub(crate) struct Working {
    pub(crate) offer: Offer,
    pub(crate) free: Resources,
    pub(crate) runs: BTreeMap<AssignmentId, Run>,
    pub(crate) draining: bool,
}

/// What a worker has, until it says that it ended.
#[derive(Debug)]
pub(crate) struct Run {
    payer: Payer,
    demand: Resources,
}

/// What happened, in numbers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) submitted: usize,
    pub(crate) merged: usize,
    pub(crate) assigned: usize,
    pub(crate) answered: usize,
    pub(crate) cancelled: usize,
    pub(crate) without_worker: usize,
    pub(crate) given_up: usize,
    pub(crate) refused: usize,
    pub(crate) dismissed: usize,
    pub(crate) requeued: usize,
    /// Looks at a tenant that waited beside a worker with room, since it might not have more.
    pub(crate) held_back: usize,
    /// The longest wait for a first attempt, of what is of a usual priority.
    pub(crate) longest_wait: Duration,
    /// Of the least urgent.
    pub(crate) most_patient: Duration,
}

/// The world as the effects make it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) live: BTreeMap<ExecutionId, Live>,
    pub(crate) workers: BTreeMap<WorkerId, Working>,
    pub(crate) tally: Tally,
    pub(crate) shares: Shares,
    /// How many executions tenants may have on workers.
    pub(crate) caps: BTreeMap<Payer, u32>,
    /// Those that may not have had a cap ever: how long they wait says whether they starve.
    pub(crate) capped_ever: BTreeSet<Payer>,
    given_to: BTreeMap<Payer, u32>,
    over: BTreeSet<ExecutionId>,
    /// Every assignment that was ever given, and of what.
    given: BTreeMap<AssignmentId, ExecutionId>,
    /// Assignments whose result is not wanted, until the worker says that they ended.
    pub(crate) withdrawn: BTreeSet<(WorkerId, AssignmentId)>,
}

impl Model {
    /// With so many tenants.
    pub(crate) fn of(tenants: u32) -> Self {
        Self { shares: Shares::of(tenants as usize), ..Self::default() }
    }

    /// Checks an effect and does it.
    pub(crate) fn perform(&mut self, effect: &Effect, now: Now) {
        match effect {
            Effect::Queued(id) => {
                let live = self.live.get_mut(id).expect("queued while it lives");
                assert!(live.running.is_none(), "{id} queued while it runs");
                self.tally.requeued += usize::from(live.attempts > 0);
                self.shares.queued(live.submission.payer, *id);
            }
            Effect::Merged { submitted, into } => {
                let forgotten = self.live.remove(submitted).expect("merged while it lives");
                let into = self.live.get(into).expect("merged into one that lives");
                assert!(forgotten.submission.merge.is_some(), "merged what must not be");
                assert_eq!(forgotten.submission.merge, into.submission.merge);
                self.tally.merged += 1;
            }
            Effect::Assign { worker, assignment, execution } => self.assign(*worker, *assignment, *execution, now),
            Effect::Stage { execution, .. } => {
                assert!(self.live[execution].running.is_some(), "{execution} has a stage and does not run");
            }
            Effect::Withdraw { worker, assignment } => {
                assert!(self.workers[worker].runs.contains_key(assignment));
                self.withdrawn.insert((*worker, *assignment));
                assert!(self.failed(*worker, *assignment), "withdrawn and did not run");
            }
            Effect::Dismiss(worker) => {
                self.tally.dismissed += 1;
                self.lose(*worker);
            }
            Effect::Complete { execution, end } => self.complete(*execution, end),
        }
    }

    fn assign(&mut self, worker: WorkerId, assignment: AssignmentId, execution: ExecutionId, now: Now) {
        assert!(self.given.insert(assignment, execution).is_none(), "assignment {assignment} given twice");
        let live = self.live.get_mut(&execution).expect("assigned while it lives");
        assert!(live.running.is_none(), "{execution} runs twice at once");
        let on = self.workers.get_mut(&worker).expect("assigned to a worker that lives");
        assert!(!on.draining, "{worker} takes nothing more");
        let demand = live.submission.demand;
        assert!(demand.fits(&on.free), "{worker} is given more than it has");
        let wanted = live.submission.platform.properties();
        assert!(wanted.iter().all(|property| on.offer.properties.contains(property)), "{worker} cannot run it");
        on.free.milli_cores -= demand.milli_cores;
        on.free.memory_bytes -= demand.memory_bytes;
        let payer = live.submission.payer;
        on.runs.insert(assignment, Run { payer, demand });
        let given = self.given_to.entry(payer).or_default();
        *given += 1;
        let cap = self.caps.get(&payer);
        assert!(cap.is_none_or(|cap| *given <= *cap), "{payer:?} has {given} of {cap:?}");
        live.running = Some((worker, assignment));
        live.attempts += 1;
        self.tally.assigned += 1;
        self.shares.given(payer, execution, demand.milli_cores);
        if live.attempts == 1 && !self.capped_ever.contains(&payer) {
            let is_patient = live.submission.priority > *PRIORITIES.end();
            let longest = if is_patient { &mut self.tally.most_patient } else { &mut self.tally.longest_wait };
            *longest = now.since(live.submitted).max(*longest);
        }
    }

    fn complete(&mut self, execution: ExecutionId, end: &End) {
        assert!(self.over.insert(execution), "{execution} completed twice");
        let live = self.live.remove(&execution).expect("completed while it lives");
        self.shares.left(live.submission.payer, execution);
        let count = match end {
            End::Answered(assignment) => {
                assert_eq!(live.running.map(|(_, runs)| runs), Some(*assignment));
                &mut self.tally.answered
            }
            End::Cancelled => {
                assert!(live.running.is_none(), "cancelled without telling the worker");
                &mut self.tally.cancelled
            }
            End::NoWorker(_) => {
                assert!(live.running.is_none());
                &mut self.tally.without_worker
            }
            End::GivenUp { attempts } => {
                assert_eq!(*attempts, live.attempts);
                &mut self.tally.given_up
            }
            End::QueueFull => &mut self.tally.refused,
        };
        *count += 1;
    }

    /// A worker is told to have ended an assignment. Whether it ran that.
    pub(crate) fn ended(&mut self, worker: WorkerId, assignment: AssignmentId) -> bool {
        self.withdrawn.remove(&(worker, assignment));
        let Some(on) = self.workers.get_mut(&worker) else { return false };
        let Some(run) = on.runs.remove(&assignment) else { return false };
        on.free.milli_cores += run.demand.milli_cores;
        on.free.memory_bytes += run.demand.memory_bytes;
        self.take_back(&run);
        true
    }

    fn take_back(&mut self, run: &Run) {
        *self.given_to.get_mut(&run.payer).expect("it was given") -= 1;
    }

    /// Nothing waits beside a worker that has room for it, unless its tenant may not have more. Where all ask for the same
    /// and all workers are alike, and none fails.
    pub(crate) fn check_nothing_is_held_back(&mut self, demand: Resources) {
        let has_room = |worker: &Working| !worker.draining && demand.fits(&worker.free);
        if !self.workers.values().any(has_room) {
            return;
        }
        for payer in self.shares.waiting() {
            let given = self.given_to.get(&payer).copied().unwrap_or_default();
            let is_below = self.caps.get(&payer).is_none_or(|cap| given < *cap);
            assert!(
                !is_below,
                "{payer:?} has {given} of {:?} and waits beside a worker with room",
                self.caps.get(&payer)
            );
            self.tally.held_back += 1;
        }
    }

    /// A failed attempt runs no more, before the scheduler says what becomes of it. Whether it ran.
    pub(crate) fn failed(&mut self, worker: WorkerId, assignment: AssignmentId) -> bool {
        let live = self.given.get(&assignment).and_then(|execution| self.live.get_mut(execution));
        let ran = live.filter(|live| live.running == Some((worker, assignment)));
        ran.map(|live| live.running = None).is_some()
    }

    /// A worker is gone, and nothing runs on it.
    pub(crate) fn lose(&mut self, worker: WorkerId) {
        let Some(gone) = self.workers.remove(&worker) else { return };
        for (assignment, run) in gone.runs {
            self.take_back(&run);
            self.withdrawn.remove(&(worker, assignment));
            self.failed(worker, assignment);
        }
    }
}

//! Who runs what, where and when: a pure state machine, `apply(event, now) -> effects`.
//!
//! It decides; it does not act. No clock, no socket, no task: the shell passes time in and performs the effects.
//! Deliberately absent: what an action is, how its result is stored, who the clients are.
//!
//! What always holds: an execution is in exactly one state; it runs on at most one worker at a time; every execution
//! that was submitted is completed exactly once; what is kept is bounded by the number of executions and workers that
//! live, and by [`SchedulerConfig::max_queued`].

mod attendance;
mod caps;
mod config;
mod dispatch;
mod effect;
mod event;
mod executions;
mod explain;
mod fairness;
mod invocations;
mod lookup;
mod matching;
mod overstays;
mod platform;
mod prospects;
mod queue;
mod reservations;
mod snapshot;
mod submission;
mod timers;
mod workers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use caps::Cap;
pub use config::SchedulerConfig;
pub use effect::{Effect, End, Nearest, NoWorker};
pub use event::{Event, Outcome, RunStage};
pub use explain::{Ahead, Explanation, Matching, Scarce, Situation};
pub use platform::{Platform, PlatformError, Property};
pub use snapshot::{CapState, QueueState, RunningState, Snapshot, WorkerState};
pub use submission::{
    AssignmentId, ExecutionId, MergeKey, Now, Offer, PRIORITIES, Payer, Resources, Submission, WorkerId,
};

use caps::Caps;
use executions::{Assignment, Execution, State, Wishes};
use invocations::Invocations;
use lookup::Lookup;
use matching::Platforms;
use prospects::Prospect;
use queue::Queues;
use reservations::Kept;
use timers::{Due, Timers};
use workers::Fleet;

/// An execution that failed on a worker goes to another one, if any has room within this time.
const AVOIDED_FOR: Duration = Duration::from_secs(2);

/// The state machine.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    now: Now,
    /// When the first event came, and the first worker.
    started: Option<Now>,
    first_worker: Option<Now>,
    next_assignment: u64,
    next_number: u64,
    /// Looked up, never walked for an order; so are the two below.
    executions: Lookup<ExecutionId, Execution>,
    assignments: Lookup<AssignmentId, Assignment>,
    merges: Lookup<MergeKey, ExecutionId>,
    invocations: Invocations,
    platforms: Platforms,
    queues: Queues,
    fleet: Fleet,
    /// For whom a worker is kept free.
    kept: BTreeMap<Payer, Kept>,
    caps: Caps,
    timers: Timers,
    /// Workers that got room by the event at hand.
    hungry: BTreeSet<WorkerId>,
    /// Tenants of which more may run by it.
    released: BTreeSet<Payer>,
}

impl Scheduler {
    /// Without workers and work.
    #[must_use]
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            now: Now::default(),
            started: None,
            first_worker: None,
            next_assignment: 1,
            next_number: 0,
            executions: Lookup::default(),
            assignments: Lookup::default(),
            merges: Lookup::default(),
            invocations: Invocations::default(),
            platforms: Platforms::default(),
            queues: Queues::new(config.ageing_step),
            fleet: Fleet::default(),
            kept: BTreeMap::new(),
            caps: Caps::default(),
            timers: Timers::default(),
            hungry: BTreeSet::new(),
            released: BTreeSet::new(),
        }
    }

    /// Takes note of what happened at `now` and appends what is to be done. A time before that of an earlier event
    /// counts as that one.
    pub fn apply(&mut self, event: Event, now: Now, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.started.get_or_insert(self.now);
        match event {
            Event::Submit { execution, submission } => self.submit(execution, submission, effects),
            Event::WaiterJoined(execution) => self.waiter_joined(execution),
            Event::WaiterLeft(execution) => self.waiter_left(execution),
            Event::Cancel(execution) => self.cancel(execution, effects),
            Event::WorkerJoined { worker, offer } => self.worker_joined(worker, offer),
            Event::WorkerHeard(worker) => self.heard(worker),
            Event::WorkerDraining(worker) => self.drain(worker),
            Event::WorkerLeft(worker) => self.lose(worker, effects),
            Event::Progressed { worker, assignment, stage } => self.progressed(worker, assignment, stage, effects),
            Event::Finished { worker, assignment, outcome } => self.finished(worker, assignment, outcome, effects),
            Event::Capped { payer, cap } => self.cap(payer, cap),
            Event::Tick => self.do_what_is_due(effects),
        }
        self.share_out(effects);
    }

    /// When something is due next: the shell then says [`Event::Tick`].
    #[must_use]
    pub fn wake_at(&self) -> Option<Now> {
        self.timers.next()
    }

    /// Gives what got free to those that wait: room in the order of turns, and then what is left of it to tenants that could
    /// not have more before.
    fn share_out(&mut self, effects: &mut Vec<Effect>) {
        loop {
            if let Some(worker) = self.hungry.pop_first() {
                self.feed(worker, effects);
            } else if let Some(payer) = self.released.pop_first() {
                self.serve(payer, effects);
            } else {
                return;
            }
        }
    }

    fn do_what_is_due(&mut self, effects: &mut Vec<Effect>) {
        while let Some(due) = self.timers.take(self.now) {
            match due {
                Due::Silence(worker) => self.check_silence(worker, effects),
                Due::Rested(worker) => self.rested(worker),
                Due::Overstayed(worker) => self.check_overstays(worker, effects),
                Due::Abandoned(execution) => self.cancel(execution, effects),
                Due::Forgiven(execution) => self.forgive(execution),
                Due::KeptFree(payer) => self.keep_no_longer(payer),
                Due::Unserved(lane) => self.check_unserved(lane, effects),
                Due::Forgotten(class) => self.forget(class),
            }
        }
    }
}

/// What clients do.
impl Scheduler {
    fn submit(&mut self, id: ExecutionId, mut submission: Submission, effects: &mut Vec<Effect>) {
        if self.executions.contains_key(&id) {
            return;
        }
        submission.priority = submission.priority.clamp(*PRIORITIES.start(), *PRIORITIES.end());
        if let Some(into) = submission.merge.as_ref().and_then(|key| self.merges.get(key)).copied() {
            self.waiter_joined(into);
            self.hurry(into, submission.priority);
            return effects.push(Effect::Merged { submitted: id, into });
        }
        let platform = self.platforms.enter(&submission.platform, &self.fleet);
        let invocation = self.invocations.enter(&(submission.payer, submission.invocation.clone()));
        self.next_number += 1;
        let execution = Execution::new(submission, platform, invocation, self.now, self.next_number);
        let (lane, payer) = (execution.lane, execution.payer);
        if let Some(key) = &execution.merge {
            self.merges.insert(key.clone(), id);
        }
        self.executions.insert(id, execution);
        let is_new_lane = self.queues.lane(lane).is_none();
        if is_new_lane && self.prospect(lane) == Prospect::None {
            let end = End::NoWorker(self.why_no_worker(lane));
            self.complete(id, end, effects);
        } else if self.place(id, effects) {
            // Where others wait there may be room all the same: they avoid the worker, or it did not look at them.
        } else if self.is_full_for(payer) {
            self.complete(id, End::QueueFull, effects);
        } else {
            self.enqueue(id, Wishes::default(), effects);
        }
    }

    fn is_full_for(&self, payer: Payer) -> bool {
        let is_full = self.queues.queued() >= self.config.max_queued;
        is_full || self.queues.queued_of(payer) >= self.config.max_queued_of_tenant
    }

    /// Somebody for whom it is more urgent waits for it, too.
    fn hurry(&mut self, id: ExecutionId, priority: i32) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let (lane, before) = (execution.lane, execution.ticket(id));
        if priority >= execution.priority {
            return;
        }
        execution.priority = priority;
        if let State::Queued(_) = execution.state {
            // Into its new place first, so that the tenant never has nothing in the lane.
            let after = execution.ticket(id);
            self.queues.insert(lane, &after);
            self.queues.remove(lane, &before);
        }
    }

    fn waiter_joined(&mut self, id: ExecutionId) {
        if let Some(execution) = self.executions.get_mut(&id) {
            execution.waiters += 1;
            self.timers.unset(execution.abandoned.take(), Due::Abandoned(id));
        }
    }

    fn waiter_left(&mut self, id: ExecutionId) {
        let Some(execution) = self.executions.get_mut(&id).filter(|execution| execution.waiters > 0) else { return };
        execution.waiters -= 1;
        if execution.waiters == 0 {
            let at = self.now.after(self.config.abandon_after);
            execution.abandoned = Some(at);
            self.timers.set(at, Due::Abandoned(id));
        }
    }

    fn cancel(&mut self, id: ExecutionId, effects: &mut Vec<Effect>) {
        let Some(execution) = self.executions.get(&id) else { return };
        match execution.state {
            State::Queued(_) => self.unqueue(id),
            State::Running(assignment) => self.recall(assignment, effects),
        }
        self.complete(id, End::Cancelled, effects);
    }

    /// It is over. It neither waits in line nor runs.
    fn complete(&mut self, id: ExecutionId, end: End, effects: &mut Vec<Effect>) {
        let Some(execution) = self.executions.remove(&id) else { return };
        if let Some(key) = &execution.merge {
            self.merges.remove(key);
        }
        self.timers.unset(execution.abandoned, Due::Abandoned(id));
        self.platforms.exit(execution.lane.platform);
        self.invocations.exit(&execution.invocation);
        effects.push(Effect::Complete { execution: id, end });
    }
}

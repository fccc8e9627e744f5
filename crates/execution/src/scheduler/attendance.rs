//! What workers do: come, go, fall silent, answer, fail.

use super::executions::{Execution, Setback, Wishes};
use super::timers::Due;
use super::workers::ClassId;
use super::{AVOIDED_FOR, AssignmentId, Effect, End, ExecutionId, Offer, Outcome, RunStage, Scheduler, WorkerId};

impl Scheduler {
    pub(super) fn worker_joined(&mut self, id: WorkerId, offer: Offer) {
        if self.fleet.get(id).is_some() {
            return;
        }
        let joined = self.fleet.join(id, offer, self.now);
        if joined.is_new_class {
            self.class_came(joined.class);
        }
        let departed = joined.departed.map(|at| at.after(self.config.worker_return));
        self.timers.unset(departed, Due::Forgotten(joined.class));
        self.listen(id);
        if self.first_worker.is_none() {
            self.first_worker = Some(self.now);
            self.watch_all();
        }
        self.hungry.insert(id);
    }

    pub(super) fn heard(&mut self, id: WorkerId) {
        let now = self.now;
        // Its timer stays as it is, and is set anew when it runs out: that is rare, and this is not.
        if let Some(worker) = self.fleet.get_mut(id) {
            worker.heard = now;
        }
    }

    fn listen(&mut self, id: WorkerId) {
        let silence = self.config.worker_silence;
        if let Some(worker) = self.fleet.get_mut(id) {
            let due = worker.heard.after(silence);
            worker.silence_due = Some(due);
            self.timers.set(due, Due::Silence(id));
        }
    }

    pub(super) fn check_silence(&mut self, id: WorkerId, effects: &mut Vec<Effect>) {
        let Some(worker) = self.fleet.get(id) else { return };
        if worker.heard.after(self.config.worker_silence) > self.now {
            return self.listen(id);
        }
        self.dismiss(id, effects);
    }

    pub(super) fn drain(&mut self, id: WorkerId) {
        self.heard(id);
        if self.fleet.get(id).is_none_or(|worker| worker.draining) {
            return;
        }
        self.unreserve(id);
        self.fleet.change(id, |worker| worker.draining = true);
        self.retire(id);
    }

    fn retire(&mut self, id: WorkerId) {
        let Some(retired) = self.fleet.retire(id, self.now) else { return };
        if retired.was_last {
            self.timers.set(self.now.after(self.config.worker_return), Due::Forgotten(retired.class));
        }
        while let Some((at, class)) = self.fleet.departed_too_many() {
            self.timers.unset(Some(at.after(self.config.worker_return)), Due::Forgotten(class));
            self.forget(class);
        }
        if retired.was_last_of_its_size {
            self.watch_served_by(retired.class);
        }
    }

    /// Hangs up on it.
    pub(super) fn dismiss(&mut self, id: WorkerId, effects: &mut Vec<Effect>) {
        effects.push(Effect::Dismiss(id));
        self.lose(id, effects);
    }

    /// The worker is gone: what it ran is tried elsewhere.
    pub(super) fn lose(&mut self, id: WorkerId, effects: &mut Vec<Effect>) {
        let Some(worker) = self.fleet.get(id) else { return };
        if !worker.draining {
            self.unreserve(id);
            self.retire(id);
        }
        let Some(worker) = self.fleet.remove(id) else { return };
        self.timers.unset(worker.silence_due, Due::Silence(id));
        self.timers.unset(worker.overstay_due, Due::Overstayed(id));
        self.timers.unset(worker.rests_until, Due::Rested(id));
        if self.fleet.class(worker.class).is_some_and(|class| class.is_over()) {
            self.forget(worker.class);
        }
        for assignment in worker.assignments {
            let Some(lost) = self.assignments.remove(&assignment) else { continue };
            self.take_back(lost.payer);
            if let Some(execution) = lost.execution {
                self.try_again(execution, Setback::WorkerLost, effects);
            }
        }
    }

    /// An attempt came to nothing.
    pub(super) fn try_again(&mut self, id: ExecutionId, setback: Setback, effects: &mut Vec<Effect>) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let attempts = execution.attempts;
        let (most, avoided) = match setback {
            Setback::WorkerLost => (self.config.max_attempts, None),
            Setback::WorkerFailed(worker) => (self.config.max_attempts, Some(worker)),
            Setback::HandedBack(worker) => (self.config.max_hand_backs, Some(worker)),
        };
        if execution.setbacks.count(setback) >= most {
            return self.complete(id, End::GivenUp { attempts }, effects);
        }
        let avoids = avoided.map(|worker| (worker, self.now.after(AVOIDED_FOR)));
        self.enqueue(id, Wishes { avoids, reserved: None }, effects);
        self.place(id, effects);
    }

    /// The worker that failed it, or handed it back, may have it, since no other one had room.
    pub(super) fn forgive(&mut self, id: ExecutionId) {
        let wishes = self.executions.get_mut(&id).and_then(Execution::wishes_mut);
        if let Some((worker, _)) = wishes.and_then(|wishes| wishes.avoids.take()) {
            self.hungry.insert(worker);
        }
    }

    pub(super) fn progressed(
        &mut self,
        worker: WorkerId,
        id: AssignmentId,
        stage: RunStage,
        effects: &mut Vec<Effect>,
    ) {
        self.heard(worker);
        let Some(assignment) = self.assignments.get_mut(&id).filter(|assignment| assignment.worker == worker) else {
            return;
        };
        let Some(execution) = assignment.execution else { return };
        if assignment.stage != stage {
            assignment.stage = stage;
            effects.push(Effect::Stage { execution, stage });
        }
        self.extend(id, stage);
    }

    pub(super) fn finished(&mut self, worker: WorkerId, id: AssignmentId, outcome: Outcome, effects: &mut Vec<Effect>) {
        self.heard(worker);
        if self.assignments.get(&id).is_none_or(|assignment| assignment.worker != worker) {
            return;
        }
        let Some(ended) = self.assignments.remove(&id) else { return };
        self.take_back(ended.payer);
        let answered = ended.execution.is_some() && outcome == Outcome::Answered;
        self.fleet.change(worker, |worker| {
            worker.free = worker.free.plus(ended.demand);
            worker.assignments.remove(&id);
            if answered {
                worker.succeeded();
            }
        });
        self.hungry.insert(worker);
        match (ended.execution, outcome) {
            (Some(execution), Outcome::Answered) => self.complete(execution, End::Answered(id), effects),
            // One that was not told to stop and stopped failed, too.
            (Some(execution), Outcome::WorkerFailed | Outcome::Cancelled) => {
                self.worker_failed(worker, execution);
                self.try_again(execution, Setback::WorkerFailed(worker), effects);
            }
            (Some(execution), Outcome::HandedBack) => {
                self.try_again(execution, Setback::HandedBack(worker), effects);
            }
            (None, _) => {}
        }
    }

    fn worker_failed(&mut self, id: WorkerId, execution: ExecutionId) {
        let now = self.now;
        let failed = self.fleet.change(id, |worker| (worker.rests_until, worker.failed(execution, now)));
        let Some((before, Some(until))) = failed else { return };
        self.timers.unset(before, Due::Rested(id));
        self.timers.set(until, Due::Rested(id));
        self.unreserve(id);
    }

    pub(super) fn rested(&mut self, id: WorkerId) {
        self.fleet.change(id, |worker| worker.rests_until = None);
        self.hungry.insert(id);
    }

    pub(super) fn forget(&mut self, class: ClassId) {
        if self.fleet.forget(class) {
            self.platforms.class_went(class);
        }
    }
}

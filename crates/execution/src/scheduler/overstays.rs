//! Assignments that last too long.
//!
//! An assignment has the time of its action, and some beyond it to fetch and to upload; each word that it goes on gives
//! it more, up to a bound. Then it is withdrawn and its execution tried elsewhere, while its neighbours on the worker go
//! on. Only a worker that does not answer a withdrawal either is dismissed.

use super::executions::Setback;
use super::timers::Due;
use super::{AssignmentId, Effect, Now, RunStage, Scheduler, WorkerId};

impl Scheduler {
    /// It goes on, and may last longer for that.
    pub(super) fn extend(&mut self, id: AssignmentId, stage: RunStage) {
        let Some(assignment) = self.assignments.get_mut(&id) else { return };
        let process = if stage == RunStage::Uploading { Default::default() } else { assignment.timeout };
        let wanted = self.now.after(process).after(self.config.overstay);
        let latest = assignment.since.after(assignment.timeout).after(self.config.longest_overstay);
        // Its timer stays as it is, and is set anew when it runs out.
        assignment.overstays = assignment.overstays.max(wanted.min(latest));
    }

    /// Nobody wants its result. It has only to stop: it need not be given the time of the whole action for that.
    pub(super) fn recall(&mut self, id: AssignmentId, effects: &mut Vec<Effect>) {
        let Some(assignment) = self.assignments.get(&id) else { return };
        let until = assignment.overstays.min(self.now.after(self.config.overstay));
        self.withdraw(id, until.max(self.now.after(self.config.withdrawal)), effects);
    }

    fn withdraw(&mut self, id: AssignmentId, until: Now, effects: &mut Vec<Effect>) {
        let Some(assignment) = self.assignments.get_mut(&id) else { return };
        assignment.execution = None;
        assignment.overstays = until;
        effects.push(Effect::Withdraw { worker: assignment.worker, assignment: id });
        self.expect_end(id);
    }

    /// Looks at what the worker runs when this one should have ended, unless it does so before.
    ///
    /// The timer stays when an assignment ends, which is so often, and is set anew when it runs out, which is rare.
    pub(super) fn expect_end(&mut self, id: AssignmentId) {
        let Some(assignment) = self.assignments.get(&id) else { return };
        let (id, at) = (assignment.worker, assignment.overstays);
        let Some(worker) = self.fleet.get_mut(id) else { return };
        if worker.overstay_due.is_none_or(|due| at < due) {
            let before = worker.overstay_due.replace(at);
            self.timers.unset(before, Due::Overstayed(id));
            self.timers.set(at, Due::Overstayed(id));
        }
    }

    /// Something that the worker runs should perhaps have ended.
    pub(super) fn check_overstays(&mut self, id: WorkerId, effects: &mut Vec<Effect>) {
        let Some(worker) = self.fleet.get_mut(id) else { return };
        worker.overstay_due = None;
        let running: Vec<_> = worker.assignments.iter().copied().collect();
        for assignment in running {
            self.check_overstay(assignment, effects);
        }
    }

    fn check_overstay(&mut self, id: AssignmentId, effects: &mut Vec<Effect>) {
        // It is gone when another one had the worker dismissed.
        let Some(assignment) = self.assignments.get(&id) else { return };
        if assignment.overstays > self.now {
            return self.expect_end(id);
        }
        let worker = assignment.worker;
        let Some(execution) = assignment.execution else { return self.dismiss(worker, effects) };
        self.withdraw(id, self.now.after(self.config.withdrawal), effects);
        self.try_again(execution, Setback::WorkerFailed(worker), effects);
    }
}

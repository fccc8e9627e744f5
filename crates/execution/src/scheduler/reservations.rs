//! Workers that are kept free for what is too large to find room by chance.
//!
//! Room that is kept free is room that nobody uses. So what always holds: one worker at most is kept free for a tenant,
//! whatever number of things it asks for, and not for longer than [`SchedulerConfig::kept_free`](super::SchedulerConfig).
//! When that was in vain, none is for as long as it takes to lose patience; then perhaps another one.

use super::executions::Execution;
use super::timers::Due;
use super::{ExecutionId, Now, Payer, Scheduler, WorkerId};

/// The worker that is kept free for a tenant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// `None` after it was kept free in vain.
    worker: Option<WorkerId>,
    until: Now,
}

impl Scheduler {
    /// Whether a worker may be kept free for the tenant.
    pub(super) fn may_reserve(&self, payer: Payer) -> bool {
        !self.kept.contains_key(&payer)
    }

    /// The worker that is kept free for the tenant.
    pub(super) fn kept_for(&self, payer: Payer) -> Option<WorkerId> {
        self.kept.get(&payer)?.worker
    }

    /// Keeps the worker free for it.
    pub(super) fn reserve(&mut self, id: ExecutionId, worker: WorkerId) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let payer = execution.payer;
        let Some(wishes) = execution.wishes_mut() else { return };
        wishes.reserved = Some(worker);
        self.fleet.change(worker, |worker| worker.reserved = Some(id));
        self.keep(payer, Some(worker), self.now.after(self.config.kept_free));
    }

    /// The worker is not kept free any more, and may have room for others.
    pub(super) fn unreserve(&mut self, worker: WorkerId) {
        let Some(id) = self.fleet.get(worker).and_then(|worker| worker.reserved) else { return };
        // While it still counts for its tenant: others of that may have waited for it.
        if let Some(payer) = self.executions.get(&id).map(|execution| execution.payer) {
            self.release(payer);
        }
        self.fleet.change(worker, |worker| worker.reserved = None);
        self.hungry.insert(worker);
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let payer = execution.payer;
        if let Some(wishes) = Execution::wishes_mut(execution) {
            wishes.reserved = None;
        }
        if let Some(kept) = self.kept.remove(&payer) {
            self.timers.unset(Some(kept.until), Due::KeptFree(payer));
        }
    }

    /// The time is over for which one may be kept free for the tenant, or none.
    pub(super) fn keep_no_longer(&mut self, payer: Payer) {
        self.release(payer);
        let Some(kept) = self.kept.remove(&payer) else { return };
        if let Some(worker) = kept.worker {
            self.unreserve(worker);
            self.keep(payer, None, self.now.after(self.config.patience));
        }
    }

    fn keep(&mut self, payer: Payer, worker: Option<WorkerId>, until: Now) {
        self.kept.insert(payer, Kept { worker, until });
        self.timers.set(until, Due::KeptFree(payer));
    }
}

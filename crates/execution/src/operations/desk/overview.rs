//! What an operator sees, of all tenants: who runs what, and where one operation stands.

use std::collections::HashMap;

use gf_digest::Digest;
use gf_tenancy::TenantName;

use super::Desk;
use crate::operations::{OperationName, Progress};
use crate::scheduler::{ExecutionId, Explanation, Now, Snapshot};

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Queues and workers.
    pub snapshot: Snapshot,
    /// What runs on the workers.
    pub running: HashMap<ExecutionId, RunningAction>,
}

/// What runs on a worker.
#[derive(Clone, Debug)]
pub struct RunningAction {
    /// The action.
    pub action: Digest,
    /// Who pays for it.
    pub tenant: TenantName,
    /// The first of the operations that wait for it; `None` when its result is being stored, or nobody waits any more.
    pub operation: Option<OperationName>,
}

/// One operation, as an operator sees it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What it is to run.
    pub action: Digest,
    /// How far it got, and how it ended.
    pub progress: Progress,
    /// Why it is where it is, while it waits or runs.
    pub explanation: Option<Explanation>,
}

impl Desk {
    pub(in crate::operations) fn overview(&self, now: Now) -> Overview {
        let snapshot = self.snapshot(now);
        let runs = snapshot.workers.iter().flat_map(|worker| &worker.running).filter_map(|run| run.execution);
        let running = runs.filter_map(|id| Some((id, self.running_action(id)?))).collect();
        Overview { snapshot, running }
    }

    fn running_action(&self, id: ExecutionId) -> Option<RunningAction> {
        let execution = self.executions.get(&id)?;
        Some(RunningAction {
            action: execution.action.digest,
            tenant: execution.grant.tenant().name().clone(),
            operation: execution.operations.first().cloned(),
        })
    }

    pub(in crate::operations) fn inspect(&self, name: &OperationName, now: Now) -> Option<Inspection> {
        let operation = self.operations.get(name)?;
        Some(Inspection {
            action: operation.action,
            progress: operation.progress.borrow().clone(),
            explanation: operation.execution.and_then(|id| self.scheduler.explain(id, now)),
        })
    }
}

//! From a worker's answer to the client: what the result names is proved to be stored, then it is made visible, then it
//! is announced.

use std::sync::Arc;

use gf_reapi::execution::ActionResult;
use gf_tenancy::{Authorized, Execute};

use super::Operations;
use super::answer::{Ended, Verdict};
use crate::action_cache::{ActionCacheError, Settled};
use crate::actions::CheckedAction;
use crate::scheduler::ExecutionId;

/// A result on its way to those who wait for it.
pub(super) struct Settlement {
    pub(super) execution: ExecutionId,
    pub(super) grant: Authorized<Execute>,
    pub(super) action: Arc<CheckedAction>,
    pub(super) verdict: Verdict,
    pub(super) result: ActionResult,
    pub(super) message: String,
}

impl Operations {
    pub(super) async fn settle(self, settlement: Settlement) {
        let Settlement { execution, grant, action, verdict, result, message } = settlement;
        match self.0.action_cache.settle(&grant, action.digest.into(), result).await {
            Ok(settled) => {
                if verdict == Verdict::Completed {
                    self.keep(&grant, &action, &settled).await;
                }
                let ended = Ended { verdict, result: Some(settled.result), is_cached: false, message };
                self.announce(execution, ended).await;
            }
            // The worker said that all is stored, and it is not, or not any more: it must be run again.
            Err(ActionCacheError::NotFound) => self.act(|desk, at| desk.run_again(execution, at)),
            Err(ActionCacheError::Invalid(reason)) => {
                tracing::error!(action = %action.digest, %reason, "a worker answered with a result that cannot be one");
                self.announce(execution, Ended::without_result(Verdict::Unavailable(reason))).await;
            }
            Err(ActionCacheError::Store(error)) => {
                let ended = Ended::without_result(Verdict::Unavailable(error.to_string()));
                self.announce(execution, ended).await;
            }
        }
    }

    /// Makes a result visible to others. Failures of commands are not: clients expect to see them happen again.
    async fn keep(&self, grant: &Authorized<Execute>, action: &CheckedAction, settled: &Settled) {
        if action.do_not_cache || settled.result.exit_code != 0 {
            return;
        }
        if let Err(error) = self.0.action_cache.put_executed(grant, action.digest.into(), settled).await {
            // Whoever waits gets the result all the same; the next one runs the action again.
            tracing::warn!(action = %action.digest, %error, "the result of an action could not be kept");
        }
    }

    /// Tells everybody who waits, each with the contents asked for.
    async fn announce(&self, execution: ExecutionId, ended: Ended) {
        // Those who join meanwhile are found by the next round.
        loop {
            let waiting = self.act(|desk, at| desk.take_waiting(execution, at));
            if waiting.is_empty() {
                return;
            }
            for (name, grant, inlining) in waiting {
                let mut ended = ended.clone();
                if let Some(result) = &mut ended.result {
                    let function = name.1.function();
                    self.0.action_cache.inline(&grant, function, result, &inlining).await;
                }
                self.act(|desk, at| desk.end(&name.0, ended, at));
            }
        }
    }
}

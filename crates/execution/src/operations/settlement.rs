//! From a worker's answer to the client: what the result names is proved to be stored, then it is made visible, then it
//! is announced.
//!
//! What always holds: an execution that settles ends, also when settling panics, hangs, or is cut off by a stop.

use std::sync::Arc;
use std::time::Duration;

use gf_reapi::execution::ActionResult;
use gf_tenancy::{Authorized, Execute};
use prost::Message;
use tokio::time::timeout;

use super::Operations;
use super::answer::{Ended, Verdict};
use crate::action_cache::{ActionCacheError, RunOrigin, Settled};
use crate::actions::CheckedAction;
use crate::scheduler::ExecutionId;

/// Settling is a few reads and writes of the store.
const DEADLINE: Duration = Duration::from_secs(600);

/// The longest encoded result: clients of gRPC take messages of 4 MiB, and there is something around it.
const MAX_RESULT_BYTES: usize = 3 << 20;

/// A result on its way to those who wait for it.
pub(super) struct Settlement {
    pub(super) execution: ExecutionId,
    pub(super) grant: Authorized<Execute>,
    pub(super) action: Arc<CheckedAction>,
    pub(super) verdict: Verdict,
    pub(super) result: ActionResult,
    pub(super) message: String,
    /// Where it was run.
    pub(super) origin: RunOrigin,
}

/// Ends an execution that is still settling when this is dropped.
struct Unsettled<'a> {
    operations: &'a Operations,
    execution: ExecutionId,
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.operations.act(|desk, at| desk.give_up(self.execution, "the result could not be stored", at));
    }
}

impl Operations {
    pub(super) async fn settle(self, settlement: Settlement) {
        let unsettled = Unsettled { operations: &self, execution: settlement.execution };
        let action = settlement.action.digest;
        if timeout(DEADLINE, self.settle_in_time(settlement)).await.is_err() {
            tracing::error!(%action, "storing the result of an action took too long");
        }
        // When all went well there is nothing left to give up.
        drop(unsettled);
    }

    async fn settle_in_time(&self, settlement: Settlement) {
        let Settlement { execution, grant, action, verdict, result, message, origin } = settlement;
        let is_completed = verdict == Verdict::Completed;
        match self.0.action_cache.settle(&grant, action.digest.into(), result).await {
            Ok(settled) if settled.result.encoded_len() > MAX_RESULT_BYTES => {
                let reason = "its result is too long for clients: declare directories instead of that many outputs";
                self.announce(execution, Ended::without_result(Verdict::Unfit(reason.to_owned()))).await;
            }
            Ok(settled) => {
                if is_completed {
                    self.keep(&grant, &action, &settled, &origin).await;
                }
                let ended = Ended { verdict, result: Some(settled.result), is_cached: false, message };
                self.announce(execution, ended).await;
            }
            // The worker said that all is stored, and it is not, or not any more: it must be run again.
            Err(ActionCacheError::NotFound) if is_completed => self.act(|desk, at| desk.run_again(execution, at)),
            // It failed, and would fail again: only what it had written is lost.
            Err(ActionCacheError::NotFound) => {
                let ended = Ended { message, ..Ended::without_result(verdict) };
                self.announce(execution, ended).await;
            }
            Err(error @ (ActionCacheError::Invalid(_) | ActionCacheError::Quarantined { .. })) => {
                let reason = error.to_string();
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
    async fn keep(&self, grant: &Authorized<Execute>, action: &CheckedAction, settled: &Settled, origin: &RunOrigin) {
        if action.do_not_cache || settled.result.exit_code != 0 {
            return;
        }
        if let Err(error) = self.0.action_cache.put_executed(grant, action.digest.into(), settled, origin).await {
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

//! From a request to the queue: the cache is asked, the action read and checked.
//!
//! What always holds: an operation that is being admitted is queued or ends, also when looking at its action panics,
//! hangs, or is cut off by a stop. No tenant takes more than half of the room for looking at actions.

use std::sync::Arc;
use std::time::Duration;

use gf_tenancy::{Authorized, Execute};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::answer::{Ended, Verdict};
use super::{OperationName, Operations, Request};
use crate::action_cache::ActionCacheError;
use crate::actions::{ActionError, CheckedAction, ReadAction};
use crate::closures::ClosureError;

/// Actions that are looked up in the cache at one time.
const MAX_LOOKUPS: usize = 256;
/// Input roots that are walked at one time, over all tenants and for one: each walk may hold a hundred megabytes.
const MAX_WALKS: usize = 16;
const MAX_WALKS_OF_TENANT: usize = 8;
/// Waiting for its turn included.
const DEADLINE: Duration = Duration::from_secs(1800);

/// What came of looking at an action.
enum Admitted {
    /// It is to be run.
    ToRun(Arc<CheckedAction>),
    /// It is over already.
    Over(Box<Ended>),
}

/// The room for looking at actions.
pub(super) struct Gate {
    lookups: Semaphore,
    walks: Semaphore,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self { lookups: Semaphore::const_new(MAX_LOOKUPS), walks: Semaphore::const_new(MAX_WALKS) }
    }
}

/// The room of one tenant.
pub(super) fn tenant_walks() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_WALKS_OF_TENANT))
}

/// Ends an operation that is still being admitted when this is dropped.
struct Unadmitted<'a> {
    operations: &'a Operations,
    name: Option<&'a OperationName>,
}

impl Drop for Unadmitted<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            let ended = Ended::without_result(Verdict::Unavailable("the action could not be looked at".to_owned()));
            self.operations.act(|desk, at| desk.end(name, ended, at));
        }
    }
}

impl Operations {
    pub(super) async fn admit(self, name: OperationName, grant: Authorized<Execute>, request: Request) {
        let mut unadmitted = Unadmitted { operations: &self, name: Some(&name) };
        let Ok(admitted) = timeout(DEADLINE, self.look_at(&name, &grant, &request)).await else { return };
        match admitted.unwrap_or_else(|error| Admitted::Over(Box::new(refusal(error)))) {
            Admitted::ToRun(action) => self.act(|desk, at| desk.submit(&name, action, &request, at)),
            Admitted::Over(mut ended) => {
                if let Some(result) = &mut ended.result {
                    let function = request.action.function();
                    self.0.action_cache.inline(&grant, function, result, &request.inlining).await;
                }
                self.act(|desk, at| desk.end(&name, *ended, at));
            }
        }
        unadmitted.name = None;
    }

    async fn look_at(
        &self,
        name: &OperationName,
        grant: &Authorized<Execute>,
        request: &Request,
    ) -> Result<Admitted, ActionError> {
        let store = &*self.0.store;
        let action = {
            let _turn = turn(self.0.gate.lookups.acquire().await);
            let action = ReadAction::read(store, grant, request.action).await?;
            if let Some(found) = self.look_up(grant, request, &action).await? {
                return Ok(Admitted::Over(Box::new(found)));
            }
            action
        };
        let tenant = self.desk().walks_of(grant);
        let _own = turn(tenant.acquire().await);
        let _turn = turn(self.0.gate.walks.acquire().await);
        if !self.desk().is_wanted(name) {
            return Ok(Admitted::Over(Box::new(Ended::without_result(Verdict::Cancelled))));
        }
        let checked = action.check(store, grant, &self.0.toolchains, self.0.config.timeouts).await?;
        Ok(Admitted::ToRun(Arc::new(checked)))
    }

    async fn look_up(
        &self,
        grant: &Authorized<Execute>,
        request: &Request,
        action: &ReadAction,
    ) -> Result<Option<Ended>, ActionError> {
        if request.skip_cache_lookup || action.do_not_cache() {
            return Ok(None);
        }
        match self.0.action_cache.get_executed(grant, request.action.into()).await {
            // A client may have stored a failure; whoever wants the action executed wants to see it happen.
            Ok(result) if result.exit_code != 0 => Ok(None),
            Ok(result) => {
                let found = Ended::without_result(Verdict::Completed);
                Ok(Some(Ended { result: Some(result), is_cached: true, ..found }))
            }
            Err(ActionCacheError::Store(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }
}

/// No semaphore here is ever closed.
fn turn<'a>(permit: Result<SemaphorePermit<'a>, AcquireError>) -> Option<SemaphorePermit<'a>> {
    permit.ok()
}

fn refusal(error: ActionError) -> Ended {
    Ended::without_result(match error {
        ActionError::Missing(digests) => Verdict::Missing(digests),
        ActionError::Invalid(reason) => Verdict::Invalid(reason),
        ActionError::Closure(error @ ClosureError::Unavailable(_)) => Verdict::Unavailable(error.to_string()),
        // No client can upload them as blobs: it is told why, and that this is final.
        ActionError::Closure(error) => Verdict::Unfit(error.to_string()),
        ActionError::Store(error) => Verdict::Unavailable(error.to_string()),
    })
}

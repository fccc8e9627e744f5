//! From a request to the queue: the cache is asked, the action read and checked.

use std::sync::Arc;

use gf_tenancy::{Authorized, Execute};

use super::answer::{Ended, Verdict};
use super::{OperationName, Operations, Request};
use crate::action_cache::ActionCacheError;
use crate::actions::{ActionError, CheckedAction, ReadAction};

/// What came of looking at an action.
enum Admitted {
    /// It is to be run.
    ToRun(Arc<CheckedAction>),
    /// It is over already.
    Over(Box<Ended>),
}

impl Operations {
    pub(super) async fn admit(self, name: OperationName, grant: Authorized<Execute>, request: Request) {
        // The semaphore is never closed.
        let _permit = self.0.admissions.acquire().await.ok();
        let admitted =
            self.look_at(&grant, &request).await.unwrap_or_else(|error| Admitted::Over(Box::new(refusal(error))));
        match admitted {
            Admitted::ToRun(action) => self.act(|desk, at| desk.submit(&name, action, &request, at)),
            Admitted::Over(mut ended) => {
                if let Some(result) = &mut ended.result {
                    let function = request.action.function();
                    self.0.action_cache.inline(&grant, function, result, &request.inlining).await;
                }
                self.act(|desk, at| desk.end(&name, *ended, at));
            }
        }
    }

    async fn look_at(&self, grant: &Authorized<Execute>, request: &Request) -> Result<Admitted, ActionError> {
        let store = &*self.0.store;
        let action = ReadAction::read(store, grant, request.action).await?;
        if !request.skip_cache_lookup && !action.do_not_cache() {
            match self.0.action_cache.get_executed(grant, request.action.into()).await {
                Ok(result) => {
                    let found =
                        Ended { result: Some(result), is_cached: true, ..Ended::without_result(Verdict::Completed) };
                    return Ok(Admitted::Over(Box::new(found)));
                }
                Err(ActionCacheError::NotFound | ActionCacheError::Invalid(_)) => {}
                Err(ActionCacheError::Store(error)) => return Err(error.into()),
            }
        }
        let checked = action.check(store, grant, self.0.config.timeouts).await?;
        Ok(Admitted::ToRun(Arc::new(checked)))
    }
}

fn refusal(error: ActionError) -> Ended {
    Ended::without_result(match error {
        ActionError::Missing(digests) => Verdict::Missing(digests),
        ActionError::Invalid(reason) => Verdict::Invalid(reason),
        ActionError::Store(error) => Verdict::Unavailable(error.to_string()),
    })
}

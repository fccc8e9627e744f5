//! What is done for runs that are answered already: removing what they left.
//!
//! A client need not wait for that. What always holds: so few runs are untidied at a time that what they left, each within
//! its limit on the disk, is no more than about as much again as what runs; whoever comes beyond that waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Runs that are answered and not tidied.
const MOST_UNTIDY: usize = 8;
/// What a worker that ends gives it; the next one removes the rest.
const PATIENCE: Duration = Duration::from_secs(5);

/// The work under way.
#[derive(Debug)]
pub(crate) struct Tidying {
    tasks: TaskTracker,
    places: Arc<Semaphore>,
}

impl Tidying {
    pub(crate) fn new() -> Self {
        Self { tasks: TaskTracker::new(), places: Arc::new(Semaphore::new(MOST_UNTIDY)) }
    }

    /// Begins some, as soon as there is a place for it.
    pub(crate) async fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        // It is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        self.tasks.spawn(async move {
            work.await;
            drop(place);
        });
    }

    /// Waits for what was begun, but not for ever.
    pub(crate) async fn end(&self) {
        self.tasks.close();
        if timeout(PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::info!(left = self.tasks.len(), "what actions left behind is removed at the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn only_some_is_put_off() {
        let tidying = Arc::new(Tidying::new());
        let mut waiting = Vec::new();
        for _ in 0..MOST_UNTIDY {
            let (go_on, told) = oneshot::channel::<()>();
            waiting.push(go_on);
            tidying.begin(async { drop(told.await) }).await;
        }
        let one_more = tidying.begin(async {});
        tokio::pin!(one_more);
        assert!(futures::poll!(&mut one_more).is_pending());
        drop(waiting.pop());
        one_more.await;
        drop(waiting);
        tidying.end().await;
        assert!(tidying.tasks.is_empty());
    }
}

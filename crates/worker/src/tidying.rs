//! What is done for runs that are answered already: removing what they left.
//!
//! Nobody who asked for a run waits for that; the next runs do, if there is too much of it. What always holds: so few runs
//! are untidied at a time that what they left, each within its limit on the disk, is no more than about as much again as
//! what runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Runs that are tidied at a time.
const MOST_UNTIDY: usize = 8;
/// What a worker that ends gives it; the next one removes the rest.
const PATIENCE: Duration = Duration::from_secs(5);

/// The work under way.
#[derive(Debug)]
pub(crate) struct Tidying {
    tasks: TaskTracker,
    /// Taken in the order in which they were asked for.
    places: Arc<Semaphore>,
}

impl Tidying {
    pub(crate) fn new() -> Self {
        Self { tasks: TaskTracker::new(), places: Arc::new(Semaphore::new(MOST_UNTIDY)) }
    }

    /// Begins some, as soon as there is a place for it.
    pub(crate) fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        let places = Arc::clone(&self.places);
        self.tasks.spawn(async move {
            // It is never closed.
            let _place = places.acquire().await;
            work.await;
        });
    }

    /// Waits until all that is to be done has begun, and there is a place for more. Who is about to run something waits
    /// for this, so no more waits for a place than runs.
    pub(crate) async fn room(&self) {
        drop(self.places.acquire().await);
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
    async fn what_is_put_off_holds_up_the_next_run_and_not_who_put_it_off() {
        let tidying = Tidying::new();
        let mut waiting = Vec::new();
        for _ in 0..=MOST_UNTIDY {
            let (go_on, told) = oneshot::channel::<()>();
            waiting.push(go_on);
            tidying.begin(async { drop(told.await) });
            // It gets to where it waits.
            tokio::task::yield_now().await;
        }
        let room = tidying.room();
        tokio::pin!(room);
        assert!(futures::poll!(&mut room).is_pending());
        drop(waiting.pop());
        tokio::task::yield_now().await;
        assert!(futures::poll!(&mut room).is_pending(), "one that waited took the place");
        drop(waiting);
        room.await;
        tidying.end().await;
        assert!(tidying.tasks.is_empty());
    }
}

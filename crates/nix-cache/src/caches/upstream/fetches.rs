//! Archives on their way from upstreams: each is fetched once for all who want it, by a task of its own, so that a client
//! who leaves loses nothing for the next one.
//!
//! What always holds: no task outlives [`Fetches::stop`]; when a task ends, its archive is here or everybody who waits for
//! it is told why not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gf_blobstore::{OwnerId, StoreError};
use gf_nix_formats::NarHash;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::CacheError;

/// What is fetched, and for whom.
pub(super) type FetchKey = (OwnerId, NarHash);

/// How far a fetch is.
enum Stage {
    /// Upstreams are being asked.
    Asking,
    /// The archive comes.
    Coming,
    /// It is over: whether the archive is here now, or no upstream had it; or why that is not known.
    Over(Result<bool, Arc<CacheError>>),
}

/// All fetches under way.
#[derive(Default)]
pub(super) struct Fetches {
    under_way: Arc<Mutex<HashMap<FetchKey, watch::Receiver<Stage>>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A fetch, for one who wants its archive.
pub(in crate::caches) struct Fetch {
    stage: watch::Receiver<Stage>,
}

/// By this the task of a fetch tells how far it is.
pub(super) struct Progress {
    stage: watch::Sender<Stage>,
    under_way: Arc<Mutex<HashMap<FetchKey, watch::Receiver<Stage>>>>,
    key: FetchKey,
}

impl Fetches {
    /// Joins the fetch of this archive, or begins one with `work`, which goes on whether it is waited for or not. Also says
    /// whether it was begun.
    pub(super) fn join<F>(&self, key: FetchKey, work: impl FnOnce(Arc<Progress>) -> F) -> (Fetch, bool)
    where
        F: Future<Output = Result<bool, CacheError>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stage) = under_way.get(&key) {
            return (Fetch { stage: stage.clone() }, false);
        }
        let (sender, stage) = watch::channel(Stage::Asking);
        under_way.insert(key, stage.clone());
        let progress = Arc::new(Progress { stage: sender, under_way: Arc::clone(&self.under_way), key });
        let (work, stopping) = (work(Arc::clone(&progress)), self.stopping.clone());
        self.tasks.spawn(async move {
            let done = stopping.run_until_cancelled(work).await;
            progress.end(done.unwrap_or(Err(CacheError::Store(StoreError::Closed))));
        });
        (Fetch { stage }, true)
    }

    /// Ends all fetches.
    pub(super) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Progress {
    /// Says that the archive begins to come.
    pub(super) fn comes(&self) {
        self.stage.send_replace(Stage::Coming);
    }

    /// Nobody can join any more when the end is told.
    fn end(&self, done: Result<bool, CacheError>) {
        self.leave();
        self.stage.send_replace(Stage::Over(done.map_err(Arc::new)));
    }

    fn leave(&self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Fetch {
    /// Waits until it is known whether an upstream has the archive: whether it is coming, and not here yet.
    pub(in crate::caches) async fn is_coming(&mut self) -> bool {
        let known = self.stage.wait_for(|stage| !matches!(stage, Stage::Asking)).await;
        known.is_ok_and(|stage| matches!(*stage, Stage::Coming))
    }

    /// Waits for the end: whether the archive is here.
    pub(in crate::caches) async fn end(&mut self) -> Result<bool, CacheError> {
        let over = self.stage.wait_for(|stage| matches!(stage, Stage::Over(_))).await;
        match over.as_deref() {
            Ok(Stage::Over(Ok(is_here))) => Ok(*is_here),
            Ok(Stage::Over(Err(error))) => Err(CacheError::Shared(Arc::clone(error))),
            // Its task panicked.
            _ => Err(CacheError::Store(StoreError::Closed)),
        }
    }
}

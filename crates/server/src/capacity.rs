//! How much the store may hold when nobody has said it: it fills its file system up to a share, whatever else lies on
//! it, and gives way when other files grow.
//!
//! The rule is a pure function; [`Background`] applies it every so often. Deliberately absent: eviction, which is
//! the store's.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::{DiskBlobStore, StoreStats};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{StoreSettings, show_size};
use crate::operator;

/// The file system may be full by this much before the store stops growing ...
const FULL_PERCENT: u64 = 80;
/// ... and the store takes no more than this: whoever has more to give says so.
const AT_MOST_BYTES: u64 = 1 << 40;
/// Other programs fill disks in minutes, not in seconds.
const EVERY: Duration = Duration::from_secs(30);

/// What the store may hold, by what it holds and what its file system has.
fn share_of_disk(stats: &StoreStats, disk_bytes: u64) -> u64 {
    let reachable_bytes = stats.used_bytes.saturating_add(stats.free_disk_bytes);
    // On a disk that others have filled beyond that share, the store still takes half of what is left.
    let kept_free_bytes = (disk_bytes / 100 * (100 - FULL_PERCENT)).min(reachable_bytes / 2);
    reachable_bytes.saturating_sub(kept_free_bytes).clamp(StoreSettings::MIN_CAPACITY_BYTES, AT_MOST_BYTES)
}

/// The tasks that run beside the requests.
#[derive(Clone)]
pub struct Background {
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// What the others may need until their end.
    last: TaskTracker,
    ending: CancellationToken,
}

impl Background {
    /// Sets the capacity, and watches it from then on unless the operator chose one.
    pub(crate) async fn start(store: &Arc<DiskBlobStore>, data_dir: &Path, settings: &StoreSettings) -> Self {
        let background = Self::default();
        let watch = Watch { store: Arc::clone(store), data_dir: data_dir.into() };
        match settings.capacity_bytes {
            Some(capacity_bytes) => watch.warn_if_out_of_reach(capacity_bytes).await,
            None => {
                watch.adapt().await;
                let stopping = background.stopping.clone();
                background.tasks.spawn(async move { stopping.run_until_cancelled(watch.adapt_for_ever()).await });
            }
        }
        background
    }

    /// Runs what must not stop when the caller goes away. `None` when the server stops before it ends.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        self.tasks.spawn(self.stopping.clone().run_until_cancelled_owned(work))
    }

    /// Runs what ends by itself, with order, when it is told that the server stops.
    pub(crate) fn run_to_its_end<F: Future<Output = ()> + Send + 'static>(
        &self,
        work: impl FnOnce(CancellationToken) -> F,
    ) {
        self.tasks.spawn(work(self.stopping.clone()));
    }

    /// As [`Self::run_to_its_end`], and it is told only when all others have ended.
    pub(crate) fn run_beyond_the_others<F: Future<Output = ()> + Send + 'static>(
        &self,
        work: impl FnOnce(CancellationToken) -> F,
    ) {
        self.last.spawn(work(self.ending.clone()));
    }

    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.wait().await;
        self.ending.cancel();
        self.last.wait().await;
    }
}

/// Without anything that runs yet.
impl Default for Background {
    fn default() -> Self {
        let (tasks, last) = (TaskTracker::new(), TaskTracker::new());
        tasks.close();
        last.close();
        Self { tasks, stopping: CancellationToken::new(), last, ending: CancellationToken::new() }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

struct Watch {
    store: Arc<DiskBlobStore>,
    data_dir: Arc<Path>,
}

impl Watch {
    async fn adapt_for_ever(&self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.adapt().await;
        }
    }

    async fn adapt(&self) {
        match self.figures().await {
            Ok((stats, disk_bytes)) => self.store.set_capacity(share_of_disk(&stats, disk_bytes)),
            Err(error) => tracing::warn!(%error, "the file system of the store does not say how full it is"),
        }
    }

    async fn warn_if_out_of_reach(&self, capacity_bytes: u64) {
        let Ok((stats, _)) = self.figures().await else { return };
        let reachable_bytes = stats.used_bytes.saturating_add(stats.free_disk_bytes);
        if capacity_bytes > reachable_bytes {
            tracing::warn!(
                capacity = show_size(capacity_bytes),
                reachable = show_size(reachable_bytes),
                "the disk is too full for the store to reach its capacity: free space, or lower [store] capacity"
            );
        }
    }

    async fn figures(&self) -> io::Result<(StoreStats, u64)> {
        let data_dir = Arc::clone(&self.data_dir);
        operator::blocking(&self.store, move |store| {
            let disk = rustix::fs::statvfs(&*data_dir)?;
            Ok((store.stats(), disk.f_blocks.saturating_mul(disk.f_frsize)))
        })
        .await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_leaves_a_fifth_of_the_disk_free() {
        let check = |used_gib: u64, free_gib: u64, disk_gib: u64, expected_gib: u64| {
            let stats =
                StoreStats { used_bytes: used_gib << 30, free_disk_bytes: free_gib << 30, ..StoreStats::default() };
            let capacity = share_of_disk(&stats, disk_gib << 30) >> 30;
            assert!(capacity.abs_diff(expected_gib) <= 1, "{capacity} is not about {expected_gib}");
        };
        // An empty disk of its own; a restart after it was filled; a disk shared with 50 GiB of others.
        check(0, 100, 100, 80);
        check(80, 20, 100, 80);
        check(0, 50, 100, 30);
        // Others grew: the store gives way.
        check(30, 20, 100, 30);
        // Others grew beyond the share: half of what is left.
        check(30, 4, 100, 17);
        // A huge disk.
        check(0, 4000, 4000, 1024);
    }

    #[tokio::test]
    async fn what_others_need_ends_after_them() {
        let (background, ended) = (Background::default(), Arc::new(std::sync::Mutex::new(Vec::new())));
        let note = |what: &'static str| {
            let ended = Arc::clone(&ended);
            move || ended.lock().unwrap().push(what)
        };
        let (last, first) = (note("last"), note("first"));
        background.run_beyond_the_others(|stopping| async move {
            stopping.cancelled().await;
            last();
        });
        background.run_to_its_end(|stopping| async move {
            stopping.cancelled().await;
            tokio::task::yield_now().await;
            first();
        });
        background.stop().await;
        assert_eq!(*ended.lock().unwrap(), ["first", "last"]);
    }

    #[test]
    fn a_full_disk_leaves_the_least() {
        let stats = StoreStats { free_disk_bytes: 1 << 20, ..StoreStats::default() };
        assert_eq!(share_of_disk(&stats, 100 << 30), StoreSettings::MIN_CAPACITY_BYTES);
    }
}

//! Evictions that a failing disk keeps from ending: nothing further is evicted meanwhile, and they end once it works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gf_blobstore::{DiskBlobStore, ErrorKind, NewBlob, OwnerId, Repair, StoreConfig, TimeSource};
use gf_testkit::blob_store_suite::{noise, put};
use gf_testkit::disk_store::{new_blob, upload};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const OWNER: OwnerId = OwnerId(1);
const CAPACITY_BYTES: u64 = 8 << 20;
const LEASE_S: u64 = 100;

/// A full store of which everything may go, on a disk that fails as the test says.
struct World {
    store: Arc<DiskBlobStore>,
    disk: LossyFiles,
    fails: Arc<AtomicBool>,
    _directory: tempfile::TempDir,
}

async fn world(is_failing: fn(&Path, FileOperation) -> bool, large: usize, small: usize) -> World {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let fails = Arc::new(AtomicBool::new(false));
    let files = InterceptedFiles::new(Arc::new(disk.clone()), {
        let fails = Arc::clone(&fails);
        move |path, operation| match fails.load(Ordering::SeqCst) && is_failing(path, operation) {
            true => Err(std::io::Error::other("the disk fails")),
            false => Ok(()),
        }
    });
    let config = StoreConfig {
        capacity_bytes: CAPACITY_BYTES,
        lease: Duration::from_secs(LEASE_S),
        sync_window: Duration::from_secs(100_000),
        large_blob_bytes: 40_000,
        ..StoreConfig::new(directory.path().to_owned())
    };
    let time = Arc::new(ManualTime::new(1_000_000));
    let clock: Arc<dyn TimeSource> = Arc::clone(&time) as _;
    let store = DiskBlobStore::open_on(Arc::new(files), clock, config).await.unwrap();
    for number in 0..large {
        upload(store.as_ref(), OWNER, &blob(number as u64, 100_000)).await;
    }
    for number in 0..small {
        put(store.as_ref(), OWNER, blob((1 << 32) + number as u64, 20_000)).await.unwrap();
    }
    store.sync().unwrap();
    time.advance(10 * LEASE_S);
    World { store, disk, fails, _directory: directory }
}

fn blob(number: u64, size: usize) -> NewBlob {
    new_blob(noise(number + 1, size))
}

impl World {
    /// Whether a blob finds a place that only evictions make.
    async fn write(&self, number: u64) -> Result<(), ErrorKind> {
        put(self.store.as_ref(), OWNER, blob((2 << 32) + number, 39_000)).await.map_err(|error| error.kind())
    }

    /// Fills what is left, so that the next write must evict.
    async fn fill(&self) {
        let stats = self.store.stats();
        let left = stats.capacity_bytes - stats.used_bytes;
        for number in 0..left / 39_000 {
            self.write((1 << 20) + number).await.unwrap();
        }
        self.store.sync().unwrap();
    }

    fn bytes_on_disk(&self) -> u64 {
        let counts =
            |path: &Path| path.components().any(|part| part.as_os_str() == "segments" || part.as_os_str() == "large");
        self.disk.files().iter().filter(|(path, _)| counts(path)).map(|(_, bytes)| bytes).sum()
    }
}

fn is_sync_of_index(path: &Path, operation: FileOperation) -> bool {
    operation == FileOperation::Sync && path.extension().is_some_and(|end| end == "table" || end == "new")
        || operation == FileOperation::SyncDirectory && path.ends_with("index")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_eviction_that_is_not_durable_is_not_followed_by_others() {
    for (large, small) in [(70, 0), (0, 350)] {
        let world = world(is_sync_of_index, large, small).await;
        world.fill().await;
        world.fails.store(true, Ordering::SeqCst);
        assert_eq!(world.write(0).await, Err(ErrorKind::Unavailable));
        let evicted = world.store.stats().evicted;
        assert!(evicted > 0, "nothing had to go");
        for number in 1..20 {
            assert_eq!(world.write(number).await, Err(ErrorKind::Unavailable));
        }
        assert_eq!(world.store.stats().evicted, evicted, "one eviction after the other, and no room");
        world.fails.store(false, Ordering::SeqCst);
        world.write(20).await.unwrap();
        // Records that go leave holes, which may not be room enough: then one more eviction is.
        assert!(world.store.stats().evicted <= 2 * evicted, "more went than had to");
        assert_eq!(world.store.stats().used_bytes, world.bytes_on_disk());
        let report = world.store.verify(Repair::Yes).await.unwrap();
        assert!(report.is_clean() && report.orphans_removed == 0, "{report:?}");
    }
}

fn is_removal_of_large_file(path: &Path, operation: FileOperation) -> bool {
    operation == FileOperation::Remove && path.components().any(|part| part.as_os_str() == "large")
}

/// Files that cannot be removed are no room: where they are all that is not under lease, nothing is evicted for them.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_go_do_not_count_as_room() {
    let world = world(is_removal_of_large_file, 70, 0).await;
    world.fill().await;
    world.fails.store(true, Ordering::SeqCst);
    assert_eq!(world.write(0).await, Err(ErrorKind::Exhausted));
    // All that may go was tried once, and its files are still there.
    let mut evicted = world.store.stats().evicted;
    while world.store.collect(CAPACITY_BYTES).unwrap().evicted > 0 {
        evicted = world.store.stats().evicted;
    }
    assert!(evicted > 0);
    assert_eq!(world.write(1).await, Err(ErrorKind::Exhausted));
    assert_eq!(world.store.stats().used_bytes, world.bytes_on_disk());
    world.fails.store(false, Ordering::SeqCst);
    world.store.collect(1).unwrap();
    world.write(2).await.unwrap();
    assert_eq!(world.store.stats().used_bytes, world.bytes_on_disk());
}

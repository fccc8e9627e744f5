//! A disk that fails to read some of what it holds: that is said to be missing, may come again from who still has it, and
//! what was lost is taken out in the end. What could be read after all was never lost.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, ErrorKind, MachineTime, NewBlob, OwnerId, Repair,
    StoreConfig,
};
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::disk_store::{entry_key, new_blob, upload, wait_until};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const OWNER: OwnerId = OwnerId(1);
const OTHER: OwnerId = OwnerId(2);
/// `EIO`, as a disk says of a sector that it cannot read.
const EIO: i32 = 5;

/// A disk of which the contents of some files cannot be read.
struct World {
    disk: LossyFiles,
    bad: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// Stands still, so that no second pass of the scrub begins.
    time: Arc<ManualTime>,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            disk: LossyFiles::new(directory.path()),
            bad: Arc::default(),
            time: Arc::new(ManualTime::new(1_000_000)),
            directory,
        }
    }

    /// What the scrub finds out must not come between, where a test is about others.
    async fn open(&self) -> Arc<DiskBlobStore> {
        self.open_with(false, |config| config).await
    }

    async fn open_with(
        &self,
        is_scrubbed: bool,
        change: impl FnOnce(StoreConfig) -> StoreConfig,
    ) -> Arc<DiskBlobStore> {
        let bad = Arc::clone(&self.bad);
        let files = InterceptedFiles::new(Arc::new(self.disk.clone()), move |path, operation| match operation {
            FileOperation::Read(_) if bad.lock().unwrap().contains(path) => {
                let is_scrub = std::thread::current().name() == Some("gf-store-scrub");
                Err(match is_scrub && !is_scrubbed {
                    true => std::io::Error::other("not by the scrub"),
                    false => std::io::Error::from_raw_os_error(EIO),
                })
            }
            _ => Ok(()),
        });
        let config = change(StoreConfig {
            capacity_bytes: 64 << 20,
            large_blob_bytes: 40_000,
            ..StoreConfig::new(self.directory.path().to_owned())
        });
        DiskBlobStore::open_on(Arc::new(files), Arc::clone(&self.time) as _, config).await.unwrap()
    }

    /// Lets the disk fail to read what segments and large files hold now. What comes later goes to others, once the store
    /// was opened again.
    fn break_sectors(&self) {
        let holds_blobs = |path: &Path| {
            ["segments", "large"].map(|kind| self.directory.path().join(kind)).iter().any(|kind| path.starts_with(kind))
        };
        self.bad
            .lock()
            .unwrap()
            .extend(self.disk.files().into_iter().map(|(path, _)| path).filter(|path| holds_blobs(path)));
    }

    fn mend_sectors(&self) {
        self.bad.lock().unwrap().clear();
    }
}

async fn read(store: &DiskBlobStore, owner: OwnerId, blob: &NewBlob) -> Result<(), ErrorKind> {
    let read = store.read(owner, blob.digest, ByteRange::ALL, Accept::Identity).await;
    let bytes = match read {
        Ok(read) => read_all(read).await,
        Err(error) => Err(error),
    };
    assert!(bytes.map_err(|error| error.kind())? == blob.bytes, "{} has other bytes", blob.digest);
    Ok(())
}

async fn is_missing(store: &DiskBlobStore, owner: OwnerId, blob: &NewBlob) -> bool {
    !store.find_missing(owner, &[blob.digest]).await.unwrap().is_empty()
}

/// A small blob and a large one.
fn blobs() -> [NewBlob; 2] {
    [new_blob(noise(1, 3000)), new_blob(noise(2, 600_000))]
}

/// A store of an earlier run, whose blobs the disk fails to read.
async fn broken(world: &World) -> Arc<DiskBlobStore> {
    let store = world.open().await;
    for blob in &blobs() {
        upload(store.as_ref(), OWNER, blob).await;
    }
    store.close().unwrap();
    drop(store);
    world.break_sectors();
    world.open().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_missing_and_comes_again() {
    for owner in [OWNER, OTHER] {
        let world = World::new();
        let store = broken(&world).await;
        for blob in &blobs() {
            assert!(!is_missing(&store, OWNER, blob).await, "nobody can know yet");
            assert_eq!(read(&store, OWNER, blob).await, Err(ErrorKind::Unavailable));
            assert!(is_missing(&store, OWNER, blob).await);
            assert_eq!(read(&store, OWNER, blob).await, Err(ErrorKind::NotFound), "there is no use in waiting");
            // Whoever has the bytes.
            let mut upload = store.upload(owner, blob.digest, Encoding::Identity).await.unwrap();
            assert!(!upload.already_present());
            upload.write(blob.bytes.clone()).await.unwrap();
            upload.finish().await.unwrap();
            for owner in [OWNER, owner] {
                assert!(!is_missing(&store, owner, blob).await);
                assert_eq!(read(&store, owner, blob).await, Ok(()), "{owner:?}");
            }
        }
        assert!(store.verify(Repair::No).await.unwrap().is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_again_survives_a_power_cut_beside_what_cannot_be_read() {
    for (owner, seed) in [OWNER, OTHER].into_iter().flat_map(|owner| (0..4).map(move |seed| (owner, seed))) {
        let mut world = World::new();
        let store = broken(&world).await;
        for blob in &blobs() {
            read(&store, OWNER, blob).await.unwrap_err();
            upload(store.as_ref(), owner, blob).await;
        }
        store.sync().unwrap();
        drop(store);
        world.disk = world.disk.lose_power(seed);
        let store = world.open().await;
        for blob in &blobs() {
            assert_eq!(read(&store, owner, blob).await, Ok(()), "seed {seed}, {owner:?}");
        }
        // Nor does what it replaced stay on the disk for ever.
        let is_large = |path: &Path| path.starts_with(world.directory.path().join("large"));
        wait_until("the file that cannot be read goes", || {
            world.disk.files().iter().filter(|(path, _)| is_large(path)).count() == 1
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_after_all_was_never_lost() {
    let world = World::new();
    let store = broken(&world).await;
    for blob in &blobs() {
        assert_eq!(read(&store, OWNER, blob).await, Err(ErrorKind::Unavailable));
        assert!(is_missing(&store, OWNER, blob).await);
    }
    world.mend_sectors();
    let used = store.stats().used_bytes;
    for blob in &blobs() {
        assert_eq!(read(&store, OWNER, blob).await, Ok(()));
        assert!(!is_missing(&store, OWNER, blob).await);
        put(store.as_ref(), OWNER, blob.clone()).await.unwrap();
    }
    assert_eq!(store.stats().used_bytes, used, "what is here is not stored again");
}

/// Not enough means say nothing about the disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_read_for_want_of_means_is_not_missing() {
    let world = World::new();
    let store = broken(&world).await;
    drop(store);
    world.mend_sectors();
    let files = InterceptedFiles::new(Arc::new(world.disk.clone()), |path, operation| {
        let is_of_blobs = path.components().any(|part| part.as_os_str() == "segments" || part.as_os_str() == "large");
        // `EMFILE`.
        if is_of_blobs && operation == FileOperation::Open {
            Err(std::io::Error::from_raw_os_error(24))
        } else {
            Ok(())
        }
    });
    let config = StoreConfig { large_blob_bytes: 40_000, ..StoreConfig::new(world.directory.path().to_owned()) };
    let store = DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await.unwrap();
    for blob in &blobs() {
        for _ in 0..3 {
            assert_eq!(read(&store, OWNER, blob).await, Err(ErrorKind::Unavailable));
            assert!(!is_missing(&store, OWNER, blob).await);
        }
    }
}

/// What is made of parts cannot be read without them, and can once they came again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_of_what_cannot_be_read_is_missing_too() {
    let world = World::new();
    let store = world.open().await;
    let whole = new_blob(noise(3, 2_000_000));
    upload(store.as_ref(), OWNER, &whole).await;
    let chunks = store.split(OWNER, whole.digest).await.unwrap();
    store.close().unwrap();
    drop(store);
    world.break_sectors();
    // The records of the views can be read.
    world.bad.lock().unwrap().retain(|path| path.starts_with(world.directory.path().join("large")));
    let store = world.open().await;
    assert!(store.find_missing(OWNER, &chunks).await.unwrap().is_empty());
    assert_eq!(read(&store, OWNER, &whole).await, Err(ErrorKind::Unavailable));
    assert_eq!(store.find_missing(OWNER, &chunks).await.unwrap(), chunks);
    let first = usize::try_from(chunks[0].size_bytes()).unwrap();
    put(store.as_ref(), OWNER, new_blob(whole.bytes[..first].to_vec())).await.unwrap();
    assert_eq!(store.find_missing(OWNER, &chunks).await.unwrap(), chunks[1..]);
    upload(store.as_ref(), OWNER, &whole).await;
    assert_eq!(read(&store, OWNER, &whole).await, Ok(()));
    assert!(store.find_missing(OWNER, &chunks).await.unwrap().is_empty());
    assert!(store.verify(Repair::No).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_cannot_be_read_is_not_there_and_is_written_anew() {
    let world = World::new();
    let store = world.open().await;
    store.put_entry(&entry_key(OWNER, 1), "first".into()).await.unwrap();
    store.close().unwrap();
    drop(store);
    world.break_sectors();
    let store = world.open().await;
    assert_eq!(store.get_entry(&entry_key(OWNER, 1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.get_entry(&entry_key(OWNER, 1)).await.unwrap(), None);
    store.put_entry(&entry_key(OWNER, 1), "second".into()).await.unwrap();
    assert_eq!(store.get_entry(&entry_key(OWNER, 1)).await.unwrap().unwrap(), "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_takes_out_what_cannot_be_read_again_and_again() {
    let world = World::new();
    let store = broken(&world).await;
    let good = new_blob(noise(5, 3000));
    put(store.as_ref(), OWNER, good.clone()).await.unwrap();
    let looked = store.verify(Repair::No).await.unwrap();
    assert_eq!((looked.unreadable, looked.lost_count, looked.blobs), (2, 0, 1), "{looked:?}");
    for blob in &blobs() {
        assert!(is_missing(&store, OWNER, blob).await, "it was found out");
    }
    let repaired = store.verify(Repair::Yes).await.unwrap();
    assert_eq!((repaired.unreadable, repaired.lost_count), (0, 2), "{repaired:?}");
    assert!(blobs().iter().all(|blob| repaired.lost.contains(&blob.digest.to_string())), "{repaired:?}");
    assert!(store.verify(Repair::Yes).await.unwrap().is_clean());
    world.mend_sectors();
    for blob in &blobs() {
        assert!(is_missing(&store, OWNER, blob).await, "it is gone");
    }
    assert_eq!(read(&store, OWNER, &good).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_takes_out_what_nobody_can_read_but_not_everything() {
    const BLOBS: u64 = 40;
    let world = World::new();
    let store = world.open().await;
    let bad: Vec<NewBlob> = (0..BLOBS).map(|number| new_blob(noise(100 + number, 50))).collect();
    for blob in &bad {
        put(store.as_ref(), OWNER, blob.clone()).await.unwrap();
    }
    store.close().unwrap();
    drop(store);
    world.break_sectors();
    let quick = |config| StoreConfig { scrub_bytes_per_second: u64::MAX, scrub_pass: Duration::from_secs(2), ..config };
    let store = world.open_with(true, quick).await;
    wait_until("a pass ends", || store.stats().scrub.passes > 0);
    store.close().unwrap();
    let scrubbed = store.stats().scrub;
    assert_eq!(
        (scrubbed.damaged, scrubbed.unreadable),
        (8, BLOBS - 8),
        "a disk that reads nothing may come back: {scrubbed:?}"
    );
}

//! The account of space: what the store says it uses is what lies on the disk, whatever goes on meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gf_blobstore::{Accept, BlobStore, ByteRange, DiskBlobStore, FileLayer, MachineTime, OwnerId, Repair, StoreConfig};
use gf_digest::Digest;
use gf_testkit::blob_store_suite::{noise, read_all};
use gf_testkit::disk_store::{self, entry_key, new_blob};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles};

const OWNER: OwnerId = OwnerId(1);

async fn open(files: impl FileLayer, directory: &Path, capacity_bytes: u64) -> Arc<DiskBlobStore> {
    let config = StoreConfig { large_blob_bytes: 5000, capacity_bytes, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await.unwrap()
}

async fn upload(store: &DiskBlobStore, number: u64, size: usize) -> Digest {
    let blob = new_blob(noise(number + 1, size));
    disk_store::upload(store, OWNER, &blob).await;
    blob.digest
}

fn bytes_in(files: &LossyFiles, folders: &[&str]) -> u64 {
    let is_in = |path: &Path| path.components().any(|part| folders.iter().any(|folder| part.as_os_str() == *folder));
    files.files().iter().filter(|(path, _)| is_in(path)).map(|(_, bytes)| bytes).sum()
}

fn bytes_on_disk(files: &LossyFiles) -> u64 {
    bytes_in(files, &["segments", "large", "quarantine"])
}

/// A blob that comes while the folders are being listed.
#[tokio::test(flavor = "multi_thread")]
async fn counting_while_others_write_counts_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel();
    let (may_leave, lists) = (Mutex::new(may_leave), Arc::new(AtomicU64::new(0)));
    let files = InterceptedFiles::new(Arc::new(disk.clone()), {
        let lists = Arc::clone(&lists);
        move |path, operation| {
            // A new store looks for files of an older one, for orphans, and counts; then the verification does the last two.
            let is_first_folder = operation == FileOperation::List && path.ends_with("large/00");
            if is_first_folder && lists.fetch_add(1, Ordering::SeqCst) == 4 {
                entered.send(()).unwrap();
                may_leave.lock().unwrap().recv_timeout(Duration::from_secs(120)).unwrap();
            }
            Ok(())
        }
    });
    let store = open(files, directory.path(), 1 << 30).await;
    let deadline = Instant::now() + Duration::from_secs(120);
    while lists.load(Ordering::SeqCst) < 3 {
        assert!(Instant::now() < deadline, "the store did not count by itself");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let verifying = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.verify(Repair::Yes).await }
    });
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    upload(&store, 1, 6000).await;
    upload(&store, 2, 100).await;
    leave.send(()).unwrap();
    verifying.await.unwrap().unwrap();
    assert_eq!(store.stats().used_bytes, bytes_on_disk(&disk));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_quarantine_counts_and_stays_small() {
    const CAPACITY_BYTES: u64 = 8 << 20;
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(files.clone(), directory.path(), CAPACITY_BYTES).await;
    let mut digests = Vec::new();
    for number in 0..20 {
        digests.push(upload(&store, number, 100_000).await);
    }
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.path().join("large"))) {
        files.damage(path, |bytes| bytes[500] ^= 1);
    }
    for digest in digests {
        let read = store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.is_err());
        assert_eq!(store.stats().used_bytes, bytes_on_disk(&files));
    }
    assert_eq!(bytes_in(&files, &["large"]), 0);
    let quarantined = bytes_in(&files, &["quarantine"]);
    assert!(quarantined > 0 && quarantined <= CAPACITY_BYTES / 32, "{quarantined} bytes are in quarantine");
    store.verify(Repair::Yes).await.unwrap();
    assert_eq!(store.stats().used_bytes, bytes_on_disk(&files));
}

/// A segment that the disk does not let go counts for as long as it is there, and keeps nothing from becoming durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_cannot_be_removed_counts_as_long_as_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let fails = Arc::new(AtomicBool::new(false));
    let files = InterceptedFiles::new(Arc::new(disk.clone()), {
        let fails = Arc::clone(&fails);
        move |path, operation| {
            let is_segment = path.extension().is_some_and(|end| end == "segment");
            let is_removal = is_segment && operation == FileOperation::Remove;
            if is_removal && fails.load(Ordering::SeqCst) { Err(std::io::Error::other("read-only")) } else { Ok(()) }
        }
    });
    let store = open(files, directory.path(), 64 << 20).await;
    let key = entry_key(OWNER, 1);
    for round in 0..50 {
        store.put_entry(&key, vec![round; 50_000].into()).await.unwrap();
    }
    fails.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        store.collect(64 << 20).unwrap();
        assert_eq!(store.stats().used_bytes, bytes_on_disk(&disk));
        store.sync().unwrap();
    }
    fails.store(false, Ordering::SeqCst);
    store.collect(64 << 20).unwrap();
    assert_eq!(store.stats().used_bytes, bytes_on_disk(&disk));
    assert!(store.stats().used_bytes < 500_000);
    assert_eq!(store.get_entry(&key).await.unwrap(), Some(vec![49; 50_000].into()));
}

/// Several readers find damaged files at once, in a quarantine that is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_leaves_quarantine_is_given_back_once() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(files.clone(), directory.path(), 8 << 20).await;
    let mut digests = Vec::new();
    for number in 0..40 {
        digests.push(upload(&store, number, 50_000).await);
    }
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.path().join("large"))) {
        files.damage(path, |bytes| bytes[500] ^= 1);
    }
    let mut readers = tokio::task::JoinSet::new();
    for digest in digests {
        let store = Arc::clone(&store);
        readers.spawn(async move {
            let read = store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await;
            if let Ok(read) = read {
                assert!(read_all(read).await.is_err());
            }
        });
    }
    readers.join_all().await;
    assert_eq!(store.stats().used_bytes, bytes_on_disk(&files));
}

/// What lies in large files counts from the first moment, with or without a checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn large_files_count_at_once_when_the_checkpoint_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let store = open(disk.clone(), directory.path(), 8 << 20).await;
    for number in 0..10 {
        upload(&store, number, 100_000).await;
    }
    store.close().unwrap();
    drop(store);
    disk.remove(&directory.path().join("checkpoint")).unwrap();
    // The rebuild waits, so that nothing is counted anew.
    let (leave, may_leave) = channel::<()>();
    let may_leave = Mutex::new(may_leave);
    let files = InterceptedFiles::new(Arc::new(disk.clone()), move |path, operation| {
        let is_rebuild = std::thread::current().name() == Some("gf-store-idle") && operation == FileOperation::Open;
        if is_rebuild && path.extension().is_some_and(|end| end == "segment") {
            may_leave.lock().unwrap().recv_timeout(Duration::from_secs(120)).unwrap();
        }
        Ok(())
    });
    let store = open(files, directory.path(), 8 << 20).await;
    assert_eq!(store.stats().used_bytes, bytes_on_disk(&disk));
    drop(leave);
}

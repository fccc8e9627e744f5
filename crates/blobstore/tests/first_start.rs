//! A first start that is cut short, by a killed process or a power cut, at each of its steps: the next one finds a store
//! that holds nothing, and does not take what was not there yet for lost.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gf_blobstore::{BlobStore, DiskBlobStore, FileLayer, MachineTime, OpenError, OwnerId, StoreConfig};
use gf_digest::Digest;
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::disk_store::new_blob;
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles};

const OWNER: OwnerId = OwnerId(1);

async fn open(files: impl FileLayer, directory: &Path) -> Result<Arc<DiskBlobStore>, OpenError> {
    let config = StoreConfig { capacity_bytes: 64 << 20, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await
}

fn is_change(operation: FileOperation) -> bool {
    !matches!(operation, FileOperation::Open | FileOperation::Read(_) | FileOperation::List)
}

/// What a killed process did stays, and it does nothing after so many changes.
fn killed_after(files: &LossyFiles, changes: u64) -> InterceptedFiles {
    let left = AtomicU64::new(changes);
    InterceptedFiles::new(Arc::new(files.clone()), move |_, operation| {
        let goes_on = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if !is_change(operation) || goes_on() { Ok(()) } else { Err(std::io::Error::other("killed")) }
    })
}

/// After how many changes to cut a first start short: all at its beginning and its end, and some of those between, which
/// make one table after the other.
async fn moments() -> impl Iterator<Item = u64> {
    let directory = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let files = InterceptedFiles::new(Arc::new(LossyFiles::new(directory.path())), {
        let count = Arc::clone(&count);
        move |_, operation| {
            count.fetch_add(u64::from(is_change(operation)), Ordering::SeqCst);
            Ok(())
        }
    });
    open(files, directory.path()).await.unwrap();
    let all = count.load(Ordering::SeqCst);
    assert!(all > 100, "a start makes only {all} changes");
    (0..all).filter(move |moment| *moment < 20 || moment % 29 == 0 || all - moment < 20)
}

fn checkpoint(files: &LossyFiles, directory: &Path) -> String {
    let file = FileLayer::open(files, &directory.join("checkpoint")).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The second start owes no rebuild, answers at once, and keeps what it is given.
async fn begins_anew(files: LossyFiles, directory: &Path, what: &str) {
    let store = open(files.clone(), directory).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(checkpoint(&files, directory).contains("index_whole 1\n"), "{what}: what was never there is being rebuilt");
    let blob = new_blob(noise(1, 3000));
    let other: Vec<Digest> = (2..200).map(|number| new_blob(noise(number, 10)).digest).collect();
    assert_eq!(store.find_missing(OWNER, &other).await.unwrap(), other, "{what}");
    put(store.as_ref(), OWNER, blob.clone()).await.unwrap();
    store.close().unwrap();
    drop(store);
    let store = open(files, directory).await.unwrap();
    let read = store.read(OWNER, blob.digest, gf_blobstore::ByteRange::ALL, gf_blobstore::Accept::Identity).await;
    assert!(read_all(read.unwrap()).await.unwrap() == blob.bytes, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_that_is_killed_has_lost_nothing() {
    for changes in moments().await {
        let directory = tempfile::tempdir().unwrap();
        let files = LossyFiles::new(directory.path());
        drop(open(killed_after(&files, changes), directory.path()).await);
        begins_anew(files, directory.path(), &format!("killed after {changes} changes")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_in_a_power_cut_has_lost_nothing() {
    for changes in moments().await {
        let directory = tempfile::tempdir().unwrap();
        let files = LossyFiles::new(directory.path());
        files.fail_after(changes);
        drop(open(files.clone(), directory.path()).await);
        begins_anew(files.lose_power(changes), directory.path(), &format!("power cut after {changes} changes")).await;
    }
}

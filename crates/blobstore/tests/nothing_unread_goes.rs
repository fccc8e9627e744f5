//! A store that lost its index deletes nothing that the rebuild has not read, however full it is and whatever the disk
//! refuses meanwhile.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use gf_blobstore::{
    BlobStore, DiskBlobStore, Encoding, ErrorKind, FileLayer, MachineTime, NewBlob, OwnerId, Repair, StoreConfig,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, put};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles};

const OWNER: OwnerId = OwnerId(1);
const CAPACITY_BYTES: u64 = 6 << 20;

async fn open(files: impl FileLayer, directory: &Path) -> Arc<DiskBlobStore> {
    let config = StoreConfig {
        capacity_bytes: CAPACITY_BYTES,
        // Nothing is synced but by the test.
        sync_window: Duration::from_secs(100_000),
        ..StoreConfig::new(directory.to_owned())
    };
    DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await.unwrap()
}

fn blob(number: u64) -> NewBlob {
    let bytes = noise(number + 1, 50_000);
    NewBlob { digest: Digest::of(DigestFunction::Sha256, &bytes), bytes: bytes.into(), encoding: Encoding::Identity }
}

/// A closed store of several segments that lost its index. Returns what it holds.
async fn filled_and_lost(files: &LossyFiles, directory: &Path) -> Vec<Digest> {
    let store = open(files.clone(), directory).await;
    let mut held = Vec::new();
    while store.stats().used_bytes + 120_000 < CAPACITY_BYTES {
        let blob = blob(held.len() as u64);
        put(store.as_ref(), OWNER, blob.clone()).await.unwrap();
        held.push(blob.digest);
    }
    assert!(store.stats().segments > 3);
    store.close().unwrap();
    drop(store);
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.join("index"))) {
        files.remove(path).unwrap();
    }
    held
}

/// Files of which the rebuild reads no segment until a word comes; and while `fails`, no segment can be synced.
fn held_up(files: &LossyFiles, fails: &Arc<AtomicBool>) -> (InterceptedFiles, Receiver<()>, Sender<()>) {
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel();
    let held = std::sync::Mutex::new(Some(may_leave));
    let fails = Arc::clone(fails);
    let files = InterceptedFiles::new(Arc::new(files.clone()), move |path, operation| {
        let is_segment = path.extension().is_some_and(|end| end == "segment");
        let is_walk = std::thread::current().name() == Some("gf-store-idle") && operation == FileOperation::Open;
        if is_segment
            && is_walk
            && let Some(may_leave) = held.lock().unwrap().take()
        {
            entered.send(()).unwrap();
            may_leave.recv_timeout(Duration::from_secs(120)).unwrap();
        }
        if is_segment && operation == FileOperation::Sync && fails.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("the disk failed"));
        }
        Ok(())
    });
    (files, has_entered, leave)
}

async fn all_is_found_again(store: &DiskBlobStore, held: &[Digest]) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !store.load_index().unwrap() {
        assert!(Instant::now() < deadline, "the index was not mended");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(store.find_missing(OWNER, held).await.unwrap(), []);
    assert!(store.verify(Repair::Yes).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_a_write_rather_than_what_was_not_read_yet() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let held = filled_and_lost(&files, directory.path()).await;
    let (files, has_entered, leave) = held_up(&files, &Arc::default());
    let store = open(files, directory.path()).await;
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    let mut refused = 0;
    for number in 1000..1010 {
        match put(store.as_ref(), OWNER, blob(number)).await {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "the store was not full");
    leave.send(()).unwrap();
    all_is_found_again(&store, &held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_could_not_be_synced_stays_until_the_rebuild_has_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let held = filled_and_lost(&files, directory.path()).await;
    let fails = Arc::new(AtomicBool::new(false));
    let (files, has_entered, leave) = held_up(&files, &fails);
    let store = open(files, directory.path()).await;
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    let late = blob(1000);
    put(store.as_ref(), OWNER, late.clone()).await.unwrap();
    fails.store(true, Ordering::SeqCst);
    assert!(store.sync().is_err());
    fails.store(false, Ordering::SeqCst);
    // Only the new segment is suspect; with nothing known of the old ones it must not go either.
    assert!(store.sync().is_err(), "it is believed though it could not be copied");
    leave.send(()).unwrap();
    all_is_found_again(&store, &[held, vec![late.digest]].concat()).await;
    store.sync().unwrap();
}

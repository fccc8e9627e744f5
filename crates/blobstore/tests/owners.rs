//! Who sees what, when blobs end and come again, when the index is lost, and when the disk fails to read: an owner sees
//! what it proved to hold and was promised, and learns nothing from what others bring.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, FileLayer, MachineTime, NewBlob, OwnerId, Repair,
    StoreConfig, TimeSource,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const A: OwnerId = OwnerId(1);
const B: OwnerId = OwnerId(2);
const C: OwnerId = OwnerId(3);

async fn open(files: impl FileLayer, directory: &Path) -> Arc<DiskBlobStore> {
    let config = StoreConfig { large_blob_bytes: 40_000, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await.unwrap()
}

fn blob(number: u64, size: usize) -> NewBlob {
    let bytes = noise(number, size);
    NewBlob { digest: Digest::of(DigestFunction::Sha256, &bytes), bytes: bytes.into(), encoding: Encoding::Identity }
}

async fn upload(store: &DiskBlobStore, owner: OwnerId, blob: &NewBlob) {
    let mut upload = store.upload(owner, blob.digest, Encoding::Identity).await.unwrap();
    upload.write(blob.bytes.clone()).await.unwrap();
    upload.finish().await.unwrap();
}

async fn sees(store: &DiskBlobStore, owner: OwnerId, blob: &NewBlob) -> bool {
    store.find_missing(owner, &[blob.digest]).await.unwrap().is_empty()
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "segment")
}

fn lose_index(files: &LossyFiles, directory: &Path) {
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.join("index"))) {
        files.remove(path).unwrap();
    }
}

/// Damages the bytes of a small blob wherever they are.
fn damage(files: &LossyFiles, blob: &NewBlob) {
    for (path, _) in files.files().into_iter().filter(|(path, _)| is_segment(path)) {
        files.damage(&path, |bytes| {
            let found = bytes.windows(blob.bytes.len()).position(|part| part == &blob.bytes[..]);
            if let Some(at) = found {
                bytes[at] ^= 1;
            }
        });
    }
}

/// A blob that A brought and B proved to have, and that then ended.
async fn shared_and_gone(files: &LossyFiles, directory: &Path) -> (Arc<DiskBlobStore>, NewBlob) {
    let store = open(files.clone(), directory).await;
    let shared = blob(1, 3000);
    for owner in [A, B] {
        put(store.as_ref(), owner, shared.clone()).await.unwrap();
        assert!(sees(&store, owner, &shared).await);
    }
    damage(files, &shared);
    assert!(store.read(A, shared.digest, ByteRange::ALL, Accept::Identity).await.is_err());
    (store, shared)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends_with_its_blob() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let (store, shared) = shared_and_gone(&files, directory.path()).await;
    put(store.as_ref(), C, shared.clone()).await.unwrap();
    for (owner, may_see) in [(A, false), (B, false), (C, true)] {
        assert_eq!(sees(&store, owner, &shared).await, may_see, "{owner:?}");
    }
    put(store.as_ref(), B, shared.clone()).await.unwrap();
    assert!(sees(&store, B, &shared).await);
    store.close().unwrap();
    drop(store);
    // Nor does it come back when the index is built again.
    lose_index(&files, directory.path());
    let store = open(files, directory.path()).await;
    store.verify(Repair::Yes).await.unwrap();
    for (owner, may_see) in [(A, false), (B, true), (C, true)] {
        assert_eq!(sees(&store, owner, &shared).await, may_see, "{owner:?} after a rebuild");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_an_ended_blob_is_not_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let (store, shared) = shared_and_gone(&files, directory.path()).await;
    put(store.as_ref(), C, shared.clone()).await.unwrap();
    store.close().unwrap();
    drop(store);
    lose_index(&files, directory.path());
    let store = open(files, directory.path()).await;
    store.verify(Repair::Yes).await.unwrap();
    for (owner, may_see) in [(A, false), (B, false), (C, true)] {
        assert_eq!(sees(&store, owner, &shared).await, may_see, "{owner:?}");
    }
}

/// Files whose segments cannot be read in the background until a word comes.
fn held_up(files: &LossyFiles) -> (InterceptedFiles, Receiver<()>, Sender<()>) {
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel();
    let held = std::sync::Mutex::new(Some(may_leave));
    let files = InterceptedFiles::new(Arc::new(files.clone()), move |path, operation| {
        let is_ours = std::thread::current().name() == Some("gf-store-idle");
        let is_walk = is_ours && is_segment(path) && operation == FileOperation::Open;
        if is_walk && let Some(may_leave) = held.lock().unwrap().take() {
            entered.send(()).unwrap();
            may_leave.recv_timeout(Duration::from_secs(120)).unwrap();
        }
        Ok(())
    });
    (files, has_entered, leave)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_keeps_every_owner() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let (small, large) = (blob(1, 3000), blob(2, 100_000));
    let store = open(files.clone(), directory.path()).await;
    put(store.as_ref(), A, small.clone()).await.unwrap();
    upload(&store, A, &large).await;
    store.close().unwrap();
    drop(store);
    lose_index(&files, directory.path());

    let (held, has_entered, leave) = held_up(&files);
    let store = open(held, directory.path()).await;
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    // The index does not know A's yet.
    put(store.as_ref(), B, small.clone()).await.unwrap();
    upload(&store, B, &large).await;
    leave.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !store.load_index().unwrap() {
        assert!(Instant::now() < deadline, "the index was not mended");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for owner in [A, B] {
        assert!(sees(&store, owner, &small).await && sees(&store, owner, &large).await, "{owner:?}");
    }
    assert!(!sees(&store, C, &small).await);
    assert!(store.verify(Repair::Yes).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spliced_blob_that_cannot_be_read_stays_its_owners() {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let fails = Arc::new(AtomicBool::new(false));
    let files = InterceptedFiles::new(Arc::new(disk), {
        let fails = Arc::clone(&fails);
        move |path, operation| {
            let is_read = is_segment(path) && matches!(operation, FileOperation::Read(_));
            if is_read && fails.load(Ordering::SeqCst) { Err(std::io::Error::other("a bad sector")) } else { Ok(()) }
        }
    });
    let store = open(files, directory.path()).await;
    let parts = [blob(1, 30_000), blob(2, 35_000)];
    for part in &parts {
        put(store.as_ref(), A, part.clone()).await.unwrap();
    }
    let whole = [parts[0].bytes.to_vec(), parts[1].bytes.to_vec()].concat();
    let digest = Digest::of(DigestFunction::Sha256, &whole);
    store.splice(A, digest, &parts.map(|part| part.digest)).await.unwrap();
    let whole = NewBlob { digest, bytes: whole.into(), encoding: Encoding::Identity };
    fails.store(true, Ordering::SeqCst);
    upload(&store, B, &whole).await;
    fails.store(false, Ordering::SeqCst);
    for owner in [A, B] {
        assert!(sees(&store, owner, &whole).await, "{owner:?}");
        let read = store.read(owner, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == whole.bytes);
    }
}

/// Files of which the segments wait for a word before each of the two first writes once the switch is on.
fn held_appends(files: &LossyFiles, is_on: &Arc<AtomicBool>) -> (InterceptedFiles, Receiver<()>, Sender<()>) {
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel();
    let held = std::sync::Mutex::new((0, may_leave));
    let is_on = Arc::clone(is_on);
    let files = InterceptedFiles::new(Arc::new(files.clone()), move |path, operation| {
        let is_append = is_segment(path) && matches!(operation, FileOperation::Write { .. });
        if is_append && is_on.load(Ordering::SeqCst) {
            let mut held = held.lock().unwrap();
            held.0 += 1;
            if held.0 <= 2 {
                entered.send(()).unwrap();
                held.1.recv_timeout(Duration::from_secs(120)).unwrap();
            }
        }
        Ok(())
    });
    (files, has_entered, leave)
}

async fn all_see(store: &DiskBlobStore, blob: &NewBlob) {
    for owner in [A, B, C] {
        assert!(sees(store, owner, blob).await, "{owner:?} lost what it was let in to");
    }
}

/// Two owners are let in at once. What the log holds then must not bring back a sharing that neither's grant is of.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn owners_let_in_at_once_stay_after_a_power_cut_and_a_rebuild() {
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let is_on = Arc::new(AtomicBool::new(false));
    let (files, has_entered, leave) = held_appends(&disk, &is_on);
    let store = open(files, directory.path()).await;
    let shared = blob(1, 3000);
    put(store.as_ref(), A, shared.clone()).await.unwrap();
    store.checkpoint().unwrap();
    is_on.store(true, Ordering::SeqCst);
    let let_in = |owner| {
        let (store, shared) = (Arc::clone(&store), shared.clone());
        tokio::spawn(async move { put(store.as_ref(), owner, shared).await })
    };
    let first = let_in(B);
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    let second = let_in(C);
    // The other one comes as far as it can meanwhile: give it the chance.
    for hold in 0..2 {
        if hold > 0 {
            has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
        }
        let deadline = Instant::now() + Duration::from_millis(200);
        while Instant::now() < deadline {
            std::thread::yield_now();
        }
        leave.send(()).unwrap();
    }
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    store.sync().unwrap();
    let disk = disk.lose_power(1);
    drop(store);

    let store = open(disk.clone(), directory.path()).await;
    all_see(&store, &shared).await;
    store.close().unwrap();
    drop(store);
    lose_index(&disk, directory.path());
    let store = open(disk, directory.path()).await;
    store.verify(Repair::Yes).await.unwrap();
    all_see(&store, &shared).await;
}

/// A chunk that A brought and B proved to have, and that ended, comes back as a part of what C brings. It is C's alone.
#[tokio::test(flavor = "multi_thread")]
async fn saving_space_brings_no_ended_grant_back() {
    let contents = [noise(1, 6 << 20), [noise(1, 3 << 20), noise(2, 3 << 20)].concat()];
    let wholes = contents.map(|bytes| NewBlob {
        digest: Digest::of(DigestFunction::Sha256, &bytes),
        bytes: bytes.into(),
        encoding: Encoding::Identity,
    });
    let chunk = {
        // Where the second one is cut, as another store tells.
        let directory = tempfile::tempdir().unwrap();
        let store = open(LossyFiles::new(directory.path()), directory.path()).await;
        upload(&store, C, &wholes[1]).await;
        let chunks = store.split(C, wholes[1].digest).await.unwrap();
        let last = *chunks.last().unwrap();
        let at = wholes[1].bytes.len() - usize::try_from(last.size_bytes()).unwrap();
        NewBlob { digest: last, bytes: wholes[1].bytes.slice(at..), encoding: Encoding::Identity }
    };
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(files.clone(), directory.path()).await;
    for owner in [A, B] {
        put(store.as_ref(), owner, chunk.clone()).await.unwrap();
    }
    damage(&files, &chunk);
    assert!(store.read(A, chunk.digest, ByteRange::ALL, Accept::Identity).await.is_err());
    let before = store.stats().deduplicated_bytes;
    for whole in &wholes {
        upload(&store, C, whole).await;
        store.deduplicate_now().await;
    }
    assert!(store.stats().deduplicated_bytes > before, "nothing was shared");
    for (owner, may_see) in [(A, false), (B, false), (C, true)] {
        assert_eq!(sees(&store, owner, &chunk).await, may_see, "{owner:?}");
    }
}

/// A blob that A brought and B proved to have is evicted, but nobody has cleared its record away when C brings it and the
/// index is lost. That record proves nothing about C's.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_not_cleared_away_proves_no_sharing() {
    const LEASE_S: u64 = 100;
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    let files = LossyFiles::new(directory.path());
    let open = async || {
        let config =
            StoreConfig { lease: Duration::from_secs(LEASE_S), ..StoreConfig::new(directory.path().to_owned()) };
        let clock: Arc<dyn TimeSource> = Arc::clone(&time) as _;
        DiskBlobStore::open_on(Arc::new(files.clone()), clock, config).await.unwrap()
    };
    let store = open().await;
    let shared = blob(1, 3000);
    for owner in [A, B] {
        put(store.as_ref(), owner, shared.clone()).await.unwrap();
    }
    time.advance(2 * LEASE_S);
    // So much else lies beside it that the segment is not worth rewriting.
    for number in 100..140 {
        put(store.as_ref(), A, blob(number, 30_000)).await.unwrap();
    }
    // The blob, its sharing and the grant.
    let report = store.collect(3000 + 96 + 2 * 104).unwrap();
    assert!(report.evicted == 3 && report.compacted_segments == 0, "{report:?}");
    put(store.as_ref(), C, shared.clone()).await.unwrap();
    store.close().unwrap();
    drop(store);
    lose_index(&files, directory.path());
    let store = open().await;
    store.verify(Repair::Yes).await.unwrap();
    assert!(sees(&store, C, &shared).await);
    assert!(!sees(&store, B, &shared).await, "B learns that C brought it");
}

/// A's blob was found damaged, and C brought it. A power cut takes back that A's was taken out, but not what C was told.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_damaged_does_not_stand_in_for_what_came_later() {
    for seed in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), directory.path()).await;
        let shared = blob(1, 3000);
        put(store.as_ref(), A, shared.clone()).await.unwrap();
        store.checkpoint().unwrap();
        damage(&files, &shared);
        assert!(store.read(A, shared.digest, ByteRange::ALL, Accept::Identity).await.is_err());
        put(store.as_ref(), C, shared.clone()).await.unwrap();
        store.make_durable().await.unwrap();
        let files = files.lose_power(seed);
        drop(store);
        let store = open(files, directory.path()).await;
        let read = store.read(C, shared.digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == shared.bytes, "seed {seed}");
    }
}

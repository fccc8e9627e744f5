//! A disk that fails to keep what it was told to, says so once, and says yes ever after: nobody believes it, not even the
//! next process; and what it can neither keep nor read is given up in the end, and keeps nothing else from going on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, FileLayer, NewBlob, OwnerId, Repair, StoreConfig, TimeSource,
};
use gf_digest::Digest;
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::disk_store::{entry_key, index_is_whole, new_blob, upload};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const OWNER: OwnerId = OwnerId(1);
const LARGE_BYTES: usize = 60_000;

/// Nothing is synced but by the test, and by opening and closing.
async fn open(files: impl FileLayer, time: &Arc<ManualTime>, directory: &Path) -> Option<Arc<DiskBlobStore>> {
    let config = StoreConfig {
        capacity_bytes: 64 << 20,
        sync_window: Duration::from_secs(100_000),
        large_blob_bytes: 40_000,
        ..StoreConfig::new(directory.to_owned())
    };
    let clock: Arc<dyn TimeSource> = Arc::clone(time) as _;
    let store = DiskBlobStore::open_on(Arc::new(files), clock, config).await.ok()?;
    index_is_whole(&store).await;
    Some(store)
}

fn time() -> Arc<ManualTime> {
    Arc::new(ManualTime::new(1_000_000))
}

fn blob(number: u64, size: usize) -> NewBlob {
    new_blob(noise(number + 1, size))
}

async fn write(store: &DiskBlobStore, numbers: std::ops::Range<u64>) {
    for number in numbers {
        put(store, OWNER, blob(number, 3000)).await.unwrap();
        upload(store, OWNER, &blob(1 << 32 | number, LARGE_BYTES)).await;
        store.put_entry(&entry_key(OWNER, number), number.to_string().into()).await.unwrap();
    }
}

async fn must_have(store: &DiskBlobStore, numbers: std::ops::Range<u64>, what: &str) {
    for number in numbers {
        for blob in [blob(number, 3000), blob(1 << 32 | number, LARGE_BYTES)] {
            let read = store.read(OWNER, blob.digest, ByteRange::ALL, Accept::Identity).await;
            let read = read.unwrap_or_else(|error| panic!("{what}: {number}: {error}"));
            assert!(read_all(read).await.unwrap() == blob.bytes, "{what}: other bytes");
        }
        let entry = store.get_entry(&entry_key(OWNER, number)).await.unwrap();
        assert_eq!(entry, Some(number.to_string().into()), "{what}");
    }
    let report = store.verify(Repair::Yes).await.unwrap();
    assert!(report.is_clean(), "{what}: {report:?}");
}

/// Syncs, which may fail, until it is done.
fn make_durable(store: &DiskBlobStore, time: &ManualTime, sync: impl Fn(&DiskBlobStore) -> bool) {
    for _ in 0..40 {
        if sync(store) {
            return;
        }
        time.advance(30);
    }
    panic!("it never becomes durable");
}

/// Files, folders, or both by turns.
fn fail(files: &LossyFiles, which: u64, syncs: u64) {
    if which != 1 {
        files.fail_syncs(syncs);
    }
    if which != 0 {
        files.fail_folder_syncs(syncs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_believes_a_sync_that_failed_in_another() {
    for (which, syncs) in (0..3).flat_map(|which| [1, 5, 17, 24, 40].map(|syncs| (which, syncs))) {
        let what = format!("{syncs} failed syncs of kind {which}");
        let (directory, time) = (tempfile::tempdir().unwrap(), time());
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        write(&store, 0..15).await;
        store.checkpoint().unwrap();
        write(&store, 15..30).await;
        fail(&files, which, syncs);
        let first = if syncs % 2 == 0 { store.sync() } else { store.checkpoint() };
        assert!(first.is_err() || which == 1, "{what}: believed");
        // The note may fail, too; it is tried again with each sync, as the store does by itself in each window.
        let is_noted = || files.files().iter().any(|(path, _)| path.ends_with("distrusted"));
        while !is_noted() && store.sync().is_err() {}
        // Killed. The next process may be refused by the disk too.
        drop(store);
        let mut store = None;
        while store.is_none() {
            store = open(files.clone(), &time, directory.path()).await;
        }
        let store = store.unwrap();
        must_have(&store, 0..30, &what).await;
        make_durable(&store, &time, |store| store.checkpoint().is_ok());
        drop(store);
        let files = files.lose_power(syncs);
        let store = open(files, &time, directory.path()).await.unwrap();
        must_have(&store, 0..30, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_inherited_from_a_killed_process_is_not_believed_either() {
    for (which, syncs) in (0..3).flat_map(|which| [1, 2, 4].map(|syncs| (which, syncs))) {
        let what = format!("{syncs} failed syncs of kind {which}");
        let (directory, time) = (tempfile::tempdir().unwrap(), time());
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        write(&store, 0..20).await;
        drop(store);
        fail(&files, which, syncs);
        let mut store = None;
        while store.is_none() {
            store = open(files.clone(), &time, directory.path()).await;
        }
        let store = store.unwrap();
        make_durable(&store, &time, |store| store.sync().is_ok());
        drop(store);
        let store = open(files.lose_power(syncs), &time, directory.path()).await.unwrap();
        must_have(&store, 0..20, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_sync_of_its_folder_lost_is_given_anew() {
    for (syncs, is_synced) in [(1, false), (3, false), (6, false), (1, true), (2, true)] {
        let what = format!("{syncs} failed syncs, data synced before: {is_synced}");
        let (directory, time) = (tempfile::tempdir().unwrap(), time());
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        write(&store, 0..5).await;
        store.checkpoint().unwrap();
        // Enough for tables to grow.
        for number in 1000..4000 {
            put(store.as_ref(), OWNER, blob(number, 10)).await.unwrap();
        }
        write(&store, 5..20).await;
        if is_synced {
            // What fails then is the folder of the index.
            store.sync().unwrap();
        }
        files.fail_folder_syncs(syncs);
        assert!(store.checkpoint().is_err());
        make_durable(&store, &time, |store| store.checkpoint().is_ok());
        drop(store);
        let store = open(files.lose_power(syncs), &time, directory.path()).await.unwrap();
        must_have(&store, 0..20, &what).await;
        let small: Vec<Digest> = (1000..4000).map(|number| blob(number, 10).digest).collect();
        assert_eq!(store.find_missing(OWNER, &small).await.unwrap(), [], "{what}");
    }
}

/// What only the tables know: nothing is written again that would write them again by the way.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_could_not_be_synced_are_written_anew_by_the_next_process() {
    for syncs in 1..4 {
        let (directory, time) = (tempfile::tempdir().unwrap(), time());
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        write(&store, 0..20).await;
        store.checkpoint().unwrap();
        for number in 0..20 {
            assert!(store.remove_entry(&entry_key(OWNER, number)).await.unwrap());
        }
        files.fail_syncs(syncs);
        let is_noted = || files.files().iter().any(|(path, _)| path.ends_with("distrusted"));
        while store.checkpoint().is_err() && !is_noted() {}
        drop(store);
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        // The first one leaves the copies that it makes to be replayed, the second vouches for them.
        for _ in 0..2 {
            store.checkpoint().unwrap();
        }
        drop(store);
        let store = open(files.lose_power(syncs), &time, directory.path()).await.unwrap();
        for number in 0..20 {
            let entry = store.get_entry(&entry_key(OWNER, number)).await.unwrap();
            assert_eq!(entry, None, "{syncs} failed syncs: a removed entry is back");
        }
    }
}

/// A segment of which a part can neither be kept nor read: the rest of it is saved, and what cannot be is gone for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_neither_be_kept_nor_read_is_given_up() {
    let (directory, time) = (tempfile::tempdir().unwrap(), time());
    let disk = LossyFiles::new(directory.path());
    let is_bad = Arc::new(AtomicBool::new(false));
    let bad = Mutex::new(None);
    let files = InterceptedFiles::new(Arc::new(disk.clone()), {
        let is_bad = Arc::clone(&is_bad);
        move |path, operation| {
            let is_segment = path.extension().is_some_and(|end| end == "segment");
            if !is_segment || !is_bad.load(Ordering::SeqCst) {
                return Ok(());
            }
            let mut bad = bad.lock().unwrap();
            let is_it = bad.as_ref().is_none_or(|bad| bad == path);
            match operation {
                FileOperation::Sync if is_it => *bad = Some(path.to_owned()),
                // One record of all.
                FileOperation::Read(bytes) if is_it && bytes == 7777 => {}
                _ => return Ok(()),
            }
            Err(std::io::Error::other("a bad sector"))
        }
    });
    let store = open(files, &time, directory.path()).await.unwrap();
    store.checkpoint().unwrap();
    write(&store, 0..10).await;
    let lost = blob(77, 7777);
    put(store.as_ref(), OWNER, lost.clone()).await.unwrap();
    write(&store, 10..20).await;
    is_bad.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(store.checkpoint().is_err());
    }
    assert_eq!(store.find_missing(OWNER, &[lost.digest]).await.unwrap(), [], "given up at once");
    make_durable(&store, &time, |store| store.checkpoint().is_ok());
    assert_eq!(store.find_missing(OWNER, &[lost.digest]).await.unwrap(), [lost.digest]);
    must_have(&store, 0..20, "saved").await;
    // And it can come again.
    put(store.as_ref(), OWNER, lost.clone()).await.unwrap();
    store.make_durable().await.unwrap();
    drop(store);
    let store = open(disk.lose_power(1), &time, directory.path()).await.unwrap();
    must_have(&store, 0..20, "after a power cut").await;
    assert_eq!(store.find_missing(OWNER, &[lost.digest]).await.unwrap(), []);
}

/// The same for a large file.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_can_neither_be_kept_nor_read_is_given_up() {
    let (directory, time) = (tempfile::tempdir().unwrap(), time());
    let disk = LossyFiles::new(directory.path());
    let first = format!("{:016x}", 1_u64 << 32);
    let files = InterceptedFiles::new(Arc::new(disk.clone()), move |path, operation| {
        let is_upload = path.ends_with("incoming/0000000000000000");
        let is_bad = match operation {
            FileOperation::Sync => is_upload,
            FileOperation::Read(bytes) => path.ends_with(&first) && bytes > 10_000,
            _ => false,
        };
        if is_bad { Err(std::io::Error::other("a bad sector")) } else { Ok(()) }
    });
    let store = open(files, &time, directory.path()).await.unwrap();
    write(&store, 0..3).await;
    assert!(store.sync().is_err());
    make_durable(&store, &time, |store| store.checkpoint().is_ok());
    let lost = blob(1 << 32, LARGE_BYTES).digest;
    assert_eq!(store.find_missing(OWNER, &[lost]).await.unwrap(), [lost]);
    assert_eq!(store.stats().quarantined, 1);
    must_have(&store, 1..3, "the others").await;
}

/// A disk that is full for long says nothing about what it has: only what it fails to read, again and again, is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_reason_to_give_anything_up() {
    let (directory, time) = (tempfile::tempdir().unwrap(), time());
    let disk = LossyFiles::new(directory.path());
    let first = format!("{:016x}", 1_u64 << 32);
    let (is_full, failing_reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let files = InterceptedFiles::new(Arc::new(disk.clone()), {
        let (is_full, failing_reads) = (Arc::clone(&is_full), Arc::clone(&failing_reads));
        move |path, operation| {
            let is_copy = path.parent().is_some_and(|folder| folder.ends_with("incoming"));
            let fails = match operation {
                FileOperation::Sync => path.ends_with("incoming/0000000000000000"),
                FileOperation::Write { .. } if is_copy && is_full.load(Ordering::SeqCst) => {
                    return Err(std::io::ErrorKind::StorageFull.into());
                }
                FileOperation::Read(bytes) => {
                    let less = |left: u64| left.checked_sub(1);
                    let is_it = path.ends_with(&first) && bytes > 10_000;
                    is_it && failing_reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
                }
                _ => false,
            };
            if fails { Err(std::io::Error::other("a bad sector")) } else { Ok(()) }
        }
    });
    let store = open(files, &time, directory.path()).await.unwrap();
    write(&store, 0..3).await;
    is_full.store(true, Ordering::SeqCst);
    for _ in 0..30 {
        assert!(store.sync().is_err());
        time.advance(300);
    }
    is_full.store(false, Ordering::SeqCst);
    failing_reads.store(3, Ordering::SeqCst);
    make_durable(&store, &time, |store| store.checkpoint().is_ok());
    assert_eq!(failing_reads.load(Ordering::SeqCst), 0);
    assert_eq!(store.stats().quarantined, 0);
    must_have(&store, 0..3, "copied after all").await;
}

/// What is suspect may be as sound as it was when it was written: it goes only when its copy is durable.
#[tokio::test(flavor = "multi_thread")]
async fn no_original_goes_before_its_copy_is_durable() {
    for (seed, syncs) in (0..8).flat_map(|seed| [1, 2, 3, 5, 8, 100].map(|syncs| (seed, syncs))) {
        let (directory, time) = (tempfile::tempdir().unwrap(), time());
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        store.checkpoint().unwrap();
        write(&store, 0..5).await;
        // On the disk from now on, though no checkpoint vouches for it.
        store.sync().unwrap();
        put(store.as_ref(), OWNER, blob(9, 3000)).await.unwrap();
        files.fail_syncs(1);
        assert!(store.sync().is_err());
        drop(store);
        // The next process believes nothing that came after the checkpoint, and copies all of it.
        let store = open(files.clone(), &time, directory.path()).await.unwrap();
        fail(&files, seed % 3, syncs);
        assert!(store.sync().is_err(), "seed {seed}: nothing failed");
        drop(store);
        let store = open(files.lose_power(seed), &time, directory.path()).await.unwrap();
        must_have(&store, 0..5, &format!("{syncs} failed syncs, seed {seed}")).await;
    }
}

//! A store under pressure: one file that the disk has failed keeps no other from becoming durable, and writers who wait
//! for room keep nobody else waiting.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gf_blobstore::{
    BlobStore, DiskBlobStore, Encoding, ErrorKind, FileLayer, NewBlob, OwnerId, StoreConfig, StoreError, TimeSource,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, put};
use gf_testkit::disk_store::{entry_key, new_blob, upload, wait_until};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const OWNER: OwnerId = OwnerId(1);
const LEASE_S: u64 = 100;

async fn open(files: impl FileLayer, time: &Arc<ManualTime>, directory: &Path) -> Arc<DiskBlobStore> {
    let config = StoreConfig {
        capacity_bytes: 4 << 20,
        lease: Duration::from_secs(LEASE_S),
        // Nothing is synced but by the test.
        sync_window: Duration::from_secs(100_000),
        large_blob_bytes: 40_000,
        ..StoreConfig::new(directory.to_owned())
    };
    let clock: Arc<dyn TimeSource> = Arc::clone(time) as _;
    DiskBlobStore::open_on(Arc::new(files), clock, config).await.unwrap()
}

fn blob(number: u64, size: usize) -> NewBlob {
    new_blob(noise(number + 1, size))
}

/// The first large file to be synced is on a bad sector: it can neither be made durable nor be read.
fn with_bad_sector(files: &LossyFiles) -> InterceptedFiles {
    let bad: Mutex<Option<PathBuf>> = Mutex::default();
    InterceptedFiles::new(Arc::new(files.clone()), move |path, operation| {
        let mut bad = bad.lock().unwrap();
        let is_upload = path.parent().is_some_and(|folder| folder.ends_with("incoming"));
        match operation {
            FileOperation::Sync if is_upload && bad.as_ref().is_none_or(|bad| bad == path) => {
                *bad = Some(path.to_owned());
                Err(std::io::Error::other("a bad sector"))
            }
            // By the name that it has meanwhile: the first one of the run.
            FileOperation::Open if bad.is_some() && path.ends_with(format!("{:016x}", 1_u64 << 32)) => {
                Err(std::io::Error::other("a bad sector"))
            }
            _ => Ok(()),
        }
    })
}

/// A folder is synced before whoever fills a segment needs the next one.
#[test]
fn no_write_waits_for_a_folder_to_be_synced() {
    const ANSWERS: &str = "answers";
    let builder =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(ANSWERS).enable_all().build();
    let runtime = builder().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let synced = Arc::new(AtomicU64::new(0));
    let files = InterceptedFiles::new(Arc::new(disk.clone()), {
        let synced = Arc::clone(&synced);
        move |path, operation| {
            let is_it = operation == FileOperation::SyncDirectory && path.ends_with("segments");
            let is_answering = std::thread::current().name() == Some(ANSWERS);
            synced.fetch_add(u64::from(is_it && is_answering), Ordering::SeqCst);
            Ok(())
        }
    });
    let segments = || {
        let is_segment = |path: &Path| path.extension().is_some_and(|end| end == "segment");
        disk.files().iter().filter(|(path, _)| is_segment(path)).count()
    };
    let config = StoreConfig {
        capacity_bytes: 64 << 20,
        sync_window: Duration::from_millis(20),
        ..StoreConfig::new(directory.path().to_owned())
    };
    let store = runtime.block_on(DiskBlobStore::open_on(Arc::new(files), Arc::new(ManualTime::new(1_000_000)), config));
    let store = store.unwrap();
    let put = |number| {
        let store = Arc::clone(&store);
        runtime
            .block_on(runtime.spawn(async move { put(store.as_ref(), OWNER, blob(number, 200_000)).await.unwrap() }))
            .unwrap();
    };
    put(0);
    let (first, begun) = (synced.load(Ordering::SeqCst), segments());
    assert_eq!((first, begun), (1, 1), "the first segment is begun by who needs it");
    for number in 1..20 {
        // Five blobs fill a segment of 1 MiB.
        put(number);
        if number % 5 == 3 {
            wait_until("the next segment is ready", || segments() as u64 > begun as u64 + number / 5);
        }
    }
    assert_eq!(synced.load(Ordering::SeqCst), first, "a write waited for a folder");
    store.close().unwrap();
    assert_eq!(segments(), 4, "what was made ready in vain is left");
}

/// All is under lease and there is no room: what is here already needs none, whoever writes it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_takes_what_it_has() {
    const OTHER: OwnerId = OwnerId(2);
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::new(1_000_000));
    let store = open(LossyFiles::new(directory.path()), &time, directory.path()).await;
    let mut blobs = Vec::new();
    for number in 0.. {
        let blob = blob(number, 20_000);
        if put(store.as_ref(), OWNER, blob.clone()).await.is_err() {
            break;
        }
        blobs.push(blob);
    }
    let free = store.stats().capacity_bytes - store.stats().used_bytes;
    let again = &blobs[..10];
    assert!((3000..20_000).contains(&free), "{free} bytes are free");
    for owner in [OWNER, OTHER] {
        let mut batch = again.to_vec();
        batch.push(blob(1 << 20, 20_000));
        let results = store.write_batch(owner, batch).await;
        assert!(results[..again.len()].iter().all(Result::is_err) == (owner == OTHER), "{owner:?}: {results:?}");
        assert_eq!(results[again.len()].as_ref().unwrap_err().kind(), ErrorKind::Exhausted);
        let results = store.write_batch(owner, again.to_vec()).await;
        assert!(results.iter().all(Result::is_ok), "{owner:?}: {results:?}");
        let digests: Vec<Digest> = again.iter().map(|blob| blob.digest).collect();
        assert_eq!(store.find_missing(owner, &digests).await.unwrap(), []);
    }
    assert_eq!(store.stats().reserved_bytes, 0);
}

/// Who is refused hears how much less would have been enough.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_is_short() {
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::new(1_000_000));
    let store = open(LossyFiles::new(directory.path()), &time, directory.path()).await;
    let short = async |size: usize| {
        let digest = Digest::new(DigestFunction::Sha256, [7; 32], size as u64);
        match store.upload(OWNER, digest, Encoding::Identity).await {
            Ok(upload) => Ok(upload),
            Err(StoreError::NoSpace { short_bytes, .. }) => Err(short_bytes),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(short(5 << 20).await.err(), Some(u64::MAX));
    // What may go is no shortage.
    put(store.as_ref(), OWNER, blob(1, 500_000)).await.unwrap();
    time.advance(2 * LEASE_S);
    store.sync().unwrap();
    let waiting = short(2 << 20).await.unwrap();
    let short_bytes = short(3 << 20).await.err().unwrap();
    assert!((1 << 20..(1 << 20) + 2000).contains(&short_bytes), "{short_bytes} bytes are short");
    drop(waiting);
    short(3 << 20).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_can_neither_keep_nor_read_keeps_nothing_else_from_being_durable() {
    for seed in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let disk = LossyFiles::new(directory.path());
        let time = Arc::new(ManualTime::new(1_000_000));
        let store = open(with_bad_sector(&disk), &time, directory.path()).await;
        upload(store.as_ref(), OWNER, &blob(1, 100_000)).await;
        assert!(store.sync().is_err());
        let (large, small) = (blob(2, 100_000), blob(3, 3000));
        upload(store.as_ref(), OWNER, &large).await;
        put(store.as_ref(), OWNER, small.clone()).await.unwrap();
        for _ in 0..3 {
            assert!(store.sync().is_err(), "the first one is believed to be durable");
        }
        let disk = disk.lose_power(seed);
        drop(store);
        let store = open(disk, &time, directory.path()).await;
        let missing = store.find_missing(OWNER, &[large.digest, small.digest]).await.unwrap();
        assert_eq!(missing, [], "seed {seed}");
    }
}

/// Two threads are there for what may wait. One makes room, and it takes long; many more writers need some.
#[test]
fn writers_who_wait_for_room_take_no_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel::<()>();
    let (is_on, held) = (Arc::new(AtomicBool::new(false)), Mutex::new(Some(may_leave)));
    let directory = tempfile::tempdir().unwrap();
    let files = InterceptedFiles::new(Arc::new(LossyFiles::new(directory.path())), {
        let is_on = Arc::clone(&is_on);
        move |_, operation| {
            let is_removal = operation == FileOperation::Remove;
            if is_removal
                && is_on.load(Ordering::SeqCst)
                && let Some(may_leave) = held.lock().unwrap().take()
            {
                entered.send(()).unwrap();
                may_leave.recv_timeout(Duration::from_secs(120)).unwrap();
            }
            Ok(())
        }
    });
    let time = Arc::new(ManualTime::new(1_000_000));
    let store = runtime.block_on(open(files, &time, directory.path()));
    runtime.block_on(async {
        let refusal = loop {
            if let Err(error) = put(store.as_ref(), OWNER, blob(time.now_s() + store.stats().keys, 30_000)).await {
                break error;
            }
        };
        assert_eq!(refusal.kind(), ErrorKind::Exhausted);
    });
    time.advance(2 * LEASE_S);
    is_on.store(true, Ordering::SeqCst);
    let writers: Vec<_> = (0..8)
        .map(|number| {
            let store = Arc::clone(&store);
            runtime.spawn(async move { put(store.as_ref(), OWNER, blob(number, 30_000)).await })
        })
        .collect();
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    // All the others come as far as they can: give them the chance.
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline {
        std::thread::yield_now();
    }
    let other = runtime.spawn_blocking(|| ());
    let is_done = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), other).await.is_ok() });
    leave.send(()).unwrap();
    for writer in writers {
        runtime.block_on(writer).unwrap().unwrap();
    }
    assert!(is_done, "all threads wait for room");
}

/// Files that count what is done to them on this thread.
fn counted(files: LossyFiles) -> (InterceptedFiles, Arc<Mutex<Vec<FileOperation>>>) {
    let (ours, seen) = (std::thread::current().id(), Arc::new(Mutex::new(Vec::new())));
    let files = InterceptedFiles::new(Arc::new(files), {
        let seen = Arc::clone(&seen);
        move |_, operation| {
            if std::thread::current().id() == ours {
                seen.lock().unwrap().push(operation);
            }
            Ok(())
        }
    });
    (files, seen)
}

/// A small message that becomes a huge one costs the threads that answer nothing.
#[test]
fn what_arrives_compressed_is_decoded_elsewhere() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    let (files, seen) = counted(LossyFiles::new(directory.path()));
    runtime.block_on(async {
        let store = open(files, &time, directory.path()).await;
        let bytes = vec![7; 3 << 20];
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let wire = zstd::bulk::compress(&bytes, 3).unwrap();
        assert!(wire.len() < 1000, "{} bytes", wire.len());
        let mut upload = store.upload(OWNER, digest, Encoding::Zstd).await.unwrap();
        seen.lock().unwrap().clear();
        upload.write(wire.into()).await.unwrap();
        let here = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(here, [], "on the thread that answers");
        upload.finish().await.unwrap();
        assert_eq!(store.find_missing(OWNER, &[digest]).await.unwrap(), []);
    });
}

/// Who gives up waiting for a write may have had a part of it taken: nothing more can be made of that upload.
#[test]
fn an_upload_whose_write_was_given_up_is_void() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    runtime.block_on(async {
        let store = open(LossyFiles::new(directory.path()), &time, directory.path()).await;
        let bytes = vec![7; 3 << 20];
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let wire = zstd::bulk::compress(&bytes, 3).unwrap();
        let mut upload = store.upload(OWNER, digest, Encoding::Zstd).await.unwrap();
        assert!(polled_once(upload.write(wire.clone().into())).is_none(), "it did not have to wait");
        assert!(upload.write(wire.into()).await.is_err());
        assert!(upload.finish().await.is_err());
        assert_eq!(store.find_missing(OWNER, &[digest]).await.unwrap(), [digest]);
    });
}

/// What a future says when it is asked once.
fn polled_once<F: Future>(future: F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// A removal waits for the disk: elsewhere, and while others write.
#[test]
fn removing_an_entry_keeps_nobody_waiting() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    let (entered, has_entered) = channel();
    let (leave, may_leave) = channel::<()>();
    let (is_on, held) = (Arc::new(AtomicBool::new(false)), Mutex::new(may_leave));
    let files = InterceptedFiles::new(Arc::new(LossyFiles::new(directory.path())), {
        let is_on = Arc::clone(&is_on);
        move |_, operation| {
            if operation == FileOperation::Sync && is_on.swap(false, Ordering::SeqCst) {
                entered.send(()).unwrap();
                held.lock().unwrap().recv_timeout(Duration::from_secs(120)).unwrap();
            }
            Ok(())
        }
    });
    runtime.block_on(async {
        let store = open(files, &time, directory.path()).await;
        store.put_entry(&entry_key(OWNER, 1), "one".into()).await.unwrap();
        is_on.store(true, Ordering::SeqCst);
        let removing = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.remove_entry(&entry_key(OWNER, 1)).await }
        });
        let deadline = Instant::now() + Duration::from_secs(120);
        while has_entered.try_recv().is_err() {
            assert!(Instant::now() < deadline, "nothing was synced");
            tokio::task::yield_now().await;
        }
        // Its place is free, and a checkpoint, which must be alone for a moment, does not stop who writes.
        let checkpoint = tokio::task::spawn_blocking({
            let store = Arc::clone(&store);
            move || store.checkpoint()
        });
        store.put_entry(&entry_key(OWNER, 1), "another".into()).await.unwrap();
        assert!(!removing.is_finished());
        leave.send(()).unwrap();
        assert!(removing.await.unwrap().unwrap());
        checkpoint.await.unwrap().unwrap();
        // What came behind the removal stays.
        assert_eq!(store.get_entry(&entry_key(OWNER, 1)).await.unwrap(), Some("another".into()));
        assert!(store.remove_entry(&entry_key(OWNER, 1)).await.unwrap());
        assert!(!store.remove_entry(&entry_key(OWNER, 1)).await.unwrap());
    });
}

/// A removal that could not be made durable is an error, and yet nobody is served what was to go.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_counts_at_once_though_the_disk_fails() {
    let (directory, time) = (tempfile::tempdir().unwrap(), Arc::new(ManualTime::new(1_000_000)));
    let disk = LossyFiles::new(directory.path());
    let store = open(with_bad_sector(&disk), &time, directory.path()).await;
    upload(store.as_ref(), OWNER, &blob(1, 100_000)).await;
    assert!(store.sync().is_err());
    store.put_entry(&entry_key(OWNER, 1), "one".into()).await.unwrap();
    // Twice: that it is gone is not yet certain.
    for _ in 0..2 {
        assert!(store.remove_entry(&entry_key(OWNER, 1)).await.is_err());
    }
    // What was never there needs no disk.
    assert!(!store.remove_entry(&entry_key(OWNER, 2)).await.unwrap());
    assert_eq!(store.get_entry(&entry_key(OWNER, 1)).await.unwrap(), None);
}

//! Splices that ask for much work in few bytes: so many at once as there are processors, others have their turn meanwhile,
//! and no blob becomes one of which each look costs more than its bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use gf_blobstore::{Accept, BlobStore, ByteRange, DiskBlobStore, FileLayer, MachineTime, OwnerId, StoreConfig};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::disk_store::{new_blob, upload};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles};

const OWNER: OwnerId = OwnerId(1);
const ANSWERS: &str = "answers";

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(ANSWERS)
        .enable_all()
        .build()
        .unwrap()
}

async fn open(files: impl FileLayer, directory: &Path) -> Arc<DiskBlobStore> {
    // What the scrub reads is not to be counted.
    let config =
        StoreConfig { large_blob_bytes: 40_000, scrub_bytes_per_second: 1, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await.unwrap()
}

#[test]
fn no_more_splices_are_read_at_once_than_there_are_processors() {
    let processors = available_parallelism().unwrap().get();
    let (now, most, counts) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let directory = tempfile::tempdir().unwrap();
    let files = InterceptedFiles::new(Arc::new(LossyFiles::new(directory.path())), {
        let (now, most, counts) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&counts));
        move |_, operation| {
            let is_ours = std::thread::current().name() == Some(ANSWERS);
            if is_ours && counts.load(Ordering::SeqCst) && matches!(operation, FileOperation::Read(100_000..)) {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Not synchronisation: reading takes its time.
                std::thread::sleep(Duration::from_millis(5));
                now.fetch_sub(1, Ordering::SeqCst);
            }
            Ok(())
        }
    });
    runtime(4 * processors).block_on(async {
        let store = open(files, directory.path()).await;
        let mut splices = Vec::new();
        for number in 0..4 * processors as u64 {
            let parts = [2 * number, 2 * number + 1].map(|number| new_blob(noise(number + 1, 600_000)));
            for part in &parts {
                upload(store.as_ref(), OWNER, part).await;
            }
            let whole = Digest::of(DigestFunction::Sha256, &parts.each_ref().map(|part| &part.bytes[..]).concat());
            splices.push((whole, parts.map(|part| part.digest)));
        }
        counts.store(true, Ordering::SeqCst);
        let mut tasks = tokio::task::JoinSet::new();
        for (whole, parts) in splices {
            let store = Arc::clone(&store);
            tasks.spawn(async move { store.splice(OWNER, whole, &parts).await.unwrap() });
        }
        tasks.join_all().await;
    });
    let most = most.load(Ordering::SeqCst);
    assert!((1..=processors).contains(&most), "{most} at once on {processors} processors");
}

/// Very many looks, and one thread for all.
#[test]
fn looking_at_many_parts_lets_others_have_their_turn() {
    const LOOKS: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let store = open(files, directory.path()).await;
        let digests: Vec<Digest> =
            (0..LOOKS).map(|number| Digest::of(DigestFunction::Sha256, &number.to_le_bytes())).collect();
        let turns = Arc::new(AtomicUsize::new(0));
        let other = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                loop {
                    turns.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            }
        });
        tokio::task::yield_now().await;
        let before = turns.load(Ordering::SeqCst);
        assert_eq!(store.find_missing(OWNER, &digests).await.unwrap().len(), LOOKS);
        let had = turns.load(Ordering::SeqCst) - before;
        assert!(had >= LOOKS / 1000, "others had {had} turns");
        other.abort();
    });
}

#[test]
fn a_blob_of_very_short_parts_is_kept_whole() {
    const TIMES: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    runtime(2).block_on(async {
        let store = open(files.clone(), directory.path()).await;
        let part = new_blob(noise(1, 7));
        put(store.as_ref(), OWNER, part.clone()).await.unwrap();
        let bytes = part.bytes.repeat(TIMES);
        let whole = Digest::of(DigestFunction::Sha256, &bytes);
        store.splice(OWNER, whole, &vec![part.digest; TIMES]).await.unwrap();
        let read = store.read(OWNER, whole, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == bytes);
        let large = files.files().into_iter().filter(|(path, _)| path.starts_with(directory.path().join("large")));
        assert_eq!(large.count(), 1, "it has bytes of its own");
    });
}

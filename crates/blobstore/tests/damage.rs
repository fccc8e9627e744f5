//! A store whose files were damaged: reads never give wrong bytes, nothing panics, verification mends while it serves
//! and names what is lost, and afterwards what is reported present can be read.
//!
//! The damage is made by a seed, which a failure names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, ErrorKind, MachineTime, NewBlob, OwnerId, Repair,
    StoreConfig, StoreError, TimeSource,
};
use gf_digest::Digest;
use gf_testkit::blob_store_suite::{noise, put, read_all, text};
use gf_testkit::disk_store::{entry_key, for_each_seed, index_is_whole, new_blob, upload, wait_until};
use gf_testkit::{InterceptedFiles, LossyFiles, ManualTime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const OWNER: OwnerId = OwnerId(1);
const SEEDS: u64 = 80;
const PAGE_BYTES: usize = 4096;

async fn open(files: &LossyFiles, directory: &Path) -> Arc<DiskBlobStore> {
    let config =
        StoreConfig { capacity_bytes: 64 << 20, large_blob_bytes: 40_000, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(Arc::new(files.clone()), Arc::new(MachineTime::default()), config).await.unwrap()
}

/// A closed store with small, large, compressed and split blobs, and entries.
async fn fill(files: &LossyFiles, directory: &Path) -> Vec<NewBlob> {
    let store = open(files, directory).await;
    let mut blobs: Vec<NewBlob> = (0..300).map(|number| new_blob(noise(number + 1, 3000))).collect();
    blobs.extend((0..6).map(|number| new_blob(noise(1000 + number, 300_000))));
    blobs.extend((0..3).map(|number| new_blob(text(2000 + number, 600_000))));
    blobs.push(new_blob(noise(3000, 2_000_000)));
    for blob in &blobs {
        upload(store.as_ref(), OWNER, blob).await;
    }
    for number in 0..40 {
        store.put_entry(&entry_key(OWNER, number), format!("entry {number}").into()).await.unwrap();
    }
    let whole = blobs[blobs.len() - 1].clone();
    let mut at = 0;
    for chunk in store.split(OWNER, whole.digest).await.unwrap() {
        let end = at + usize::try_from(chunk.size_bytes()).unwrap();
        blobs.push(NewBlob { digest: chunk, bytes: whole.bytes.slice(at..end), encoding: Encoding::Identity });
        at = end;
    }
    store.close().unwrap();
    blobs
}

/// Damages one of the files of the store, and says how.
fn damage(files: &LossyFiles, directory: &Path, random: &mut StdRng) -> String {
    let kind = ["segments", "large", "index", "checkpoint"][random.random_range(0..4)];
    let of_kind = |(path, bytes): &(PathBuf, u64)| *bytes > 0 && path.starts_with(directory.join(kind));
    let candidates: Vec<(PathBuf, u64)> = files.files().into_iter().filter(of_kind).collect();
    if candidates.is_empty() {
        return format!("no {kind} left");
    }
    let (path, _) = &candidates[random.random_range(0..candidates.len())];
    let how = random.random_range(0..5);
    files.damage(path, |bytes| match how {
        0 => {
            for _ in 0..random.random_range(1..20) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
        }
        1 => bytes.truncate(random.random_range(0..bytes.len())),
        2 => {
            let (from, length) = (random.random_range(0..bytes.len()), random.random_range(1..20_000));
            let end = (from + length).min(bytes.len());
            bytes[from..end].fill(0);
        }
        3 => {
            let from = random.random_range(0..bytes.len()) / PAGE_BYTES * PAGE_BYTES;
            let end = (from + PAGE_BYTES).min(bytes.len());
            bytes[from..end].fill(0);
        }
        _ => {}
    });
    if how == 4 {
        gf_blobstore::FileLayer::remove(files, path).unwrap();
    }
    format!("{} {}", ["flipped", "cut", "zeroed", "zeroed a page of", "removed"][how], path.display())
}

async fn read(store: &DiskBlobStore, digest: Digest, accept: Accept) -> Result<Vec<u8>, StoreError> {
    let read = store.read(OWNER, digest, ByteRange::ALL, accept).await?;
    let encoding = read.encoding();
    let bytes = read_all(read).await?;
    Ok(if encoding == Encoding::Zstd { zstd::decode_all(&*bytes).unwrap() } else { bytes })
}

async fn survives(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let blobs = fill(&files, directory.path()).await;
    let mut random = StdRng::seed_from_u64(seed);
    let what: Vec<String> =
        (0..random.random_range(1..4)).map(|_| damage(&files, directory.path(), &mut random)).collect();
    let what = format!("GF_SEED={seed}: {what:?}");

    let store = open(&files, directory.path()).await;
    let verifying = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.verify(Repair::Yes).await }
    });
    for blob in &blobs {
        let accept = [Accept::Identity, Accept::Zstd, Accept::Any][random.random_range(0..3)];
        if let Ok(bytes) = read(&store, blob.digest, accept).await {
            assert!(bytes == blob.bytes, "{what}: {} has other bytes", blob.digest);
        }
    }
    verifying.await.unwrap().unwrap_or_else(|error| panic!("{what}: {error}"));

    index_is_whole(&store).await;
    let report = store.verify(Repair::Yes).await.unwrap();
    assert!(report.lost.len() as u64 == report.lost_count.min(1000), "{what}");
    let again = store.verify(Repair::Yes).await.unwrap();
    assert!(again.is_clean(), "{what}: after mending: {again:?}");
    let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
    let missing = store.find_missing(OWNER, &digests).await.unwrap();
    for blob in &blobs {
        match read(&store, blob.digest, Accept::Identity).await {
            Ok(bytes) => {
                assert!(bytes == blob.bytes, "{what}: {} has other bytes", blob.digest);
                assert!(!missing.contains(&blob.digest), "{what}: {} is here and reported missing", blob.digest);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{what}: {error}");
                assert!(missing.contains(&blob.digest), "{what}: {} is reported present: {error}", blob.digest);
            }
        }
    }
    for number in 0..40 {
        if let Some(value) = store.get_entry(&entry_key(OWNER, number)).await.unwrap() {
            assert_eq!(value, format!("entry {number}"), "{what}");
        }
    }
    // What was lost can be brought again.
    for blob in blobs.iter().filter(|blob| missing.contains(&blob.digest)) {
        put(store.as_ref(), OWNER, blob.clone()).await.unwrap();
    }
    assert_eq!(store.find_missing(OWNER, &digests).await.unwrap(), [], "{what}");
}

#[test]
fn damage_is_noticed_named_and_mended() {
    for_each_seed(0..SEEDS, survives);
}

/// The tables of the index, of which some have more than a page.
fn tables(files: &LossyFiles, directory: &Path) -> Vec<(PathBuf, u64)> {
    files.files().into_iter().filter(|(path, _)| path.starts_with(directory.join("index"))).collect()
}

/// Nothing is lost whose slots the disk gives back as zeros: neither at rest nor while a process has the table in memory,
/// which writes to the page and is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_table_that_reads_as_zeros_is_not_absence() {
    for (round, is_running) in [(0, false), (1, false), (2, true), (3, true)] {
        let directory = tempfile::tempdir().unwrap();
        let files = LossyFiles::new(directory.path());
        let mut blobs = fill(&files, directory.path()).await;
        let store = open(&files, directory.path()).await;
        for batch in 0..8 {
            let tiny: Vec<NewBlob> =
                (0..1000).map(|number| new_blob(noise(10_000 + 1000 * batch + number, 10))).collect();
            assert!(store.write_batch(OWNER, tiny.clone()).await.into_iter().all(|result| result.is_ok()));
            blobs.extend(tiny);
        }
        store.checkpoint().unwrap();
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        let mut store = Some(store);
        if !is_running {
            store.take().unwrap().close().unwrap();
        }
        for (path, bytes) in tables(&files, directory.path()) {
            // With the head or without it.
            let from = PAGE_BYTES * (round % 2);
            assert!(bytes > 2 * PAGE_BYTES as u64, "{} is too small", path.display());
            files.damage(&path, |bytes| bytes[from..from + PAGE_BYTES].fill(0));
        }
        if let Some(store) = store {
            for number in 0..100 {
                put(store.as_ref(), OWNER, new_blob(noise(50_000 + number, 10))).await.unwrap();
            }
            store.checkpoint().unwrap();
            drop(store);
        }
        let store = open(&files, directory.path()).await;
        match store.find_missing(OWNER, &digests).await {
            // It was mended before it was asked.
            Ok(missing) => assert_eq!(missing, [], "round {round}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "round {round}"),
        }
        index_is_whole(&store).await;
        assert_eq!(store.find_missing(OWNER, &digests).await.unwrap(), [], "round {round}");
        for number in 0..40 {
            assert!(
                store.get_entry(&entry_key(OWNER, number)).await.unwrap().is_some(),
                "round {round}: an entry is lost"
            );
        }
        assert!(store.verify(Repair::Yes).await.unwrap().is_clean(), "round {round}");
    }
}

/// A whole file that no table names is all that may be left of a blob: it is not thrown away at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_that_no_table_names_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(&files, directory.path()).await;
    store.checkpoint().unwrap();
    let before: Vec<(PathBuf, Vec<u8>)> =
        tables(&files, directory.path()).into_iter().map(|(path, _)| (path.clone(), bytes_of(&files, &path))).collect();
    let (lost, torn) = (new_blob(noise(1, 60_000)), new_blob(noise(2, 60_000)));
    for blob in [&lost, &torn] {
        upload(store.as_ref(), OWNER, blob).await;
    }
    store.close().unwrap();
    drop(store);
    // Tables as they were before, with every check right: nothing tells that slots are missing.
    for (path, table) in before {
        files.damage(&path, |bytes| *bytes = table);
    }
    let large = |files: &LossyFiles| -> Vec<PathBuf> {
        files
            .files()
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| path.starts_with(directory.path().join("large")))
            .collect()
    };
    let of_torn = large(&files).into_iter().find(|path| bytes_of(&files, path)[..60_000] == torn.bytes[..]).unwrap();
    files.damage(&of_torn, |bytes| bytes.truncate(50_000));
    let store = open(&files, directory.path()).await;
    let report = store.verify(Repair::Yes).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(store.find_missing(OWNER, &[lost.digest, torn.digest]).await.unwrap(), [lost.digest, torn.digest]);
    let set_aside: Vec<(PathBuf, u64)> =
        files.files().into_iter().filter(|(path, _)| path.starts_with(directory.path().join("quarantine"))).collect();
    assert!(large(&files).is_empty(), "{:?} is left", large(&files));
    assert_eq!(set_aside.len(), 1, "what is whole, and not what is torn: {set_aside:?}");
    assert!(bytes_of(&files, &set_aside[0].0)[..60_000] == lost.bytes[..]);
    let counts = |path: &Path| {
        ["large", "segments", "quarantine"].iter().any(|kind| path.starts_with(directory.path().join(kind)))
    };
    let on_disk = || files.files().iter().filter(|(path, _)| counts(path)).map(|(_, bytes)| bytes).sum::<u64>();
    // The store looks for such files by itself, too, and counts afterwards.
    wait_until("the account is right", || store.stats().used_bytes == on_disk());
}

fn bytes_of(files: &LossyFiles, path: &Path) -> Vec<u8> {
    let file = gf_blobstore::FileLayer::open(files, path).unwrap();
    let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Nobody reads the damaged blobs, and yet they are found. And a store that is closed before it has looked at everything
/// goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_what_nobody_reads_and_goes_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let blobs = fill(&files, directory.path()).await;
    for kind in ["segments", "large"] {
        let of_kind = |(path, bytes): &(PathBuf, u64)| *bytes > 0 && path.starts_with(directory.path().join(kind));
        let (path, _) = files.files().into_iter().find(of_kind).unwrap();
        files.damage(&path, |bytes| bytes[1000] ^= 1);
    }
    // Time stands still, so that no second pass begins however long this test is kept from closing the store.
    let time = Arc::new(ManualTime::new(MachineTime::default().now_s()));
    let paced = |scrub_bytes_per_second| {
        let config = StoreConfig {
            large_blob_bytes: 40_000,
            scrub_bytes_per_second,
            scrub_pass: Duration::from_secs(5),
            ..StoreConfig::new(directory.path().to_owned())
        };
        DiskBlobStore::open_on(Arc::new(files.clone()), Arc::clone(&time) as _, config)
    };
    // So slow that a few blobs take a second.
    let store = paced(1 << 18).await.unwrap();
    wait_until("something is looked at", || store.stats().scrub.blobs + store.stats().scrub.damaged > 0);
    store.close().unwrap();
    let first = store.stats().scrub;
    assert!(first.passes == 0, "{first:?}");
    drop(store);

    let store = paced(u64::MAX).await.unwrap();
    wait_until("a pass ends", || store.stats().scrub.passes > 0);
    store.close().unwrap();
    let scrubbed = store.stats().scrub;
    let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
    let missing = store.find_missing(OWNER, &digests).await.unwrap();
    assert!(scrubbed.damaged >= 2 && missing.len() >= 2, "{scrubbed:?}, {} missing", missing.len());
    // Each blob once: what has no bytes any more is missing, and was counted as damaged or went with what was.
    assert_eq!(scrubbed.passes, 1, "{scrubbed:?}");
    assert!(scrubbed.blobs >= first.blobs, "what was done is forgotten: {first:?}, {scrubbed:?}");
    assert!(scrubbed.blobs + scrubbed.damaged <= blobs.len() as u64, "{scrubbed:?} of {} blobs", blobs.len());
    assert!(scrubbed.blobs >= (blobs.len() - missing.len()) as u64, "{scrubbed:?}, {} missing", missing.len());
    assert_eq!(scrubbed.entries, 40);
}

/// Verification reads and hashes all there is: never where requests are answered.
#[test]
fn verification_keeps_off_the_threads_that_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    runtime.block_on(fill(&disk, directory.path()));
    let ours = std::thread::current().id();
    let count = Arc::new(AtomicU64::new(0));
    let files = InterceptedFiles::new(Arc::new(disk), {
        let count = Arc::clone(&count);
        move |_, _| {
            count.fetch_add(u64::from(std::thread::current().id() == ours), Ordering::Relaxed);
            Ok(())
        }
    });
    let config = StoreConfig { large_blob_bytes: 40_000, ..StoreConfig::new(directory.path().to_owned()) };
    let store = DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config);
    let store = runtime.block_on(store).unwrap();
    let before = count.load(Ordering::Relaxed);
    assert!(before > 0, "nothing was counted");
    assert!(runtime.block_on(store.verify(Repair::Yes)).unwrap().is_clean());
    assert_eq!(count.load(Ordering::Relaxed), before, "operations on the thread that answers");
}

/// A client cannot know the store's key. So its forgeries carry another one, taken from another store.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_looks_like_a_record_never_becomes_one() {
    let other_directory = tempfile::tempdir().unwrap();
    let others = LossyFiles::new(other_directory.path());
    fill(&others, other_directory.path()).await;
    let is_segment = |path: &Path| path.extension().is_some_and(|end| end == "segment");
    let (path, bytes) = others.files().into_iter().find(|(path, bytes)| is_segment(path) && *bytes > 0).unwrap();
    let mut forged = vec![0; usize::try_from(bytes.min(30_000)).unwrap()];
    gf_blobstore::FileLayer::open(&others, &path).unwrap().read_at(&mut forged, 0).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(&files, directory.path()).await;
    let carrier = new_blob(forged);
    put(store.as_ref(), OWNER, carrier.clone()).await.unwrap();
    let bystander = new_blob(noise(77, 500));
    put(store.as_ref(), OWNER, bystander.clone()).await.unwrap();
    store.close().unwrap();
    drop(store);
    let ours = files.files().into_iter().find(|(path, bytes)| is_segment(path) && *bytes > 0).unwrap();
    // The carrier's own header is damaged, so that a walk looks for records within it. And the index is lost.
    files.damage(&ours.0, |bytes| bytes[20] ^= 1);
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.path().join("index"))) {
        gf_blobstore::FileLayer::remove(&files, path).unwrap();
    }
    let store = open(&files, directory.path()).await;
    let report = store.verify(Repair::Yes).await.unwrap();
    // It may have been rebuilt in the background before.
    assert_eq!(report.rebuilt.map_or(1, |rebuilt| rebuilt.records), 1, "{report:?}");
    let forgeries: Vec<Digest> = (0..300).map(|number| new_blob(noise(number + 1, 3000)).digest).collect();
    assert_eq!(store.find_missing(OWNER, &forgeries).await.unwrap().len(), forgeries.len());
    let missing = store.find_missing(OWNER, &[carrier.digest, bystander.digest]).await.unwrap();
    assert_eq!(missing, [carrier.digest], "what follows the damage is found again");
}

/// Nor does a copy of our own records: it would bring back what was replaced since.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_our_own_records_never_becomes_records() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(&files, directory.path()).await;
    store.put_entry(&entry_key(OWNER, 1), "old".into()).await.unwrap();
    let is_segment =
        |(path, bytes): &(PathBuf, u64)| path.extension().is_some_and(|end| end == "segment") && *bytes > 0;
    let (path, bytes) = files.files().into_iter().find(is_segment).unwrap();
    let mut copied = vec![0; usize::try_from(bytes).unwrap()];
    gf_blobstore::FileLayer::open(&files, &path).unwrap().read_at(&mut copied, 0).unwrap();
    store.put_entry(&entry_key(OWNER, 1), "new".into()).await.unwrap();
    let carrier = new_blob(copied.clone());
    put(store.as_ref(), OWNER, carrier.clone()).await.unwrap();
    store.close().unwrap();
    drop(store);
    // The carrier's own header is damaged, and the index lost.
    files.damage(&path, |bytes| {
        let at = bytes.windows(copied.len()).rposition(|part| part == copied).unwrap();
        bytes[at - 20] ^= 1;
    });
    for (path, _) in files.files().iter().filter(|(path, _)| path.starts_with(directory.path().join("index"))) {
        gf_blobstore::FileLayer::remove(&files, path).unwrap();
    }
    let store = open(&files, directory.path()).await;
    store.verify(Repair::Yes).await.unwrap();
    assert_eq!(store.find_missing(OWNER, &[carrier.digest]).await.unwrap(), [carrier.digest]);
    assert_eq!(store.get_entry(&entry_key(OWNER, 1)).await.unwrap().unwrap(), "new");
}

/// A large file describes itself: it is found again without its record.
#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_found_again_when_index_and_segments_are_lost() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(&files, directory.path()).await;
    let large = new_blob(noise(1, 300_000));
    upload(store.as_ref(), OWNER, &large).await;
    store.close().unwrap();
    drop(store);
    let is_lost = |path: &Path| ["index", "segments"].iter().any(|part| path.starts_with(directory.path().join(part)));
    for (path, _) in files.files().iter().filter(|(path, _)| is_lost(path)) {
        gf_blobstore::FileLayer::remove(&files, path).unwrap();
    }
    let store = open(&files, directory.path()).await;
    store.verify(Repair::Yes).await.unwrap();
    assert!(read(&store, large.digest, Accept::Identity).await.unwrap() == large.bytes);
}

//! What a power cut takes: only what was acknowledged since the last sync, and it reads as absent.
//!
//! A store runs on a file system in memory that loses power in the midst of some write and then keeps, drops or tears
//! each page and each name that was not synced. Every run is made by a seed, which a failure names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, ErrorKind, MachineTime, NewBlob, OwnerId, Repair,
    StoreConfig, StoreError,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, read_all};
use gf_testkit::disk_store::{entry_key, for_each_seed, index_is_whole, new_blob, upload};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const OWNER: OwnerId = OwnerId(1);
const SEEDS: u64 = 30;
const CUTS_PER_SEED: u32 = 6;
const SHORT_WINDOW: Duration = Duration::from_millis(100);
/// A sync that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(120);

fn config(directory: &Path) -> StoreConfig {
    StoreConfig {
        capacity_bytes: 64 << 20,
        // Nothing is synced but by the test.
        sync_window: Duration::from_secs(100_000),
        large_blob_bytes: 10_000,
        ..StoreConfig::new(directory.to_owned())
    }
}

async fn open(files: &LossyFiles, directory: &Path) -> Result<Arc<DiskBlobStore>, gf_blobstore::OpenError> {
    DiskBlobStore::open_on(Arc::new(files.clone()), Arc::new(MachineTime::default()), config(directory)).await
}

/// What the store was told, and what it said.
#[derive(Default)]
struct Told {
    blobs: BTreeMap<Digest, Vec<u8>>,
    /// Acknowledged before a sync: these must be there.
    durable: BTreeSet<Digest>,
    /// Acknowledged since: these may be there.
    recent: BTreeSet<Digest>,
    /// What may be found under a key; `None` is absence.
    entries: BTreeMap<u64, BTreeSet<Option<Vec<u8>>>>,
    latest_entries: BTreeMap<u64, Option<Vec<u8>>>,
    /// What was written under a key since it was last removed. When the latest is lost an older one may be found again.
    written: BTreeMap<u64, BTreeSet<Vec<u8>>>,
}

impl Told {
    fn synced(&mut self) {
        self.durable.append(&mut self.recent);
        for (number, value) in self.latest_entries.clone() {
            self.found(number, value);
        }
    }

    /// A lost value is not a removed one: an older one may yet be found again.
    fn found(&mut self, number: u64, value: Option<Vec<u8>>) {
        let mut may_be = BTreeSet::from([value.clone()]);
        if value.is_none() {
            may_be.extend(self.written.entry(number).or_default().iter().cloned().map(Some));
        }
        self.entries.insert(number, may_be);
        self.latest_entries.insert(number, value);
    }
}

struct Run {
    random: StdRng,
    told: Told,
    next_content: u64,
}

impl Run {
    fn fresh_bytes(&mut self, bytes: std::ops::Range<usize>) -> Vec<u8> {
        self.next_content += 1;
        let mut content = noise(self.next_content, self.random.random_range(bytes));
        content.splice(0..0, self.next_content.to_le_bytes());
        content
    }

    fn blob(&mut self, bytes: Vec<u8>) -> NewBlob {
        let function = DigestFunction::ALL[self.random.random_range(0..2)];
        let digest = Digest::of(function, &bytes);
        self.told.blobs.insert(digest, bytes.clone());
        NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity }
    }

    fn any_known(&mut self) -> Option<Digest> {
        let known = self.told.durable.len() + self.told.recent.len();
        let at = self.random.random_range(0..known.max(1));
        self.told.durable.iter().chain(&self.told.recent).nth(at).copied()
    }

    /// Does something to the store; an error is the power's.
    async fn step(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        match self.random.random_range(0..100) {
            0..40 => self.write_small(store).await,
            40..58 => self.upload_large(store).await,
            58..76 => self.put_entry(store).await,
            76..82 => self.remove_entry(store).await,
            82..86 => self.split_and_splice(store).await,
            86..92 => {
                store.sync()?;
                self.told.synced();
                Ok(())
            }
            92..95 => {
                store.checkpoint()?;
                self.told.synced();
                Ok(())
            }
            95..97 => store.collect(1 << 20).map(drop),
            _ => self.read_one(store).await,
        }
    }

    async fn write_small(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        let count = self.random.random_range(1..5);
        let mut blobs = Vec::new();
        for _ in 0..count {
            let bytes = match self.any_known() {
                Some(known) if self.random.random_bool(0.2) => self.told.blobs[&known].clone(),
                _ => self.fresh_bytes(1..4000),
            };
            blobs.push(self.blob(bytes));
        }
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        for (digest, result) in digests.into_iter().zip(store.write_batch(OWNER, blobs).await) {
            result?;
            self.acknowledged(digest);
        }
        Ok(())
    }

    async fn upload_large(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        let bytes = self.fresh_bytes(10_000..60_000);
        let blob = self.blob(bytes);
        let mut upload = store.upload(OWNER, blob.digest, Encoding::Identity).await?;
        upload.write(blob.bytes).await?;
        upload.finish().await?;
        self.acknowledged(blob.digest);
        Ok(())
    }

    async fn put_entry(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        let number = self.random.random_range(0..12);
        let value = self.fresh_bytes(1..500);
        let may_be = self.told.entries.entry(number).or_insert_with(|| BTreeSet::from([None]));
        // A value that replaced another within the window can be lost together with it: an entry is a hint.
        may_be.extend([None, Some(value.clone())]);
        self.told.written.entry(number).or_default().insert(value.clone());
        store.put_entry(&entry_key(OWNER, number), value.clone().into()).await?;
        self.told.latest_entries.insert(number, Some(value));
        Ok(())
    }

    async fn remove_entry(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        let number = self.random.random_range(0..12);
        self.told.entries.entry(number).or_default().insert(None);
        store.remove_entry(&entry_key(OWNER, number)).await?;
        // Removed is removed, whatever happens.
        self.told.written.remove(&number);
        self.told.entries.insert(number, BTreeSet::from([None]));
        self.told.latest_entries.insert(number, None);
        Ok(())
    }

    /// Splits a blob, and makes another one out of the chunks.
    async fn split_and_splice(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        let bytes = self.fresh_bytes(1_200_000..1_500_000);
        let whole = self.blob(bytes.clone());
        let mut upload = store.upload(OWNER, whole.digest, Encoding::Identity).await?;
        upload.write(whole.bytes).await?;
        upload.finish().await?;
        self.acknowledged(whole.digest);
        let mut chunks = match store.split(OWNER, whole.digest).await {
            Err(StoreError::NotSplit(_)) => return Ok(()),
            result => result?,
        };
        let mut at = 0;
        for chunk in &chunks {
            let end = at + usize::try_from(chunk.size_bytes()).unwrap();
            self.told.blobs.insert(*chunk, bytes[at..end].to_vec());
            self.acknowledged(*chunk);
            at = end;
        }
        chunks.reverse();
        let turned: Vec<u8> = chunks.iter().flat_map(|chunk| self.told.blobs[chunk].clone()).collect();
        let digest = Digest::of(whole.digest.function(), &turned);
        self.told.blobs.insert(digest, turned);
        store.splice(OWNER, digest, &chunks).await?;
        self.acknowledged(digest);
        Ok(())
    }

    async fn read_one(&mut self, store: &DiskBlobStore) -> Result<(), StoreError> {
        if let Some(digest) = self.any_known() {
            let bytes = read_all(store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await?).await?;
            assert!(bytes == self.told.blobs[&digest], "{digest} has other bytes");
        }
        Ok(())
    }

    fn acknowledged(&mut self, digest: Digest) {
        if !self.told.durable.contains(&digest) {
            self.told.recent.insert(digest);
        }
    }

    /// Compares the store with what it was told. What was lost is forgotten, what is there is durable from now on.
    async fn check(&mut self, store: &DiskBlobStore, files: &LossyFiles) {
        index_is_whole(store).await;
        let digests: Vec<Digest> = self.told.blobs.keys().copied().collect();
        let missing: BTreeSet<Digest> = store.find_missing(OWNER, &digests).await.unwrap().into_iter().collect();
        for digest in digests {
            let read = match store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await {
                Ok(read) => read_all(read).await,
                Err(error) => Err(error),
            };
            if missing.contains(&digest) {
                assert!(!self.told.durable.contains(&digest), "{digest} was synced and is lost");
                assert_eq!(read.unwrap_err().kind(), ErrorKind::NotFound);
                self.told.blobs.remove(&digest);
            } else {
                let read = read.unwrap_or_else(|error| panic!("{digest} is reported present: {error}"));
                assert!(read == self.told.blobs[&digest], "{digest} has other bytes");
                self.told.durable.insert(digest);
            }
        }
        self.told.recent.clear();
        for (number, may_be) in self.told.entries.clone() {
            let value = store.get_entry(&entry_key(OWNER, number)).await.unwrap().map(|bytes| bytes.to_vec());
            assert!(may_be.contains(&value), "entry {number} is {:?}", value.map(|value| value.len()));
            self.told.found(number, value);
        }
        for _ in 0..2 {
            let report = store.verify(Repair::Yes).await.unwrap();
            assert!(report.is_clean(), "{report:?}");
        }
        let on_disk = |(path, bytes): &(std::path::PathBuf, u64)| {
            let counting = ["segments", "large", "quarantine"];
            let counts = path.components().any(|part| counting.iter().any(|folder| part.as_os_str() == *folder));
            counts.then_some(*bytes)
        };
        let bytes: u64 = files.files().iter().filter_map(on_disk).sum();
        assert_eq!(store.stats().used_bytes, bytes, "the account of space is wrong");
    }
}

async fn lose_power_again_and_again(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run { random: StdRng::seed_from_u64(seed), told: Told::default(), next_content: seed << 32 };
    let mut files = LossyFiles::new(directory.path());
    for cut in 0..CUTS_PER_SEED {
        // In the midst of opening, or of anything later.
        let longest = [60, 400, 1500][run.random.random_range(0..3)];
        files.fail_after(run.random.random_range(0..longest));
        let failed = match open(&files, directory.path()).await {
            Err(error) => error.to_string(),
            Ok(store) => loop {
                match run.step(&store).await {
                    // While the index is mended, what it lost is unknown.
                    Err(error) if error.kind() != ErrorKind::Unavailable || files.is_off() => break error.to_string(),
                    _ => {}
                }
            },
        };
        assert!(files.is_off(), "cut {cut}: {failed}");
        files = files.lose_power(run.random.random());
        let store = open(&files, directory.path()).await.unwrap();
        run.check(&store, &files).await;
        if run.random.random_bool(0.3) {
            store.close().unwrap();
            run.told.synced();
        }
    }
}

#[test]
fn only_what_was_not_synced_is_lost_and_it_reads_as_absent() {
    for_each_seed(0..SEEDS, lose_power_again_and_again);
}

/// Writes, round after round, to a store that nobody asks for a sync, and takes its power away in the midst of one.
async fn lose_power_within_a_window(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run { random: StdRng::seed_from_u64(seed), told: Told::default(), next_content: seed << 32 };
    let disk = LossyFiles::new(directory.path());
    let synced = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&synced);
    let files = InterceptedFiles::new(Arc::new(disk.clone()), move |path, operation| {
        let is_large = path.components().any(|part| part.as_os_str() == "incoming");
        if is_large && operation == FileOperation::Sync {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let config = StoreConfig { sync_window: SHORT_WINDOW, ..config(directory.path()) };
    let store = DiskBlobStore::open_on(Arc::new(files), Arc::new(MachineTime::default()), config).await.unwrap();
    let rounds = run.random.random_range(3..7);
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        run.write_small(&store).await.unwrap();
        let value = run.fresh_bytes(1..500);
        store.put_entry(&entry_key(OWNER, round), value.clone().into()).await.unwrap();
        run.told.entries.insert(round, BTreeSet::from([None, Some(value.clone())]));
        let before = synced.load(Ordering::SeqCst);
        run.upload_large(&store).await.unwrap();
        acknowledged.push((std::mem::take(&mut run.told.recent), value));
        // One that makes this file durable has begun after all that this round wrote, but for this file's record.
        let deadline = Instant::now() + PATIENCE;
        while synced.load(Ordering::SeqCst) == before {
            assert!(Instant::now() < deadline, "round {round}: nothing is made durable");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // The last sync is perhaps under way, and the one before it may have come too early for the record of its file.
    let within_the_window = acknowledged.split_off(acknowledged.len() - 2);
    for (round, (digests, value)) in (0..).zip(acknowledged) {
        run.told.durable.extend(digests);
        run.told.entries.insert(round, BTreeSet::from([Some(value)]));
    }
    run.told.recent.extend(within_the_window.into_iter().flat_map(|(digests, _)| digests));
    run.write_small(&store).await.unwrap();
    let files = disk.lose_power(seed);
    drop(store);
    let store = open(&files, directory.path()).await.unwrap();
    run.check(&store, &files).await;
}

/// The store keeps its window by itself. Unless it is told otherwise, that is the second that the documentation states.
#[test]
fn what_is_older_than_the_window_survives_though_nobody_asked_for_a_sync() {
    assert_eq!(StoreConfig::new("anywhere".into()).sync_window, Duration::from_secs(1));
    for_each_seed(0..12, lose_power_within_a_window);
}

/// The disk fails to keep what it was told to, says so once, and says yes ever after. The store does not believe it.
#[test]
fn a_sync_that_failed_is_not_believed_when_it_is_tried_again() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for syncs in 1..6 {
        let directory = tempfile::tempdir().unwrap();
        let files = LossyFiles::new(directory.path());
        let mut run = Run { random: StdRng::seed_from_u64(syncs), told: Told::default(), next_content: 0 };
        let store = runtime.block_on(open(&files, directory.path())).unwrap();
        runtime.block_on(async {
            for _ in 0..10 {
                run.write_small(&store).await.unwrap();
                run.upload_large(&store).await.unwrap();
            }
        });
        files.fail_syncs(syncs);
        let mut refusals = 0;
        while let Err(error) = store.checkpoint() {
            refusals += 1;
            assert!(refusals < 20, "it never becomes durable: {error}");
        }
        assert!(refusals > 0);
        run.told.synced();
        let files = files.lose_power(syncs);
        drop(store);
        let store = runtime.block_on(open(&files, directory.path())).unwrap();
        runtime.block_on(run.check(&store, &files));
    }
}

/// What shares its parts with a blob that came later gives up its own file only when the other one is durable.
#[test]
fn a_durable_blob_leans_on_nothing_that_a_power_cut_may_take() {
    for_each_seed(0..8, |seed| async move {
        let directory = tempfile::tempdir().unwrap();
        let files = LossyFiles::new(directory.path());
        let store = open(&files, directory.path()).await.unwrap();
        let old = new_blob(noise(seed, 6 << 20));
        upload(&*store, OWNER, &old).await;
        store.checkpoint().unwrap();
        let new = new_blob([&noise(seed + 100, 300_000), &*old.bytes].concat());
        upload(&*store, OWNER, &new).await;
        let shared = store.stats().deduplicated_bytes;
        // The new one is looked at first, and then the old one, which has its parts from there.
        for _ in 0..2 {
            store.deduplicate_now().await;
        }
        assert!(store.stats().deduplicated_bytes > shared, "nothing was shared");
        let files = files.lose_power(seed);
        drop(store);
        let store = open(&files, directory.path()).await.unwrap();
        let read = store.read(OWNER, old.digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == old.bytes);
    });
}

/// A sync that finds nothing left to do waits for the one that is doing it.
#[test]
fn a_sync_returns_only_when_all_is_durable() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let disk = LossyFiles::new(directory.path());
    let (entered, has_entered) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel();
    let held = std::sync::Mutex::new(Some(may_leave));
    let files = InterceptedFiles::new(Arc::new(disk.clone()), move |path, operation| {
        let is_segment = path.extension().is_some_and(|end| end == "segment");
        let is_first = is_segment && operation == FileOperation::Sync;
        if is_first && let Some(may_leave) = held.lock().unwrap().take() {
            entered.send(()).unwrap();
            may_leave.recv_timeout(Duration::from_secs(120)).unwrap();
        }
        Ok(())
    });
    let time = Arc::new(MachineTime::default());
    let store = DiskBlobStore::open_on(Arc::new(files), time, config(directory.path()));
    let store = runtime.block_on(store).unwrap();
    let blob = new_blob(noise(1, 100));
    let digest = blob.digest;
    runtime.block_on(store.write_batch(OWNER, vec![blob])).pop().unwrap().unwrap();

    let sync = || {
        let (store, disk) = (Arc::clone(&store), disk.clone());
        std::thread::spawn(move || {
            store.sync().unwrap();
            disk.lose_power(1)
        })
    };
    let first = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || store.sync())
    };
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    let second = sync();
    // If it did not wait it would be through in no time: give it the chance.
    let deadline = Instant::now() + Duration::from_millis(200);
    while !second.is_finished() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(!second.is_finished(), "the second sync returned while the first was under way");
    leave.send(()).unwrap();
    first.join().unwrap().unwrap();
    let files = second.join().unwrap();
    drop(store);
    let store = runtime.block_on(open(&files, directory.path())).unwrap();
    assert_eq!(runtime.block_on(store.find_missing(OWNER, &[digest])).unwrap(), []);
}

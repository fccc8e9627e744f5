//! Promises on the real store: what was promised until a moment stays until then, whatever is evicted, however long the
//! store is down, and through power cuts and the loss of the index; and it goes afterwards, or when it was let go.
//!
//! Time passes by hand.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, ErrorKind, FileLayer, LONGEST_PROMISE, OwnerId, Repair, StoreConfig,
    TimeSource,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::disk_store::{self, index_is_whole, new_blob};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const LEASE_S: u64 = 100;
const OURS: OwnerId = OwnerId(1);
const THEIRS: OwnerId = OwnerId(2);

/// A store that can be started again, on the same disk or on what a power cut left of it.
struct World {
    running: Option<Arc<DiskBlobStore>>,
    files: LossyFiles,
    time: Arc<ManualTime>,
    directory: tempfile::TempDir,
    written: u64,
}

async fn open(files: impl FileLayer, time: &Arc<ManualTime>, directory: &Path, lease_s: u64) -> Arc<DiskBlobStore> {
    let config = StoreConfig {
        capacity_bytes: 6 << 20,
        lease: Duration::from_secs(lease_s),
        // Nothing is synced but by the test.
        sync_window: Duration::from_secs(100_000),
        large_blob_bytes: 40_000,
        ..StoreConfig::new(directory.to_owned())
    };
    DiskBlobStore::open_on(Arc::new(files), Arc::clone(time) as Arc<dyn TimeSource>, config).await.unwrap()
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let time = Arc::new(ManualTime::new(1_000_000));
        let files = LossyFiles::new(directory.path());
        let store = open(files.clone(), &time, directory.path(), LEASE_S).await;
        Self { running: Some(store), files, time, directory, written: 0 }
    }

    fn store(&self) -> &DiskBlobStore {
        self.running.as_ref().unwrap()
    }

    async fn restart(&mut self, downtime_s: u64, lease_s: u64) {
        self.store().close().unwrap();
        self.start(downtime_s, lease_s).await;
    }

    async fn lose_power(&mut self, seed: u64) {
        self.files = self.files.lose_power(seed);
        self.start(5, LEASE_S).await;
    }

    async fn start(&mut self, downtime_s: u64, lease_s: u64) {
        self.time.advance(downtime_s);
        // One at a time may have the folder.
        self.running = None;
        self.running = Some(open(self.files.clone(), &self.time, self.directory.path(), lease_s).await);
        index_is_whole(self.store()).await;
    }

    /// The moment so many leases from now.
    fn in_leases(&self, leases: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.time.now_s() + leases * LEASE_S)
    }

    /// Writes as much as the store holds, twice over, with no lease between.
    async fn press(&mut self) {
        for _ in 0..2 * 6 * 20 {
            self.written += 1;
            self.time.advance(LEASE_S / 40);
            put(self.store(), OURS, new_blob(noise(self.written, 50_000))).await.unwrap();
        }
    }

    async fn upload(&self, owner: OwnerId, bytes: &[u8]) -> Digest {
        let blob = new_blob(bytes.to_vec());
        disk_store::upload(self.store(), owner, &blob).await;
        blob.digest
    }

    async fn missing(&self, owner: OwnerId, digests: &[Digest]) -> Vec<Digest> {
        self.store().find_missing(owner, digests).await.unwrap()
    }
}

/// A small blob, one that both owners brought, a large one, one made of chunks, and a chunk of one that nobody else asks for.
async fn all_kinds(world: &World) -> Vec<Digest> {
    let small = new_blob(b"a small blob".to_vec());
    let shared = new_blob(b"one of two owners".to_vec());
    put(world.store(), OURS, small.clone()).await.unwrap();
    put(world.store(), THEIRS, shared.clone()).await.unwrap();
    put(world.store(), OURS, shared.clone()).await.unwrap();
    let large = world.upload(OURS, &noise(1 << 40, 100_000)).await;
    let parts = [noise(2 << 40, 30_000), noise(3 << 40, 60_000)];
    let mut chunks = Vec::new();
    for part in &parts {
        chunks.push(world.upload(OURS, part).await);
    }
    let spliced = Digest::of(DigestFunction::Sha256, &parts.concat());
    world.store().splice(OURS, spliced, &chunks).await.unwrap();
    let whole = world.upload(OURS, &noise(4 << 40, 1_500_000)).await;
    let chunk = world.store().split(OURS, whole).await.unwrap()[1];
    vec![small.digest, shared.digest, large, spliced, chunk]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_promised_stays_until_then_and_goes_afterwards() {
    let mut world = World::new().await;
    let digests = all_kinds(&world).await;
    let until = world.in_leases(70);
    assert_eq!(world.store().keep_until(OURS, &digests, until).await.unwrap(), []);
    // A shorter promise takes nothing back.
    assert_eq!(world.store().keep_until(OURS, &digests, world.in_leases(1)).await.unwrap(), []);
    world.press().await;
    // Down for longer than a lease, with another lease afterwards.
    world.restart(20 * LEASE_S, LEASE_S / 10).await;
    world.press().await;
    world.restart(20 * LEASE_S, LEASE_S).await;
    world.press().await;
    assert!(UNIX_EPOCH + Duration::from_secs(world.time.now_s()) < until, "the test took too long");
    assert!(world.store().stats().evicted > 100);
    for digest in &digests {
        let read = world.store().read(OURS, *digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert_eq!(Digest::of(DigestFunction::Sha256, &read_all(read).await.unwrap()), *digest);
    }
    world.time.advance(70 * LEASE_S);
    world.press().await;
    assert_eq!(world.missing(OURS, &digests).await, digests, "a promise holds for ever");
    assert!(world.store().verify(Repair::Yes).await.unwrap().is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_lets_go_what_another_was_promised() {
    let mut world = World::new().await;
    let digests = all_kinds(&world).await;
    let shared = digests[1];
    let until = world.in_leases(1000);
    assert_eq!(world.store().keep_until(OURS, &digests, until).await.unwrap(), []);
    assert_eq!(world.store().keep_until(THEIRS, &[shared], until).await.unwrap(), []);
    world.time.advance(10 * LEASE_S);
    world.store().let_go(OURS, &digests).await.unwrap();
    // The lease begins at that moment.
    assert!(world.store().plan_collection(u64::MAX).unwrap().leased_bytes > 1_500_000);
    world.press().await;
    world.restart(0, LEASE_S).await;
    world.press().await;
    assert_eq!(world.missing(THEIRS, &[shared]).await, []);
    let gone: Vec<Digest> = digests.iter().copied().filter(|digest| *digest != shared).collect();
    assert_eq!(world.missing(OURS, &gone).await, gone, "let go and kept");
    world.store().let_go(THEIRS, &[shared]).await.unwrap();
    world.press().await;
    assert_eq!(world.missing(THEIRS, &[shared]).await, [shared]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promise_made_durable_outlives_a_power_cut_and_so_does_the_one_before_it() {
    for seed in 0..4 {
        let mut world = World::new().await;
        let digests = all_kinds(&world).await;
        assert_eq!(world.store().keep_until(OURS, &digests, world.in_leases(100)).await.unwrap(), []);
        world.store().make_durable().await.unwrap();
        if seed % 2 == 0 {
            world.store().checkpoint().unwrap();
        }
        // Longer, and lost with the power. The first one holds.
        assert_eq!(world.store().keep_until(OURS, &digests, world.in_leases(200)).await.unwrap(), []);
        world.lose_power(seed).await;
        assert_eq!(world.missing(OURS, &digests).await, [], "seed {seed}");
        world.press().await;
        assert_eq!(world.missing(OURS, &digests).await, [], "seed {seed}");
        assert!(world.store().verify(Repair::Yes).await.unwrap().is_clean(), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promises_are_found_again_when_the_index_is_lost() {
    let mut world = World::new().await;
    let digests = all_kinds(&world).await;
    assert_eq!(world.store().keep_until(OURS, &digests, world.in_leases(3)).await.unwrap(), []);
    assert_eq!(world.store().keep_until(OURS, &digests, world.in_leases(100)).await.unwrap(), []);
    world.store().close().unwrap();
    for (path, _) in world.files.files() {
        if path.starts_with(world.directory.path().join("index")) {
            world.files.remove(&path).unwrap();
        }
    }
    world.start(LEASE_S, LEASE_S).await;
    world.press().await;
    assert_eq!(world.missing(OURS, &digests).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_promised_for_ever_or_beyond_what_fits() {
    let world = World::new().await;
    let small = new_blob(b"small".to_vec());
    put(world.store(), OURS, small.clone()).await.unwrap();
    let too_far = UNIX_EPOCH + Duration::from_secs(world.time.now_s() + 1) + LONGEST_PROMISE;
    let refused = world.store().keep_until(OURS, &[small.digest], too_far).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let longest = UNIX_EPOCH + Duration::from_secs(world.time.now_s()) + LONGEST_PROMISE;
    assert_eq!(world.store().keep_until(OURS, &[small.digest], longest).await.unwrap(), []);
    // A store full of promises refuses writes, and serves.
    let mut held = vec![small.digest];
    let refused = loop {
        let blob = new_blob(noise(held.len() as u64, 50_000));
        if let Err(error) = put(world.store(), OURS, blob.clone()).await {
            break error;
        }
        world.store().keep_until(OURS, &[blob.digest], longest).await.unwrap();
        world.time.advance(LEASE_S);
        held.push(blob.digest);
    };
    assert_eq!(refused.kind(), ErrorKind::Exhausted, "{refused}");
    assert!(held.len() > 100, "{} blobs fill the store", held.len());
    assert_eq!(world.missing(OURS, &held).await, []);
    // Letting go is never refused, and makes room once the lease is over.
    world.store().let_go(OURS, &held).await.unwrap();
    world.time.advance(2 * LEASE_S);
    put(world.store(), OURS, new_blob(noise(1 << 50, 50_000))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_durable_outlives_a_power_cut() {
    for seed in 0..4 {
        let mut world = World::new().await;
        let digests = all_kinds(&world).await;
        world.store().make_durable().await.unwrap();
        put(world.store(), OURS, new_blob(b"later".to_vec())).await.unwrap();
        world.lose_power(seed).await;
        assert_eq!(world.missing(OURS, &digests).await, [], "seed {seed}");
    }
}

/// Who asks together shares a flush; and a flush that began before a write does not count for it.
#[tokio::test(flavor = "multi_thread")]
async fn flushes_are_shared_and_their_failures_too() {
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::new(1_000_000));
    let (count, failing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (entered, has_entered) = std::sync::mpsc::channel();
    let (leave, may_leave) = std::sync::mpsc::channel();
    let held = std::sync::Mutex::new(Some(may_leave));
    let disk = LossyFiles::new(directory.path());
    let files = InterceptedFiles::new(Arc::new(disk), {
        let (count, failing) = (Arc::clone(&count), Arc::clone(&failing));
        move |path, operation| {
            if operation == FileOperation::Sync && path.extension().is_some_and(|end| end == "segment") {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    entered.send(()).unwrap();
                    held.lock().unwrap().take().unwrap().recv_timeout(Duration::from_secs(120)).unwrap();
                }
                if failing.load(Ordering::SeqCst) > 0 {
                    return Err(std::io::Error::other("the disk failed"));
                }
            }
            Ok(())
        }
    });
    let store = open(files, &time, directory.path(), LEASE_S).await;
    let flush = || {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.make_durable().await })
    };
    put(store.as_ref(), OURS, new_blob(b"first".to_vec())).await.unwrap();
    let first = flush();
    has_entered.recv_timeout(Duration::from_secs(120)).unwrap();
    put(store.as_ref(), OURS, new_blob(b"second".to_vec())).await.unwrap();
    let others: Vec<_> = (0..50).map(|_| flush()).collect();
    assert!(others.iter().all(|other| !other.is_finished()), "the flush under way began before the write");
    leave.send(()).unwrap();
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    let flushes = count.load(Ordering::SeqCst);
    assert!((2..20).contains(&flushes), "{flushes} flushes for 51 calls");

    failing.store(1, Ordering::SeqCst);
    put(store.as_ref(), OURS, new_blob(b"third".to_vec())).await.unwrap();
    for other in (0..20).map(|_| flush()).collect::<Vec<_>>() {
        assert_eq!(other.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    }
    failing.store(0, Ordering::SeqCst);
    store.make_durable().await.unwrap();
    store.close().unwrap();
    assert!(store.make_durable().await.is_err());
}

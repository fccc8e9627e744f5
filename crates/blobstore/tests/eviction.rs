//! The lease on the real store: what was reported present, or served, stays for as long as was promised, whatever is
//! written, evicted and compacted meanwhile; and a store in which nothing may go refuses writes and serves reads.
//!
//! Time passes by hand, and every run is made by a seed, which a failure names.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, ErrorKind, NewBlob, OwnerId, Repair, StoreConfig, TimeSource,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{noise, put, read_all, text};
use gf_testkit::{LossyFiles, ManualTime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const LEASE_S: u64 = 100;
const OWNERS: [OwnerId; 2] = [OwnerId(1), OwnerId(2)];

struct World {
    store: Arc<DiskBlobStore>,
    time: Arc<ManualTime>,
    _directory: tempfile::TempDir,
}

async fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        capacity_bytes: 4 << 20,
        lease: Duration::from_secs(LEASE_S),
        large_blob_bytes: 40_000,
        ..StoreConfig::new(directory.path().to_owned())
    };
    let time = Arc::new(ManualTime::new(1_000_000));
    let files = Arc::new(LossyFiles::new(directory.path()));
    let clock: Arc<dyn TimeSource> = Arc::clone(&time) as _;
    let store = DiskBlobStore::open_on(files, clock, config).await.unwrap();
    World { store, time, _directory: directory }
}

/// One client: it remembers when each of its blobs was last promised to which owner.
struct Client {
    random: StdRng,
    seed: u64,
    next: u64,
    promised: BTreeMap<(OwnerId, u64), u64>,
    refused: u64,
    gone: u64,
}

impl Client {
    fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        Self { random, seed, next: seed << 32, promised: BTreeMap::new(), refused: 0, gone: 0 }
    }

    fn blob(number: u64) -> NewBlob {
        let size = [700, 9_000, 39_000, 90_000][usize::try_from(number % 4).unwrap()];
        let mut bytes = noise(number, size);
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity }
    }

    async fn step(&mut self, world: &World) {
        match self.random.random_range(0..100) {
            0..45 => self.write(world).await,
            45..75 => self.ask(world).await,
            75..90 => self.read(world).await,
            90..94 => drop(world.store.collect(self.random.random_range(0..2 << 20)).unwrap()),
            _ => world.time.advance(self.random.random_range(0..14)),
        }
    }

    /// Writes a new blob, or one that another owner has.
    async fn write(&mut self, world: &World) {
        let owner = OWNERS[self.random.random_range(0..2)];
        let number = match self.any() {
            Some((_, number)) if self.random.random_bool(0.3) => number,
            _ => {
                self.next += 1;
                self.next
            }
        };
        // Before the call: the promise is made somewhere within it.
        let now = world.time.now_s();
        match put(world.store.as_ref(), owner, Self::blob(number)).await {
            Ok(()) => drop(self.promised.insert((owner, number), now)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exhausted, "seed {}: {error}", self.seed);
                self.refused += 1;
            }
        }
    }

    async fn ask(&mut self, world: &World) {
        let Some(known) = self.any() else { return };
        let digest = Self::blob(known.1).digest;
        let now = world.time.now_s();
        if world.store.find_missing(known.0, &[digest]).await.unwrap().is_empty() {
            self.promised.insert(known, now);
        } else {
            self.must_be_out_of_lease(world, known);
        }
    }

    async fn read(&mut self, world: &World) {
        let Some(known) = self.any() else { return };
        let blob = Self::blob(known.1);
        let now = world.time.now_s();
        let read = match world.store.read(known.0, blob.digest, ByteRange::ALL, Accept::Identity).await {
            Ok(read) => read_all(read).await,
            Err(error) => Err(error),
        };
        match read {
            Ok(bytes) => {
                assert!(bytes == blob.bytes, "seed {}: {} has other bytes", self.seed, blob.digest);
                self.promised.insert(known, now);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "seed {}: {error}", self.seed);
                self.must_be_out_of_lease(world, known);
            }
        }
    }

    fn must_be_out_of_lease(&mut self, world: &World, known: (OwnerId, u64)) {
        let age = world.time.now_s() - self.promised[&known];
        assert!(age > LEASE_S, "seed {}: {known:?} went {age} s after it was promised", self.seed);
        self.promised.remove(&known);
        self.gone += 1;
    }

    fn any(&mut self) -> Option<(OwnerId, u64)> {
        let at = self.random.random_range(0..self.promised.len().max(1));
        self.promised.keys().nth(at).copied()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_within_its_lease() {
    let (mut refused, mut gone) = (0, 0);
    for seed in 0..12 {
        let world = world().await;
        let mut client = Client::new(seed);
        for _ in 0..700 {
            client.step(&world).await;
        }
        refused += client.refused;
        gone += client.gone;
        let report = world.store.verify(Repair::Yes).await.unwrap();
        assert!(report.is_clean(), "seed {seed}: {report:?}");
    }
    assert!(refused > 0 && gone > 0, "no pressure: {refused} writes refused, {gone} blobs gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_goes_within_its_lease_while_many_write() {
    for round in 0..4 {
        let world = Arc::new(world().await);
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..4 {
            let world = Arc::clone(&world);
            clients.spawn(async move {
                let mut client = Client::new(1000 + round * 10 + client);
                for _ in 0..300 {
                    client.step(&world).await;
                }
                client.gone
            });
        }
        let gone: u64 = clients.join_all().await.into_iter().sum();
        assert!(gone > 0, "round {round}: nothing was evicted");
        let report = world.store.verify(Repair::Yes).await.unwrap();
        assert!(report.is_clean(), "round {round}: {report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_was_let_in_keeps_what_was_promised() {
    let world = world().await;
    let shared = Client::blob(3);
    for owner in OWNERS {
        put(world.store.as_ref(), owner, shared.clone()).await.unwrap();
    }
    for number in 0..600 {
        // Only the second owner asks, again and again, well within the lease.
        world.time.advance(LEASE_S / 10);
        let missing = world.store.find_missing(OWNERS[1], &[shared.digest]).await.unwrap();
        assert_eq!(missing, [], "after {number} questions");
        put(world.store.as_ref(), OWNERS[0], Client::blob(100 + number)).await.unwrap();
    }
    assert!(world.store.stats().evicted > 0);
}

/// What may go can be one blob in twenty of each segment: too little for a segment to be rewritten in passing, and yet
/// enough for the write at hand.
#[tokio::test(flavor = "multi_thread")]
async fn room_is_made_of_thin_holes_too() {
    let world = world().await;
    // Of 9,000 bytes each.
    let blob = |number: u64| Client::blob(4 * number + 1);
    let mut kept = Vec::new();
    let mut written = 0;
    while world.store.stats().used_bytes < (4 << 20) - 10_000 {
        put(world.store.as_ref(), OWNERS[0], blob(written)).await.unwrap();
        if written % 20 != 0 {
            kept.push(blob(written).digest);
        }
        written += 1;
    }
    world.time.advance(2 * LEASE_S);
    assert_eq!(world.store.find_missing(OWNERS[0], &kept).await.unwrap(), []);
    for number in written..written + 5 {
        put(world.store.as_ref(), OWNERS[0], blob(number)).await.unwrap();
    }
    assert_eq!(world.store.find_missing(OWNERS[0], &kept).await.unwrap(), []);
    assert!(world.store.verify(Repair::Yes).await.unwrap().is_clean());
}

/// What is under lease counts by the bytes that it takes on the disk, not by those that it once was.
#[tokio::test(flavor = "multi_thread")]
async fn what_rests_compressed_keeps_no_more_room_than_it_takes() {
    let world = world().await;
    let upload = async |bytes: Vec<u8>, encoding| {
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let wire = if encoding == Encoding::Zstd { zstd::bulk::compress(&bytes, 3).unwrap() } else { bytes };
        let mut upload = world.store.upload(OWNERS[0], digest, encoding).await.unwrap();
        upload.write(wire.into()).await.unwrap();
        upload.finish().await.unwrap();
        digest
    };
    for number in 0..30 {
        upload(noise(number + 1, 90_000), Encoding::Identity).await;
    }
    world.time.advance(2 * LEASE_S);
    // 5 MiB in a store of 4, and under lease.
    let mut kept = Vec::new();
    for number in 0..10 {
        kept.push(upload(text(number, 500_000), Encoding::Zstd).await);
    }
    let leased = world.store.plan_collection(1).unwrap().leased_bytes;
    assert!(leased < 500_000, "{leased} bytes are under lease");
    for number in 0..30 {
        upload(noise(number + 100, 90_000), Encoding::Identity).await;
    }
    assert_eq!(world.store.find_missing(OWNERS[0], &kept).await.unwrap(), []);
}

/// A verification looks at all there is, though nobody asked for any of it.
#[tokio::test(flavor = "multi_thread")]
async fn looking_at_what_a_blob_is_made_of_begins_no_lease() {
    let directory = tempfile::tempdir().unwrap();
    let time = Arc::new(ManualTime::new(1_000_000));
    let clock: Arc<dyn TimeSource> = Arc::clone(&time) as _;
    let lease = Duration::from_secs(LEASE_S);
    let config = StoreConfig { lease, large_blob_bytes: 40_000, ..StoreConfig::new(directory.path().to_owned()) };
    let files = Arc::new(LossyFiles::new(directory.path()));
    let store = DiskBlobStore::open_on(files, clock, config).await.unwrap();
    let bytes = noise(1, 2_000_000);
    let digest = Digest::of(DigestFunction::Sha256, &bytes);
    let mut upload = store.upload(OWNERS[0], digest, Encoding::Identity).await.unwrap();
    upload.write(bytes.into()).await.unwrap();
    upload.finish().await.unwrap();
    let chunks = store.split(OWNERS[0], digest).await.unwrap();
    assert!(chunks.len() > 1);
    time.advance(10 * LEASE_S);
    assert_eq!(store.plan_collection(1).unwrap().leased_bytes, 0);
    let report = store.verify(Repair::No).await.unwrap();
    assert!(report.is_clean() && report.blobs > chunks.len() as u64, "{report:?}");
    assert_eq!(store.plan_collection(1).unwrap().leased_bytes, 0);
    // Those who ask keep it.
    assert_eq!(store.find_missing(OWNERS[0], &chunks).await.unwrap(), []);
    assert!(store.plan_collection(1).unwrap().leased_bytes >= 2_000_000);
}

//! The scrub and what is huge: a blob that takes longer than the store runs is looked at in several runs, and one that is
//! evicted meanwhile is let go.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gf_blobstore::{DiskBlobStore, OwnerId, StoreConfig, TimeSource};
use gf_testkit::blob_store_suite::noise;
use gf_testkit::disk_store::{new_blob, upload, wait_until};
use gf_testkit::{FileOperation, InterceptedFiles, LossyFiles, ManualTime};

const OWNER: OwnerId = OwnerId(1);
const BLOCK_BYTES: u64 = 256 << 10;
const LEASE_S: u64 = 100;

struct World {
    files: InterceptedFiles,
    /// Blocks of large files that the scrub has read.
    blocks: Arc<AtomicU64>,
    time: Arc<ManualTime>,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blocks = Arc::new(AtomicU64::new(0));
        let files = InterceptedFiles::new(Arc::new(LossyFiles::new(directory.path())), {
            let blocks = Arc::clone(&blocks);
            move |path: &Path, operation| {
                let is_large = path.components().any(|part| part.as_os_str() == "large");
                let is_block = is_large && operation == FileOperation::Read(BLOCK_BYTES);
                blocks.fetch_add(u64::from(is_block), Ordering::SeqCst);
                Ok(())
            }
        });
        Self { files, blocks, time: Arc::new(ManualTime::new(1_000_000)), directory }
    }

    async fn open(&self, scrub_bytes_per_second: u64) -> Arc<DiskBlobStore> {
        let config = StoreConfig {
            large_blob_bytes: 40_000,
            lease: Duration::from_secs(LEASE_S),
            scrub_bytes_per_second,
            scrub_pass: Duration::ZERO,
            ..StoreConfig::new(self.directory.path().to_owned())
        };
        let clock: Arc<dyn TimeSource> = Arc::clone(&self.time) as _;
        DiskBlobStore::open_on(Arc::new(self.files.clone()), clock, config).await.unwrap()
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_a_run_is_looked_at_in_several() {
    const BLOCKS: u64 = 9;
    let world = World::new();
    let huge = new_blob(noise(1, usize::try_from(BLOCKS * BLOCK_BYTES).unwrap()));
    let mut runs = 0;
    let scrubbed = loop {
        // Four blocks a second; in the first run, which must be cut short, so few that a busy machine has twenty seconds to
        // do that.
        let (blocks_in_5_s, enough) = if runs == 0 { (2, 1) } else { (20, 3) };
        let store = world.open(blocks_in_5_s * BLOCK_BYTES / 5).await;
        if runs == 0 {
            upload(store.as_ref(), OWNER, &huge).await;
        }
        let before = world.blocks();
        wait_until("the scrub goes on", || world.blocks() >= before + enough || store.stats().scrub.passes > 0);
        store.close().unwrap();
        runs += 1;
        let scrubbed = store.stats().scrub;
        if scrubbed.passes > 0 {
            break scrubbed;
        }
        assert!(runs < 6, "it begins anew in each run");
    };
    assert!(runs > 1, "it was not cut short");
    assert_eq!((scrubbed.blobs, scrubbed.bytes, scrubbed.damaged), (1, BLOCKS * BLOCK_BYTES, 0));
    assert!(world.blocks() <= BLOCKS + runs, "{} reads of {BLOCKS} blocks in {runs} runs", world.blocks());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_evicted_meanwhile_is_not_read_to_its_end() {
    const BLOCKS: u64 = 20;
    let world = World::new();
    // So slow that a busy machine has time to evict it before half of it was read.
    let store = world.open(BLOCK_BYTES / 2).await;
    let huge = new_blob(noise(1, usize::try_from(BLOCKS * BLOCK_BYTES).unwrap()));
    upload(store.as_ref(), OWNER, &huge).await;
    wait_until("the scrub begins", || world.blocks() > 0);
    // Looking for what it shares with others, which a quiet store does, asks for the blob too.
    wait_until("it is evicted", || {
        world.time.advance(2 * LEASE_S);
        store.collect(u64::MAX).unwrap().evicted > 0
    });
    let before = world.blocks();
    assert!(before < BLOCKS / 2, "too late");
    wait_until("the pass ends", || store.stats().scrub.passes > 0);
    assert!(world.blocks() <= before + 1, "{} blocks were read of what was gone", world.blocks() - before);
    assert_eq!(store.stats().scrub.damaged, 0);
}

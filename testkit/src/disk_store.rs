//! What tests of the disk store share: blobs and keys by number, and runs by seed.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests, which fail by panicking")]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use gf_blobstore::{BlobStore, DiskBlobStore, Encoding, EntryKey, EntryTable, NewBlob, OwnerId};
use gf_digest::{Digest, DigestFunction, InstanceName};

/// How long a test waits for what must come, some of it from threads that run when no other wants to.
const PATIENCE: Duration = Duration::from_secs(300);

/// A blob of these bytes, by SHA-256.
#[must_use]
pub fn new_blob(bytes: Vec<u8>) -> NewBlob {
    NewBlob { digest: Digest::of(DigestFunction::Sha256, &bytes), bytes: bytes.into(), encoding: Encoding::Identity }
}

/// The key of an action result.
#[must_use]
pub fn entry_key(owner: OwnerId, number: u64) -> EntryKey {
    EntryKey {
        table: EntryTable::ActionResult,
        owner,
        instance: InstanceName::new("default").unwrap(),
        digest: Digest::of(DigestFunction::Sha256, &number.to_le_bytes()),
    }
}

/// Brings a blob in pieces: that is how large ones get files of their own.
pub async fn upload(store: &dyn BlobStore, owner: OwnerId, blob: &NewBlob) {
    let mut upload = store.upload(owner, blob.digest, blob.encoding).await.unwrap();
    upload.write(blob.bytes.clone()).await.unwrap();
    upload.finish().await.unwrap();
}

/// Waits until an index that was lost, in part or whole, is built again.
pub async fn index_is_whole(store: &DiskBlobStore) {
    let deadline = Instant::now() + PATIENCE;
    while !store.load_index().unwrap() {
        assert!(Instant::now() < deadline, "the index was not mended");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Polls until `condition` holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a test once for each seed, or for the one in `GF_SEED` alone; says which one failed.
pub fn for_each_seed<F: Future<Output = ()>>(seeds: Range<u64>, test: impl Fn(u64) -> F) {
    let only: Option<u64> = std::env::var("GF_SEED").ok().map(|seed| seed.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for seed in only.map_or(seeds, |seed| seed..seed + 1) {
        let run = AssertUnwindSafe(|| runtime.block_on(test(seed)));
        if let Err(panic) = catch_unwind(run) {
            eprintln!("the run with GF_SEED={seed} failed");
            resume_unwind(panic);
        }
    }
}

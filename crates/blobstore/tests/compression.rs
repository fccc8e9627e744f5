//! What is compressible is compressed once it rests, and reads as before; what is not stays where it is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use gf_blobstore::{Accept, BlobStore, ByteRange, DiskBlobStore, NewBlob, OwnerId, StoreConfig};
use gf_testkit::blob_store_suite::{noise, put, read_all};
use gf_testkit::disk_store::{new_blob, wait_until};

const OWNER: OwnerId = OwnerId(1);
const BLOBS: u64 = 120;

async fn open(folder: &Path) -> std::sync::Arc<DiskBlobStore> {
    // Segments of a mebibyte.
    let config = StoreConfig { capacity_bytes: 64 << 20, ..StoreConfig::new(folder.to_owned()) };
    DiskBlobStore::open(config).await.unwrap()
}

/// 30,000 bytes, each of which says two bits.
fn text(seed: u64) -> NewBlob {
    new_blob(noise(seed, 30_000).iter().map(|byte| b"acgt"[usize::from(byte % 4)]).collect())
}

async fn check(store: &DiskBlobStore, blobs: &[NewBlob]) {
    for blob in blobs {
        let read = store.read(OWNER, blob.digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == blob.bytes, "{} reads otherwise", blob.digest);
    }
}

fn segments(folder: &Path) -> BTreeSet<std::ffi::OsString> {
    std::fs::read_dir(folder.join("segments")).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_is_compressed_and_reads_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let blobs: Vec<NewBlob> = (0..BLOBS).map(text).collect();
    for blob in &blobs {
        put(store.as_ref(), OWNER, blob.clone()).await.unwrap();
    }
    let plain_bytes = store.stats().used_bytes;
    assert!(plain_bytes > BLOBS * 30_000);
    // The segment that is written to, too.
    wait_until("all of it is compressed", || store.stats().used_bytes < plain_bytes / 2);
    check(&store, &blobs).await;
    store.close().unwrap();
    drop(store);
    let store = open(folder.path()).await;
    check(&store, &blobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compressed_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for seed in 0..BLOBS {
        put(store.as_ref(), OWNER, new_blob(noise(seed, 30_000))).await.unwrap();
    }
    let before = segments(folder.path());
    for seed in 0..BLOBS {
        put(store.as_ref(), OWNER, text(seed)).await.unwrap();
    }
    // Segments are looked at in order, so the last ones come after all others.
    let plain_bytes = store.stats().used_bytes;
    wait_until("the others are compressed", || store.stats().used_bytes < plain_bytes * 3 / 4);
    let after = segments(folder.path());
    // The last of them has some of both.
    assert!(before.difference(&after).count() <= 1, "{before:?} {after:?}");
}

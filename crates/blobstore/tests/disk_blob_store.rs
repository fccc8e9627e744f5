//! The disk store against the suite of the seam, and what only a disk store promises.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use gf_blobstore::{
    Accept, BlobStore, ByteRange, DiskBlobStore, Encoding, NewBlob, OpenError, OwnerId, Repair, StoreConfig,
};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::{check, noise, put, read_all, text};

const OWNER: OwnerId = OwnerId(1);

fn config(directory: &tempfile::TempDir) -> StoreConfig {
    StoreConfig::new(directory.path().join("store"))
}

fn blob(bytes: Vec<u8>) -> NewBlob {
    NewBlob { digest: Digest::of(DigestFunction::Sha256, &bytes), bytes: bytes.into(), encoding: Encoding::Identity }
}

async fn upload(store: &DiskBlobStore, bytes: &[u8]) -> Digest {
    let digest = Digest::of(DigestFunction::Sha256, bytes);
    let mut upload = store.upload(OWNER, digest, Encoding::Identity).await.unwrap();
    upload.write(bytes.to_vec().into()).await.unwrap();
    upload.finish().await.unwrap();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn does_what_every_store_does() {
    let directory = tempfile::tempdir().unwrap();
    check(DiskBlobStore::open(config(&directory)).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn does_so_when_nearly_every_blob_is_large() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { large_blob_bytes: 64, ..config(&directory) };
    check(DiskBlobStore::open(config).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_closing_and_after_not_closing() {
    let directory = tempfile::tempdir().unwrap();
    let small = noise(1, 1000);
    let large = noise(2, 3_000_000);
    for close in [true, false] {
        let store = DiskBlobStore::open(config(&directory)).await.unwrap();
        put(store.as_ref(), OWNER, blob(small.clone())).await.unwrap();
        upload(&store, &large).await;
        if close {
            store.close().unwrap();
        }
        drop(store);
        let store = DiskBlobStore::open(config(&directory)).await.unwrap();
        for bytes in [&small, &large] {
            let digest = Digest::of(DigestFunction::Sha256, bytes);
            assert_eq!(store.find_missing(OWNER, &[digest]).await.unwrap(), []);
            let read = store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
            assert!(read_all(read).await.unwrap() == *bytes);
        }
        store.close().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_of_another_version_or_foreign_is_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBlobStore::open(config(&directory)).await.unwrap();
    assert!(matches!(DiskBlobStore::open(config(&directory)).await, Err(OpenError::InUse(_))));
    store.close().unwrap();
    drop(store);

    let format = directory.path().join("store/FORMAT");
    let ours = std::fs::read_to_string(&format).unwrap();
    for version in [1, 7] {
        let other = ours.replace("version 3", &format!("version {version}"));
        std::fs::write(&format, &other).unwrap();
        match DiskBlobStore::open(config(&directory)).await {
            Err(OpenError::OlderFormat { found: 1, .. }) => assert_eq!(version, 1),
            Err(OpenError::NewerFormat { found: 7, .. }) => assert_eq!(version, 7),
            opened => panic!("version {version}: {:?}", opened.err()),
        }
        assert_eq!(std::fs::read_to_string(&format).unwrap(), other);
    }

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("thesis.txt"), "mine").unwrap();
    let opened = DiskBlobStore::open(StoreConfig::new(foreign.path().to_owned())).await;
    assert!(matches!(opened, Err(OpenError::NotAStore { .. })));
    assert_eq!(std::fs::read_dir(foreign.path()).unwrap().count(), 1);
}

/// The last checkpoint says that everything is durable, so nothing may come after it.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_after_closing_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBlobStore::open(config(&directory)).await.unwrap();
    let bytes = noise(5, 3_000_000);
    let digest = Digest::of(DigestFunction::Sha256, &bytes);
    let mut late = store.upload(OWNER, digest, Encoding::Identity).await.unwrap();
    late.write(bytes.into()).await.unwrap();
    store.close().unwrap();
    assert!(matches!(late.finish().await, Err(gf_blobstore::StoreError::Closed)));
    assert_eq!(store.find_missing(OWNER, &[digest]).await.unwrap(), [digest]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_writes_within_the_lease_and_evicts_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let leased = StoreConfig { capacity_bytes: 8 << 20, ..config(&directory) };
    let store = DiskBlobStore::open(leased.clone()).await.unwrap();
    let mut stored = Vec::new();
    let refused = loop {
        let blob = blob(noise(stored.len() as u64 + 100, 100_000));
        let digest = blob.digest;
        match put(store.as_ref(), OWNER, blob).await {
            Ok(()) => stored.push(digest),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), gf_blobstore::ErrorKind::Exhausted, "{refused}");
    assert!(stored.len() > 70, "{}", stored.len());
    assert_eq!(store.find_missing(OWNER, &stored).await.unwrap(), []);
    for result in store.read_batch(OWNER, &stored, Accept::Identity).await {
        assert_eq!(result.unwrap().0.len(), 100_000);
    }
    store.close().unwrap();
    drop(store);

    let store = DiskBlobStore::open(StoreConfig { lease: Duration::ZERO, ..leased }).await.unwrap();
    // Leases count whole seconds: what was touched in this one is not yet out of it.
    for number in 0..100 {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while put(store.as_ref(), OWNER, blob(noise(9000 + number, 100_000))).await.is_err() {
            assert!(std::time::Instant::now() < deadline, "nothing was evicted");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(store.stats().evicted > 0);
    assert!(store.stats().used_bytes <= 9 << 20, "{:?}", store.stats());
    let report = store.verify(Repair::No).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_share_their_parts() {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBlobStore::open(config(&directory)).await.unwrap();
    let first = noise(77, 12 << 20);
    let mut second = first.clone();
    second.splice(5_000_000..5_000_010, *b"something else here");
    let first_digest = upload(&store, &first).await;
    store.deduplicate_now().await;
    let second_digest = upload(&store, &second).await;
    let before = store.stats().used_bytes;
    store.deduplicate_now().await;
    let saved = before.saturating_sub(store.stats().used_bytes);
    assert!(saved > 8 << 20, "saved only {saved} bytes");
    for (digest, bytes) in [(first_digest, &first), (second_digest, &second)] {
        let read = store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == *bytes);
    }
    let report = store.verify(Repair::Yes).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.orphans_removed, 0);
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_keeps_what_is_live_and_compresses_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { capacity_bytes: 64 << 20, ..config(&directory) };
    let store = DiskBlobStore::open(config).await.unwrap();
    let blobs: Vec<Vec<u8>> = (0..100).map(|number| text(number, 20_000)).collect();
    let key = gf_blobstore::EntryKey {
        table: gf_blobstore::EntryTable::ActionResult,
        owner: OWNER,
        instance: gf_digest::InstanceName::new("").unwrap(),
        digest: Digest::of(DigestFunction::Sha256, b"often replaced"),
    };
    // Each replacement leaves garbage behind, between blobs that are live.
    for round in 0..100_u8 {
        put(store.as_ref(), OWNER, blob(blobs[usize::from(round)].clone())).await.unwrap();
        store.put_entry(&key, vec![round; 50_000].into()).await.unwrap();
    }
    let before = store.stats().used_bytes;
    let report = store.collect(64 << 20).unwrap();
    assert!(report.compacted_segments > 0 && report.evicted == 0, "{report:?}");
    assert!(store.stats().used_bytes < before / 4, "{before} -> {}", store.stats().used_bytes);
    assert_eq!(store.get_entry(&key).await.unwrap().unwrap(), vec![99; 50_000]);
    for bytes in &blobs {
        let digest = Digest::of(DigestFunction::Sha256, bytes);
        let read = store.read(OWNER, digest, ByteRange::ALL, Accept::Identity).await.unwrap();
        assert!(read_all(read).await.unwrap() == *bytes);
    }
    assert!(store.verify(Repair::Yes).await.unwrap().is_clean());
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_is_built_again_from_the_records_alone() {
    for lost in ["index", "checkpoint"] {
        rebuilds_after_losing(lost).await;
    }
}

async fn rebuilds_after_losing(lost: &str) {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskBlobStore::open(config(&directory)).await.unwrap();
    let small: Vec<Vec<u8>> = (0..500).map(|number| noise(number, 3000)).collect();
    for bytes in &small {
        put(store.as_ref(), OWNER, blob(bytes.clone())).await.unwrap();
    }
    let large = noise(7, 3_000_000);
    upload(&store, &large).await;
    store.close().unwrap();
    drop(store);
    let lost = directory.path().join("store").join(lost);
    if lost.is_dir() {
        std::fs::remove_dir_all(lost).unwrap()
    } else {
        std::fs::remove_file(lost).unwrap()
    }

    let store = DiskBlobStore::open(config(&directory)).await.unwrap();
    let digests: Vec<Digest> =
        small.iter().chain([&large]).map(|bytes| Digest::of(DigestFunction::Sha256, bytes)).collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        // Until the rebuild is done the answer is "unknown", never "missing".
        match store.find_missing(OWNER, &digests).await {
            Ok(missing) => break assert_eq!(missing, []),
            Err(error) => assert_eq!(error.kind(), gf_blobstore::ErrorKind::Unavailable),
        }
        assert!(std::time::Instant::now() < deadline, "the index was not rebuilt");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let read = store.read(OWNER, digests[500], ByteRange::ALL, Accept::Identity).await.unwrap();
    assert!(read_all(read).await.unwrap() == large);
    store.close().unwrap();
}

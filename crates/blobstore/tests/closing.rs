//! A closed store: whatever of it is still at work keeps the folder from the next one, and makes no more room.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use gf_blobstore::{BlobStore, DiskBlobStore, Encoding, ErrorKind, MachineTime, OpenError, OwnerId, StoreConfig};
use gf_digest::{Digest, DigestFunction};
use gf_testkit::LossyFiles;
use gf_testkit::blob_store_suite::noise;

const OWNER: OwnerId = OwnerId(1);

async fn open(files: &LossyFiles, directory: &Path) -> Result<Arc<DiskBlobStore>, OpenError> {
    let config = StoreConfig { large_blob_bytes: 40_000, ..StoreConfig::new(directory.to_owned()) };
    DiskBlobStore::open_on(Arc::new(files.clone()), Arc::new(MachineTime::default()), config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_outlives_its_store_keeps_the_folder() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(&files, directory.path()).await.unwrap();
    let bytes = noise(1, 100_000);
    let digest = Digest::of(DigestFunction::Sha256, &bytes);
    let mut left_over = store.upload(OWNER, digest, Encoding::Identity).await.unwrap();
    left_over.write(bytes.clone().into()).await.unwrap();
    store.close().unwrap();
    drop(store);

    // It would remove, by its name, the file of the first upload to the next store.
    let refused = open(&files, directory.path()).await.err();
    assert!(matches!(refused, Some(OpenError::InUse(_))), "{refused:?}");
    drop(left_over);
    let store = open(&files, directory.path()).await.unwrap();
    let mut upload = store.upload(OWNER, digest, Encoding::Identity).await.unwrap();
    upload.write(bytes.into()).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(store.find_missing(OWNER, &[digest]).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_store_makes_no_more_room() {
    let directory = tempfile::tempdir().unwrap();
    let files = LossyFiles::new(directory.path());
    let store = open(&files, directory.path()).await.unwrap();
    store.close().unwrap();
    assert_eq!(store.collect(1 << 20).unwrap_err().kind(), ErrorKind::Unavailable);
}

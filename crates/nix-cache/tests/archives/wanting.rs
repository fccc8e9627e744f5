//! Blobs that are missing, and a store that fails.

use std::sync::Arc;

use futures::StreamExt as _;
use gf_blobstore::{ByteRange, ErrorKind};
use gf_digest::Digest;
use gf_nix_cache::archives::{ArchiveLimits, Archives, Expected, IngestError, Ingested};
use gf_nix_formats::Compression;
use gf_testkit::MemoryBlobStore;

use crate::fixture::{OWNER, archives, body, read};
use crate::generated::{Numbers, directory, nar, plain};

/// Archives in a store from which blobs can be taken.
struct Wanting {
    archives: Archives,
    store: MemoryBlobStore,
    _folder: tempfile::TempDir,
}

impl Wanting {
    fn new(store: MemoryBlobStore) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(Arc::new(store.clone()), &folder, ArchiveLimits::default());
        Self { archives, store, _folder: folder }
    }

    async fn take(&self, nar: &[u8]) -> Result<Ingested, IngestError> {
        self.archives.ingest(OWNER, Compression::None, body(nar, 9999), Expected::default()).await
    }
}

fn sample() -> Vec<u8> {
    let mut numbers = Numbers::new(31);
    let files = [700_000, 300_000, 2_000_001, 50].map(|bytes| plain(&numbers.bytes(bytes)));
    let [a, b, c, d] = files;
    nar(&directory([(b"a", a), (b"b", directory([(b"b", b)])), (b"c", c), (b"d", directory([(b"d", d)]))]))
}

#[tokio::test]
async fn an_archive_with_a_missing_blob_is_not_opened() {
    let nar = sample();
    let blobs: Vec<Digest> = {
        let wanting = Wanting::new(MemoryBlobStore::default());
        let ingested = wanting.take(&nar).await.unwrap();
        wanting.archives.read_blob_list(OWNER, ingested.blobs).await.unwrap()
    };
    assert_eq!(blobs.len(), 7);
    for (number, digest) in blobs.into_iter().enumerate() {
        let wanting = Wanting::new(MemoryBlobStore::default());
        let ingested = wanting.take(&nar).await.unwrap();
        // With and without a layout that is kept.
        if number % 2 == 0 {
            wanting.archives.open(OWNER, &ingested.root, ingested.nar_size).await.unwrap();
        }
        wanting.store.evict(digest);
        let opened = wanting.archives.open(OWNER, &ingested.root, ingested.nar_size).await;
        assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::NotFound), "{digest}");
        // And it heals.
        wanting.take(&nar).await.unwrap();
        let archive = wanting.archives.open(OWNER, &ingested.root, ingested.nar_size).await.unwrap();
        assert!(read(&archive, ByteRange::ALL).await.unwrap() == nar);
    }
}

#[tokio::test]
async fn a_blob_that_goes_while_it_is_read_is_an_error_and_no_end() {
    let nar = sample();
    let wanting = Wanting::new(MemoryBlobStore::default());
    let ingested = wanting.take(&nar).await.unwrap();
    let archive = wanting.archives.open(OWNER, &ingested.root, ingested.nar_size).await.unwrap();
    for digest in wanting.archives.blobs(OWNER, &ingested.root).await.unwrap() {
        wanting.store.evict(digest);
    }
    let mut read = archive.read(ByteRange::ALL).unwrap();
    let mut bytes = 0;
    let error = loop {
        match read.next().await {
            Some(Ok(piece)) => bytes += piece.len() as u64,
            Some(Err(error)) => break error,
            None => panic!("it ended after {bytes} of {} bytes", read.size_bytes()),
        }
    };
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(read.next().await.is_none());
}

#[tokio::test]
async fn another_size_than_the_database_says_is_an_error() {
    let wanting = Wanting::new(MemoryBlobStore::default());
    let ingested = wanting.take(&sample()).await.unwrap();
    let opened = wanting.archives.open(OWNER, &ingested.root, ingested.nar_size + 1).await;
    assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    // A file is no directory.
    let file = wanting.archives.blobs(OWNER, &ingested.root).await.unwrap().into_iter();
    let largest = file.max_by_key(Digest::size_bytes).unwrap();
    let root = gf_nix_cache::archives::Root::Directory(largest);
    let opened = wanting.archives.open(OWNER, &root, 1).await;
    assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
    assert!(wanting.archives.read_blob_list(OWNER, largest).await.is_err());
}

#[tokio::test]
async fn a_full_store_and_a_broken_one_are_not_the_fault_of_the_archive() {
    let full = Wanting::new(MemoryBlobStore::with_capacity(1_000_000));
    let error = full.take(&sample()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    let broken = Wanting::new(MemoryBlobStore::default());
    let ingested = broken.take(&sample()).await.unwrap();
    broken.store.set_failing(true);
    let error = broken.take(&sample()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let opened = broken.archives.open(OWNER, &ingested.root, ingested.nar_size).await;
    assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
}

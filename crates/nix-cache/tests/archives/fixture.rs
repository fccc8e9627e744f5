//! A store, archives in it, and ways to bring bytes in and out.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use gf_blobstore::{BlobStore, ByteRange, DiskBlobStore, OwnerId, StoreConfig};
use gf_digest::Digest;
use gf_nix_cache::archives::{Archive, ArchiveLimits, Archives, Expected, IngestError, Ingested, ReadError};
use gf_nix_formats::{Compression, NarHash};

pub(crate) const OWNER: OwnerId = OwnerId(7);

/// Archives in a store in a folder that goes with this.
pub(crate) struct Fixture {
    pub(crate) archives: Archives,
    pub(crate) store: Arc<DiskBlobStore>,
    pub(crate) folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(ArchiveLimits::default()).await
    }

    pub(crate) async fn with(limits: ArchiveLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = DiskBlobStore::open(StoreConfig::new(folder.path().join("store"))).await.unwrap();
        let archives = archives(Arc::<DiskBlobStore>::clone(&store), &folder, limits);
        Self { archives, store, folder }
    }

    pub(crate) async fn take(&self, file: &[u8], compression: Compression) -> Result<Ingested, IngestError> {
        self.archives.ingest(OWNER, compression, body(file, 10_000), Expected::default()).await
    }

    /// Takes an archive in, and checks what is said of it.
    pub(crate) async fn keep(&self, nar: &[u8]) -> Ingested {
        let ingested = self.take(nar, Compression::None).await.unwrap();
        assert_eq!(ingested.nar_hash, NarHash::of(nar));
        assert_eq!((ingested.nar_size, ingested.file_size), (nar.len() as u64, nar.len() as u64));
        assert_eq!(ingested.file_hash, *NarHash::of(nar).as_bytes());
        ingested
    }

    pub(crate) async fn open(&self, ingested: &Ingested) -> Archive {
        self.archives.open(OWNER, &ingested.root, ingested.nar_size).await.unwrap()
    }

    /// Reads an archive back and compares it.
    pub(crate) async fn check(&self, ingested: &Ingested, nar: &[u8]) {
        let read = read(&self.open(ingested).await, ByteRange::ALL).await.unwrap();
        assert!(read == nar, "{} bytes came back of {}", read.len(), nar.len());
    }
}

pub(crate) fn archives(store: Arc<dyn BlobStore>, folder: &tempfile::TempDir, limits: ArchiveLimits) -> Archives {
    let scratch = folder.path().join("scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    Archives::new(store, scratch, limits)
}

/// The body of a request, in pieces of so many bytes.
pub(crate) fn body(bytes: &[u8], piece_bytes: usize) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    let pieces: Vec<Bytes> = bytes.chunks(piece_bytes).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces.into_iter().map(Ok))
}

/// A body that breaks off.
pub(crate) fn broken_body(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + use<> {
    let bytes = Bytes::copy_from_slice(bytes);
    stream::iter([Ok(bytes), Err(io::Error::from(io::ErrorKind::ConnectionReset))])
}

pub(crate) async fn read(archive: &Archive, range: ByteRange) -> Result<Vec<u8>, ReadError> {
    let mut read = archive.read(range)?;
    let mut bytes = Vec::new();
    while let Some(piece) = read.next().await {
        let piece = piece?;
        assert!(!piece.is_empty() && piece.len() <= 1 << 20, "a piece of {} bytes", piece.len());
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(bytes.len() as u64, read.size_bytes());
    Ok(bytes)
}

/// The part of an archive that a range names.
pub(crate) fn part(nar: &[u8], range: ByteRange) -> &[u8] {
    let start = usize::try_from(range.offset).unwrap();
    let limit = range.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
    &nar[start..start.saturating_add(limit).min(nar.len())]
}

/// Digests in an order to compare.
pub(crate) fn sorted(mut digests: Vec<Digest>) -> Vec<Digest> {
    digests.sort_unstable();
    digests
}

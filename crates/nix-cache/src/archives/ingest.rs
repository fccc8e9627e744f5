//! Taking in an archive.

use std::io;

use bytes::Bytes;
use futures::Stream;
use gf_blobstore::{ErrorKind, OwnerId, StoreError};
use gf_digest::Digest;
use gf_nix_formats::nar::NarError;
use gf_nix_formats::{Compression, NarHash};
use thiserror::Error;

use super::{Archives, Root};

/// What an archive was announced to be. What is `None` is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The SHA-256 of the bytes that arrive, compressed as they are.
    pub file_hash: Option<[u8; 32]>,
    /// How many bytes arrive.
    pub file_size: Option<u64>,
    /// The SHA-256 of the archive, uncompressed.
    pub nar_hash: Option<NarHash>,
    /// The size of the archive in bytes, uncompressed. More are not even decoded.
    pub nar_size: Option<u64>,
}

/// An archive that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// The SHA-256 of the bytes that arrived.
    pub file_hash: [u8; 32],
    /// How many bytes arrived.
    pub file_size: u64,
    /// The SHA-256 of the archive, uncompressed.
    pub nar_hash: NarHash,
    /// The size of the archive in bytes, uncompressed.
    pub nar_size: u64,
    /// What the archive is in the store.
    pub root: Root,
    /// A blob that lists all blobs which reading the archive needs; see [`Archives::read_blob_list`]. It is not in its own
    /// list.
    pub blobs: Digest,
}

/// Why an archive was not taken in. Nothing of it is visible; blobs of it that nobody needs may stay for a while.
#[derive(Debug, Error)]
pub enum IngestError {
    /// There is no decoder for it.
    #[error("archives compressed with {} are not read here; use none, xz, zstd, bzip2, br, gzip or lzma", .0.name())]
    Unsupported(Compression),
    /// The sender, or what is between it and here, failed.
    #[error("the archive stopped arriving")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The compressed bytes are not what they are said to be.
    #[error("the archive cannot be decoded as {}: {reason}", .compression.name())]
    Undecodable {
        /// What it was said to be compressed with.
        compression: Compression,
        /// What the decoder said.
        reason: String,
    },
    /// The bytes are no archive, or not the canonical one, or beyond a limit.
    #[error(transparent)]
    Archive(#[from] NarError),
    /// More bytes than an archive may have, or than were announced.
    #[error("more than {limit_bytes} bytes arrived, or came out of what arrived")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// Too many names for their bytes.
    #[error("names and targets of the archive take more than {limit_bytes} bytes")]
    TooManyNames {
        /// The limit.
        limit_bytes: u64,
    },
    /// Something else arrived than was announced.
    #[error("{what} is {actual}, but {expected} was announced")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// What it is.
        actual: String,
        /// What it should be.
        expected: String,
    },
    /// The store failed, or has no space.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder for what does not fit into memory failed.
    #[error("the scratch folder failed")]
    Scratch(#[source] io::Error),
}

impl IngestError {
    /// Whose fault this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Scratch(_) => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        }
    }
}

impl Archives {
    /// Takes in an archive while it arrives: decodes and checks it, and stores what it is made of. Everything is in the
    /// store, as durable as its writes, when this answers. Dropped, it leaves nothing but blobs that nobody needs.
    ///
    /// # Errors
    /// [`IngestError`]; [`IngestError::kind`] says whose fault it is.
    pub async fn ingest<S, E>(
        &self,
        _owner: OwnerId,
        compression: Compression,
        _body: S,
        _expected: Expected,
    ) -> Result<Ingested, IngestError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // The decoders follow; until then no archive is taken.
        let _ = (&self.store, &self.scratch, self.limits.nar());
        Err(IngestError::Unsupported(compression))
    }
}

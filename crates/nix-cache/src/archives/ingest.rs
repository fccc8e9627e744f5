//! Taking in an archive: what is compressed, hashed and parsed has a thread, what is stored a task, and the caller's task
//! reads the body. Between them are short queues, so the slowest sets the pace and memory is bounded.

mod contents;
mod decoder;
mod dismantling;
mod nar_hash;
mod opaque;
mod source;
mod spool;
mod storing;
mod tree;
mod turns;

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use gf_blobstore::{ErrorKind, OwnerId, StoreError};
use gf_digest::Digest;
use gf_nix_formats::nar::NarError;
use gf_nix_formats::{Compression, Hash, NarHash};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet, spawn_blocking};

use super::{ArchiveLimits, Archives, Root, blob_list};
use decoder::Decoder;
use dismantling::{Destination, Dismantled, Dismantling};
use nar_hash::NarHashing;
use source::{Portion, Source};
use spool::Room;
pub(super) use spool::SpoolMemory;
use storing::{store_all, store_one};
pub(super) use turns::Turns;

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
    #[error("archives compressed with {} are not read here; use none, xz, zstd, bzip2, br, gzip, lzma or lzip", .0.name())]
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
    /// It came so slowly that it held up others.
    #[error("the archive came so slowly that it held up others: send it again")]
    TooSlow,
    /// There is no memory now for what is not contents of files, beside that of other archives.
    #[error("too much of other archives is in memory now: send it again later")]
    Busy,
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
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Scratch(error) if error.kind() == io::ErrorKind::StorageFull => ErrorKind::Exhausted,
            Self::Scratch(_) | Self::TooSlow | Self::Busy => ErrorKind::Unavailable,
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
        owner: OwnerId,
        compression: Compression,
        body: S,
        expected: Expected,
    ) -> Result<Ingested, IngestError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.ingest_copied(owner, compression, body, expected, None).await
    }

    /// As [`Self::ingest`]; the archive, uncompressed and not checked yet, also goes to `copy`, for as long as that has room.
    ///
    /// # Errors
    /// As [`Self::ingest`].
    pub(crate) async fn ingest_copied<S, E>(
        &self,
        owner: OwnerId,
        compression: Compression,
        body: S,
        expected: Expected,
        copy: Option<mpsc::Sender<Bytes>>,
    ) -> Result<Ingested, IngestError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !decoder::is_supported(compression) {
            return Err(IngestError::Unsupported(compression));
        }
        let permit = self.turns.enter(decoder::memory_bytes(compression)).await?;
        let (portions, receiver) = mpsc::channel(PORTIONS);
        let (jobs, queue) = mpsc::channel(1);
        let source = Source::new(receiver, expected.file_size.unwrap_or(self.limits.size_bytes));
        let limits = self.limits_of(expected);
        let to = Destination {
            store: Arc::clone(&self.store),
            owner,
            room: Room {
                memory: self.spool_memory.clone(),
                files: self.spool_files.clone(),
                folder: self.scratch.clone(),
            },
            names: self.names_memory.clone(),
            jobs,
            runtime: Handle::current(),
            copy,
        };
        let nar_hash = if self.turns.is_alone() { NarHashing::beside(&to.runtime) } else { NarHashing::default() };
        let mut storing = JoinSet::new();
        storing.spawn(store_all(Arc::clone(&self.store), owner, queue));
        let dismantling = spawn_blocking(move || {
            // Held here, so that a thread whose caller has left is counted until it ends.
            let _permit = permit;
            Dismantling::new(to, limits, nar_hash).run(Decoder::new(compression, source)?)
        });
        let fed = feed(body, portions, &self.turns).await;
        let dismantled = dismantling.await.map_err(failed)?;
        let stored = storing.join_next().await.unwrap_or(Ok(Ok(()))).map_err(failed)?;
        // The cause first: whatever ends ends the others.
        fed?;
        stored?;
        self.conclude(owner, dismantled?, expected).await
    }

    fn limits_of(&self, expected: Expected) -> ArchiveLimits {
        let size_bytes = expected.nar_size.unwrap_or(u64::MAX).min(self.limits.size_bytes);
        ArchiveLimits { size_bytes, ..self.limits }
    }

    /// Compares what came with what was announced, and stores the list of blobs.
    async fn conclude(&self, owner: OwnerId, came: Dismantled, expected: Expected) -> Result<Ingested, IngestError> {
        let hex = |hash: [u8; 32]| Hash::from(NarHash::new(hash)).to_string();
        check("the size of the file", came.file_size, expected.file_size)?;
        check("the hash of the file", hex(came.file_hash), expected.file_hash.map(hex))?;
        check("the size of the archive", came.nar_size, expected.nar_size)?;
        check("the hash of the archive", came.nar_hash, expected.nar_hash)?;
        // What came first may have been evicted while the rest came, if that took longer than a lease.
        self.require(owner, &came.blobs).await.map_err(evicted)?;
        let blobs = store_one(self.store.as_ref(), owner, blob_list::encode(&came.blobs)).await?;
        Ok(Ingested {
            file_hash: came.file_hash,
            file_size: came.file_size,
            nar_hash: came.nar_hash,
            nar_size: came.nar_size,
            root: came.root,
            blobs,
        })
    }
}

/// Portions that wait for the thread that takes them.
const PORTIONS: usize = 2;

/// A portion has at least so many bytes, or so many pieces: handing over costs more than a piece is worth.
const PORTION_BYTES: usize = 256 << 10;
const PORTION_PIECES: usize = 1024;

/// Reads the body for as long as somebody takes it. One that comes slowly is given up when others wait for its turn.
async fn feed<S, E>(body: S, portions: mpsc::Sender<Portion>, turns: &Turns) -> Result<(), IngestError>
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(body);
    let mut pieces = Vec::new();
    let mut bytes = 0;
    let mut pace = turns.pace();
    while let Some(piece) = pace.next(&mut body).await? {
        let piece = piece.map_err(|error| IngestError::Body(error.into()))?;
        pace.came(piece.len());
        bytes += piece.len();
        pieces.push(piece);
        if bytes >= PORTION_BYTES || pieces.len() >= PORTION_PIECES {
            bytes = 0;
            if portions.send(Portion::Bytes(std::mem::take(&mut pieces))).await.is_err() {
                return Ok(());
            }
        }
    }
    // Whoever does not take the end knows why.
    let _ = portions.send(Portion::Bytes(pieces)).await;
    let _ = portions.send(Portion::End).await;
    Ok(())
}

fn check<T: PartialEq + Display>(what: &'static str, actual: T, expected: Option<T>) -> Result<(), IngestError> {
    match expected {
        Some(expected) if expected != actual => {
            Err(IngestError::Mismatch { what, actual: actual.to_string(), expected: expected.to_string() })
        }
        _ => Ok(()),
    }
}

/// A blob of the archive is not where it was put: sending the archive again will help.
fn evicted(error: StoreError) -> StoreError {
    match error {
        StoreError::NotFound(_) => StoreError::Io { doing: "keeping an archive", source: io::Error::other(error) },
        error => error,
    }
}

/// A thread or task did not end by itself.
fn failed(error: JoinError) -> IngestError {
    StoreError::Io { doing: "taking an archive in", source: io::Error::other(error) }.into()
}

/// Why the work on an archive ends early.
#[derive(Debug, Error)]
enum Halt {
    /// Something is wrong with the archive, or with what it needs.
    #[error(transparent)]
    Failed(Box<IngestError>),
    /// The body was given up; whoever read it knows why.
    #[error("the upload was given up")]
    GivenUp,
    /// The task that stores has failed, and says why.
    #[error("the store failed")]
    StoringEnded,
}

impl From<IngestError> for Halt {
    fn from(error: IngestError) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl From<Halt> for IngestError {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Failed(error) => *error,
            // Both are told by who caused them, so nobody sees this.
            halt @ (Halt::GivenUp | Halt::StoringEnded) => Self::Body(Box::new(halt)),
        }
    }
}

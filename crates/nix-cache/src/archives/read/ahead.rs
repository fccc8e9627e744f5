//! The task that reads ahead.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use gf_blobstore::{Accept, BlobRead, BlobStore, ByteRange, Encoding, OwnerId, StoreError};
use gf_digest::Digest;
use tokio::sync::mpsc;

use super::ReadError;
use super::plan::{Part, Plan, Section};

/// Pieces that wait to be taken.
pub(super) const PIECES: usize = 4;

/// Sections that are fetched at the same time.
const SECTIONS: usize = 4;

/// What is gathered goes out in pieces of at most this size: framing alone can be longer.
const PIECE_BYTES: usize = BlobRead::MAX_PIECE_BYTES / 2;

/// Fast, and good enough for what is read once.
const ZSTD_LEVEL: i32 = 1;

/// Where an archive comes from, and how it goes out.
pub(super) struct Reader {
    pub(super) store: Arc<dyn BlobStore>,
    pub(super) owner: OwnerId,
    pub(super) encoding: Encoding,
}

/// A section of which at least the beginning is here.
enum Fetched {
    Whole(Bytes),
    Large {
        read: BlobRead,
        /// How many bytes it must have; of compressed ones nobody knows.
        bytes: Option<u64>,
    },
}

/// No error means that nobody takes pieces any more.
type Sent = Result<(), Option<ReadError>>;

type Pieces = mpsc::Sender<Result<Bytes, ReadError>>;

impl Reader {
    /// Reads everything, in order, until nobody takes it. An error is the last thing sent.
    pub(super) async fn read_all(self, plan: Plan, pieces: Pieces) {
        let fetched = futures::stream::iter(plan).map(|section| self.fetch(section));
        let mut sections = std::pin::pin!(fetched.buffered(SECTIONS));
        while let Some(fetched) = sections.next().await {
            let sent = match fetched {
                Ok(Fetched::Whole(bytes)) => self.send_whole(bytes, &pieces).await,
                Ok(Fetched::Large { read, bytes }) => send_large(read, bytes, &pieces).await,
                Err(error) => Err(Some(error)),
            };
            match sent {
                Ok(()) => {}
                Err(None) => return,
                Err(Some(error)) => {
                    // Who took the pieces may have gone.
                    let _ = pieces.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    async fn fetch(&self, section: Section) -> Result<Fetched, ReadError> {
        match section {
            Section::Large { digest, range } => self.open(digest, range.start, range.end - range.start).await,
            Section::Gathered(parts, bytes) => self.gather(parts, bytes).await.map(Fetched::Whole),
        }
    }

    async fn open(&self, digest: Digest, offset: u64, bytes: u64) -> Result<Fetched, ReadError> {
        let (accept, known) = match self.encoding {
            Encoding::Identity => (Accept::Identity, Some(bytes)),
            Encoding::Zstd => (Accept::Zstd, None),
        };
        let range = ByteRange { offset, limit: Some(bytes) };
        Ok(Fetched::Large { read: self.store.read(self.owner, digest, range, accept).await?, bytes: known })
    }

    /// Reads small files and puts them between what stands around them.
    async fn gather(&self, mut parts: Vec<Part>, bytes: usize) -> Result<Bytes, ReadError> {
        if let [Part::Framing(framing)] = &mut parts[..] {
            return Ok(std::mem::take(framing));
        }
        let files = parts.iter().filter_map(|part| match part {
            Part::File(digest, _) => Some(*digest),
            Part::Framing(_) => None,
        });
        let digests: Vec<Digest> = files.collect();
        let mut blobs = self.store.read_batch(self.owner, &digests, Accept::Identity).await.into_iter();
        let mut piece = BytesMut::with_capacity(bytes);
        for part in parts {
            match part {
                Part::Framing(framing) => piece.extend_from_slice(&framing),
                Part::File(digest, range) => {
                    let (blob, _) = blobs.next().ok_or(StoreError::NotFound(digest))??;
                    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
                    let part = blob.get(at(range.start)..at(range.end));
                    piece
                        .extend_from_slice(part.ok_or_else(|| ReadError::Malformed(format!("{digest} is too short")))?);
                }
            }
        }
        Ok(piece.freeze())
    }

    async fn send_whole(&self, mut bytes: Bytes, pieces: &Pieces) -> Sent {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            let piece = match self.encoding {
                Encoding::Identity => piece,
                Encoding::Zstd => compress(&piece).map_err(|error| Some(error.into()))?,
            };
            pieces.send(Ok(piece)).await.map_err(|_| None)?;
        }
        Ok(())
    }
}

async fn send_large(mut read: BlobRead, bytes: Option<u64>, pieces: &Pieces) -> Sent {
    let mut came = 0;
    while let Some(piece) = read.next().await.map_err(|error| Some(error.into()))? {
        came += piece.len() as u64;
        pieces.send(Ok(piece)).await.map_err(|_| None)?;
    }
    match bytes {
        Some(bytes) if bytes != came => {
            Err(Some(ReadError::Malformed(format!("a file has {came} bytes where {bytes} should be"))))
        }
        _ => Ok(()),
    }
}

fn compress(piece: &[u8]) -> Result<Bytes, StoreError> {
    let frame = zstd::bulk::compress(piece, ZSTD_LEVEL);
    frame.map(Bytes::from).map_err(|source| StoreError::Io { doing: "compressing an archive", source })
}

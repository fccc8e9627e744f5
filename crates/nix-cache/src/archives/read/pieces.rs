//! The task that reads ahead.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use gf_blobstore::{Accept, BlobRead, BlobStore, ByteRange, OwnerId};
use gf_digest::Digest;
use tokio::sync::mpsc;

use super::ReadError;
use super::plan::{Part, Plan, Section};

/// Pieces that wait to be taken, and sections that are fetched at the same time.
pub(super) const READ_AHEAD: usize = 4;

/// The longest piece that is handed out: framing alone can be longer than what is gathered.
const MAX_PIECE_BYTES: usize = BlobRead::MAX_PIECE_BYTES;

/// A section of which at least the beginning is here.
enum Fetched {
    Whole(Bytes),
    Large { read: BlobRead, bytes: u64 },
}

/// Reads everything, in order, until nobody takes it. An error is the last thing sent.
pub(super) async fn read_all(
    store: Arc<dyn BlobStore>,
    owner: OwnerId,
    plan: Plan,
    pieces: mpsc::Sender<Result<Bytes, ReadError>>,
) {
    let store = store.as_ref();
    let mut sections = futures::stream::iter(plan).map(|section| fetch(store, owner, section)).buffered(READ_AHEAD);
    while let Some(fetched) = sections.next().await {
        let sent = match fetched {
            Ok(Fetched::Whole(bytes)) => send_whole(bytes, &pieces).await,
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

/// No error means that nobody takes pieces any more.
type Sent = Result<(), Option<ReadError>>;

async fn send_whole(mut bytes: Bytes, pieces: &mpsc::Sender<Result<Bytes, ReadError>>) -> Sent {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(MAX_PIECE_BYTES));
        pieces.send(Ok(piece)).await.map_err(|_| None)?;
    }
    Ok(())
}

async fn send_large(mut read: BlobRead, bytes: u64, pieces: &mpsc::Sender<Result<Bytes, ReadError>>) -> Sent {
    let mut left = bytes;
    while let Some(piece) = read.next().await.map_err(|error| Some(error.into()))? {
        left = left.checked_sub(piece.len() as u64).ok_or_else(|| Some(too_long()))?;
        pieces.send(Ok(piece)).await.map_err(|_| None)?;
    }
    if left > 0 { Err(Some(ReadError::Malformed(format!("a blob ends {left} bytes early")))) } else { Ok(()) }
}

async fn fetch(store: &dyn BlobStore, owner: OwnerId, section: Section) -> Result<Fetched, ReadError> {
    match section {
        Section::Large { digest, range } => {
            let bytes = range.end - range.start;
            let range = ByteRange { offset: range.start, limit: Some(bytes) };
            Ok(Fetched::Large { read: store.read(owner, digest, range, Accept::Identity).await?, bytes })
        }
        Section::Gathered(mut parts, _) if matches!(parts[..], [Part::Framing(_)]) => match parts.pop() {
            Some(Part::Framing(bytes)) => Ok(Fetched::Whole(bytes)),
            _ => Ok(Fetched::Whole(Bytes::new())),
        },
        Section::Gathered(parts, bytes) => gather(store, owner, &parts, bytes).await.map(Fetched::Whole),
    }
}

/// Reads small files and puts them between what stands around them.
async fn gather(store: &dyn BlobStore, owner: OwnerId, parts: &[Part], bytes: usize) -> Result<Bytes, ReadError> {
    let digests: Vec<Digest> = parts
        .iter()
        .filter_map(|part| match part {
            Part::File(digest, _) => Some(*digest),
            Part::Framing(_) => None,
        })
        .collect();
    let mut blobs = store.read_batch(owner, &digests, Accept::Identity).await.into_iter();
    let mut piece = BytesMut::with_capacity(bytes);
    for part in parts {
        match part {
            Part::Framing(framing) => piece.extend_from_slice(framing),
            Part::File(digest, range) => {
                let (blob, _) = blobs.next().ok_or_else(too_long)??;
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
                let part = blob.get(at(range.start)..at(range.end));
                piece.extend_from_slice(part.ok_or_else(|| ReadError::Malformed(format!("{digest} is too short")))?);
            }
        }
    }
    Ok(piece.freeze())
}

fn too_long() -> ReadError {
    ReadError::Malformed("a blob has more bytes than it should".to_owned())
}

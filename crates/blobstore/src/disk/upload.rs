//! Uploads that arrive in pieces.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use gf_digest::Digest;

use super::appending::Payload;
use super::capacity::Reservation;
use super::core::{Core, failed};
use super::decoding::{Decoding, Hashed};
use super::index::{IndexKey, Place, Slot};
use super::lane::Lane;
use super::large::LargeWriter;
use super::record::{HEADER_BYTES, RecordHeader, RecordKind};
use super::segments::NewRecord;
use super::write::undecodable;
use crate::{Encoding, NewBlob, OwnerId, StoreError, Upload};

/// Compressed bytes may be a little longer than the blob; much longer ones are refused.
const COMPRESSED_SLACK_BYTES: u64 = 64 << 10;

/// Blobs from this size on are looked at for parts that they share with others.
const CHUNKED_FROM_BYTES: u64 = 4 << 20;

/// Large blobs that wait to be looked at; more are not remembered.
const MAX_TO_CHUNK: usize = 4096;

pub(crate) struct DiskUpload {
    core: Arc<Core>,
    owner: OwnerId,
    digest: Digest,
    encoding: Encoding,
    received_bytes: u64,
    reservation: Reservation,
    sink: Sink,
    /// Set by the first error: what was hashed and what was written may differ from then on.
    void: bool,
}

enum Sink {
    /// A small blob: kept as it comes, checked and stored whole.
    Memory(Vec<u8>),
    /// A large one: hashed and written as it comes.
    File(Box<FileSink>),
}

enum FileSink {
    Identity(Lane<Hashed>),
    Zstd(Decoding),
}

impl FileSink {
    async fn new(core: &Arc<Core>, owner: OwnerId, digest: &Digest, encoding: Encoding) -> Result<Self, StoreError> {
        let writer = core.large.create(encoding, digest.size_bytes()).map_err(failed("creating a file"))?;
        Ok(match encoding {
            Encoding::Identity => Self::Identity(Lane::new(Hashed::new(core, digest.function(), writer))),
            Encoding::Zstd => {
                let decoding = Decoding::new(core, owner, digest, writer).await;
                Self::Zstd(decoding.map_err(failed("starting a decoder"))?)
            }
        })
    }

    /// Takes the next bytes as they came.
    async fn take(&mut self, bytes: &Bytes, digest: Digest) -> Result<(), StoreError> {
        match self {
            // Takes nothing while it waits.
            Self::Identity(lane) => lane.take(bytes.clone()).await.map_err(failed("writing a file")),
            Self::Zstd(decoding) => decoding.take(bytes).await.map_err(|error| undecodable(error, digest)),
        }
    }

    /// The file, and the digest of everything that came in.
    async fn finish(self, digest: Digest) -> Result<(LargeWriter, Digest), StoreError> {
        let Hashed { hasher, writer, .. } = match self {
            Self::Identity(lane) => lane.finish().await.map_err(failed("writing a file"))?,
            Self::Zstd(decoding) => decoding.finish().map_err(|error| undecodable(error, digest))?,
        };
        Ok((writer, hasher.finish()))
    }
}

impl Core {
    pub(crate) async fn begin_upload(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: Digest,
        encoding: Encoding,
    ) -> Result<DiskUpload, StoreError> {
        let limit_bytes = self.config.max_blob_size_bytes;
        if digest.size_bytes() > limit_bytes {
            return Err(StoreError::TooLarge { digest, limit_bytes });
        }
        let reservation = self.reserve(digest.size_bytes() + 2 * HEADER_BYTES as u64).await?;
        let sink = if digest.size_bytes() <= self.config.large_blob_bytes {
            Sink::Memory(Vec::new())
        } else {
            Sink::File(Box::new(FileSink::new(self, owner, &digest, encoding).await?))
        };
        let core = Arc::clone(self);
        Ok(DiskUpload { core, owner, digest, encoding, received_bytes: 0, reservation, sink, void: false })
    }

    /// Makes a finished large file the place of its blob.
    pub(crate) async fn keep_large(
        &self,
        owner: OwnerId,
        digest: &Digest,
        mut writer: LargeWriter,
        reservation: &mut Reservation,
    ) -> Result<(), StoreError> {
        let Some(vacancy) = self.vacancy(owner, digest, reservation).await? else { return Ok(()) };
        let now = self.clock.now();
        let (_, _, sequence) = self.segments.end();
        let encoding = writer.encoding();
        writer.end().map_err(failed("finishing a file"))?;
        let publishing = self.publishing()?;
        // Taken while publishing: what a checkpoint sees as numbered it also sees in the index.
        let number = self.large.take_number();
        let finished = writer.finish(number, owner, *digest, sequence, now);
        let file_bytes = finished.map_err(failed("finishing a file"))?;
        // The record comes first: a process killed in between leaves a record without a file, which means nothing,
        // and not a file that nobody knows.
        let header = RecordHeader::blob(RecordKind::Large, owner, *digest, encoding);
        let payload = number.to_le_bytes();
        let record = NewRecord { header, payload: Payload::Whole(&payload) };
        self.segments.append(vec![record], now).map_err(failed("appending to a segment"))?;
        reservation.use_bytes((HEADER_BYTES + payload.len()) as u64);
        let file = self.large.keep(writer, number).map_err(failed("naming a file"))?;
        reservation.use_bytes(file_bytes);
        self.must_sync(number, file);
        let slot = Slot {
            key: IndexKey::blob(digest),
            place: Place::large(number, encoding, file_bytes),
            size_bytes: digest.size_bytes(),
            touched: now,
            owner,
        };
        // A rebuild may have found the file before us: it is ours all the same.
        let pointed = self.point(slot, vacancy);
        if pointed.is_err() {
            // Nothing will ever know it.
            let _ = self.remove_large(number);
        }
        let kept = pointed?.filter(|present| present.place != slot.place);
        // A grant publishes too, and who waits for a lock that it holds waits for ever.
        drop(publishing);
        if let Some(present) = kept {
            // Another upload of the same blob was faster.
            self.remove_large(number).map_err(failed("removing a file"))?;
            if present.owner != owner {
                self.grant(owner, digest, reservation)?;
            }
        } else if digest.size_bytes() >= CHUNKED_FROM_BYTES {
            let mut waiting = super::segments::lock(&self.to_chunk);
            if waiting.len() < MAX_TO_CHUNK {
                waiting.push((owner, *digest));
            }
        }
        Ok(())
    }
}

impl DiskUpload {
    async fn take(&mut self, bytes: &Bytes) -> Result<(), StoreError> {
        let digest = self.digest;
        let received_bytes = self.received_bytes + bytes.len() as u64;
        let limit = match self.encoding {
            Encoding::Identity => digest.size_bytes(),
            Encoding::Zstd => digest.size_bytes() + digest.size_bytes() / 8 + COMPRESSED_SLACK_BYTES,
        };
        if received_bytes > limit {
            return Err(StoreError::SizeMismatch { digest, received_bytes });
        }
        match &mut self.sink {
            Sink::Memory(buffer) => {
                if buffer.capacity() == 0 {
                    buffer.reserve_exact(usize::try_from(digest.size_bytes()).unwrap_or(0).max(bytes.len()));
                }
                buffer.extend_from_slice(bytes);
            }
            Sink::File(file) => file.take(bytes, digest).await?,
        }
        self.received_bytes = received_bytes;
        self.core.last_busy.store(self.core.clock.now(), Ordering::Relaxed);
        Ok(())
    }
}

#[async_trait]
impl Upload for DiskUpload {
    fn already_present(&self) -> bool {
        let found = self.core.visible(self.owner, &self.digest);
        matches!(found, Ok(Some(slot)) if !slot.place.has_dependencies() && !self.core.doubtful.has(&slot))
    }

    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if self.void {
            return Err(StoreError::SizeMismatch { digest: self.digest, received_bytes: self.received_bytes });
        }
        let result = self.take(&bytes).await;
        self.void = result.is_err();
        result
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let digest = self.digest;
        if self.void {
            return Err(StoreError::SizeMismatch { digest, received_bytes: self.received_bytes });
        }
        match self.sink {
            Sink::Memory(buffer) => {
                // The batch path reserves for itself.
                drop(self.reservation);
                let blob = NewBlob { digest, bytes: buffer.into(), encoding: self.encoding };
                self.core.write_batch(self.owner, vec![blob]).await.pop().unwrap_or(Ok(()))
            }
            Sink::File(file) => {
                let (writer, actual) = file.finish(digest).await?;
                if actual.size_bytes() != digest.size_bytes() {
                    return Err(StoreError::SizeMismatch { digest, received_bytes: actual.size_bytes() });
                }
                if actual != digest {
                    return Err(StoreError::DigestMismatch { announced: digest, actual });
                }
                self.core.keep_large(self.owner, &digest, writer, &mut self.reservation).await
            }
        }
    }
}

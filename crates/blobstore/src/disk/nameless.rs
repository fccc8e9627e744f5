//! Uploads whose digest is found out here: nobody else hashes what comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use gf_digest::{Digest, DigestFunction};

use super::capacity::Reservation;
use super::core::{Core, failed};
use super::decoding::Hashed;
use super::lane::Lane;
use super::large::ALLOCATED_AT_ONCE_BYTES;
use super::record::HEADER_BYTES;
use crate::gathering::Gathering;
use crate::{BlobHasher, Encoding, Named, NamelessUpload, OwnerId, StoreError};

pub(crate) struct NamelessDiskUpload {
    core: Arc<Core>,
    owner: OwnerId,
    function: DigestFunction,
    received_bytes: u64,
    /// What the file may take, and no more is reserved while there is none.
    reserved_bytes: u64,
    reservation: Reservation,
    /// `None` after the first error.
    sink: Option<Sink>,
}

enum Sink {
    /// As long as it is small: kept as it comes, and stored whole.
    Memory(Gathering),
    /// Hashed and written as it comes.
    File(Lane<Hashed>),
}

impl Core {
    pub(crate) fn begin_nameless(
        self: &Arc<Self>,
        owner: OwnerId,
        function: DigestFunction,
    ) -> Result<NamelessDiskUpload, StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        Ok(NamelessDiskUpload {
            core: Arc::clone(self),
            owner,
            function,
            received_bytes: 0,
            reserved_bytes: 0,
            reservation: self.capacity.unreserved(),
            sink: Some(Sink::Memory(Gathering::default())),
        })
    }
}

impl NamelessDiskUpload {
    async fn take(&mut self, sink: Sink, bytes: Bytes) -> Result<Sink, StoreError> {
        let limit_bytes = self.core.config.max_blob_size_bytes;
        let received_bytes = self.received_bytes + bytes.len() as u64;
        if received_bytes > limit_bytes {
            return Err(StoreError::TooLong { limit_bytes });
        }
        let sink = match sink {
            Sink::Memory(mut gathering) if received_bytes <= self.core.config.large_blob_bytes => {
                gathering.push(bytes);
                Sink::Memory(gathering)
            }
            Sink::Memory(mut gathering) => {
                self.reserve(received_bytes).await?;
                let writer = self.core.large.create_growing(Encoding::Identity).map_err(failed("creating a file"))?;
                let mut lane = Lane::new(Hashed::new(&self.core, self.function, writer));
                for piece in gathering.take().into_iter().chain([bytes]) {
                    lane.take(piece).await.map_err(failed("writing a file"))?;
                }
                Sink::File(lane)
            }
            Sink::File(mut lane) => {
                self.reserve(received_bytes).await?;
                lane.take(bytes).await.map_err(failed("writing a file"))?;
                Sink::File(lane)
            }
        };
        self.received_bytes = received_bytes;
        self.core.last_busy.store(self.core.clock.now(), Ordering::Relaxed);
        Ok(sink)
    }

    /// Sets space aside for a file of so many bytes, in the steps in which it grows.
    async fn reserve(&mut self, bytes: u64) -> Result<(), StoreError> {
        while self.reserved_bytes < bytes + 2 * HEADER_BYTES as u64 {
            self.reservation.merge(self.core.reserve(ALLOCATED_AT_ONCE_BYTES).await?);
            self.reserved_bytes += ALLOCATED_AT_ONCE_BYTES;
        }
        Ok(())
    }

    /// Whether the owner lacks a blob. Not knowing is no reason to refuse bytes.
    async fn lacks(&self, digest: Digest) -> bool {
        !matches!(self.core.find_missing(self.owner, &[digest]).await, Ok(missing) if missing.is_empty())
    }

    async fn end(mut self) -> Result<Named, StoreError> {
        match self.sink.take().ok_or_else(void)? {
            Sink::Memory(mut gathering) => {
                let mut hashing = BlobHasher::new(self.function);
                gathering.take().into_iter().for_each(|piece| hashing.update(piece));
                let blob = hashing.finish();
                let digest = blob.digest();
                let is_new = self.lacks(digest).await;
                self.core.write_hashed(self.owner, vec![blob]).await.pop().unwrap_or(Ok(()))?;
                Ok(Named { digest, is_new })
            }
            Sink::File(lane) => {
                let Hashed { hasher, writer, .. } = lane.finish().await.map_err(failed("writing a file"))?;
                let digest = hasher.finish();
                let is_new = self.lacks(digest).await;
                self.core.keep_large(self.owner, &digest, writer, &mut self.reservation).await?;
                Ok(Named { digest, is_new })
            }
        }
    }
}

#[async_trait]
impl NamelessUpload for NamelessDiskUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        // Not put back by who fails, or is given up.
        let sink = self.sink.take().ok_or_else(void)?;
        self.sink = Some(self.take(sink, bytes).await?);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Named, StoreError> {
        self.end().await
    }
}

/// An upload that failed before goes on all the same.
fn void() -> StoreError {
    failed("writing a file")(std::io::Error::other("this upload has failed"))
}

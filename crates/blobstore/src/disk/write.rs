//! Writing what arrives whole: small blobs and entries.

use std::sync::Arc;

use bytes::Bytes;
use gf_digest::Digest;

use super::appending::Payload;
use super::capacity::Reservation;
use super::core::{Core, Vacancy, failed};
use super::doubtful::Extract;
use super::index::{IndexKey, Slot};
use super::read::ATTEMPTS;
use super::record::{HEADER_BYTES, RecordHeader, RecordKind};
use super::segments::{NewRecord, lock};
use super::zstandard::{self, DecodeError};
use crate::{Encoding, EntryKey, HashedBlob, NewBlob, OwnerId, StoreError};

/// The largest blob that may arrive whole: what compressed bytes decode to is held in memory.
const MAX_WHOLE_BYTES: u64 = 64 << 20;

/// What letting a further owner see a blob writes: that it is shared, and with whom.
const GRANT_BYTES: u64 = 2 * (HEADER_BYTES as u64 + 8);

/// A blob whose digest was checked, in the form in which it will rest.
struct Checked {
    digest: Digest,
    payload: Vec<Bytes>,
    encoding: Encoding,
}

impl Checked {
    fn payload_bytes(&self) -> usize {
        self.payload.iter().map(Bytes::len).sum()
    }

    fn record_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload_bytes()) as u64
    }
}

impl Core {
    pub(crate) async fn write_batch(
        self: &Arc<Self>,
        owner: OwnerId,
        blobs: Vec<NewBlob>,
    ) -> Vec<Result<(), StoreError>> {
        let check = |blob: NewBlob| {
            let (encoding, payload) = self.check(&blob)?;
            Ok(Checked { digest: blob.digest, payload: vec![payload], encoding })
        };
        self.write_checked(owner, blobs.into_iter().map(check)).await
    }

    pub(crate) async fn write_hashed(
        self: &Arc<Self>,
        owner: OwnerId,
        blobs: Vec<HashedBlob>,
    ) -> Vec<Result<(), StoreError>> {
        let limit_bytes = self.max_whole_bytes();
        let check = |blob: HashedBlob| match blob.digest() {
            digest if digest.size_bytes() > limit_bytes => Err(StoreError::TooLarge { digest, limit_bytes }),
            digest => Ok(Checked { digest, payload: blob.into_pieces(), encoding: Encoding::Identity }),
        };
        self.write_checked(owner, blobs.into_iter().map(check)).await
    }

    /// Stores those blobs that passed.
    async fn write_checked(
        self: &Arc<Self>,
        owner: OwnerId,
        blobs: impl ExactSizeIterator<Item = Result<Checked, StoreError>>,
    ) -> Vec<Result<(), StoreError>> {
        let mut results = Vec::with_capacity(blobs.len());
        let mut checked = Vec::with_capacity(blobs.len());
        for blob in blobs {
            results.push(blob.map(|blob| {
                if !blob.digest.is_empty() {
                    checked.push((results.len(), blob));
                }
            }));
        }
        match self.reserve_for(owner, &mut checked).await {
            Ok(mut reservation) => self.store_checked(owner, checked, &mut reservation, &mut results).await,
            Err(error) => refuse_all(&mut results, checked.iter().map(|(at, _)| *at), error),
        }
        results
    }

    /// Sets space aside for these blobs. Where there is none at once, those that are here already need none, and what lets
    /// another owner see them is little: a full store takes them, and nothing is evicted for them.
    async fn reserve_for(
        self: &Arc<Self>,
        owner: OwnerId,
        checked: &mut Vec<(usize, Checked)>,
    ) -> Result<Reservation, StoreError> {
        let all: u64 = checked.iter().map(|(_, blob)| blob.record_bytes()).sum();
        if let Ok(reservation) = self.capacity.reserve(all) {
            return Ok(reservation);
        }
        let mut needed = 0;
        let mut lacking = Vec::with_capacity(checked.len());
        for (at, blob) in checked.drain(..) {
            match self.any_owner(&blob.digest) {
                Ok(Some(slot)) if self.is_readable(&slot, &blob.digest).await => {
                    let is_visible = self.visible(owner, &blob.digest).is_ok_and(|found| found.is_some());
                    if is_visible {
                        continue;
                    }
                    needed += GRANT_BYTES;
                }
                _ => needed += blob.record_bytes(),
            }
            lacking.push((at, blob));
        }
        *checked = lacking;
        self.reserve(needed).await
    }

    fn max_whole_bytes(&self) -> u64 {
        self.config.max_blob_size_bytes.min(MAX_WHOLE_BYTES)
    }

    /// Checks size and digest, and picks the smaller of the forms at hand.
    fn check(&self, blob: &NewBlob) -> Result<(Encoding, Bytes), StoreError> {
        let digest = blob.digest;
        let limit_bytes = self.max_whole_bytes();
        if digest.size_bytes() > limit_bytes {
            return Err(StoreError::TooLarge { digest, limit_bytes });
        }
        let decoded = match blob.encoding {
            Encoding::Identity => None,
            Encoding::Zstd => Some(decode(&blob.bytes, digest)?),
        };
        let identity = decoded.as_deref().unwrap_or(&blob.bytes);
        if identity.len() as u64 != digest.size_bytes() {
            return Err(StoreError::SizeMismatch { digest, received_bytes: identity.len() as u64 });
        }
        let actual = Digest::of(digest.function(), identity);
        if actual != digest {
            return Err(StoreError::DigestMismatch { announced: digest, actual });
        }
        match decoded {
            Some(decoded) if decoded.len() <= blob.bytes.len() => Ok((Encoding::Identity, decoded.into())),
            Some(_) => Ok((Encoding::Zstd, blob.bytes.clone())),
            None => Ok((Encoding::Identity, blob.bytes.clone())),
        }
    }

    async fn store_checked(
        &self,
        owner: OwnerId,
        checked: Vec<(usize, Checked)>,
        reservation: &mut Reservation,
        results: &mut [Result<(), StoreError>],
    ) {
        let mut missing = Vec::with_capacity(checked.len());
        for (at, blob) in checked {
            match self.vacancy(owner, &blob.digest, reservation).await {
                Ok(None) => {}
                Ok(Some(vacancy)) => missing.push((at, blob, vacancy)),
                Err(error) => results[at] = Err(error),
            }
        }
        if missing.is_empty() {
            return;
        }
        let now = self.clock.now();
        let publishing = match self.publishing() {
            Ok(publishing) => publishing,
            Err(error) => return refuse_all(results, missing.iter().map(|(at, _, _)| *at), error),
        };
        let records = missing.iter().map(|(_, blob, _)| NewRecord {
            header: RecordHeader::blob(RecordKind::Blob, owner, blob.digest, blob.encoding),
            payload: Payload::Pieces(&blob.payload),
        });
        let appended = match self.segments.append(records.collect(), now) {
            Ok(appended) => appended,
            Err(error) => {
                return refuse_all(
                    results,
                    missing.iter().map(|(at, _, _)| *at),
                    failed("appending to a segment")(error),
                );
            }
        };
        let mut theirs = Vec::new();
        for ((at, blob, vacancy), place) in missing.into_iter().zip(appended) {
            reservation.use_bytes((HEADER_BYTES + blob.payload_bytes()) as u64);
            let key = IndexKey::blob(&blob.digest);
            let place = place.plain(blob.encoding);
            let slot = Slot { key, place, size_bytes: blob.digest.size_bytes(), touched: now, owner };
            match self.point(slot, vacancy) {
                // Another owner who was faster: that slot stays, and this is garbage.
                Ok(Some(present)) if present.owner != owner => theirs.push((at, blob.digest)),
                Ok(_) => {}
                Err(error) => results[at] = Err(error),
            }
        }
        // A grant publishes too, and who waits for a lock that it holds waits for ever.
        drop(publishing);
        for (at, digest) in theirs {
            results[at] = self.grant(owner, &digest, reservation);
        }
    }

    /// What is to be filled when `owner`, who has just proved to have all bytes of the blob, writes it; `None` when they
    /// are here. If another owner brought them, this one is let in.
    pub(crate) async fn vacancy(
        &self,
        owner: OwnerId,
        digest: &Digest,
        reservation: &mut Reservation,
    ) -> Result<Option<Vacancy>, StoreError> {
        let mut vacancy = Vacancy::default();
        for _ in 0..ATTEMPTS {
            // Not knowing is no reason to refuse bytes: storing them again is safe.
            let Ok(Some(slot)) = self.any_owner(digest) else { return Ok(Some(Vacancy::default())) };
            vacancy = Vacancy { place: Some(slot.place), has_ended: true, is_doubtful: false };
            // Parts of other blobs are as good as bytes of its own: they are kept as long. And they may be durable
            // already, which a new record is not.
            match self.is_here(&slot, digest).await {
                Ok(true) if !self.is_doubtful(&slot, digest).await => {
                    if slot.owner != owner {
                        self.grant(owner, digest, reservation)?;
                    }
                    return Ok(None);
                }
                // A part that seems to be gone may have moved.
                Ok(false) => {}
                Ok(true) | Err(_) => {
                    // It may be whole: whose it was keeps seeing it.
                    if slot.owner != owner {
                        self.grant(slot.owner, digest, reservation)?;
                    }
                    return Ok(Some(Vacancy { has_ended: false, is_doubtful: true, ..vacancy }));
                }
            }
        }
        Ok(Some(vacancy))
    }

    pub(crate) async fn put_entry(self: &Arc<Self>, key: &EntryKey, value: &[u8]) -> Result<(), StoreError> {
        let header = RecordHeader::entry(RecordKind::Entry, key);
        let mut reservation = self.reserve((header.head_bytes() + value.len()) as u64).await?;
        self.publish(header, value, &mut reservation)
    }

    pub(crate) async fn get_entry(&self, key: &EntryKey) -> Result<Option<Bytes>, StoreError> {
        let index_key = index_key(key);
        // A record can move between the look and the read; it does not move twice in so short a time.
        for _ in 0..3 {
            let now = self.clock.now();
            let found = self.index.lookup(&index_key, |slot| {
                self.lease.must_write(slot.touched, now).then_some(Slot { touched: now, ..*slot })
            });
            let Some(slot) = self.known(found)? else { return Ok(None) };
            match self.segments.read(&index_key, &slot.place).await {
                Ok((_, payload)) => {
                    self.doubtful.was_read(&slot, Extract::Head);
                    return Ok(Some(payload));
                }
                Err(super::segments::ReadFault::Gone) => {}
                Err(fault) => match self.read_failed(fault, &slot, &key.digest) {
                    StoreError::NotFound(_) => return Ok(None),
                    error => return Err(error),
                },
            }
        }
        Ok(None)
    }

    pub(crate) async fn remove_entry(self: &Arc<Self>, key: &EntryKey) -> Result<bool, StoreError> {
        let was_here = self.record_removal(key)?;
        // If there was none, that may be the doing of another removal, which must not be undone either.
        let index_key = index_key(key);
        if was_here || lock(&self.unsettled_removals).contains(&index_key) {
            self.make_durable().await?;
            lock(&self.unsettled_removals).remove(&index_key);
        }
        Ok(was_here)
    }

    fn record_removal(&self, key: &EntryKey) -> Result<bool, StoreError> {
        let header = RecordHeader::entry(RecordKind::EntryRemoved, key);
        let _publishing = self.publishing()?;
        let _one_at_a_time = self.changing(&index_key(key));
        if self.known(self.index.peek(&index_key(key)))?.is_none() {
            return Ok(false);
        }
        // The space of a removal is not reserved: it must go through when nothing else does.
        let record = NewRecord { header, payload: Payload::Whole(&[]) };
        let bytes = record.header.record_bytes();
        let appended = self.segments.append(vec![record], self.clock.now()).map_err(failed("recording a removal"))?;
        self.capacity.add_used(bytes);
        // What was written behind the removal stays.
        let is_before = |slot: &Slot| {
            let removed = appended.first().map(|at| (at.segment, at.offset));
            slot.place.record().map(|(segment, offset, _)| (segment, offset)) < removed
        };
        // First: who finds the entry gone must find this.
        lock(&self.unsettled_removals).insert(index_key(key));
        let removed = self.index.remove_if(&index_key(key), is_before);
        Ok(removed.map_err(failed("writing the index"))?.is_some())
    }
}

fn index_key(key: &EntryKey) -> IndexKey {
    IndexKey::entry(key.table as u8, key.owner, key.instance.as_str(), &key.digest)
}

fn decode(bytes: &[u8], digest: Digest) -> Result<Vec<u8>, StoreError> {
    zstandard::decompress(bytes, digest.size_bytes()).map_err(|error| undecodable(error, digest))
}

/// What to tell the caller of compressed bytes that cannot be used.
pub(crate) fn undecodable(error: DecodeError, digest: Digest) -> StoreError {
    match error {
        DecodeError::TooLong => StoreError::SizeMismatch { digest, received_bytes: digest.size_bytes() + 1 },
        DecodeError::Invalid(error) => StoreError::Undecodable { digest, reason: error.to_string() },
        DecodeError::Sink(error) => failed("writing a file")(error),
    }
}

/// The same failure for each of several blobs.
fn refuse_all(results: &mut [Result<(), StoreError>], which: impl Iterator<Item = usize>, error: StoreError) {
    let again = |error: &StoreError| match error {
        StoreError::NoSpace { needed_bytes, short_bytes, reason } => {
            let (needed_bytes, short_bytes) = (*needed_bytes, *short_bytes);
            StoreError::NoSpace { needed_bytes, short_bytes, reason: reason.clone() }
        }
        StoreError::Closed => StoreError::Closed,
        other => StoreError::Io { doing: "writing a batch", source: std::io::Error::other(other.to_string()) },
    };
    which.for_each(|at| results[at] = Err(again(&error)));
}

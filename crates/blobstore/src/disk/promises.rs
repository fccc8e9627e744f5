//! Promises: what an owner was told to be kept until a stated moment, however long after the lease.
//!
//! A promise is a record and a slot, one for each owner and blob: no owner's letting go takes away what another was
//! promised. It is a standing question: before anything is evicted, and again each quarter of a lease, the store asks for
//! every promised blob as its owner would. So the lease remains the only rule of eviction, and whatever a blob is made of
//! stays with it. Time that passes without those questions, while the store is down, does not count.
//!
//! Deliberately absent: protection from damage. A promise is about eviction. And a rebuild of the index may bring a promise
//! back that was let go: more is kept then than was promised, never less.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use gf_digest::Digest;

use super::appending::Payload;
use super::capacity::Reservation;
use super::core::{Core, failed};
use super::index::{IndexKey, Lookup, SHARDS, Slot};
use super::read::{ATTEMPTS, MAX_DEPTH, named_parts};
use super::record::{HEADER_BYTES, RecordHeader, RecordKind};
use super::segments::{NewRecord, ReadFault, lock};
use crate::{Encoding, LONGEST_PROMISE, OwnerId, StoreError};

/// The bytes of a record that promises something.
const RECORD_BYTES: u64 = HEADER_BYTES as u64 + 8;

/// Records of one append.
const BATCH: usize = 4096;

/// Until when something is promised that was let go.
const LET_GO: u64 = 0;

impl Core {
    pub(crate) async fn keep_until(
        self: &Arc<Self>,
        owner: OwnerId,
        digests: &[Digest],
        until: SystemTime,
    ) -> Result<Vec<Digest>, StoreError> {
        let (now, until) = (u64::from(self.clock.now()), self.clock.at(until));
        if until > (now + LONGEST_PROMISE.as_secs()).min(u64::from(u32::MAX)) {
            return Err(StoreError::TooFarAhead { limit: LONGEST_PROMISE });
        }
        if until <= now {
            return self.find_missing(owner, digests).await;
        }
        let mut wanted = HashSet::new();
        for digest in digests.iter().filter(|digest| !digest.is_empty()) {
            if self.promised_until(owner, digest)? < until {
                wanted.insert(*digest);
            }
        }
        // Before the look: making room may take longer than a lease.
        let mut reservation = self.reserve(RECORD_BYTES * wanted.len() as u64).await?;
        let missing = self.find_missing(owner, digests).await?;
        for digest in &missing {
            wanted.remove(digest);
        }
        self.promise(owner, &Vec::from_iter(wanted), until, &mut reservation)?;
        Ok(missing)
    }

    pub(crate) async fn let_go(self: &Arc<Self>, owner: OwnerId, digests: &[Digest]) -> Result<(), StoreError> {
        // The lease begins now: nobody may have asked since the promise was made.
        self.find_missing(owner, digests).await?;
        // Not reserved, as no removal is: it must go through when nothing else does.
        self.promise(owner, digests, LET_GO, &mut self.capacity.unreserved())
    }

    /// Until when a blob is promised to an owner; 0 when it is not.
    fn promised_until(&self, owner: OwnerId, digest: &Digest) -> Result<u64, StoreError> {
        let found = self.known(self.index.peek(&IndexKey::promise(owner, digest)))?;
        Ok(found.map_or(LET_GO, |slot| slot.size_bytes))
    }

    /// Records what is promised, or let go, wherever that is news.
    fn promise(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: u64,
        reservation: &mut Reservation,
    ) -> Result<(), StoreError> {
        for batch in digests.chunks(BATCH) {
            // One at a time: the last record is the one that counts.
            let _one_at_a_time = lock(&self.promising);
            let mut news = Vec::new();
            for digest in batch {
                let present = self.promised_until(owner, digest)?;
                if if until == LET_GO { present > LET_GO } else { present < until } {
                    news.push(*digest);
                }
            }
            self.publish_promises(owner, &news, until, reservation)?;
        }
        Ok(())
    }

    fn publish_promises(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: u64,
        reservation: &mut Reservation,
    ) -> Result<(), StoreError> {
        if digests.is_empty() {
            return Ok(());
        }
        let _publishing = self.publishing()?;
        let (now, payload) = (self.clock.now(), until.to_le_bytes());
        let record = |digest: &Digest| NewRecord {
            header: RecordHeader::blob(RecordKind::Promise, owner, *digest, Encoding::Identity),
            payload: Payload::Whole(&payload),
        };
        let appended = self.segments.append(digests.iter().map(record).collect(), now);
        let appended = appended.map_err(failed("recording a promise"))?;
        reservation.use_bytes(RECORD_BYTES * digests.len() as u64);
        for (digest, at) in digests.iter().zip(appended) {
            let key = IndexKey::promise(owner, digest);
            let slot = Slot { key, place: at.plain(Encoding::Identity), size_bytes: until, touched: now, owner };
            self.index.change(&key, |_| Some(slot)).map_err(failed("writing the index"))?;
        }
        Ok(())
    }

    /// Writes the record of a promise again that was lost: its slot says all that it said. Whether it was a promise, about a
    /// blob that is here.
    pub(crate) fn promise_again(&self, slot: &Slot) -> io::Result<bool> {
        let Some(digest) = self.promised_digest(slot)? else { return Ok(false) };
        let _one_at_a_time = lock(&self.promising);
        // Made anew meanwhile.
        if matches!(self.index.peek(&slot.key)?, Lookup::Found(_)) {
            return Ok(true);
        }
        let mut unreserved = self.capacity.unreserved();
        let promised = self.publish_promises(slot.owner, &[digest], slot.size_bytes, &mut unreserved);
        promised.map(|()| true).map_err(other)
    }

    /// The digest that a promise is about; `None` for other slots, and when the blob is not here.
    fn promised_digest(&self, promise: &Slot) -> io::Result<Option<Digest>> {
        let Some(key) = promise.key.promised_blob(promise.owner) else { return Ok(None) };
        Ok(match self.index.peek(&key)? {
            Lookup::Found(blob) => blob.key.digest(blob.size_bytes),
            Lookup::Absent | Lookup::Unknown => None,
        })
    }

    /// The time to evict by: now, or as late as everything promised is certain to be under lease.
    pub(crate) fn time_to_evict_by(&self) -> io::Result<u32> {
        let mut renewed = lock(&self.promises_renewed);
        let now = self.clock.now();
        if renewed.is_none_or(|renewed| self.lease.is_due_again(renewed, now)) {
            // Nothing is evicted while slots are lost, and promises are among those.
            if !self.index.load_all()? {
                return Ok(now);
            }
            self.renew_promises(now)?;
            *renewed = Some(now);
        }
        Ok(self.clock.now().min(renewed.map_or(now, |renewed| self.lease.covers(renewed))))
    }

    fn renew_promises(&self, now: u32) -> io::Result<()> {
        for shard in 0..SHARDS {
            let mut promises = Vec::new();
            self.index.visit_shard(shard, |slot| {
                if slot.key.promised_blob(slot.owner).is_some() && slot.size_bytes >= u64::from(now) {
                    promises.push(*slot);
                }
            })?;
            for promise in promises {
                self.renew(&promise)?;
            }
        }
        Ok(())
    }

    /// Asks for a promised blob. One that is not here takes its promise along, in a while.
    fn renew(&self, promise: &Slot) -> io::Result<()> {
        let Some(digest) = self.promised_digest(promise)? else { return Ok(()) };
        for _ in 0..ATTEMPTS {
            let Some(slot) = self.visible(promise.owner, &digest).map_err(other)? else { break };
            self.touch(&promise.key)?;
            if self.renew_parts(&slot, &digest, MAX_DEPTH)? {
                break;
            }
        }
        Ok(())
    }

    /// Asks for everything that a slot depends on. Whether it could be read: not if it moved.
    fn renew_parts(&self, slot: &Slot, digest: &Digest, depth: u8) -> io::Result<bool> {
        if !slot.place.has_dependencies() || depth == 0 {
            return Ok(true);
        }
        let payload = match self.segments.read_waiting(&slot.key, &slot.place) {
            Ok((_, payload)) => payload,
            Err(ReadFault::Gone) => return Ok(false),
            // Nobody can read such a blob. It is no reason to keep everything else.
            Err(fault) => {
                tracing::error!(%digest, ?fault, "what a promised blob is made of cannot be read");
                return Ok(true);
            }
        };
        let mut is_read = true;
        for part in named_parts(slot, digest, &payload) {
            if let Some(slot) = self.any_owner(&part.blob).map_err(other)? {
                is_read &= self.renew_parts(&slot, &part.blob, depth - 1)?;
            }
        }
        Ok(is_read)
    }

    fn touch(&self, key: &IndexKey) -> io::Result<()> {
        let now = self.clock.now();
        let touched = |slot: &Slot| self.lease.must_write(slot.touched, now).then_some(Slot { touched: now, ..*slot });
        self.index.lookup(key, touched).map(drop)
    }
}

fn other(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

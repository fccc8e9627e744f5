//! Making room: evicting what the plan says, and compacting the segments that it leaves holes in.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::appending::Payload;
use super::capacity::Reservation;
use super::core::{Core, Refused, failed};
use super::eviction::{EvictionPlan, Histogram, plan};
use super::index::{Lookup, Place, SHARDS, Slot};
use super::record::{HEADER_BYTES, RecordKind};
use super::scan::{self, Scanned, Unreadable};
use super::segments::{NewRecord, lock, read_lock, write_lock};
use super::zstandard;
use crate::{Encoding, OwnerId, StoreError};

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectionReport {
    /// Blobs and entries evicted.
    pub evicted: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Bytes that the store uses less than before.
    pub freed_bytes: u64,
    /// Bytes under lease, which nothing may evict.
    pub leased_bytes: u64,
    /// Segments removed or rewritten.
    pub compacted_segments: u64,
}

/// What evictions have begun and could not end: no further one begins before.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    /// Whether slots were taken out of the index that a power cut could bring back.
    is_unsettled: bool,
    /// Large files that no slot points to any more.
    files: Vec<u64>,
}

/// Bytes at rest by segment that the index points to.
type LiveBytes = BTreeMap<u32, u64>;

/// A segment is rewritten only if at least one byte in so many is garbage, unless a write would be refused otherwise.
const WORTHWHILE_GARBAGE: u64 = 10;

/// How much is freed beyond what is needed, as a share of the capacity, so that one collection serves many writes.
const SLACK_SHARE: u64 = 32;

impl Core {
    /// Held while evicting: one at a time, and nobody once the store is closed.
    pub(crate) fn evicting(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        let evicting = lock(&self.evicting);
        if self.closed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(evicting) }
    }

    /// Evicts until `bytes` can be reserved, or says why they cannot.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<Reservation, StoreError> {
        let _one_at_a_time = self.evicting()?;
        // What had to go before may be room enough.
        self.finish_evictions().map_err(failed("making room"))?;
        let mut excess = match self.capacity.reserve(bytes) {
            Ok(reservation) => return Ok(reservation),
            Err(excess) => excess,
        };
        if self.is_known_not_to_fit(bytes, excess) {
            return Err(self.no_space(bytes, excess));
        }
        // Where evicting all that may go would not do, nothing goes.
        let freeable = self.freeable_bytes().map_err(failed("making room"))?;
        if excess > freeable {
            return Err(self.refuse(bytes, excess, excess - freeable));
        }
        // Freed bytes are an estimate until segments are compacted; a second round covers the difference.
        for _ in 0..3 {
            let slack = self.capacity.limit_bytes() / SLACK_SHARE;
            let report = self.collect(excess + slack).map_err(failed("making room"))?;
            match self.capacity.reserve(bytes) {
                Ok(reservation) => return Ok(reservation),
                Err(still) => excess = still,
            }
            // What may go can lie so thinly among what may not that no segment is worth rewriting. This write is.
            let squeezed = self.squeeze(excess).map_err(failed("making room"))?;
            match self.capacity.reserve(bytes) {
                Ok(reservation) => return Ok(reservation),
                Err(still) => excess = still,
            }
            if report.freed_bytes == 0 && squeezed == 0 {
                break;
            }
        }
        Err(self.refuse(bytes, excess, excess))
    }

    /// Sets space aside, or refuses to, where neither takes a look at the index.
    pub(crate) fn reserve_at_once(&self, bytes: u64) -> Option<Result<Reservation, StoreError>> {
        match self.capacity.reserve(bytes) {
            Ok(reservation) => Some(Ok(reservation)),
            Err(excess) => self.is_known_not_to_fit(bytes, excess).then(|| Err(self.no_space(bytes, excess))),
        }
    }

    fn is_known_not_to_fit(&self, bytes: u64, excess: u64) -> bool {
        let refused = lock(&self.refused);
        bytes > self.capacity.limit_bytes() || excess >= refused.excess_bytes && self.clock.now() < refused.until
    }

    /// Refuses a write, and remembers it for a moment: a look at the whole index for each of a thousand refused writes
    /// would stop the reads too.
    fn refuse(&self, bytes: u64, excess_bytes: u64, short_bytes: u64) -> StoreError {
        *lock(&self.refused) = Refused { excess_bytes, until: self.clock.now() + 1 };
        self.no_space(bytes, short_bytes)
    }

    /// Frees `bytes` by rewriting segments with any garbage at all, emptiest first. Returns how many bytes it freed.
    fn squeeze(&self, bytes: u64) -> io::Result<u64> {
        // What the index has lost is not garbage.
        if !self.index.load_all()? {
            return Ok(0);
        }
        let used_before = self.capacity.used_bytes();
        let (_, live) = self.survey()?;
        self.compact(&live, used_before.saturating_sub(bytes), u64::MAX)?;
        Ok(used_before.saturating_sub(self.capacity.used_bytes()))
    }

    /// The most that evicting and compacting could free.
    fn freeable_bytes(&self) -> io::Result<u64> {
        let stuck = self.finish_evictions()?;
        let quarantined: u64 = self.large.quarantined()?.iter().map(|(_, bytes)| bytes).sum();
        let now = self.time_to_evict_by()?;
        let (histogram, _) = self.survey()?;
        let leased = histogram.leased_bytes(self.lease, now);
        self.counters.leased_bytes.store(leased, Ordering::Relaxed);
        Ok(self.capacity.used_bytes().saturating_sub(leased).saturating_sub(stuck + quarantined))
    }

    fn no_space(&self, needed_bytes: u64, short_bytes: u64) -> StoreError {
        let mib = |bytes: u64| bytes >> 20;
        StoreError::NoSpace {
            needed_bytes,
            short_bytes: if needed_bytes > self.capacity.limit_bytes() { u64::MAX } else { short_bytes },
            reason: format!(
                "{} of {} MiB are in use and {} MiB of them are under lease; raise [store] capacity or lower its lease",
                mib(self.capacity.used_bytes()),
                mib(self.capacity.limit_bytes()),
                mib(self.counters.leased_bytes.load(Ordering::Relaxed)),
            ),
        }
    }

    /// What a collection of `needed_bytes` would evict. Changes nothing.
    pub(crate) fn plan_collection(&self, needed_bytes: u64) -> io::Result<CollectionReport> {
        let now = self.time_to_evict_by()?;
        let (histogram, _) = self.survey()?;
        let plan = plan(&histogram, needed_bytes, self.lease, now);
        let freed = plan.map_or(0, |plan| plan.freed_bytes);
        Ok(CollectionReport {
            evicted_bytes: freed,
            freed_bytes: freed,
            leased_bytes: histogram.leased_bytes(self.lease, now),
            ..CollectionReport::default()
        })
    }

    /// Frees about `needed_bytes`, as far as leases allow.
    pub(crate) fn collect(&self, needed_bytes: u64) -> io::Result<CollectionReport> {
        // What the index has lost is not garbage.
        if !self.index.load_all()? {
            return Ok(CollectionReport::default());
        }
        self.finish_evictions()?;
        let used_before = self.capacity.used_bytes();
        let now = self.time_to_evict_by()?;
        let (histogram, live) = self.survey()?;
        let mut report =
            CollectionReport { leased_bytes: histogram.leased_bytes(self.lease, now), ..CollectionReport::default() };
        self.counters.leased_bytes.store(report.leased_bytes, Ordering::Relaxed);
        // Garbage first: nothing needs to go that compaction can make room for.
        self.segments.seal_active();
        let target_bytes = used_before.saturating_sub(needed_bytes);
        report.compacted_segments += self.compact(&live, target_bytes, WORTHWHILE_GARBAGE)?;
        let freed = used_before.saturating_sub(self.capacity.used_bytes());
        if freed < needed_bytes
            && let Some(plan) = plan(&histogram, needed_bytes - freed, self.lease, now)
        {
            self.evict(plan, |_| true, &mut report)?;
            let (_, live) = self.survey()?;
            report.compacted_segments += self.compact(&live, target_bytes, WORTHWHILE_GARBAGE)?;
        }
        report.freed_bytes = used_before.saturating_sub(self.capacity.used_bytes());
        if report.freed_bytes > 0 {
            // Whoever frees something, trying again is not in vain.
            *lock(&self.refused) = Refused::default();
        }
        Ok(report)
    }

    /// Evicts about `needed_bytes` of what one owner brought, as far as leases allow. The bytes leave the disk when room is
    /// needed there.
    pub(crate) fn collect_of(&self, owner: OwnerId, needed_bytes: u64) -> io::Result<CollectionReport> {
        if !self.index.load_all()? {
            return Ok(CollectionReport::default());
        }
        self.finish_evictions()?;
        let now = self.time_to_evict_by()?;
        let mut histogram = Histogram::default();
        for shard in 0..SHARDS {
            self.index.visit_shard(shard, |slot| {
                if slot.owner == owner {
                    histogram.add(slot.touched, bytes_at_rest(slot));
                }
            })?;
        }
        let mut report =
            CollectionReport { leased_bytes: histogram.leased_bytes(self.lease, now), ..CollectionReport::default() };
        if let Some(plan) = plan(&histogram, needed_bytes, self.lease, now) {
            let used_before = self.capacity.used_bytes();
            self.evict(plan, |slot| slot.owner == owner, &mut report)?;
            report.freed_bytes = used_before.saturating_sub(self.capacity.used_bytes());
        }
        Ok(report)
    }

    /// One look at the whole index.
    fn survey(&self) -> io::Result<(Histogram, LiveBytes)> {
        let mut histogram = Histogram::default();
        let mut live = LiveBytes::new();
        for shard in 0..SHARDS {
            self.index.visit_shard(shard, |slot| {
                histogram.add(slot.touched, bytes_at_rest(slot));
                if let Some(segment) = slot.place.segment() {
                    *live.entry(segment).or_default() += bytes_at_rest(slot);
                }
            })?;
        }
        Ok((histogram, live))
    }

    /// Carries out a plan among the slots that it was made for.
    fn evict(
        &self,
        plan: EvictionPlan,
        is_meant: impl Fn(&Slot) -> bool,
        report: &mut CollectionReport,
    ) -> io::Result<()> {
        let left = Cell::new(plan.and_bytes);
        lock(&self.unfinished).is_unsettled = true;
        for shard in 0..SHARDS {
            let is_doomed = |slot: &Slot| {
                let is_last = || {
                    slot.touched == plan.before && left.get() > 0 && {
                        left.set(left.get().saturating_sub(bytes_at_rest(slot)));
                        true
                    }
                };
                is_meant(slot) && (slot.touched < plan.before || is_last())
            };
            self.index.remove_from_shard(shard, is_doomed, |slot| {
                report.evicted += 1;
                report.evicted_bytes += bytes_at_rest(&slot);
                self.counters.youngest_evicted.fetch_max(slot.touched, Ordering::Relaxed);
                if let Place::Large { file, .. } = slot.place {
                    lock(&self.unfinished).files.push(file);
                }
            })?;
        }
        self.counters.evicted_blobs.fetch_add(report.evicted, Ordering::Relaxed);
        self.counters.evicted_bytes.fetch_add(report.evicted_bytes, Ordering::Relaxed);
        self.finish_evictions().map(drop)
    }

    /// Makes durable what was evicted, then removes its files. A disk that fails would otherwise have one blob after the
    /// other evicted, and no room made. Returns how many bytes are still in files that cannot be removed.
    fn finish_evictions(&self) -> io::Result<u64> {
        if lock(&self.unfinished).is_unsettled {
            // The index must have forgotten them for good before their bytes go: else a power cut would bring back names
            // of nothing.
            self.sync_index()?;
            lock(&self.unfinished).is_unsettled = false;
        }
        let mut stuck_bytes = 0;
        let files = std::mem::take(&mut lock(&self.unfinished).files);
        for file in files {
            if let Err(error) = self.remove_large(file) {
                tracing::error!(file, %error, "an evicted file could not be removed; the next collection tries again");
                stuck_bytes += self.large.size(file).unwrap_or(0);
                lock(&self.unfinished).files.push(file);
            }
        }
        Ok(stuck_bytes)
    }

    /// Removes segments without live records, then rewrites the emptiest ones of which at least one byte in
    /// `worthwhile` is garbage, until no more than `target_bytes` are in use. Returns how many segments went.
    fn compact(&self, live: &LiveBytes, target_bytes: u64, worthwhile: u64) -> io::Result<u64> {
        let mut candidates: Vec<(u32, u64, u64)> = self
            .settled_segments()
            .into_iter()
            .map(|(number, bytes)| (number, bytes, live.get(&number).copied().unwrap_or(0).min(bytes)))
            // One that nothing reached counts as one byte, so that shares can be compared.
            .map(|(number, bytes, live)| (number, bytes.max(1), live))
            .filter(|(_, bytes, live)| (bytes - live).saturating_mul(worthwhile) >= *bytes)
            .collect();
        // Emptiest first, by share: x/a < y/b as x*b < y*a.
        candidates.sort_by(|a, b| (u128::from(a.2) * u128::from(b.1)).cmp(&(u128::from(b.2) * u128::from(a.1))));
        let mut compacted = 0;
        for (number, _, live) in candidates {
            let is_enough = live > 0 && self.capacity.used_bytes() <= target_bytes;
            if is_enough || self.closed.load(Ordering::Acquire) {
                break;
            }
            // One segment that cannot be read, or copied for want of space, must not keep the others from going.
            match self.rewrite(number, Unreadable::Fails, &mut self.capacity.unreserved()) {
                Ok(()) => compacted += 1,
                Err(error) => tracing::error!(segment = number, %error, "a segment could not be compacted"),
            }
        }
        Ok(compacted)
    }

    /// The sealed segments of which the index knows every record: one that it is about to be told of looks like garbage.
    pub(crate) fn settled_segments(&self) -> BTreeMap<u32, u64> {
        let _alone = write_lock(&self.publish);
        let mut segments = self.segments.sizes();
        let (active, _, _) = self.segments.end();
        let first_unsettled = lock(&self.moving).iter().copied().fold(active, u32::min);
        segments.retain(|number, _| *number < first_unsettled);
        segments
    }

    /// Copies what is live in a sealed segment to the active one, then removes it. Refused while the index has lost
    /// something: a rebuild walks the segments that were there when it began, and nothing else knows what it looks for.
    ///
    /// What can be read is copied; whether anything may be lost that cannot, `unreadable` says.
    pub(crate) fn rewrite(&self, number: u32, unreadable: Unreadable, reservation: &mut Reservation) -> io::Result<()> {
        if !self.index.load_all()? {
            return Err(io::Error::other("the index is being rebuilt from the segments, so that none may go"));
        }
        let is_oldest = self.segments.sizes().keys().next() == Some(&number);
        let mut moves = Vec::new();
        scan::records_as(&self.segments, number, 0, unreadable, |record| {
            let key = record.header.index_key();
            let kind = record.header.kind;
            // Of the records of one entry, or promise, the last one counts. So nothing may be written about it between the
            // look and the copy, which comes after everything that was.
            let last_counts = matches!(kind, RecordKind::Entry | RecordKind::EntryRemoved | RecordKind::Promise);
            let _alone = last_counts.then(|| write_lock(&self.publish));
            let is_live = match kind {
                // It still hides older records, unless the entry was written again.
                RecordKind::EntryRemoved => !is_oldest && !matches!(self.index.peek(&key)?, Lookup::Found(_)),
                _ => self.is_live(&key, number, &record)?,
            };
            if is_live && record.payload.is_some() {
                moves.push(self.copy(record, reservation)?);
            }
            Ok(())
        })?;
        // The copies are durable before the index knows them: until then a power cut must find the originals.
        self.segments.sync_places(moves.iter().map(|(_, slot)| &slot.place))?;
        for (from, slot) in moves {
            let _publishing = read_lock(&self.publish);
            self.index.change(&slot.key, |present| {
                let present =
                    present.filter(|present| present.place.record().map(|(s, o, _)| (s, o)) == Some((number, from)))?;
                Some(Slot { touched: present.touched, owner: present.owner, ..slot })
            })?;
        }
        if unreadable == Unreadable::Skip {
            self.drop_slots_of(number)?;
        }
        self.sync_index()?;
        self.capacity.sub_used(self.segments.remove(number)?);
        Ok(())
    }

    /// Takes out of the index what is left in a segment that cannot be read.
    fn drop_slots_of(&self, number: u32) -> io::Result<()> {
        let mut lost = 0;
        for shard in 0..SHARDS {
            self.index.remove_from_shard(shard, |slot| slot.place.segment() == Some(number), |_| lost += 1)?;
        }
        if lost > 0 {
            tracing::error!(segment = number, lost, "the disk cannot read parts of a segment; what was there is lost");
            self.counters.quarantined.fetch_add(lost, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Appends a copy of a record, compressed if that makes it smaller. Returns the old offset and the new slot.
    fn copy(&self, record: Scanned, reservation: &mut Reservation) -> io::Result<(u32, Slot)> {
        let Scanned { offset, mut header, payload } = record;
        let mut payload = payload.unwrap_or_default();
        if header.kind == RecordKind::Blob
            && header.encoding == Encoding::Identity
            && let Some(compressed) = zstandard::compress_if_worthwhile(&payload)?
        {
            payload = compressed;
            header.encoding = Encoding::Zstd;
        }
        let (key, kind, encoding, owner) = (header.index_key(), header.kind, header.encoding, header.owner);
        let size_bytes = header.slot_size(&payload);
        let bytes = header.head_bytes() as u64 + payload.len() as u64;
        let now = self.clock.now();
        let appended = self.segments.append(vec![NewRecord { header, payload: Payload::Whole(&payload) }], now)?;
        reservation.use_bytes(bytes);
        let at = appended.first().ok_or_else(|| io::Error::other("nothing was appended"))?;
        let place = match kind {
            RecordKind::View => at.view(),
            RecordKind::Recipe => at.recipe(),
            _ => at.plain(encoding),
        };
        Ok((offset, Slot { key, place, size_bytes, touched: now, owner }))
    }

    /// Blobs that share parts with others, one at a time, until none waits or the store is busy.
    pub(crate) async fn deduplicate_waiting(self: &Arc<Self>) {
        while !self.closed.load(Ordering::Relaxed) && self.is_quiet() {
            let Some((owner, digest)) = lock(&self.to_chunk).pop() else { return };
            if let Err(error) = self.deduplicate(owner, digest).await {
                tracing::debug!(%digest, %error, "a large blob was not looked at for shared parts");
            }
        }
    }
}

/// What a slot's bytes take on disk, about.
pub(super) const fn bytes_at_rest(slot: &Slot) -> u64 {
    match slot.place {
        Place::Segment { bytes, .. } | Place::View { bytes, .. } | Place::Recipe { bytes, .. } => {
            HEADER_BYTES as u64 + bytes as u64
        }
        Place::Large { kib, .. } => (kib as u64) << 10,
    }
}

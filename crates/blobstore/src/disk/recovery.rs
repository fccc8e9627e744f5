//! After a power cut, and after the index was lost: finding out what is there.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::Ordering;

use gf_digest::Digest;

use super::checkpoint::Checkpoint;
use super::core::{Core, SharingNumber};
use super::doubtful::is_of_medium;
use super::index::{Fate, IndexKey, Lookup, Place, SHARDS, Slot};
use super::record::{RecordHeader, RecordKind, array};
use super::scan::{self, Scanned};
use super::segments::{ReadFault, read_lock};
use crate::StoreError;

/// What a recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Records seen.
    pub records: u64,
    /// Records whose bytes were damaged or torn.
    pub damaged: u64,
    /// Keys that the index had lost and has again.
    pub restored: u64,
    /// Keys that the index had and whose bytes never reached the disk.
    pub dropped: u64,
}

/// What the tail of the log was found to hold for certain.
#[derive(Default)]
struct Confirmed {
    records: HashSet<(u32, u32)>,
    files: HashSet<u64>,
}

/// A blob that is made of others.
struct Dependent {
    digest: Digest,
    position: (u32, u32),
}

impl Dependent {
    fn of(segment: u32, record: &Scanned) -> Option<Self> {
        let is_one = matches!(record.header.kind, RecordKind::View | RecordKind::Recipe);
        is_one.then_some(Self { digest: record.header.digest, position: (segment, record.offset) })
    }
}

/// What became of a record that the index was offered.
enum Restored {
    /// The index points to it now.
    Given,
    /// The index has something else for the key, or the record is of no use.
    Left,
    /// The index has the blob for another owner.
    HasOther,
}

/// The last sharing of each blob, and where it is.
#[derive(Default)]
struct Sharings(HashMap<IndexKey, (u32, Scanned)>);

impl Sharings {
    fn add(&mut self, segment: u32, record: Scanned) {
        let number = |record: &Scanned| {
            SharingNumber(record.payload.as_deref().map_or(0, |payload| record.header.slot_size(payload)))
        };
        match self.0.entry(record.header.index_key()) {
            Entry::Vacant(vacant) => drop(vacant.insert((segment, record))),
            // Not by where they are: a copy of one that had ended can lie behind the one that came after it.
            Entry::Occupied(mut other) if number(&record).is_after(number(&other.get().1)) => {
                other.insert((segment, record));
            }
            Entry::Occupied(_) => {}
        }
    }
}

impl Core {
    /// After a power cut: checks every byte written since the checkpoint, takes back what did not reach the disk, and
    /// tells the index of what did. Runs before the store answers anything.
    pub(crate) async fn recover_tail(&self, checkpoint: &Checkpoint) -> io::Result<RecoveryReport> {
        self.index.mend_searches()?;
        let mut report = RecoveryReport::default();
        let mut confirmed = Confirmed::default();
        let mut tail = Vec::new();
        for (&number, _) in self.segments.sizes().range(checkpoint.segment..) {
            let from = if number == checkpoint.segment { checkpoint.offset } else { 0 };
            for record in self.segment_records(number, from)? {
                report.records += 1;
                if self.confirm(number, &record, &mut confirmed).await? {
                    tail.push((number, record));
                } else {
                    report.damaged += 1;
                }
            }
        }
        // First what is not there, since it may hide an older record that is.
        let dropped = self.drop_unconfirmed(checkpoint, &confirmed)?;
        report.dropped = dropped.len() as u64;
        let mut dependents = Vec::new();
        let mut further = Vec::new();
        for (number, record) in tail {
            let mut restored = self.restore(number, &record, true)?;
            if matches!(restored, Restored::HasOther) && self.drop_if_damaged(&record.header.index_key()).await? {
                restored = self.restore(number, &record, true)?;
            }
            match restored {
                Restored::Given => report.restored += 1,
                Restored::HasOther => further.push(record.header.clone()),
                Restored::Left => {}
            }
            if record.header.kind == RecordKind::EntryRemoved {
                self.apply_removal(number, &record)?;
            }
            dependents.extend(Dependent::of(number, &record));
        }
        self.let_further_owners_in(&further)?;
        report.dropped += self.drop_dangling(&dependents).await?;
        // A promise that was lost may have replaced one that was not.
        for slot in dropped {
            self.promise_again(&slot)?;
        }
        Ok(report)
    }

    /// Drops a slot whose bytes are damaged. That it was dropped before may be what the power cut took.
    async fn drop_if_damaged(&self, key: &IndexKey) -> io::Result<bool> {
        let Lookup::Found(slot) = self.index.peek(key)? else { return Ok(false) };
        let is_sound = match slot.place {
            Place::Large { file, .. } => match self.is_whole_file(file, key).await {
                Err(error) if is_of_medium(&error) => false,
                checked => checked?,
            },
            _ => match self.segments.read(key, &slot.place).await {
                Ok(_) => true,
                Err(ReadFault::Gone | ReadFault::Damaged) => false,
                // What came after it came because it could not be read.
                Err(ReadFault::Io(error)) if is_of_medium(&error) => false,
                Err(ReadFault::Io(error)) => return Err(error),
            },
        };
        Ok(!is_sound && self.index.remove_if(key, |present| present.place == slot.place)?.is_some())
    }

    /// Whether the record, and the large file that it names, reached the disk whole.
    async fn confirm(&self, segment: u32, record: &Scanned, confirmed: &mut Confirmed) -> io::Result<bool> {
        let Some(payload) = &record.payload else { return Ok(false) };
        if record.header.kind == RecordKind::Large {
            let number = u64::from_le_bytes(array(payload, 0));
            if !self.is_whole_file(number, &record.header.index_key()).await? {
                // Not left for a rebuild to find.
                self.large.remove(number)?;
                return Ok(false);
            }
            confirmed.files.insert(number);
        }
        confirmed.records.insert((segment, record.offset));
        Ok(true)
    }

    /// Whether the index has no large file of this owner for the record's blob, and the one that the record names is
    /// whole.
    async fn names_whole_file(&self, record: &Scanned) -> io::Result<bool> {
        let key = record.header.index_key();
        if matches!(self.index.peek(&key)?, Lookup::Found(slot) if slot.owner == record.header.owner) {
            return Ok(false);
        }
        let number = record.payload.as_deref().map_or(0, |payload| u64::from_le_bytes(array(payload, 0)));
        self.is_whole_file(number, &key).await
    }

    /// Whether every byte of a large file is as it was written. A disk that fails is no answer.
    async fn is_whole_file(&self, number: u64, key: &IndexKey) -> io::Result<bool> {
        let checked = async {
            let file = self.large.open_file(number, Some(key)).await?;
            for block in 0..file.blocks() {
                file.block_at_rest(block).await?;
            }
            Ok(())
        };
        match checked.await {
            Ok(()) => Ok(true),
            Err(ReadFault::Gone | ReadFault::Damaged) => Ok(false),
            Err(ReadFault::Io(error)) => Err(error),
        }
    }

    /// Takes out of the index those of `dependents` whose blobs are not all here.
    async fn drop_dangling(&self, dependents: &[Dependent]) -> io::Result<u64> {
        let mut dropped = 0;
        for dependent in dependents {
            let Lookup::Found(slot) = self.index.peek(&IndexKey::blob(&dependent.digest))? else { continue };
            let is_it = slot.place.record().is_some_and(|(segment, offset, _)| (segment, offset) == dependent.position);
            if !is_it {
                continue;
            }
            let found = self.find(slot.owner, &dependent.digest).await;
            if found.map_err(|error| io::Error::other(error.to_string()))?.is_none() {
                let gone = self.index.remove_if(&slot.key, |present| present.place == slot.place)?;
                dropped += u64::from(gone.is_some());
            }
        }
        Ok(dropped)
    }

    /// Takes out of the index what points past the checkpoint to something that was not confirmed.
    fn drop_unconfirmed(&self, checkpoint: &Checkpoint, confirmed: &Confirmed) -> io::Result<Vec<Slot>> {
        let after_checkpoint =
            |segment: u32, offset: u32| (segment, u64::from(offset)) >= (checkpoint.segment, checkpoint.offset);
        let is_doubtful = |slot: &Slot| match slot.place {
            Place::Large { file, .. } => file >= checkpoint.next_large && !confirmed.files.contains(&file),
            _ => slot.place.record().is_some_and(|(segment, offset, _)| {
                after_checkpoint(segment, offset) && !confirmed.records.contains(&(segment, offset))
            }),
        };
        let mut dropped = Vec::new();
        for shard in 0..SHARDS {
            self.index.remove_from_shard(shard, is_doubtful, |slot| dropped.push(slot))?;
        }
        for slot in &dropped {
            if let Place::Large { file, .. } = slot.place {
                self.large.remove(file)?;
            }
        }
        Ok(dropped)
    }

    /// Walks every record, newest first, and gives the index what it lacks. Runs while the store serves.
    pub(crate) async fn rebuild(&self) -> io::Result<RecoveryReport> {
        let mut report = RecoveryReport::default();
        let mut settled = HashSet::new();
        let mut dependent_records = Vec::new();
        let mut sharings = Sharings::default();
        let mut further = Vec::new();
        let (newest_at_start, offset_at_start, _) = self.segments.end();
        for number in self.segments.sizes().into_keys().rev() {
            if self.closed.load(Ordering::Relaxed) {
                return Err(io::Error::other("the store is shutting down"));
            }
            let mut records = self.segment_records(number, 0)?;
            records.reverse();
            for record in records {
                report.records += 1;
                let key = record.header.index_key();
                report.damaged += u64::from(record.payload.is_none());
                match record.header.kind {
                    // What an entry was before it was removed or damaged does not come back.
                    RecordKind::EntryRemoved => drop(settled.insert(key)),
                    RecordKind::Entry if record.payload.is_none() => drop(settled.insert(key)),
                    _ if record.payload.is_none() || settled.contains(&key) => {}
                    // Bytes of its own are better than parts of others, whichever came later.
                    RecordKind::View | RecordKind::Recipe => dependent_records.push((number, record)),
                    RecordKind::Sharing => sharings.add(number, record),
                    // Its file may be one that a power cut tore and whose removal it undid.
                    RecordKind::Large if !self.names_whole_file(&record).await? => {}
                    _ => match self.restore(number, &record, false)? {
                        Restored::Given => report.restored += 1,
                        Restored::HasOther => further.push(record.header),
                        Restored::Left => {}
                    },
                }
            }
        }
        report.restored += self.restore_large_files().await?;
        let mut dependents = Vec::new();
        for (number, record) in dependent_records {
            match self.restore(number, &record, false)? {
                Restored::Given => {
                    report.restored += 1;
                    dependents.extend(Dependent::of(number, &record));
                }
                Restored::HasOther if self.has_parts(number, &record).await? => further.push(record.header),
                Restored::HasOther | Restored::Left => {}
            }
        }
        report.restored += self.restore_sharings(sharings).await?;
        self.let_further_owners_in(&further)?;
        self.apply_removals_since(newest_at_start, offset_at_start)?;
        self.index.mark_complete()?;
        report.restored -= self.drop_dangling(&dependents).await?;
        Ok(report)
    }

    /// Entries that were removed while a rebuild was under way, and that it may have put back.
    fn apply_removals_since(&self, segment: u32, offset: u64) -> io::Result<()> {
        for (&number, _) in self.segments.sizes().range(segment..) {
            let from = if number == segment { offset } else { 0 };
            for record in self.segment_records(number, from)? {
                if record.header.kind == RecordKind::EntryRemoved {
                    self.apply_removal(number, &record)?;
                }
            }
        }
        Ok(())
    }

    /// Removes the entry that the record is about, unless it was written again later.
    fn apply_removal(&self, segment: u32, removal: &Scanned) -> io::Result<()> {
        let position = (segment, removal.offset);
        self.index.remove_if(&removal.header.index_key(), |slot| {
            slot.place.record().is_some_and(|(segment, offset, _)| (segment, offset) < position)
        })?;
        Ok(())
    }

    /// Gives the index the slot of a record if it has none; with `overwrite`, also if it has an older one. What is
    /// restored counts as touched now: its last touch is not known for certain, and it may have been promised a lease.
    fn restore(&self, segment: u32, record: &Scanned, overwrite: bool) -> io::Result<Restored> {
        let _publishing = read_lock(&self.publish);
        let Some(slot) = self.slot_of(segment, record) else { return Ok(Restored::Left) };
        // What a table certainly does not have was evicted, though its record may not be compacted yet.
        let was_evicted = !overwrite && self.index.peek(&slot.key)? == Lookup::Absent;
        if record.header.kind == RecordKind::EntryRemoved || was_evicted {
            return Ok(Restored::Left);
        }
        let position = (segment, record.offset);
        let is_older = |present: &Slot| match (present.place, slot.place) {
            (Place::Large { file: earlier, .. }, Place::Large { file, .. }) => earlier < file,
            _ => present.place.record().is_some_and(|(segment, offset, _)| (segment, offset) < position),
        };
        if record.header.is_of_blob() {
            let has_other = |present: &Slot| present.owner != slot.owner && self.has_bytes(present);
            let kept = self.index.put_blob(&slot, |present| {
                if overwrite && is_older(present) && !has_other(present) { Fate::Moves } else { Fate::Stays }
            })?;
            return Ok(match kept {
                None => Restored::Given,
                Some(present) if present.owner != slot.owner => Restored::HasOther,
                Some(_) => Restored::Left,
            });
        }
        // A copy of a sharing that had ended can lie behind the one that came after it.
        let is_earlier = |present: &Slot| match record.header.kind {
            RecordKind::Sharing => SharingNumber(slot.size_bytes).is_after(SharingNumber(present.size_bytes)),
            _ => is_older(present),
        };
        let mut restored = Restored::Left;
        self.index.change(&slot.key, |present| {
            let wanted = present.is_none_or(|present| overwrite && is_earlier(present));
            restored = if wanted { Restored::Given } else { Restored::Left };
            wanted.then_some(slot)
        })?;
        Ok(restored)
    }

    /// Gives the index the large files of earlier runs whose records are lost: they describe themselves.
    async fn restore_large_files(&self) -> io::Result<u64> {
        let mut restored = 0;
        for shard in 0..=u8::MAX {
            for (number, bytes) in self.large.list(shard)? {
                if number >= self.first_of_this_run() {
                    continue;
                }
                let header = match self.large.open_file(number, None).await {
                    Ok(file) => file.header,
                    Err(ReadFault::Gone | ReadFault::Damaged) => continue,
                    Err(ReadFault::Io(error)) => return Err(error),
                };
                let key = header.index_key();
                if self.index.peek(&key)? != Lookup::Unknown || !self.is_whole_file(number, &key).await? {
                    continue;
                }
                let place = Place::large(number, header.encoding, bytes);
                let size_bytes = header.digest.size_bytes();
                let slot = Slot { key, place, size_bytes, touched: self.clock.now(), owner: header.owner };
                restored += u64::from(self.index.put_blob(&slot, |_| Fate::Stays)?.is_none());
            }
        }
        Ok(restored)
    }

    /// Whether a slot has bytes of its own, and not by way of others.
    fn has_bytes(&self, slot: &Slot) -> bool {
        !slot.place.has_dependencies() && self.segments.reaches(&slot.place)
    }

    /// Whether all that a view or a recipe is made of is here.
    async fn has_parts(&self, segment: u32, record: &Scanned) -> io::Result<bool> {
        let Some(slot) = self.slot_of(segment, record) else { return Ok(false) };
        match self.is_here(&slot, &record.header.digest).await {
            Ok(is_here) => Ok(is_here),
            // Not known is not proved.
            Err(_) => Ok(false),
        }
    }

    /// Gives the index those sharings whose blob came before them: the others are of a blob that is gone, and its grants
    /// must not be of use to those of a later one. The blob is the one that the index has, not a record of an earlier one
    /// that nobody has cleared away.
    async fn restore_sharings(&self, sharings: Sharings) -> io::Result<u64> {
        let mut restored = 0;
        for (segment, record) in sharings.0.into_values() {
            let Lookup::Found(slot) = self.index.peek(&IndexKey::blob(&record.header.digest))? else { continue };
            if (1..record.header.sequence).contains(&self.sequence_of(Some(&slot)).await) {
                restored += u64::from(matches!(self.restore(segment, &record, false)?, Restored::Given));
            }
        }
        Ok(restored)
    }

    /// Lets owners in who brought bytes of their own, or were promised theirs, where the index names another owner.
    fn let_further_owners_in(&self, headers: &[RecordHeader]) -> io::Result<()> {
        for header in headers {
            let failed = |error: StoreError| io::Error::other(error.to_string());
            if !matches!(self.is_granted(header.owner, &header.digest), Ok(true)) {
                let mut unreserved = self.capacity.unreserved();
                self.grant_anew(header.owner, &header.digest, &mut unreserved).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn slot_of(&self, segment: u32, record: &Scanned) -> Option<Slot> {
        let RecordHeader { kind, encoding, owner, payload_bytes, .. } = record.header;
        let (offset, bytes) = (record.offset, u32::try_from(payload_bytes).ok()?);
        let place = match kind {
            RecordKind::Blob
            | RecordKind::Entry
            | RecordKind::Grant
            | RecordKind::Sharing
            | RecordKind::Promise
            | RecordKind::EntryRemoved => Place::Segment { segment, offset, bytes, encoding },
            RecordKind::View => Place::View { segment, offset, bytes },
            RecordKind::Recipe => Place::Recipe { segment, offset, bytes },
            RecordKind::Large => {
                let file = u64::from_le_bytes(array(record.payload.as_deref()?, 0));
                let bytes = self.large.size(file).ok().filter(|bytes| *bytes > 0)?;
                Place::large(file, encoding, bytes)
            }
        };
        let key = record.header.index_key();
        let size_bytes = match kind {
            RecordKind::Entry | RecordKind::EntryRemoved => payload_bytes,
            _ => record.header.slot_size(record.payload.as_deref()?),
        };
        Some(Slot { key, place, size_bytes, touched: self.clock.now(), owner })
    }

    /// Every record of a segment from `from` on. Payloads that mean nothing to a recovery are checked and dropped.
    fn segment_records(&self, number: u32, from: u64) -> io::Result<Vec<Scanned>> {
        let mut records = Vec::new();
        scan::records(&self.segments, number, from, |mut record| {
            let kind = record.header.kind;
            if !matches!(kind, RecordKind::Large | RecordKind::Grant | RecordKind::Sharing | RecordKind::Promise)
                && let Some(payload) = &mut record.payload
            {
                *payload = Vec::new();
            }
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    }

    /// Whether the index points to exactly this record, or to the file that it names, or cannot tell.
    pub(crate) fn is_live(&self, key: &IndexKey, segment: u32, record: &Scanned) -> io::Result<bool> {
        let slot = match self.index.peek(key)? {
            Lookup::Found(slot) => slot,
            Lookup::Absent => return Ok(false),
            Lookup::Unknown => return Ok(true),
        };
        Ok(match slot.place {
            Place::Large { file, .. } => {
                let named = record.payload.as_deref().map(|payload| u64::from_le_bytes(array(payload, 0)));
                record.header.kind == RecordKind::Large && named == Some(file)
            }
            _ => slot.place.record().is_some_and(|(s, offset, _)| (s, offset) == (segment, record.offset)),
        })
    }
}

//! Making writes durable, noting how far they are, and writing again what the disk failed to keep.
//!
//! A sync that failed is never believed when it is tried again: the system drops what it could not write, and the next
//! sync would succeed without it. What was to be made durable is *suspect* from then on. It is written again, elsewhere,
//! and until that is durable no checkpoint vouches for anything that came after the last one. A note says so, so that the
//! next process does not believe the disk either. What is sound goes on becoming durable meanwhile; a suspect that cannot be
//! read is tried again more and more rarely, and given up in the end.
//!
//! Not covered: a disk that fails to keep the data, the note, and then loses its process too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;

use super::appending::Payload;
use super::checkpoint::Checkpoint;
use super::core::Core;
use super::index::{Lookup, Place, SHARDS, Slot};
use super::note;
use super::record::HEADER_BYTES;
use super::scan::{Unreadable, cannot_read, is_unreadable};
use super::segments::{NewRecord, ReadFault, lock, not_durable, read_lock, write_lock};

const NOTE: &str = "distrusted";

/// Times that a suspect is written again at once, after which it waits longer each time.
const QUICK_TRIES: u32 = 4;

/// Times that the disk fails to read a suspect after which what it cannot read is given up.
const MAX_TRIES: u32 = 8;

/// The longest wait for another try, in seconds.
const LONGEST_WAIT_S: u32 = 256;

/// What the disk may have failed to keep, but for segments, which know it themselves.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    files: BTreeSet<u64>,
    /// How often writing one again failed.
    tries: BTreeMap<Suspect, Tries>,
    is_noted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Suspect {
    Segment(u32),
    File(u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    failed: u32,
    /// Of these, how often the disk failed to read it. A disk that is full, or takes no copy, says nothing about what it has.
    unread: u32,
    /// Not before this second.
    next_at: u32,
}

/// How far records and index agree: all before it is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub segment: u32,
    pub offset: u64,
    pub next_large: u64,
}

impl Core {
    /// Makes everything acknowledged so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        // First what is sound: what the disk failed to keep may be what it fails to read, too.
        let sound = self.sync_sound();
        if !self.has_suspects() {
            return sound;
        }
        // Before anybody is told: a process that is killed now leaves the note.
        let noted = self.note_distrust();
        let again = self.write_suspects_again();
        let copies = self.sync_sound();
        if self.has_suspects() {
            // The disk that fails may have failed to keep the note, too.
            self.note_distrust()?;
            return Err(not_durable());
        }
        sound.and(noted).and(again).and(copies)
    }

    /// As [`Self::sync`], for all but what the disk may have failed to keep. Goes on past errors.
    fn sync_sound(&self) -> io::Result<()> {
        let files = std::mem::take(&mut *lock(&self.unsynced_large));
        let mut result = Ok(());
        let mut folders = BTreeMap::<_, Vec<u64>>::new();
        for (number, file) in files {
            folders.entry(self.large.folder(number)).or_default().push(number);
            if let Err(error) = file.sync() {
                lock(&self.suspects).files.insert(number);
                result = Err(error);
            }
        }
        for (folder, numbers) in folders {
            // Another sync of the folder would not bring back the names that this one lost.
            if let Err(error) = self.layer.sync_directory(&folder) {
                lock(&self.suspects).files.extend(numbers);
                result = Err(error);
            }
        }
        result.and(self.segments.sync_sound())
    }

    /// Makes the index durable. What syncs of it failed to keep it writes anew by itself.
    pub(crate) fn sync_index(&self) -> io::Result<()> {
        let synced = self.index.sync();
        // This process knows which tables to write anew; the next one would not.
        if synced.is_err() { synced.and(self.note_distrust()) } else { synced }
    }

    /// Makes records and index durable and notes how far they agree.
    pub(crate) fn checkpoint(&self, is_clean: bool) -> io::Result<()> {
        let extent = self.extent();
        let synced = self.sync();
        self.note_progress(extent, is_clean)?;
        synced
    }

    /// The first checkpoint of this process, which nothing may come before: it has the number of this start. What the disk
    /// failed to keep is not waited for.
    pub(crate) fn first_checkpoint(&self) -> io::Result<()> {
        let extent = self.extent();
        if let Err(error) = self.sync_sound() {
            tracing::error!(%error, "what an earlier process wrote could not be made durable; it is written again");
        }
        if self.has_suspects() {
            self.note_distrust()?;
        }
        self.note_progress(extent, false)
    }

    fn extent(&self) -> Extent {
        // Alone: no record is between its append and its place in the index.
        let _alone = write_lock(&self.publish);
        let (segment, offset, _) = self.segments.end();
        Extent { segment, offset, next_large: self.large.next() }
    }

    /// Writes a checkpoint of what was synced up to `extent`; no further than the last one if any of that is suspect.
    fn note_progress(&self, extent: Extent, is_clean: bool) -> io::Result<()> {
        self.sync_index()?;
        let is_sound = !self.has_suspects();
        let mut last = lock(&self.vouched);
        let extent = if is_sound { extent } else { *last };
        let segments: u64 = self.segments.sizes().values().sum();
        let checkpoint = Checkpoint {
            epoch: self.epoch,
            is_clean: is_clean && is_sound,
            is_index_whole: self.is_index_whole.load(Ordering::Acquire),
            boot_id: self.layer.boot_id(),
            segment: extent.segment,
            offset: extent.offset,
            next_large: extent.next_large,
            large_bytes: self.capacity.used_bytes().saturating_sub(segments),
            time: self.clock.now(),
        };
        checkpoint.write(self.layer.as_ref(), &self.config.data_dir)?;
        *last = extent;
        if is_sound { self.forget_distrust() } else { Ok(()) }
    }

    pub(crate) fn has_suspects(&self) -> bool {
        !lock(&self.suspects).files.is_empty() || !self.segments.suspects().is_empty()
    }

    /// Whether an earlier process left word that what came after the checkpoint may not be on the disk.
    pub(crate) fn is_distrusted(&self) -> io::Result<bool> {
        let is_noted = note::exists(self.layer.as_ref(), &self.config.data_dir, NOTE)?;
        lock(&self.suspects).is_noted = is_noted;
        Ok(is_noted)
    }

    fn note_distrust(&self) -> io::Result<()> {
        if lock(&self.suspects).is_noted {
            return Ok(());
        }
        note::write(self.layer.as_ref(), &self.config.data_dir, NOTE, "")?;
        lock(&self.suspects).is_noted = true;
        Ok(())
    }

    /// With a checkpoint that vouches for everything, which is durable, the note says nothing any more. Should its removal
    /// be lost, the next start does more than it must.
    fn forget_distrust(&self) -> io::Result<()> {
        if std::mem::take(&mut lock(&self.suspects).is_noted) {
            note::remove(self.layer.as_ref(), &self.config.data_dir, NOTE)?;
        }
        Ok(())
    }

    /// Suspects everything that came after the checkpoint, and the index.
    pub(crate) fn suspect_since(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        self.index.suspect_all()?;
        for (&number, _) in self.segments.sizes().range(checkpoint.segment..) {
            self.segments.suspect(number);
        }
        for shard in 0..=u8::MAX {
            let new = self.large.list(shard)?.into_iter().filter(|(number, _)| *number >= checkpoint.next_large);
            lock(&self.suspects).files.extend(new.map(|(number, _)| number));
        }
        Ok(())
    }

    /// After a killed process: makes durable what it wrote since the checkpoint. What fails to become so is suspect.
    pub(crate) fn sync_inherited(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        for (&number, _) in self.segments.sizes().range(checkpoint.segment..) {
            if let Some(file) = self.segments.file(number)?
                && file.sync().is_err()
            {
                self.segments.suspect(number);
            }
        }
        for shard in 0..=u8::MAX {
            let mut new: Vec<u64> = self.large.list(shard)?.into_iter().map(|(number, _)| number).collect();
            new.retain(|number| *number >= checkpoint.next_large);
            let is_named = new.is_empty() || self.layer.sync_directory(&self.large.folder(u64::from(shard))).is_ok();
            new.retain(|number| !is_named || self.large.sync(*number).is_err());
            lock(&self.suspects).files.extend(new);
        }
        if let Err(error) = self.index.sync_inherited() {
            // The next start reads the records again.
            self.note_distrust()?;
            return Err(error);
        }
        Ok(())
    }

    /// Writes again what the disk may have failed to keep. One that fails does not keep the others from it; the first
    /// error is returned.
    fn write_suspects_again(&self) -> io::Result<()> {
        let files: Vec<u64> = lock(&self.suspects).files.iter().copied().collect();
        let suspects = self.segments.suspects().into_iter().map(Suspect::Segment);
        let mut result = Ok(());
        for suspect in suspects.chain(files.into_iter().map(Suspect::File)) {
            let tries = lock(&self.suspects).tries.get(&suspect).copied().unwrap_or_default();
            if self.clock.now() < tries.next_at {
                continue;
            }
            let unreadable = if tries.unread < MAX_TRIES { Unreadable::Fails } else { Unreadable::Skip };
            let written = match suspect {
                Suspect::Segment(number) => self.write_segment_again(number, unreadable),
                Suspect::File(number) => self.write_file_again(number, unreadable),
            };
            self.note_try(suspect, tries, &written);
            result = result.and(written);
        }
        result
    }

    fn note_try(&self, suspect: Suspect, before: Tries, written: &io::Result<()>) {
        let mut suspects = lock(&self.suspects);
        let Err(error) = written else {
            suspects.tries.remove(&suspect);
            if let Suspect::File(number) = suspect {
                suspects.files.remove(&number);
            }
            return;
        };
        let failed = before.failed.saturating_add(1);
        let unread = before.unread.saturating_add(u32::from(is_unreadable(error)));
        let wait_s = failed.checked_sub(QUICK_TRIES).map_or(0, |slow| 1 << slow.min(LONGEST_WAIT_S.ilog2()));
        tracing::error!(?suspect, failed, wait_s, %error, "what the disk failed to keep could not be written again");
        suspects.tries.insert(suspect, Tries { failed, unread, next_at: self.clock.now().saturating_add(wait_s) });
    }

    fn write_segment_again(&self, number: u32, unreadable: Unreadable) -> io::Result<()> {
        // The copy takes the place of what it is made of. So it is made though there may be no room for both.
        let reserved = self.capacity.reserve(self.segments.size_of(number));
        let mut reservation = reserved.unwrap_or_else(|_| self.capacity.unreserved());
        let _one_at_a_time = lock(&self.evicting);
        if self.settled_segments().contains_key(&number) {
            return self.rewrite(number, unreadable, &mut reservation);
        }
        // It is being written to by what knows of it; or it went.
        let is_gone = self.segments.size_of(number) == 0;
        if is_gone { Ok(()) } else { Err(io::Error::other("the segment is still in use")) }
    }

    /// Copies a large file to one of another number, if there is still a blob that needs it.
    fn write_file_again(&self, number: u64, unreadable: Unreadable) -> io::Result<()> {
        let bytes = self.large.size(number).unwrap_or(0) + 2 * HEADER_BYTES as u64;
        let room = self.make_room(bytes);
        let mut reservation = room.map_err(|error| io::Error::other(error.to_string()))?;
        let (mut writer, header) = match self.large.copy(number)? {
            Ok(copy) => copy,
            // A reader takes out what is damaged.
            Err(ReadFault::Gone | ReadFault::Damaged) => return Ok(()),
            Err(ReadFault::Io(_)) if unreadable == Unreadable::Skip => return self.give_up_file(number),
            Err(ReadFault::Io(error)) => return Err(cannot_read(error)),
        };
        let now = self.clock.now();
        let (key, owner, digest) = (header.index_key(), header.owner, header.digest);
        let publishing = read_lock(&self.publish);
        let copy = self.large.take_number();
        let bytes = writer.finish(copy, owner, digest, header.sequence, now)?;
        let payload = copy.to_le_bytes();
        let record_bytes = header.record_bytes() - header.payload_bytes + payload.len() as u64;
        self.segments.append(vec![NewRecord { header, payload: Payload::Whole(&payload) }], now)?;
        reservation.use_bytes(record_bytes);
        let file = self.large.keep(writer, copy)?;
        reservation.use_bytes(bytes);
        self.must_sync(copy, file);
        let mut is_needed = false;
        self.index.change(&key, |present| match present?.place {
            Place::Large { file, encoding, .. } if file == number => {
                is_needed = true;
                present.map(|present| Slot { place: Place::large(copy, encoding, bytes), ..*present })
            }
            _ => None,
        })?;
        drop(publishing);
        if !is_needed {
            return self.remove_large(copy);
        }
        // The original may be as sound as it was vouched for: it goes when the copy, its record and its place are durable,
        // and stays until the next start when they are not.
        self.sync_sound()?;
        self.sync_index()?;
        self.remove_large(number)
    }

    /// Takes a blob out whose file the disk can neither keep nor read.
    fn give_up_file(&self, number: u64) -> io::Result<()> {
        let mut found = None;
        for shard in 0..SHARDS {
            self.index.visit_shard(shard, |slot| {
                if matches!(slot.place, Place::Large { file, .. } if file == number) {
                    found = Some(*slot);
                }
            })?;
        }
        if let Some(slot) = found {
            self.quarantine(&slot, "a large file that the disk cannot read");
            if matches!(self.index.peek(&slot.key)?, Lookup::Found(present) if present.place == slot.place) {
                return Err(io::Error::other("the file could not be taken out"));
            }
        }
        Ok(())
    }
}

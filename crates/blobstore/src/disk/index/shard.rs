//! One shard: a table in memory and its file.
//!
//! The file is a 64-byte head (magic, version, seed, whether complete, check) and the slots, each with a check, the empty
//! ones too. A change is one write of one slot.
//!
//! Growing must not wait for the disk. So a grown table is first a file beside the old one (`.grown`), and takes the old
//! one's name when it has been synced. Until then: after a killed process the grown one counts, since its head is
//! written last; after a power cut the old one does, and the records since the last checkpoint, which is older than
//! any grown table that was not synced, bring it up to date.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::slot::{
    Cell, IndexKey, RawSlot, SLOT_BYTES, Slot, UNWRITTEN, cell, decode, empty_slot, encode, holds, is_sound,
    removed_slot,
};
use crate::disk::file_layer::{FileLayer, StoreFile};
use crate::disk::record::array;

const MAGIC: [u8; 8] = *b"GFIDX002";
/// The first layout: an empty slot has no check. Such a table is read, and written anew.
const UNSEALED_MAGIC: [u8; 8] = *b"GFIDX001";
const SMALLEST: usize = 64;
/// Slots of one write of a new table: 64 KiB.
const PIECE_SLOTS: usize = 1024;

pub(crate) struct Shard {
    path: PathBuf,
    file: Option<Arc<dyn StoreFile>>,
    slots: Vec<RawSlot>,
    taken: usize,
    removed: usize,
    seed: u64,
    complete: bool,
    distrusted: bool,
    dirty: bool,
    /// Whether the file may lack changes that were made to it.
    suspect: bool,
    /// Whether the file still has to take its place.
    grown: bool,
}

impl Shard {
    /// A shard that is not loaded yet. With `fresh`, a missing file means an empty shard, else a lost one.
    pub(crate) const fn new(path: PathBuf, fresh: bool) -> Self {
        Self {
            path,
            file: None,
            slots: Vec::new(),
            taken: 0,
            removed: 0,
            seed: 0,
            complete: fresh,
            distrusted: false,
            dirty: false,
            suspect: false,
            grown: false,
        }
    }

    /// Forgets a grown table that may not have reached the disk. Before the first load, after a power cut.
    pub(crate) fn discard_grown(&self, layer: &dyn FileLayer) -> io::Result<()> {
        layer.remove(&self.grown_path())
    }

    /// Makes durable what a killed process left, and lets a grown table take its place. Before the first load.
    pub(crate) fn sync_inherited(&self, layer: &dyn FileLayer) -> io::Result<()> {
        for path in [&self.path, &self.grown_path()] {
            match layer.open(path) {
                Ok(file) => file.sync()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            if *path != self.path {
                layer.rename(path, &self.path)?;
            }
        }
        Ok(())
    }

    fn grown_path(&self) -> PathBuf {
        self.path.with_extension("grown")
    }

    /// Reads the file if that has not happened. Returns how many slots it brought.
    pub(crate) fn load(&mut self, layer: &dyn FileLayer) -> io::Result<u64> {
        if self.file.is_some() {
            return Ok(0);
        }
        let (file, grown) = match layer.open(&self.grown_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (layer.open(&self.path), false),
            grown => (grown, true),
        };
        match file {
            Ok(file) => {
                self.grown = grown;
                self.dirty = grown;
                self.read(layer, file)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.seed = fresh_seed();
                self.rewrite(layer, &[], SMALLEST)?;
            }
            Err(error) => return Err(error),
        }
        Ok(self.taken as u64)
    }

    fn read(&mut self, layer: &dyn FileLayer, file: Arc<dyn StoreFile>) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(file.size()?).unwrap_or(0)];
        let filled = file.read_at(&mut bytes, 0)?;
        bytes.truncate(filled);
        let (slots, remainder) = bytes.get(SLOT_BYTES..).unwrap_or_default().as_chunks::<SLOT_BYTES>();
        let head = Head::decode(&bytes);
        let is_unsealed = head.is_some_and(|head| head.is_unsealed);
        let is_sound = |raw: &RawSlot| is_sound(raw) || is_unsealed && *raw == UNWRITTEN;
        let sound = head.is_some_and(|head| head.complete && head.capacity == slots.len() && slots.len() >= SMALLEST)
            && remainder.is_empty()
            && slots.iter().all(is_sound);
        let slots_kept = || slots.iter().filter(|raw| is_sound(raw)).filter_map(taken_slot).collect();
        self.seed = head.map_or_else(fresh_seed, |head| head.seed);
        if sound {
            self.complete = true;
            if is_unsealed && self.seal_empty(layer, slots_kept(), slots.len()) {
                return Ok(());
            }
            self.taken = slots.iter().filter(|raw| matches!(cell(raw), Cell::Taken)).count();
            self.removed = slots.iter().filter(|raw| matches!(cell(raw), Cell::Removed)).count();
            self.slots = slots.to_vec();
            self.file = Some(file);
            return Ok(());
        }
        // Keep every slot that is right, and remember that some may be missing.
        self.complete = false;
        let kept: Vec<Slot> = slots_kept();
        tracing::error!(
            table = %self.path.display(), kept = kept.len(),
            "the index is damaged; what it lost is found again in the segments"
        );
        self.rewrite(layer, &kept, capacity_for(kept.len()))
    }

    /// Writes a table of the first layout anew. If the disk refuses it serves as it is, and the next start tries again.
    fn seal_empty(&mut self, layer: &dyn FileLayer, slots: Vec<Slot>, capacity: usize) -> bool {
        match self.rewrite(layer, &slots, capacity) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(table = %self.path.display(), %error, "a table of an older layout could not be written anew");
                false
            }
        }
    }

    /// Whether what is not found is absent.
    pub(crate) const fn is_complete(&self) -> bool {
        self.complete && !self.distrusted
    }

    /// Slots may be missing whatever the file says.
    pub(crate) const fn mark_incomplete(&mut self) {
        self.distrusted = true;
    }

    pub(crate) fn mark_complete(&mut self, layer: &dyn FileLayer) -> io::Result<()> {
        self.distrusted = false;
        if self.complete {
            return Ok(());
        }
        self.complete = true;
        let slots: Vec<Slot> = self.slots().collect();
        self.rewrite(layer, &slots, self.slots.len())
    }

    /// The position and content of a key's slot.
    pub(crate) fn find(&self, key: &IndexKey) -> Option<(usize, Slot)> {
        let mut at = key.start(self.seed, self.slots.len());
        // A table always keeps empty slots, so the search ends.
        loop {
            let raw = &self.slots[at];
            match cell(raw) {
                Cell::Empty => return None,
                Cell::Taken if holds(raw, key) => return decode(raw).map(|slot| (at, slot)),
                Cell::Taken | Cell::Removed => {}
            }
            at += 1;
            if at == self.slots.len() {
                at = 0;
            }
        }
    }

    /// Overwrites the slot at `at`.
    pub(crate) fn write(&mut self, at: usize, slot: &Slot) -> io::Result<()> {
        self.put(at, encode(slot))
    }

    /// Overwrites the slot at `at` with a later touch. On a full disk the touch counts all the same, until a restart:
    /// reading must go on.
    pub(crate) fn touch(&mut self, at: usize, slot: &Slot) -> io::Result<()> {
        match self.put(at, encode(slot)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                self.slots[at] = encode(slot);
                Ok(())
            }
            other => other,
        }
    }

    /// Adds a slot whose key is not in the table.
    pub(crate) fn insert(&mut self, layer: &dyn FileLayer, slot: &Slot) -> io::Result<()> {
        if (self.taken + self.removed + 1) * 100 > self.slots.len() * 85 {
            let slots: Vec<Slot> = self.slots().collect();
            self.rewrite(layer, &slots, capacity_for(slots.len() + 1))?;
        }
        let mut at = slot.key.start(self.seed, self.slots.len());
        while matches!(cell(&self.slots[at]), Cell::Taken) {
            at = (at + 1) % self.slots.len();
        }
        let reused = matches!(cell(&self.slots[at]), Cell::Removed);
        self.put(at, encode(slot))?;
        self.taken += 1;
        self.removed -= usize::from(reused);
        Ok(())
    }

    /// Empties the slot at `at`, which is taken.
    pub(crate) fn remove(&mut self, at: usize) -> io::Result<()> {
        self.put(at, removed_slot())?;
        self.taken -= 1;
        self.removed += 1;
        Ok(())
    }

    /// Every taken slot.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.iter().filter_map(taken_slot)
    }

    /// Every taken slot and its position.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, Slot)> + '_ {
        self.slots.iter().enumerate().filter_map(|(at, raw)| Some((at, taken_slot(raw)?)))
    }

    /// Lays the table out anew if it holds a slot that a search does not find. Of two slots of one key the one that
    /// is found was written later. Returns how many slots went.
    pub(crate) fn mend_searches(&mut self, layer: &dyn FileLayer) -> io::Result<u64> {
        let found_at = |slot: &Slot| self.find(&slot.key).map(|(at, _)| at);
        if self.places().all(|(at, slot)| found_at(&slot) == Some(at)) {
            return Ok(0);
        }
        let newest = |(at, slot): &(usize, Slot)| found_at(slot).is_none_or(|found| found == *at);
        let slots: Vec<Slot> = self.places().filter(newest).map(|(_, slot)| slot).collect();
        let gone = self.taken.saturating_sub(slots.len()) as u64;
        self.rewrite(layer, &slots, capacity_for(slots.len()))?;
        Ok(gone)
    }

    /// The file, if it has changes that are not durable; they count as durable from now on. One that may have lost some
    /// is written anew first.
    pub(crate) fn take_dirty(&mut self, layer: &dyn FileLayer) -> io::Result<Option<Arc<dyn StoreFile>>> {
        if self.suspect {
            let slots: Vec<Slot> = self.slots().collect();
            self.rewrite(layer, &slots, self.slots.len())?;
        }
        Ok(std::mem::take(&mut self.dirty).then(|| self.file.clone()).flatten())
    }

    pub(crate) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Remembers that syncing the file failed: what it lost no later sync brings back.
    pub(crate) const fn suspect(&mut self) {
        // One that was not read has lost nothing.
        self.suspect = self.file.is_some();
        self.dirty = self.suspect;
    }

    /// Lets a grown table take its place, now that `synced` was made durable. Whether the table in use has its place:
    /// not if it has grown again since.
    pub(crate) fn settle(&mut self, layer: &dyn FileLayer, synced: &Arc<dyn StoreFile>) -> io::Result<bool> {
        if self.grown && self.file.as_ref().is_some_and(|file| Arc::ptr_eq(file, synced)) {
            if let Err(error) = layer.rename(&self.grown_path(), &self.path) {
                self.dirty = true;
                return Err(error);
            }
            self.grown = false;
        }
        Ok(!self.grown)
    }

    fn put(&mut self, at: usize, raw: RawSlot) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(io::Error::other("the shard is not loaded")) };
        file.write_at(&raw, (SLOT_BYTES * (at + 1)) as u64)?;
        self.slots[at] = raw;
        self.dirty = true;
        Ok(())
    }

    /// Makes a new table of these slots and puts it in place of the old one, in memory and on disk.
    fn rewrite(&mut self, layer: &dyn FileLayer, slots: &[Slot], capacity: usize) -> io::Result<()> {
        let grown_path = self.grown_path();
        let mut table = vec![empty_slot(); capacity];
        for slot in slots {
            let mut at = slot.key.start(self.seed, capacity);
            while matches!(cell(&table[at]), Cell::Taken) {
                at = (at + 1) % capacity;
            }
            table[at] = encode(slot);
        }
        let temporary = self.path.with_extension("new");
        layer.remove(&temporary)?;
        let file = layer.create(&temporary)?;
        // Allocated in full, so that a later write of a slot cannot lack space.
        file.resize((SLOT_BYTES * (capacity + 1)) as u64)?;
        // In pieces: of one large write the page cache makes one large folio, all of whose blocks the file system
        // then walks through at each later write of a slot.
        let mut offset = SLOT_BYTES as u64;
        for piece in table.chunks(PIECE_SLOTS) {
            file.write_at(piece.as_flattened(), offset)?;
            offset += (SLOT_BYTES * piece.len()) as u64;
        }
        let head = Head { is_unsealed: false, seed: self.seed, complete: self.complete, capacity };
        file.write_at(&head.encode(), 0)?;
        // An empty table replaces nothing that would be missed.
        let grown = self.grown || !slots.is_empty();
        layer.rename(&temporary, if grown { &grown_path } else { &self.path })?;
        self.grown = grown;
        self.file = Some(file);
        self.taken = slots.len();
        self.removed = 0;
        self.slots = table;
        self.dirty = true;
        self.suspect = false;
        Ok(())
    }
}

fn taken_slot(raw: &RawSlot) -> Option<Slot> {
    matches!(cell(raw), Cell::Taken).then(|| decode(raw)).flatten()
}

/// Half as many again as there are, in whole pages of slots.
fn capacity_for(taken: usize) -> usize {
    (taken + taken / 2).next_multiple_of(SMALLEST).max(SMALLEST)
}

/// A number nobody outside can guess. Failing to get one is no danger to any blob, only to speed.
fn fresh_seed() -> u64 {
    use ring::rand::SecureRandom;
    let mut seed = [0x5a; 8];
    if ring::rand::SystemRandom::new().fill(&mut seed).is_err() {
        tracing::warn!("the system gave no random numbers; the index is laid out predictably");
    }
    u64::from_le_bytes(seed)
}

#[derive(Clone, Copy)]
struct Head {
    is_unsealed: bool,
    seed: u64,
    complete: bool,
    capacity: usize,
}

impl Head {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut head = [0; SLOT_BYTES];
        head[..8].copy_from_slice(if self.is_unsealed { &UNSEALED_MAGIC } else { &MAGIC });
        head[8..16].copy_from_slice(&self.seed.to_le_bytes());
        head[16..24].copy_from_slice(&(self.capacity as u64).to_le_bytes());
        head[24] = u8::from(self.complete);
        let check = xxh3_64(&head[..56]);
        head[56..].copy_from_slice(&check.to_le_bytes());
        head
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; SLOT_BYTES] = bytes.first_chunk()?;
        let is_unsealed = head[..8] == UNSEALED_MAGIC;
        if head[..8] != MAGIC && !is_unsealed || u64::from_le_bytes(array(head, 56)) != xxh3_64(&head[..56]) {
            return None;
        }
        Some(Self {
            is_unsealed,
            seed: u64::from_le_bytes(array(head, 8)),
            capacity: usize::try_from(u64::from_le_bytes(array(head, 16))).ok()?,
            complete: head[24] == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gf_digest::{Digest, DigestFunction};

    use super::*;
    use crate::disk::file_layer::SystemFiles;
    use crate::disk::index::Place;
    use crate::{Encoding, OwnerId};

    fn slot(number: u32) -> Slot {
        Slot {
            key: IndexKey::blob(&Digest::of(DigestFunction::Sha256, &number.to_le_bytes())),
            place: Place::Segment { segment: number, offset: 8, bytes: 4, encoding: Encoding::Identity },
            size_bytes: 4,
            touched: 7,
            owner: OwnerId(1),
        }
    }

    fn load(path: &Path) -> Shard {
        let mut shard = Shard::new(path.to_owned(), false);
        shard.load(&SystemFiles).unwrap();
        shard
    }

    fn settle(shard: &mut Shard) {
        let file = shard.take_dirty(&SystemFiles).unwrap().unwrap();
        assert!(shard.settle(&SystemFiles, &file).unwrap());
    }

    /// Makes a table of the first layout of one of ours.
    fn unseal(path: &Path) {
        let bytes = std::fs::read(path).unwrap();
        let head = Head { is_unsealed: true, ..Head::decode(&bytes).unwrap() }.encode();
        let (slots, _) = bytes[SLOT_BYTES..].as_chunks::<SLOT_BYTES>();
        let unsealed = slots.iter().map(|raw| if matches!(cell(raw), Cell::Empty) { UNWRITTEN } else { *raw });
        let unsealed: Vec<RawSlot> = [head].into_iter().chain(unsealed).collect();
        std::fs::write(path, unsealed.as_flattened()).unwrap();
    }

    #[test]
    fn a_table_of_the_first_layout_is_read_and_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("00.table");
        let mut shard = Shard::new(path.clone(), true);
        shard.load(&SystemFiles).unwrap();
        (0..500).for_each(|number| shard.insert(&SystemFiles, &slot(number)).unwrap());
        let (at, _) = shard.find(&slot(3).key).unwrap();
        shard.remove(at).unwrap();
        settle(&mut shard);
        unseal(&path);
        // Once from the old one, once from the one that took its place.
        for _ in 0..2 {
            let mut shard = load(&path);
            assert!(shard.is_complete());
            for number in 0..600 {
                let expected = (number < 500 && number != 3).then(|| slot(number));
                assert_eq!(shard.find(&slot(number).key).map(|(_, slot)| slot), expected);
            }
            if shard.is_dirty() {
                settle(&mut shard);
            }
            let bytes = std::fs::read(&path).unwrap();
            assert!(!Head::decode(&bytes).unwrap().is_unsealed);
            assert!(bytes[SLOT_BYTES..].as_chunks::<SLOT_BYTES>().0.iter().all(is_sound));
        }
    }
}

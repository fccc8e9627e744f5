//! The persistent index: from a key to where its record is, who owns it, and when it was last touched.
//!
//! 64 shards, each an open-addressing table of 64-byte slots, held in memory and written through to a file, slot by
//! slot. A shard is read from its file when it is first asked, so opening takes no time whatever the size.
//!
//! The index holds nothing that the records do not hold, except when a key was touched. It may therefore be lost;
//! what must never happen is that a lost slot reads as "absent". Every slot carries a check, an empty one too; a shard with a bad
//! one answers [`Lookup::Unknown`] for what it does not find, until a rebuild has put back what was lost.

mod shard;
mod slot;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::shard::Shard;
pub(crate) use self::slot::{IndexKey, KeyOrder, Place, Slot};
use super::file_layer::FileLayer;

/// Shards of an index. A power of two; part of the file format.
pub(crate) const SHARDS: usize = 64;

/// What the index knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It is here.
    Found(Slot),
    /// It is certainly not.
    Absent,
    /// It was not found, but slots were lost.
    Unknown,
}

/// What becomes of the slot of a blob when the blob is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays, and the new bytes are not needed.
    Stays,
    /// The same blob, for those who had it, gets another place.
    Moves,
    /// The blob had ended: its bytes were gone.
    Ended,
}

pub(crate) struct Index {
    shards: Vec<Mutex<Shard>>,
    layer: Arc<dyn FileLayer>,
    directory: PathBuf,
    len: AtomicU64,
    /// One sync at a time: whoever finds nothing left to sync must not return before it is durable.
    syncing: Mutex<()>,
}

impl Index {
    /// Opens the index in `directory`, creating what is missing. No slot is read yet.
    ///
    /// `fresh` says that the store is new: then a shard without a file is empty. Otherwise it is lost.
    pub(crate) fn open(layer: Arc<dyn FileLayer>, directory: &Path, fresh: bool) -> io::Result<Self> {
        layer.create_directory(directory)?;
        let shards = (0..SHARDS)
            .map(|number| Mutex::new(Shard::new(directory.join(format!("{number:02}.table")), fresh)))
            .collect();
        Ok(Self { shards, layer, directory: directory.to_owned(), len: AtomicU64::new(0), syncing: Mutex::default() })
    }

    /// After a power cut, before anything is asked: forgets tables that may not have reached the disk.
    pub(crate) fn discard_grown(&self) -> io::Result<()> {
        self.shards.iter().try_for_each(|shard| lock(shard).discard_grown(self.layer.as_ref()))
    }

    /// After a killed process, before anything is asked: makes durable what it wrote.
    pub(crate) fn sync_inherited(&self) -> io::Result<()> {
        self.shards.iter().try_for_each(|shard| lock(shard).sync_inherited(self.layer.as_ref()))?;
        self.layer.sync_directory(&self.directory)
    }

    /// Looks a key up and lets `touch` see the slot: what it returns, if anything, is written back.
    pub(crate) fn lookup(&self, key: &IndexKey, touch: impl FnOnce(&Slot) -> Option<Slot>) -> io::Result<Lookup> {
        let mut shard = self.shard(key)?;
        let Some((at, slot)) = shard.find(key) else {
            return Ok(if shard.is_complete() { Lookup::Absent } else { Lookup::Unknown });
        };
        match touch(&slot) {
            Some(touched) => {
                shard.touch(at, &touched)?;
                Ok(Lookup::Found(touched))
            }
            None => Ok(Lookup::Found(slot)),
        }
    }

    /// Looks a key up and leaves it as it is.
    pub(crate) fn peek(&self, key: &IndexKey) -> io::Result<Lookup> {
        self.lookup(key, |_| None)
    }

    /// Decides, under the lock of the key's shard, what becomes of its slot: `change` sees the present one, if any,
    /// and returns the one to write; `None` leaves all as it is. Returns the slot that was there before.
    pub(crate) fn change(
        &self,
        key: &IndexKey,
        change: impl FnOnce(Option<&Slot>) -> Option<Slot>,
    ) -> io::Result<Option<Slot>> {
        let mut shard = self.shard(key)?;
        let present = shard.find(key);
        let Some(next) = change(present.as_ref().map(|(_, slot)| slot)) else {
            return Ok(present.map(|(_, slot)| slot));
        };
        if let Some((at, slot)) = present {
            shard.write(at, &next)?;
            return Ok(Some(slot));
        }
        shard.insert(self.layer.as_ref(), &next)?;
        self.len.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Points the key of a blob that was just written to `slot`, unless `fate` says that the present one stays, which is
    /// then returned. With a blob that was not here before nobody shares: grants of an earlier one end.
    pub(crate) fn put_blob(&self, slot: &Slot, fate: impl FnOnce(&Slot) -> Fate) -> io::Result<Option<Slot>> {
        let mut shard = self.shard(&slot.key)?;
        let present = shard.find(&slot.key);
        let fate = match &present {
            Some((_, present)) => fate(present),
            None if shard.is_complete() => Fate::Ended,
            // It may be one that was lost, and is about to be found again.
            None => Fate::Moves,
        };
        if fate == Fate::Stays {
            return Ok(present.map(|(_, present)| present));
        }
        if fate == Fate::Ended
            && let Some((at, _)) = shard.find(&slot.key.sharing_of())
        {
            shard.remove(at)?;
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        match present {
            Some((at, present)) if fate == Fate::Moves => {
                shard.write(at, &Slot { touched: slot.touched.max(present.touched), ..*slot })?;
            }
            Some((at, _)) => shard.write(at, slot)?,
            None => {
                shard.insert(self.layer.as_ref(), slot)?;
                self.len.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(None)
    }

    /// Removes the slot of a key if `condition` holds for it. Returns the removed slot.
    pub(crate) fn remove_if(&self, key: &IndexKey, condition: impl FnOnce(&Slot) -> bool) -> io::Result<Option<Slot>> {
        let mut shard = self.shard(key)?;
        match shard.find(key) {
            Some((at, slot)) if condition(&slot) => {
                shard.remove(at)?;
                self.len.fetch_sub(1, Ordering::Relaxed);
                Ok(Some(slot))
            }
            _ => Ok(None),
        }
    }

    /// Shows every slot of one shard. The shard is locked meanwhile, so `visit` must be quick.
    pub(crate) fn visit_shard(&self, number: usize, mut visit: impl FnMut(&Slot)) -> io::Result<()> {
        self.lock(number)?.slots().for_each(|slot| visit(&slot));
        Ok(())
    }

    /// Removes every slot of one shard for which `condition` holds, and hands over each that is gone: the disk may fail
    /// before the last one.
    pub(crate) fn remove_from_shard(
        &self,
        number: usize,
        condition: impl Fn(&Slot) -> bool,
        mut removed: impl FnMut(Slot),
    ) -> io::Result<()> {
        let mut shard = self.lock(number)?;
        let doomed: Vec<(usize, Slot)> = shard.places().filter(|(_, slot)| condition(slot)).collect();
        for (at, slot) in doomed {
            shard.remove(at)?;
            self.len.fetch_sub(1, Ordering::Relaxed);
            removed(slot);
        }
        Ok(())
    }

    /// Makes every slot one that a search finds. After a power cut a slot may be there without the one that it came
    /// behind, and then no search gets so far.
    pub(crate) fn mend_searches(&self) -> io::Result<()> {
        for number in 0..SHARDS {
            let gone = self.lock(number)?.mend_searches(self.layer.as_ref())?;
            self.len.fetch_sub(gone, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Loads every shard. Returns whether none has lost a slot.
    pub(crate) fn load_all(&self) -> io::Result<bool> {
        let mut complete = true;
        for number in 0..SHARDS {
            complete &= self.lock(number)?.is_complete();
        }
        Ok(complete)
    }

    /// Makes the tables of a store that holds nothing, durably. Those of a start that was cut short may be there.
    pub(crate) fn make_empty_whole(&self) -> io::Result<()> {
        self.sync_inherited()?;
        if !self.load_all()? {
            self.mark_complete()?;
        }
        self.sync()
    }

    /// Declares that every record was seen by a rebuild, so that what is not found is absent.
    pub(crate) fn mark_complete(&self) -> io::Result<()> {
        for number in 0..SHARDS {
            self.lock(number)?.mark_complete(self.layer.as_ref())?;
        }
        Ok(())
    }

    /// Declares that slots are missing, until [`Self::mark_complete`].
    pub(crate) fn mark_incomplete(&self) {
        for shard in &self.shards {
            lock(shard).mark_incomplete();
        }
    }

    /// Makes all changes so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in &self.shards {
            self.sync_shard(shard)?;
        }
        // Tables that took their place may lose it with this: all get a name anew.
        let named = self.layer.sync_directory(&self.directory);
        if named.is_err() {
            self.shards.iter().for_each(|shard| lock(shard).suspect());
        }
        named
    }

    fn sync_shard(&self, shard: &Mutex<Shard>) -> io::Result<()> {
        // The file is synced outside the lock: a disk that is slow must not hold up look-ups.
        let Some(file) = lock(shard).take_dirty(self.layer.as_ref())? else { return Ok(()) };
        if let Err(error) = file.sync() {
            lock(shard).suspect();
            return Err(error);
        }
        let mut shard = lock(shard);
        if shard.settle(self.layer.as_ref(), &file)? {
            return Ok(());
        }
        // It grew meanwhile: what was synced is not the table any more. Once more, and this time nobody may grow it.
        let Some(file) = shard.take_dirty(self.layer.as_ref())? else { return Ok(()) };
        if let Err(error) = file.sync() {
            shard.suspect();
            return Err(error);
        }
        shard.settle(self.layer.as_ref(), &file).map(drop)
    }

    /// Writes every table anew at the next sync.
    pub(crate) fn suspect_all(&self) -> io::Result<()> {
        (0..SHARDS).try_for_each(|number| self.lock(number).map(|mut shard| shard.suspect()))
    }

    /// Whether there are changes, touches among them, that are not durable.
    pub(crate) fn is_dirty(&self) -> bool {
        self.shards.iter().any(|shard| lock(shard).is_dirty())
    }

    /// Slots in the shards loaded so far.
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn shard(&self, key: &IndexKey) -> io::Result<MutexGuard<'_, Shard>> {
        self.lock(key.shard())
    }

    fn lock(&self, number: usize) -> io::Result<MutexGuard<'_, Shard>> {
        let mut shard = lock(&self.shards[number]);
        let loaded = shard.load(self.layer.as_ref())?;
        self.len.fetch_add(loaded, Ordering::Relaxed);
        Ok(shard)
    }
}

/// A panic while a shard is locked leaves no half-made change: each is one write of one slot.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use gf_digest::{Digest, DigestFunction};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::disk::file_layer::SystemFiles;
    use crate::{Encoding, OwnerId};

    fn slot(number: u32, touched: u32) -> Slot {
        let digest = Digest::of(DigestFunction::Sha256, &number.to_le_bytes());
        Slot {
            key: IndexKey::blob(&digest),
            place: Place::Segment { segment: number, offset: 8 * number, bytes: 4, encoding: Encoding::Identity },
            size_bytes: 4,
            touched,
            owner: OwnerId(1),
        }
    }

    fn open(directory: &Path, fresh: bool) -> Index {
        Index::open(Arc::new(SystemFiles), directory, fresh).unwrap()
    }

    #[test]
    fn agrees_with_a_map_over_growth_removal_and_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut index = open(directory.path(), true);
        let mut model: HashMap<u32, u32> = HashMap::new();
        let mut random = StdRng::seed_from_u64(7);
        for step in 0..60_000_u32 {
            let number = random.random_range(0..20_000);
            let key = slot(number, 0).key;
            if random.random_bool(0.3) {
                let removed = index.remove_if(&key, |_| true).unwrap();
                assert_eq!(removed.map(|slot| slot.touched), model.remove(&number));
            } else {
                let before = index.change(&key, |_| Some(slot(number, step))).unwrap();
                assert_eq!(before.map(|slot| slot.touched), model.insert(number, step));
            }
            if step % 20_000 == 19_999 {
                drop(index);
                index = open(directory.path(), false);
                assert!(index.load_all().unwrap());
                assert_eq!(index.len(), model.len() as u64);
            }
        }
        for number in 0..20_000 {
            let expected = model.get(&number).map_or(Lookup::Absent, |touched| Lookup::Found(slot(number, *touched)));
            assert_eq!(index.peek(&slot(number, 0).key).unwrap(), expected);
        }
    }

    /// A sector or a page that was never written, or lost: whole slots of zeros.
    #[test]
    fn slots_of_zeros_are_unknown_never_absent() {
        let directory = tempfile::tempdir().unwrap();
        let index = open(directory.path(), true);
        for number in 0..3000 {
            index.change(&slot(number, 1).key, |_| Some(slot(number, 1))).unwrap();
        }
        index.sync().unwrap();
        drop(index);
        let victim = slot(17, 1).key;
        let file = directory.path().join(format!("{:02}.table", victim.shard()));
        let whole = std::fs::read(&file).unwrap();
        for sector in 0..whole.len() / 512 {
            let mut bytes = whole.clone();
            bytes[512 * sector..512 * (sector + 1)].fill(0);
            std::fs::write(&file, bytes).unwrap();
            let _ = std::fs::remove_file(file.with_extension("grown"));
            let index = open(directory.path(), false);
            for number in 0..3000 {
                assert_ne!(index.peek(&slot(number, 1).key).unwrap(), Lookup::Absent, "sector {sector}: {number}");
            }
        }
    }

    #[test]
    fn a_lost_slot_is_unknown_never_absent() {
        let directory = tempfile::tempdir().unwrap();
        let index = open(directory.path(), true);
        for number in 0..1000 {
            index.change(&slot(number, 1).key, |_| Some(slot(number, 1))).unwrap();
        }
        assert!(index.is_dirty());
        index.sync().unwrap();
        assert!(!index.is_dirty());
        index.lookup(&slot(1, 1).key, |found| Some(*found)).unwrap();
        assert!(index.is_dirty(), "a touch is a change");
        drop(index);
        let victim = slot(17, 1).key;
        let file = directory.path().join(format!("{:02}.table", victim.shard()));
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.windows(32).position(|part| part == victim.bytes()).unwrap();
        bytes[at + 40] ^= 0x10;
        std::fs::write(&file, bytes).unwrap();

        let index = open(directory.path(), false);
        assert_eq!(index.peek(&victim).unwrap(), Lookup::Unknown);
        for number in (0..1000).filter(|number| *number != 17) {
            assert_eq!(index.peek(&slot(number, 1).key).unwrap(), Lookup::Found(slot(number, 1)));
        }
        index.change(&victim, |_| Some(slot(17, 2))).unwrap();
        index.mark_complete().unwrap();
        drop(index);
        let index = open(directory.path(), false);
        assert!(index.load_all().unwrap());
        assert_eq!(index.peek(&victim).unwrap(), Lookup::Found(slot(17, 2)));
        assert_eq!(index.peek(&slot(5000, 0).key).unwrap(), Lookup::Absent);
    }

    #[test]
    fn a_shard_without_its_file_is_lost_unless_the_store_is_new() {
        let directory = tempfile::tempdir().unwrap();
        let key = slot(1, 1).key;
        assert_eq!(open(directory.path(), false).peek(&key).unwrap(), Lookup::Unknown);
    }
}

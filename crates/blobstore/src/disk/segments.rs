//! Segments: append-only files of records.
//!
//! One segment is active; the others are sealed and never change again, so that a sealed segment can become an
//! object elsewhere. A process never appends to a segment of an earlier one: what that left half-written at the end
//! stays unreferenced. Segment numbers are never used twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::appending::{Appending, Payload};
use super::cached_read::read_exactly;
use super::file_layer::{FileLayer, StoreFile};
use super::index::{IndexKey, Place};
use super::record::{HEADER_BYTES, Position, RecordHeader, RecordKey, payload_check};
use crate::Encoding;

/// Sealed segments kept open.
const OPEN_FILES: usize = 512;

/// A record to append. Check, length and time are filled in, and the sequence number unless it has one.
pub(crate) struct NewRecord<'a> {
    pub header: RecordHeader,
    pub payload: Payload<'a>,
}

/// Where a record was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub segment: u32,
    pub offset: u32,
    pub bytes: u32,
}

impl Appended {
    /// The place of a payload that is the thing itself.
    pub(crate) const fn plain(self, encoding: Encoding) -> Place {
        Place::Segment { segment: self.segment, offset: self.offset, bytes: self.bytes, encoding }
    }

    /// The place of a view.
    pub(crate) const fn view(self) -> Place {
        Place::View { segment: self.segment, offset: self.offset, bytes: self.bytes }
    }

    /// The place of a recipe.
    pub(crate) const fn recipe(self) -> Place {
        Place::Recipe { segment: self.segment, offset: self.offset, bytes: self.bytes }
    }
}

/// Why a record cannot be read.
#[derive(Debug)]
pub(crate) enum ReadFault {
    /// The segment is gone: the record was moved or evicted since it was looked up.
    Gone,
    /// The bytes there are not the record.
    Damaged,
    /// The system failed.
    Io(io::Error),
}

fn place(segment: u32, offset: u64, payload_bytes: u64) -> io::Result<Appended> {
    let too_large = |_| io::Error::other("the batch is too large");
    let offset = u32::try_from(offset).map_err(too_large)?;
    Ok(Appended { segment, offset, bytes: u32::try_from(payload_bytes).map_err(too_large)? })
}

struct Active {
    number: u32,
    file: Option<Arc<dyn StoreFile>>,
    bytes: u64,
    unsynced: bool,
    buffer: Vec<u8>,
}

/// A file that is durably there, and empty.
struct Ready {
    number: u32,
    file: Arc<dyn StoreFile>,
}

/// Why the file of a segment was not made, and whether there may be one of its name all the same.
struct Uncreated {
    error: io::Error,
    may_be_there: bool,
}

pub(crate) struct Segments {
    layer: Arc<dyn FileLayer>,
    directory: PathBuf,
    key: RecordKey,
    /// A segment is sealed when it has reached this size.
    sealed_at_bytes: u64,
    active: Mutex<Active>,
    /// The file of the next segment, if it is there already. Taken after [`Self::active`], never before.
    ready: Mutex<Option<Ready>>,
    /// Bytes of every segment, the active one included.
    sizes: RwLock<BTreeMap<u32, u64>>,
    open: RwLock<HashMap<u32, Arc<dyn StoreFile>>>,
    /// Sealed since the last sync, and not yet durable.
    sealed_unsynced: Mutex<Vec<(u32, Arc<dyn StoreFile>)>>,
    /// Sealed since syncing them failed. What was written to them may be lost, whatever a later sync says: the system
    /// reports a failed write once. They are to be copied elsewhere.
    suspects: Mutex<BTreeSet<u32>>,
    /// One sync at a time: whoever finds nothing left to sync must not return before it is durable.
    syncing: Mutex<()>,
    next_sequence: AtomicU64,
}

impl Segments {
    /// Takes over the segments in `directory`. The first append goes to segment `next` or a later one.
    pub(crate) fn open(
        layer: Arc<dyn FileLayer>,
        directory: &Path,
        key: RecordKey,
        next: u32,
        first_sequence: u64,
        sealed_at_bytes: u64,
    ) -> io::Result<Self> {
        layer.create_directory(directory)?;
        let sizes: BTreeMap<u32, u64> = layer
            .list(directory)?
            .into_iter()
            .filter_map(|(name, bytes)| Some((u32::from_str_radix(name.strip_suffix(".segment")?, 16).ok()?, bytes)))
            .collect();
        let after_last = sizes.last_key_value().map_or(1, |(number, _)| number + 1);
        let active = Active { number: next.max(after_last), file: None, bytes: 0, unsynced: false, buffer: Vec::new() };
        Ok(Self {
            layer,
            directory: directory.to_owned(),
            key,
            sealed_at_bytes,
            active: Mutex::new(active),
            ready: Mutex::default(),
            sizes: RwLock::new(sizes),
            open: RwLock::default(),
            sealed_unsynced: Mutex::default(),
            suspects: Mutex::default(),
            syncing: Mutex::default(),
            next_sequence: AtomicU64::new(first_sequence),
        })
    }

    /// Appends records, all in one write, and says where each is. They survive a killed process from now on.
    ///
    /// The records together must be smaller than 1 GiB.
    pub(crate) fn append(&self, mut records: Vec<NewRecord<'_>>, now: u32) -> io::Result<Vec<Appended>> {
        // All that takes a while is done before the lock is taken, but for the write.
        for NewRecord { header, payload } in &mut records {
            header.written_at = now;
            header.payload_bytes = payload.bytes() as u64;
            header.payload_check = payload.check();
        }
        let bytes: u64 = records.iter().map(|record| record.header.record_bytes()).sum();
        let mut active = self.lock_active();
        let file = self.file_for(&mut active, bytes)?;
        let mut appending = Appending::new(std::mem::take(&mut active.buffer));
        let mut places = Vec::with_capacity(records.len());
        for NewRecord { mut header, payload } in records {
            if header.sequence == 0 {
                header.sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
            }
            let place = place(active.number, active.bytes + appending.bytes() as u64, header.payload_bytes)?;
            let position = Position::Segment { segment: place.segment, offset: place.offset };
            appending.copy(|buffer| header.encode(self.key, position, buffer));
            appending.payload(payload);
            places.push(place);
        }
        // A write that fails half-way leaves bytes that nothing points to. They are cut off if the disk is willing, so that
        // no rebuild takes what was refused for a record; else the next write covers them.
        let (buffer, result) = appending.write(file.as_ref(), active.bytes);
        if result.is_err() {
            let _ = file.resize(active.bytes);
        } else {
            active.bytes += bytes;
            active.unsynced = true;
            write_lock(&self.sizes).insert(active.number, active.bytes);
        }
        // One huge batch must not hold its memory for ever.
        if buffer.capacity() <= 8 << 20 {
            active.buffer = buffer;
        }
        result.map(|()| places)
    }

    /// The file to append `bytes` to: the active segment, which is begun anew when it is full.
    fn file_for(&self, active: &mut Active, bytes: u64) -> io::Result<Arc<dyn StoreFile>> {
        if active.file.is_some() && active.bytes + bytes > self.sealed_at_bytes {
            self.seal(active);
        }
        match &active.file {
            Some(file) => Ok(Arc::clone(file)),
            None => self.begin(active),
        }
    }

    fn begin(&self, active: &mut Active) -> io::Result<Arc<dyn StoreFile>> {
        let mut ready = lock(&self.ready);
        let file = match ready.take() {
            Some(ready) if ready.number == active.number => ready.file,
            other => {
                if let Some(Ready { number, .. }) = other {
                    let _ = self.layer.remove(&self.path(number));
                }
                match self.create(active.number) {
                    Ok(file) => file,
                    Err(Uncreated { error, may_be_there }) => {
                        active.number += u32::from(may_be_there);
                        return Err(error);
                    }
                }
            }
        };
        drop(ready);
        write_lock(&self.open).insert(active.number, Arc::clone(&file));
        active.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Makes the file of a segment, durably.
    fn create(&self, number: u32) -> Result<Arc<dyn StoreFile>, Uncreated> {
        let path = self.path(number);
        let file = self.layer.create(&path).map_err(|error| {
            let may_be_there = error.kind() == io::ErrorKind::AlreadyExists;
            Uncreated { error, may_be_there }
        })?;
        if let Err(error) = self.layer.sync_directory(&self.directory) {
            // Nothing is in it; but whether it is gone is not sure either.
            let _ = self.layer.remove(&path);
            return Err(Uncreated { error, may_be_there: true });
        }
        Ok(file)
    }

    /// Makes the file of the next segment when the active one is half full, so that whoever fills it need not wait for the
    /// disk, and all others who write with it.
    pub(crate) fn make_ready(&self) -> io::Result<()> {
        let next = {
            let active = self.lock_active();
            let is_half_full = active.file.is_some() && active.bytes * 2 >= self.sealed_at_bytes;
            if is_half_full { active.number + 1 } else { return Ok(()) }
        };
        let mut ready = lock(&self.ready);
        if ready.as_ref().is_some_and(|ready| ready.number == next) {
            return Ok(());
        }
        match self.create(next) {
            Ok(file) => *ready = Some(Ready { number: next, file }),
            // Somebody has just begun it.
            Err(Uncreated { error, .. }) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(Uncreated { error, .. }) => return Err(error),
        }
        Ok(())
    }

    /// Removes the file of a segment that is not begun.
    pub(crate) fn remove_ready(&self) {
        if let Some(Ready { number, .. }) = lock(&self.ready).take() {
            let _ = self.layer.remove(&self.path(number));
        }
    }

    fn seal(&self, active: &mut Active) {
        if let Some(file) = active.file.take()
            && std::mem::take(&mut active.unsynced)
        {
            lock(&self.sealed_unsynced).push((active.number, file));
        }
        active.number += 1;
        active.bytes = 0;
    }

    /// Seals the active segment, so that it can be compacted like the others.
    pub(crate) fn seal_active(&self) {
        let mut active = self.lock_active();
        if active.file.is_some() {
            self.seal(&mut active);
        }
    }

    /// Makes everything appended before this call durable but for what is in [`Self::suspects`].
    pub(crate) fn sync_sound(&self) -> io::Result<()> {
        let _one_at_a_time = lock(&self.syncing);
        let current = {
            let mut active = self.lock_active();
            let number = active.number;
            std::mem::take(&mut active.unsynced).then(|| active.file.clone().map(|file| (number, file))).flatten()
        };
        let mut files = std::mem::take(&mut *lock(&self.sealed_unsynced));
        files.extend(current);
        let mut result = Ok(());
        for (number, file) in files {
            if let Err(error) = file.sync() {
                self.suspect(number);
                result = Err(error);
            }
        }
        result
    }

    /// As [`Self::sync_sound`], but fails if one of these places is in a suspect.
    pub(crate) fn sync_places<'a>(&self, mut places: impl Iterator<Item = &'a Place>) -> io::Result<()> {
        self.sync_sound()?;
        let suspects = lock(&self.suspects);
        let is_suspect = |place: &Place| place.segment().is_some_and(|segment| suspects.contains(&segment));
        if places.any(is_suspect) { Err(not_durable()) } else { Ok(()) }
    }

    /// Notes that syncing a segment failed, or may have, so that nothing more is written to it.
    pub(crate) fn suspect(&self, number: u32) {
        let mut active = self.lock_active();
        if active.number == number && active.file.is_some() {
            self.seal(&mut active);
        }
        lock(&self.suspects).insert(number);
    }

    /// Segments whose records must be copied, since syncing them failed.
    pub(crate) fn suspects(&self) -> Vec<u32> {
        lock(&self.suspects).iter().copied().collect()
    }

    /// The end of what was appended: the active segment, its size, and the next sequence number.
    pub(crate) fn end(&self) -> (u32, u64, u64) {
        let active = self.lock_active();
        (active.number, active.bytes, self.next_sequence.load(Ordering::Relaxed))
    }

    pub(crate) const fn key(&self) -> RecordKey {
        self.key
    }

    /// Every segment and its size in bytes.
    pub(crate) fn sizes(&self) -> BTreeMap<u32, u64> {
        read_lock(&self.sizes).clone()
    }

    /// Whether a record of this place can be there: its segment exists and is long enough.
    pub(crate) fn reaches(&self, place: &Place) -> bool {
        place.record().is_none_or(|(segment, offset, bytes)| {
            let end = u64::from(offset) + HEADER_BYTES as u64 + u64::from(bytes);
            read_lock(&self.sizes).get(&segment).is_some_and(|size| end <= *size)
        })
    }

    /// Bytes appended to a segment; 0 when it is gone.
    pub(crate) fn size_of(&self, number: u32) -> u64 {
        read_lock(&self.sizes).get(&number).copied().unwrap_or(0)
    }

    /// Removes a sealed segment and returns its size. Readers that have it open finish. After an error it is there as
    /// before.
    pub(crate) fn remove(&self, number: u32) -> io::Result<u64> {
        self.layer.remove(&self.path(number))?;
        let bytes = write_lock(&self.sizes).remove(&number).unwrap_or(0);
        write_lock(&self.open).remove(&number);
        lock(&self.suspects).remove(&number);
        Ok(bytes)
    }

    /// The file of a segment; `None` when it is gone.
    pub(crate) fn file(&self, number: u32) -> io::Result<Option<Arc<dyn StoreFile>>> {
        if let Some(file) = read_lock(&self.open).get(&number) {
            return Ok(Some(Arc::clone(file)));
        }
        if !read_lock(&self.sizes).contains_key(&number) {
            return Ok(None);
        }
        let file = match self.layer.open(&self.path(number)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // Read before the lock below is taken: appending takes the two in the other order.
        let active = self.lock_active().number;
        let mut open = write_lock(&self.open);
        // Removed meanwhile: this reader finishes, and keeps it open no longer.
        if !read_lock(&self.sizes).contains_key(&number) {
            return Ok(Some(file));
        }
        if open.len() >= OPEN_FILES {
            let victim = open.keys().copied().find(|candidate| *candidate != active);
            victim.and_then(|victim| open.remove(&victim));
        }
        open.insert(number, Arc::clone(&file));
        Ok(Some(file))
    }

    /// Reads the record at `place`, checks that it is the one of `key` and undamaged, and returns header and payload.
    pub(crate) async fn read(&self, key: &IndexKey, place: &Place) -> Result<(RecordHeader, Bytes), ReadFault> {
        let Some((segment, offset, payload_bytes)) = place.record() else { return Err(ReadFault::Gone) };
        let file = self.file(segment).map_err(ReadFault::Io)?.ok_or(ReadFault::Gone)?;
        let bytes = read_exactly(&file, HEADER_BYTES + payload_bytes as usize, u64::from(offset)).await;
        let mut bytes = Bytes::from(bytes.map_err(ReadFault::Io)?);
        let instance_bytes = RecordHeader::instance_bytes(&bytes).ok_or(ReadFault::Damaged)?;
        if instance_bytes > 0 {
            let whole = HEADER_BYTES + instance_bytes + payload_bytes as usize;
            bytes = read_exactly(&file, whole, u64::from(offset)).await.map_err(ReadFault::Io)?.into();
        }
        self.checked(key, Position::Segment { segment, offset }, bytes)
    }

    /// As [`Self::read`], on a thread that may wait; for records of blobs, whose headers are all of one length.
    pub(crate) fn read_waiting(&self, key: &IndexKey, place: &Place) -> Result<(RecordHeader, Bytes), ReadFault> {
        let Some((segment, offset, payload_bytes)) = place.record() else { return Err(ReadFault::Gone) };
        let file = self.file(segment).map_err(ReadFault::Io)?.ok_or(ReadFault::Gone)?;
        let mut bytes = vec![0; HEADER_BYTES + payload_bytes as usize];
        let filled = file.read_at(&mut bytes, u64::from(offset)).map_err(ReadFault::Io)?;
        bytes.truncate(filled);
        self.checked(key, Position::Segment { segment, offset }, bytes.into())
    }

    /// Header and payload of a record, if it is the one of `key` and undamaged.
    fn checked(&self, key: &IndexKey, position: Position, bytes: Bytes) -> Result<(RecordHeader, Bytes), ReadFault> {
        let header = RecordHeader::decode(self.key, position, &bytes).ok_or(ReadFault::Damaged)?;
        let payload = bytes.slice(header.head_bytes().min(bytes.len())..);
        let sound = header.index_key() == *key
            && header.payload_bytes == payload.len() as u64
            && header.payload_check == payload_check(&payload);
        if sound { Ok((header, payload)) } else { Err(ReadFault::Damaged) }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{number:08x}.segment"))
    }

    fn lock_active(&self) -> MutexGuard<'_, Active> {
        lock(&self.active)
    }
}

pub(crate) fn not_durable() -> io::Error {
    io::Error::other("the disk failed to keep what was written; it is being written again")
}

/// A panic elsewhere leaves these maps whole: each change is one call.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read_lock<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write_lock<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

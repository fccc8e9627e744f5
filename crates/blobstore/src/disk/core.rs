//! What the parts of the disk store share: its files, its index, its account of space.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::Duration;

use gf_digest::Digest;
use tokio::sync::Semaphore;

use super::appending::Payload;
use super::capacity::{Capacity, Reservation};
use super::clock::Clock;
use super::collect::Unfinished;
use super::decoding::Decoders;
use super::doubtful::{Doubtful, Extract, is_of_medium};
use super::durability::{Extent, Suspects};
use super::file_layer::{FileLayer, StoreFile};
use super::flushes::Flushes;
use super::folder::Folder;
use super::index::{Fate, Index, IndexKey, Lookup, Place, SHARDS, Slot};
use super::large::LargeFiles;
use super::lease::LeasePolicy;
use super::record::{RecordHeader, RecordKind};
use super::scrub::Progress;
use super::segments::{Appended, NewRecord, ReadFault, Segments, lock};
use super::stock::Stock;
use crate::{Encoding, OwnerId, StoreError};

/// How a disk store is set up.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The folder of the store. Created when missing.
    pub data_dir: PathBuf,
    /// Bytes that the store may use.
    pub capacity_bytes: u64,
    /// How long what was reported present is kept, at least.
    pub lease: Duration,
    /// How long after it was acknowledged a blob can still be lost to a power cut.
    pub sync_window: Duration,
    /// The largest blob accepted.
    pub max_blob_size_bytes: u64,
    /// Blobs larger than this get a file of their own; at most 8 MiB.
    pub large_blob_bytes: u64,
    /// What the scrub reads in a second, at most.
    pub scrub_bytes_per_second: u64,
    /// How long the scrub takes to look at everything, at least.
    pub scrub_pass: Duration,
}

impl StoreConfig {
    /// A store in `data_dir` with everything else at its default.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            capacity_bytes: 100 << 30,
            lease: Duration::from_secs(6 * 3600),
            sync_window: Duration::from_secs(1),
            max_blob_size_bytes: 16 << 30,
            large_blob_bytes: 1 << 20,
            scrub_bytes_per_second: 16 << 20,
            scrub_pass: Duration::from_secs(7 * 86_400),
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub evicted_blobs: AtomicU64,
    pub evicted_bytes: AtomicU64,
    /// When the most recently touched of all evicted ones was touched; 0 while none was.
    pub youngest_evicted: AtomicU32,
    pub quarantined: AtomicU64,
    pub leased_bytes: AtomicU64,
    pub deduplicated_bytes: AtomicU64,
}

pub(crate) struct Core {
    pub config: StoreConfig,
    pub layer: Arc<dyn FileLayer>,
    pub index: Index,
    pub segments: Segments,
    pub large: LargeFiles,
    pub capacity: Arc<Capacity>,
    pub lease: LeasePolicy,
    pub clock: Clock,
    pub counters: Counters,
    /// Held shared from appending a record until the index knows it; taken alone by a checkpoint, which must not see
    /// one without the other.
    pub publish: RwLock<()>,
    /// Large files that are not durable yet.
    pub unsynced_large: Mutex<Vec<(u64, Arc<dyn StoreFile>)>>,
    /// What the disk may have failed to keep: syncing it failed.
    pub suspects: Mutex<Suspects>,
    /// How far the last checkpoint vouches.
    pub vouched: Mutex<Extent>,
    /// Large blobs that may share parts with others, to be looked at in a quiet moment.
    pub to_chunk: Mutex<Vec<(OwnerId, Digest)>>,
    /// The first segments that may hold copies which the index does not know yet.
    pub moving: Mutex<Vec<u32>>,
    /// One sync at a time: when it returns, what another one was about to make durable is durable too.
    pub syncing: Mutex<()>,
    /// One eviction at a time.
    pub evicting: Mutex<()>,
    /// What evictions have begun and could not end.
    pub unfinished: Mutex<Unfinished>,
    /// What the last look at the whole index found; `None` before the first since the start.
    pub stock: Mutex<Option<Arc<Stock>>>,
    /// One blob at a time begins to be shared.
    pub beginning_to_share: Mutex<()>,
    /// One promise at a time is made or let go.
    pub promising: Mutex<()>,
    /// When promised blobs were last asked for, so that they stay; `None` before the first time since the start.
    pub promises_renewed: Mutex<Option<u32>>,
    /// One change at a time of each entry, by the table that has it.
    pub changing_entries: [Mutex<()>; SHARDS],
    /// Entries whose removal is recorded but perhaps not durable, since its flush is under way or failed.
    pub unsettled_removals: Mutex<HashSet<IndexKey>>,
    /// How far [`Self::make_durable`] has come.
    pub flushes: Arc<Flushes>,
    /// What there was no room for lately.
    pub refused: Mutex<Refused>,
    /// One thread makes room; whoever else needs some waits for this, without a thread.
    pub making_room: Arc<Semaphore>,
    /// Cleared while a rebuild is owed; remembered over restarts, since the rebuild may be killed.
    pub is_index_whole: AtomicBool,
    pub closed: AtomicBool,
    /// How far the scrub has come; its thread alone changes it.
    pub scrub: Mutex<Progress>,
    pub decoders: Decoders,
    /// As many splices at once are read and hashed as there are processors.
    pub splicing: Semaphore,
    /// What the disk failed to read.
    pub doubtful: Doubtful,
    /// The number of this start of the store; part of every sequence number.
    pub epoch: u32,
    /// When the store last served a request that moved bytes, for work that waits for quiet.
    pub last_busy: AtomicU32,
    /// The folder is ours for as long as anything may still write to it: uploads and evictions outlive the store.
    #[expect(dead_code, reason = "it is held, not read")]
    pub folder: Folder,
}

/// The last write that was refused: until then one that exceeds the room by as much is refused, too.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Refused {
    pub excess_bytes: u64,
    pub until: u32,
}

/// What was found where a blob is about to be written: not all of its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Vacancy {
    /// What the index points to, though it is not the blob, or cannot be read.
    pub place: Option<Place>,
    /// Whether the bytes are certainly gone, and with them what was promised to anybody.
    pub has_ended: bool,
    /// Whether the disk fails to read them, so that what comes takes their place.
    pub is_doubtful: bool,
}

/// Tells the sharings of one blob apart: each is later than those that ended before it. A slot has 48 bits for it, so that
/// they begin anew after many starts of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharingNumber(pub u64);

impl SharingNumber {
    const BITS: u32 = 48;

    fn at(sequence: u64) -> Self {
        Self(sequence & ((1 << Self::BITS) - 1))
    }

    /// Whether this came after `other`, of numbers less than half of all apart.
    pub(crate) fn is_after(self, other: Self) -> bool {
        let ahead = Self::at(self.0.wrapping_sub(other.0)).0;
        (1..1 << (Self::BITS - 1)).contains(&ahead)
    }
}

impl Core {
    /// The slot of a blob that `owner` may see, touched. Says nothing about what the slot depends on.
    pub(crate) fn visible(&self, owner: OwnerId, digest: &Digest) -> Result<Option<Slot>, StoreError> {
        let key = IndexKey::blob(digest);
        let size = digest.size_bytes();
        let is_ours = |slot: &Slot| slot.owner == owner && slot.size_bytes == size;
        match self.settled(&key, is_ours)?.filter(|slot| slot.size_bytes == size) {
            None => Ok(None),
            Some(slot) if slot.owner == owner => Ok(Some(slot)),
            Some(_) if !self.is_granted(owner, digest)? => Ok(None),
            Some(_) => self.settled(&key, |_| true),
        }
    }

    /// The slot of a blob, whoever owns it, touched.
    pub(crate) fn any_owner(&self, digest: &Digest) -> Result<Option<Slot>, StoreError> {
        let found = self.settled(&IndexKey::blob(digest), |_| true)?;
        Ok(found.filter(|slot| slot.size_bytes == digest.size_bytes()))
    }

    /// As [`Self::any_owner`], for those whose looking keeps nothing alive.
    pub(crate) fn any_owner_untouched(&self, digest: &Digest) -> Result<Option<Slot>, StoreError> {
        let found = self.settled(&IndexKey::blob(digest), |_| false)?;
        Ok(found.filter(|slot| slot.size_bytes == digest.size_bytes()))
    }

    /// The slot of a key, touched if `may_touch` says so, unless its record is lost. A record that is being moved is
    /// followed to its new place.
    fn settled(&self, key: &IndexKey, may_touch: impl Fn(&Slot) -> bool) -> Result<Option<Slot>, StoreError> {
        let now = self.clock.now();
        let mut unreachable = None;
        loop {
            let found = self.index.lookup(key, |slot| {
                (may_touch(slot) && self.lease.must_write(slot.touched, now)).then_some(Slot { touched: now, ..*slot })
            });
            match self.known(found)? {
                Some(slot) if !self.segments.reaches(&slot.place) => {
                    if unreachable == Some(slot.place) {
                        return Ok(None);
                    }
                    unreachable = Some(slot.place);
                }
                found => return Ok(found),
            }
        }
    }

    /// Whether a further owner was let in since the blob came. Touched as the blob is: the promise to this owner hangs on
    /// all three.
    pub(crate) fn is_granted(&self, owner: OwnerId, digest: &Digest) -> Result<bool, StoreError> {
        let Some(sharing) = self.settled(&IndexKey::sharing(digest), |_| true)? else { return Ok(false) };
        let grant = self.settled(&IndexKey::grant(owner, digest), |_| true)?;
        Ok(grant.is_some_and(|grant| grant.size_bytes == sharing.size_bytes))
    }

    /// Found, absent, or an error for what cannot be known.
    pub(crate) fn known(&self, lookup: io::Result<Lookup>) -> Result<Option<Slot>, StoreError> {
        match lookup.map_err(failed("looking into the index"))? {
            Lookup::Found(slot) => Ok(Some(slot)),
            Lookup::Absent => Ok(None),
            Lookup::Unknown => Err(StoreError::Io {
                doing: "looking into the index",
                source: io::Error::other("a part of it was lost and is being rebuilt; try again in a moment"),
            }),
        }
    }

    /// Sets space aside, evicting where that is needed and allowed.
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        if let Some(decided) = self.reserve_at_once(bytes) {
            return decided;
        }
        // Threads for waiting are also those that read and hash.
        let permit = Arc::clone(&self.making_room).acquire_owned().await;
        let permit = permit.map_err(|error| failed("making room")(io::Error::other(error)))?;
        // Whoever came before may have made room for all, or found that there is none.
        if let Some(decided) = self.reserve_at_once(bytes) {
            return decided;
        }
        let core = Arc::clone(self);
        let evicting = tokio::task::spawn_blocking(move || {
            // Kept by the thread: the caller may leave.
            let _permit = permit;
            core.make_room(bytes)
        });
        let evicted = evicting.await;
        evicted.map_err(|error| failed("making room")(io::Error::other(error)))?
    }

    /// Held from appending a record until the index knows it. Refused once the store is closed: the last checkpoint would
    /// not vouch for it.
    pub(crate) fn publishing(&self) -> Result<RwLockReadGuard<'_, ()>, StoreError> {
        let publishing = super::segments::read_lock(&self.publish);
        if self.closed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(publishing) }
    }

    /// Appends one record about a blob and points the index to it, unless [`Self::point`] keeps the present slot, which
    /// is then returned.
    pub(crate) fn publish_blob(
        &self,
        header: RecordHeader,
        payload: &[u8],
        reservation: &mut Reservation,
        vacancy: Vacancy,
        place: impl Fn(Appended) -> Place,
    ) -> Result<Option<Slot>, StoreError> {
        let _publishing = self.publishing()?;
        let slot = self.append(header, payload, reservation, place)?;
        self.point(slot, vacancy)
    }

    /// Appends one record that is about no blob's bytes, and points a slot to it. It replaces what was there before, but
    /// a sharing stays as it is: others hang on it.
    pub(crate) fn publish(
        &self,
        header: RecordHeader,
        payload: &[u8],
        reservation: &mut Reservation,
    ) -> Result<(), StoreError> {
        let _publishing = self.publishing()?;
        let _one_at_a_time = (header.kind == RecordKind::Entry).then(|| self.changing(&header.index_key()));
        let stays = header.kind == RecordKind::Sharing;
        let slot = self.append(header, payload, reservation, |at| at.plain(Encoding::Identity))?;
        self.doubtful.forget(&slot.key);
        self.index
            .change(&slot.key, |present| (present.is_none() || !stays).then_some(slot))
            .map_err(failed("writing the index"))?;
        Ok(())
    }

    /// Held from appending a record about an entry until the index knows it: of two records the later one in the log is the
    /// one that the index has, as a recovery finds it.
    pub(crate) fn changing(&self, entry: &IndexKey) -> MutexGuard<'_, ()> {
        lock(&self.changing_entries[entry.shard()])
    }

    fn append(
        &self,
        header: RecordHeader,
        payload: &[u8],
        reservation: &mut Reservation,
        place: impl Fn(Appended) -> Place,
    ) -> Result<Slot, StoreError> {
        let now = self.clock.now();
        let (key, owner, size_bytes) = (header.index_key(), header.owner, header.slot_size(payload));
        let bytes = header.head_bytes() as u64 + payload.len() as u64;
        let appended = self.segments.append(vec![NewRecord { header, payload: Payload::Whole(payload) }], now);
        let appended = appended.map_err(failed("appending to a segment"))?;
        reservation.use_bytes(bytes);
        let nothing = || failed("appending to a segment")(io::Error::other("nothing was appended"));
        let at = appended.first().ok_or_else(nothing)?;
        Ok(Slot { key, place: place(*at), size_bytes, touched: now, owner })
    }

    /// Points the index to a blob that was just written, unless the present slot has its bytes, or is another owner's and
    /// not known to have lost them: that one is returned.
    pub(crate) fn point(&self, slot: Slot, vacancy: Vacancy) -> Result<Option<Slot>, StoreError> {
        let kept = self.index.put_blob(&slot, |present| {
            let is_it = Some(present.place) == vacancy.place;
            if !self.segments.reaches(&present.place) || is_it && vacancy.has_ended {
                Fate::Ended
            } else if is_it && vacancy.is_doubtful {
                // A file that it leaves goes with the next start, when what took its place is durable.
                self.doubtful.forget(&slot.key);
                Fate::Moves
            } else if !present.place.has_dependencies() || !is_it && present.owner != slot.owner {
                Fate::Stays
            } else {
                Fate::Moves
            }
        });
        kept.map_err(failed("writing the index"))
    }

    /// Lets a further owner see a blob that is here.
    pub(crate) fn grant(
        &self,
        owner: OwnerId,
        digest: &Digest,
        reservation: &mut Reservation,
    ) -> Result<(), StoreError> {
        if self.is_granted(owner, digest)? { Ok(()) } else { self.grant_anew(owner, digest, reservation) }
    }

    /// As [`Self::grant`], with what the index does not find taken for absent.
    pub(crate) fn grant_anew(
        &self,
        owner: OwnerId,
        digest: &Digest,
        reservation: &mut Reservation,
    ) -> Result<(), StoreError> {
        let number = self.sharing_number(owner, digest, reservation)?;
        let header = RecordHeader::blob(RecordKind::Grant, owner, *digest, Encoding::Identity);
        self.publish(header, &number.to_le_bytes(), reservation)
    }

    /// The number that the grants of a blob carry. Sharing begins now if it has not yet.
    fn sharing_number(
        &self,
        owner: OwnerId,
        digest: &Digest,
        reservation: &mut Reservation,
    ) -> Result<u64, StoreError> {
        let key = IndexKey::sharing(digest);
        // One at a time: of two that began at once one would be in the log alone, and count after a power cut.
        let _one_at_a_time = lock(&self.beginning_to_share);
        if let Lookup::Found(slot) = self.index.peek(&key).map_err(failed("looking into the index"))? {
            return Ok(slot.size_bytes);
        }
        let number = SharingNumber::at(self.segments.end().2);
        let header = RecordHeader::blob(RecordKind::Sharing, owner, *digest, Encoding::Identity);
        self.publish(header, &number.0.to_le_bytes(), reservation)?;
        match self.index.peek(&key).map_err(failed("looking into the index"))? {
            // A rebuild found the one that the index had lost.
            Lookup::Found(slot) => Ok(slot.size_bytes),
            _ => Ok(number.0),
        }
    }

    /// Takes a slot out of the index since its bytes are damaged, unless it changed since it was read.
    pub(crate) fn quarantine(&self, slot: &Slot, what: &str) {
        match self.index.remove_if(&slot.key, |present| present.place == slot.place) {
            Ok(Some(_)) => {
                self.doubtful.forget(&slot.key);
                self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
                tracing::error!(what, place = ?slot.place, "damaged bytes were found and taken out of the store");
                if let Place::Large { file, .. } = slot.place
                    && let Err(error) = self.quarantine_large(&[file])
                {
                    tracing::warn!(%error, "the damaged file could not be moved to quarantine");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "damaged bytes could not be taken out of the index"),
        }
    }

    /// As [`Self::read_failed_at`], of the record, or of header and table of a large file.
    pub(crate) fn read_failed(&self, fault: ReadFault, slot: &Slot, digest: &Digest) -> StoreError {
        self.read_failed_at(Extract::Head, fault, slot, digest)
    }

    /// Turns a fault met while reading `slot` into an error, after taking damaged bytes out and remembering what the disk
    /// fails to read.
    pub(crate) fn read_failed_at(
        &self,
        extract: Extract,
        fault: ReadFault,
        slot: &Slot,
        digest: &Digest,
    ) -> StoreError {
        match fault {
            ReadFault::Gone => StoreError::NotFound(*digest),
            ReadFault::Damaged => {
                self.quarantine(slot, &digest.to_string());
                StoreError::NotFound(*digest)
            }
            ReadFault::Io(error) if is_of_medium(&error) && self.doubtful.add(slot, extract) > 1 => {
                tracing::error!(%digest, place = ?slot.place, %error, "the disk fails again to read this; it counts as missing");
                StoreError::NotFound(*digest)
            }
            ReadFault::Io(error) => failed("reading a blob")(error),
        }
    }

    /// Remembers that a large file must be synced.
    pub(crate) fn must_sync(&self, number: u64, file: Arc<dyn StoreFile>) {
        lock(&self.unsynced_large).push((number, file));
    }
}

/// Says what the store was doing; a full disk is told apart from one that fails.
pub(crate) fn failed(doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace {
            needed_bytes: 0,
            short_bytes: 0,
            reason: "the file system is full; reads go on, and writes do once space is freed".to_owned(),
        },
        _ => StoreError::Io { doing, source },
    }
}

#[cfg(test)]
mod tests {
    use super::SharingNumber;

    #[test]
    fn a_sharing_comes_after_another_beyond_the_end_of_the_numbers_too() {
        let (last, first) = (SharingNumber::at(u64::MAX), SharingNumber::at(1 << 48));
        assert!(first.is_after(last) && !last.is_after(first) && !first.is_after(first));
        assert!(SharingNumber::at(7).is_after(SharingNumber::at(6)));
    }
}

//! Proving that the store holds what it says, and mending what can be mended, while it serves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gf_digest::{Digest, Hasher};

use super::core::Core;
use super::doubtful::{Extract, is_of_medium};
use super::index::{Lookup, Place, SHARDS, Slot};
use super::read::{MAX_DEPTH, Purpose};
use super::recovery::RecoveryReport;
use super::scrub::Pace;
use super::segments::ReadFault;
use super::zstandard;
use crate::{Encoding, StoreError};

/// Whether a verification also mends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Only damaged blobs are taken out, as every read does too.
    No,
    /// Also takes out what the disk fails to read, builds again what the index lost, and removes files that belong to nothing.
    Yes,
}

/// What a verification proved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blobs whose bytes were read and hashed to their digest.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries whose bytes matched their check.
    pub entries: u64,
    /// Blobs and entries that were damaged and are taken out, by name; at most [`VerifyReport::MAX_NAMES`].
    pub lost: Vec<String>,
    /// How many were lost, named or not.
    pub lost_count: u64,
    /// Blobs and entries that could not be read, and may be later: they stay. Repair takes out what the disk fails to read
    /// again and again, and counts it as lost.
    pub unreadable: u64,
    /// What repair found in the records, if the index had lost something.
    pub rebuilt: Option<RecoveryReport>,
    /// Files that belonged to nothing and were removed, or moved to quarantine if they were whole.
    pub orphans_removed: u64,
    /// Whether the index was whole before repair.
    pub index_was_whole: bool,
}

impl VerifyReport {
    /// How many lost blobs a report names.
    pub const MAX_NAMES: usize = 1000;

    /// Whether nothing was wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.lost_count == 0 && self.unreadable == 0 && self.index_was_whole
    }
}

/// Blocks of a large file that are looked at in one turn of the scrub.
const BLOCKS_A_TURN: u64 = 256;

/// How often the disk is asked again for what it failed to read, before that is taken out.
pub(crate) const MORE_TRIES: u32 = 3;

/// How long to wait in between: a bus that is being reset fails for a moment.
pub(crate) const TRY_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What one verification asks for again. A disk that fails to read more has failed as a whole.
const MAX_UNREAD: usize = 64 << 10;

/// How a look at a slot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It was looked at.
    Done,
    /// It goes on where it stopped.
    Paused,
    /// The disk failed to read just this. It is not counted.
    Unread,
    /// The store was closed meanwhile.
    Closed,
}

/// What was found of a blob.
enum Looked {
    Sound,
    Damaged,
    /// Not where the slot says.
    Gone,
    Unreadable,
    /// As unreadable, and the disk says so itself of just these bytes.
    Unread,
    Paused,
    Closed,
}

impl From<ReadFault> for Looked {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Gone => Self::Gone,
            ReadFault::Damaged => Self::Damaged,
            ReadFault::Io(error) if is_shutdown(&error) => Self::Closed,
            ReadFault::Io(error) if is_of_medium(&error) => Self::Unread,
            ReadFault::Io(_) => Self::Unreadable,
        }
    }
}

/// Whether a read failed because there are no threads any more to wait for it: that says nothing about the disk.
fn is_shutdown(error: &io::Error) -> bool {
    let joined = error.get_ref().and_then(|error| error.downcast_ref::<tokio::task::JoinError>());
    joined.is_some_and(tokio::task::JoinError::is_cancelled)
}

impl Core {
    pub(crate) async fn verify(self: &Arc<Self>, repair: Repair) -> io::Result<VerifyReport> {
        let mut report = VerifyReport { index_was_whole: self.index.load_all()?, ..VerifyReport::default() };
        if repair == Repair::Yes && !report.index_was_whole {
            report.rebuilt = Some(self.rebuild().await?);
            self.is_index_whole.store(true, Ordering::Release);
        }
        let mut unread = Vec::new();
        for shard in 0..SHARDS {
            let mut slots = Vec::new();
            self.index.visit_shard(shard, |slot| slots.push(*slot))?;
            self.verify_slots(&slots, &mut report, &mut unread).await?;
        }
        if repair == Repair::Yes {
            self.mend_unread(unread, &mut report).await?;
        } else {
            report.unreadable += unread.len() as u64;
        }
        if report.unreadable > 0 {
            tracing::error!(unreadable = report.unreadable, "the disk failed to read parts of the store");
        }
        if repair == Repair::Yes {
            let removed = self.remove_orphans();
            // Some may be gone though not all are.
            self.recount()?;
            report.orphans_removed = removed?;
        }
        Ok(report)
    }

    /// Looks at each of these, and hands over those that the disk failed to read.
    async fn verify_slots(
        self: &Arc<Self>,
        slots: &[Slot],
        report: &mut VerifyReport,
        unread: &mut Vec<Slot>,
    ) -> io::Result<()> {
        for slot in slots {
            match self.verify_slot(*slot, &mut 0, report, &Pace::Full).await? {
                Turn::Done | Turn::Paused => {}
                Turn::Unread if unread.len() < MAX_UNREAD => unread.push(*slot),
                Turn::Unread => report.unreadable += 1,
                Turn::Closed => return Err(io::Error::other("the store is shutting down")),
            }
        }
        Ok(())
    }

    /// Asks again for what the disk failed to read, and takes out what it fails to read each time.
    async fn mend_unread(self: &Arc<Self>, mut unread: Vec<Slot>, report: &mut VerifyReport) -> io::Result<()> {
        for _ in 0..MORE_TRIES {
            if unread.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
            let mut still = Vec::new();
            self.verify_slots(&unread, report, &mut still).await?;
            unread = still;
        }
        unread.iter().try_for_each(|slot| self.lose_unread(slot, report))
    }

    /// Takes out what the disk fails to read.
    pub(crate) fn lose_unread(&self, slot: &Slot, report: &mut VerifyReport) -> io::Result<()> {
        match slot.key.digest(slot.size_bytes) {
            None => self.lose_entry(slot, report),
            Some(digest) => {
                self.quarantine(slot, &format!("{digest}, which the disk fails to read"));
                lose(report, digest.to_string());
                Ok(())
            }
        }
    }

    /// Looks at one blob, entry or grant. At the pace of the scrub a large file is looked at in several turns: `block` is
    /// where the next one goes on.
    pub(crate) async fn verify_slot(
        self: &Arc<Self>,
        slot: Slot,
        block: &mut u64,
        report: &mut VerifyReport,
        pace: &Pace<'_>,
    ) -> io::Result<Turn> {
        if self.closed.load(Ordering::Relaxed) {
            return Ok(Turn::Closed);
        }
        let Some(digest) = slot.key.digest(slot.size_bytes) else {
            let turn = self.verify_entry(slot, report).await?;
            if turn != Turn::Done {
                return Ok(turn);
            }
            let bytes = slot.place.record().map_or(0, |(_, _, bytes)| bytes);
            return Ok(if pace.wait(u64::from(bytes)) { Turn::Done } else { Turn::Closed });
        };
        let looked = match (slot.place, pace) {
            (Place::Large { file, .. }, Pace::Scrub { .. }) => self.look_through(&slot, file, block, pace).await,
            (Place::Large { file, .. }, Pace::Full) => self.hash_file(&slot, file, digest).await,
            (Place::Segment { encoding, .. }, _) => self.hash_record(&slot, encoding, digest, pace).await,
            (Place::View { .. } | Place::Recipe { .. }, _) => self.hash_parts(slot, digest, pace).await,
        };
        match looked {
            Looked::Sound => {
                self.doubtful.forget(&slot.key);
                report.blobs += 1;
                report.bytes += digest.size_bytes();
            }
            Looked::Damaged => {
                self.quarantine(&slot, &digest.to_string());
                lose(report, digest.to_string());
            }
            Looked::Unread => {
                self.doubtful.add(&slot, Extract::Head);
                return Ok(Turn::Unread);
            }
            Looked::Gone => {
                // Moved, evicted or replaced since the slot was copied: not lost. Still there, it has no bytes. But a view or
                // a recipe goes with its parts, and was promised no longer than they.
                let gone = self.index.remove_if(&slot.key, |present| present.place == slot.place)?;
                if gone.is_some() && !slot.place.has_dependencies() {
                    lose(report, digest.to_string());
                }
            }
            Looked::Unreadable => report.unreadable += 1,
            Looked::Paused => return Ok(Turn::Paused),
            Looked::Closed => return Ok(Turn::Closed),
        }
        Ok(Turn::Done)
    }

    async fn verify_entry(&self, slot: Slot, report: &mut VerifyReport) -> io::Result<Turn> {
        match self.segments.read(&slot.key, &slot.place).await {
            Ok(_) => {
                self.doubtful.forget(&slot.key);
                report.entries += 1;
            }
            Err(ReadFault::Io(error)) if is_of_medium(&error) => {
                self.doubtful.add(&slot, Extract::Head);
                return Ok(Turn::Unread);
            }
            Err(ReadFault::Io(_)) => report.unreadable += 1,
            Err(ReadFault::Gone | ReadFault::Damaged) => self.lose_entry(&slot, report)?,
        }
        Ok(Turn::Done)
    }

    fn lose_entry(&self, slot: &Slot, report: &mut VerifyReport) -> io::Result<()> {
        let gone = self.index.remove_if(&slot.key, |present| present.place == slot.place)?;
        if gone.is_some() {
            self.doubtful.forget(&slot.key);
            if self.promise_again(slot)? {
                report.entries += 1;
            } else {
                lose(report, format!("entry in segment {:?}", slot.place.segment()));
            }
        }
        Ok(())
    }

    /// Hashes a large file, but not by way of the blocks in memory: they say nothing about the disk.
    async fn hash_file(&self, slot: &Slot, number: u64, digest: Digest) -> Looked {
        let hashed = async {
            let file = self.large.open_file(number, Some(&slot.key)).await?;
            let mut hasher = Hasher::new(digest.function());
            for block in 0..file.blocks() {
                if self.closed.load(Ordering::Relaxed) {
                    return Ok::<_, ReadFault>(Looked::Closed);
                }
                hasher.update(&file.block_on_disk(block).await?);
            }
            Ok(if hasher.finish() == digest { Looked::Sound } else { Looked::Damaged })
        };
        hashed.await.unwrap_or_else(Looked::from)
    }

    /// Compares some blocks of a large file with their checks. Those are of the bytes that were hashed when they came, and
    /// unlike a hash they can be compared in turns.
    async fn look_through(&self, slot: &Slot, number: u64, block: &mut u64, pace: &Pace<'_>) -> Looked {
        let looked = async {
            // Open for one turn only, and no longer than it is in the index: eviction has counted its space as free.
            let file = self.large.open_file(number, Some(&slot.key)).await?;
            let turn_ends = block.saturating_add(BLOCKS_A_TURN);
            while *block < file.blocks() as u64 {
                let is_here = matches!(
                    self.index.peek(&slot.key), Ok(Lookup::Found(present)) if present.place == slot.place
                );
                if !is_here {
                    return Ok::<_, ReadFault>(Looked::Gone);
                }
                if *block == turn_ends {
                    return Ok(Looked::Paused);
                }
                let bytes = file.block_at_rest(usize::try_from(*block).unwrap_or(usize::MAX)).await?.0.len();
                *block += 1;
                if !pace.wait(bytes as u64) || self.closed.load(Ordering::Relaxed) {
                    return Ok(Looked::Closed);
                }
            }
            Ok(Looked::Sound)
        };
        looked.await.unwrap_or_else(Looked::from)
    }

    /// Hashes a blob that is in a record.
    async fn hash_record(&self, slot: &Slot, encoding: Encoding, digest: Digest, pace: &Pace<'_>) -> Looked {
        let payload = match self.segments.read(&slot.key, &slot.place).await {
            Ok((_, payload)) => payload,
            Err(fault) => return fault.into(),
        };
        if !pace.wait(payload.len() as u64) {
            return Looked::Closed;
        }
        let bytes = match encoding {
            Encoding::Identity => Ok(payload),
            Encoding::Zstd => zstandard::decompress(&payload, digest.size_bytes()).map(Bytes::from),
        };
        let is_it = bytes.is_ok_and(|bytes| Digest::of(digest.function(), &bytes) == digest);
        if is_it { Looked::Sound } else { Looked::Damaged }
    }

    /// Hashes a blob that is made of others.
    async fn hash_parts(self: &Arc<Self>, slot: Slot, digest: Digest, pace: &Pace<'_>) -> Looked {
        // What is wrong with its parts is theirs.
        if let Err(fault) = self.segments.read(&slot.key, &slot.place).await {
            return fault.into();
        }
        let hashed = async {
            let mut hasher = Hasher::new(digest.function());
            let size = digest.size_bytes();
            let mut pieces = self.open_plain(slot, digest, 0, size, MAX_DEPTH, Purpose::Prove).await?;
            while let Some(piece) = pieces.next().await? {
                hasher.update(&piece);
                if !pace.wait(piece.len() as u64) || self.closed.load(Ordering::Relaxed) {
                    return Err(StoreError::Closed);
                }
            }
            Ok(hasher.finish() == digest)
        };
        match hashed.await {
            Ok(true) => Looked::Sound,
            Ok(false) => Looked::Damaged,
            // Its parts are here, though the disk failed to read one.
            Err(StoreError::NotFound(_)) if self.is_doubtful(&slot, &digest).await => Looked::Unreadable,
            Err(StoreError::NotFound(_)) => Looked::Gone,
            Err(StoreError::Closed) => Looked::Closed,
            Err(StoreError::Io { source, .. }) if is_shutdown(&source) => Looked::Closed,
            Err(_) => Looked::Unreadable,
        }
    }

    /// The number of the first large file that this run could write.
    pub(crate) fn first_of_this_run(&self) -> u64 {
        u64::from(self.epoch) << 32
    }

    /// Removes large files of earlier runs that no slot points to, and moves those to quarantine that might be missed. None
    /// while anything is suspect: the original of a copy that is not durable looks the same.
    pub(crate) fn remove_orphans(&self) -> io::Result<u64> {
        if self.has_suspects() {
            return Ok(0);
        }
        let mut known = std::collections::HashSet::new();
        for shard in 0..SHARDS {
            self.index.visit_shard(shard, |slot| {
                if let Place::Large { file, .. } = slot.place {
                    known.insert(file);
                }
            })?;
        }
        let first_of_this_run = self.first_of_this_run();
        let mut removed = 0;
        let mut set_aside = Vec::new();
        for shard in 0..=u8::MAX {
            for (number, _) in self.large.list(shard)? {
                if number >= first_of_this_run || known.contains(&number) {
                    continue;
                }
                match self.fate_of_orphan(number)? {
                    Orphan::Goes => {
                        self.large.remove(number)?;
                        removed += 1;
                    }
                    Orphan::IsSetAside => set_aside.push(number),
                    Orphan::Stays => {}
                }
            }
        }
        if !set_aside.is_empty() {
            self.quarantine_large(&set_aside)?;
        }
        Ok(removed + set_aside.len() as u64)
    }

    /// What is to become of a large file that no slot points to. One that is whole, of a blob that the index does not have,
    /// was evicted by a process that was killed before it could remove it, or never acknowledged. Or its slot was lost in a
    /// way that nobody noticed, and it is all that is left.
    fn fate_of_orphan(&self, number: u64) -> io::Result<Orphan> {
        let header = match self.large.header(number) {
            Ok(header) => header,
            Err(ReadFault::Gone | ReadFault::Damaged) => return Ok(Orphan::Goes),
            Err(ReadFault::Io(error)) if is_of_medium(&error) => return Ok(Orphan::IsSetAside),
            Err(ReadFault::Io(_)) => return Ok(Orphan::Stays),
        };
        Ok(match self.index.peek(&header.index_key())? {
            Lookup::Found(_) => Orphan::Goes,
            Lookup::Absent => Orphan::IsSetAside,
            Lookup::Unknown => Orphan::Stays,
        })
    }
}

/// What becomes of a large file that no slot points to.
enum Orphan {
    /// It is removed: it has no use.
    Goes,
    /// It is kept in quarantine, as long as there is room.
    IsSetAside,
    /// It is left: what it is cannot be known now.
    Stays,
}

fn lose(report: &mut VerifyReport, name: String) {
    report.lost_count += 1;
    if report.lost.len() < VerifyReport::MAX_NAMES {
        report.lost.push(name);
    }
}

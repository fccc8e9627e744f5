//! Proving that the store holds what it says, and mending what can be mended, while it serves.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gf_digest::{Digest, Hasher};

use super::core::Core;
use super::index::{Place, SHARDS, Slot};
use super::read::{MAX_DEPTH, Purpose};
use super::recovery::RecoveryReport;
use super::scrub::Pace;
use super::segments::ReadFault;
use crate::StoreError;

/// Whether a verification also mends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Only damaged blobs are taken out, as every read does too.
    No,
    /// Also builds again what the index lost, and removes files that belong to nothing.
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
    /// Blobs and entries that the disk failed to read; they stay, and may be readable later.
    pub unreadable: u64,
    /// What repair found in the records, if the index had lost something.
    pub rebuilt: Option<RecoveryReport>,
    /// Files that belonged to nothing and were removed.
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

impl Core {
    pub(crate) async fn verify(self: &Arc<Self>, repair: Repair) -> io::Result<VerifyReport> {
        let mut report = VerifyReport { index_was_whole: self.index.load_all()?, ..VerifyReport::default() };
        if repair == Repair::Yes && !report.index_was_whole {
            report.rebuilt = Some(self.rebuild().await?);
        }
        for shard in 0..SHARDS {
            let mut slots = Vec::new();
            self.index.visit_shard(shard, |slot| slots.push(*slot))?;
            for slot in slots {
                if !self.verify_slot(slot, &mut report, &Pace::Full).await? {
                    return Err(io::Error::other("the store is shutting down"));
                }
            }
        }
        if report.unreadable > 0 {
            tracing::error!(unreadable = report.unreadable, "the disk failed to read parts of the store");
        }
        if repair == Repair::Yes {
            report.orphans_removed = self.remove_orphans()?;
            self.recount()?;
        }
        Ok(report)
    }

    /// Looks at one blob, entry or grant. Whether it was looked at: not if the store is closed meanwhile.
    pub(crate) async fn verify_slot(
        self: &Arc<Self>,
        slot: Slot,
        report: &mut VerifyReport,
        pace: &Pace<'_>,
    ) -> io::Result<bool> {
        if self.closed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(digest) = slot.key.digest(slot.size_bytes) else {
            self.verify_entry(slot, report).await?;
            let bytes = slot.place.record().map_or(0, |(_, _, bytes)| bytes);
            return Ok(pace.wait(u64::from(bytes)));
        };
        let quarantined = self.counters.quarantined.load(Ordering::Relaxed);
        match self.hash(slot, digest, pace).await {
            Ok(actual) if actual == digest => {
                report.blobs += 1;
                report.bytes += digest.size_bytes();
            }
            Ok(_) => {
                self.quarantine(&slot, &digest.to_string());
                lose(report, digest.to_string());
            }
            // A view or a recipe whose parts were evicted: it goes with them, and was promised no longer than they.
            Err(StoreError::NotFound(_)) if slot.place.has_dependencies() => {
                self.index.remove_if(&slot.key, |present| present.place == slot.place)?;
            }
            // Moved, evicted or replaced since the slot was copied: not lost. Still there, or taken out by the reading
            // just now: it has no bytes.
            Err(StoreError::NotFound(_)) => {
                let gone = self.index.remove_if(&slot.key, |present| present.place == slot.place)?;
                if gone.is_some() || self.counters.quarantined.load(Ordering::Relaxed) > quarantined {
                    lose(report, digest.to_string());
                }
            }
            Err(StoreError::Closed) => return Ok(false),
            Err(_) => report.unreadable += 1,
        }
        Ok(true)
    }

    async fn verify_entry(&self, slot: Slot, report: &mut VerifyReport) -> io::Result<()> {
        match self.segments.read(&slot.key, &slot.place).await {
            Ok(_) => report.entries += 1,
            Err(ReadFault::Io(_)) => report.unreadable += 1,
            Err(ReadFault::Gone | ReadFault::Damaged) => {
                let gone = self.index.remove_if(&slot.key, |present| present.place == slot.place)?;
                if gone.is_some() && self.promise_again(&slot)? {
                    report.entries += 1;
                } else if gone.is_some() {
                    lose(report, format!("entry in segment {:?}", slot.place.segment()));
                }
            }
        }
        Ok(())
    }

    async fn hash(self: &Arc<Self>, slot: Slot, digest: Digest, pace: &Pace<'_>) -> Result<Digest, StoreError> {
        let mut hasher = Hasher::new(digest.function());
        let mut take = |bytes: &[u8]| {
            hasher.update(bytes);
            let goes_on = pace.wait(bytes.len() as u64) && !self.closed.load(Ordering::Relaxed);
            if goes_on { Ok(()) } else { Err(StoreError::Closed) }
        };
        // Not by way of the blocks in memory: they say nothing about the disk.
        if let Place::Large { file, .. } = slot.place {
            let failed = |fault| self.read_failed(fault, &slot, &digest);
            let file = self.large.open_file(file, Some(&slot.key)).await.map_err(failed)?;
            for block in 0..file.blocks() {
                take(&file.block_on_disk(block).await.map_err(failed)?)?;
            }
            return Ok(hasher.finish());
        }
        let mut pieces = self.open_plain(slot, digest, 0, digest.size_bytes(), MAX_DEPTH, Purpose::Prove).await?;
        while let Some(piece) = pieces.next().await? {
            take(&piece)?;
        }
        Ok(hasher.finish())
    }

    /// The number of the first large file that this run could write.
    pub(crate) fn first_of_this_run(&self) -> u64 {
        u64::from(self.epoch) << 32
    }

    /// Removes large files of earlier runs that no slot points to.
    pub(crate) fn remove_orphans(&self) -> io::Result<u64> {
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
        for shard in 0..=u8::MAX {
            for (number, _) in self.large.list(shard)? {
                if number < first_of_this_run && !known.contains(&number) {
                    self.large.remove(number)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

fn lose(report: &mut VerifyReport, name: String) {
    report.lost_count += 1;
    if report.lost.len() < VerifyReport::MAX_NAMES {
        report.lost.push(name);
    }
}

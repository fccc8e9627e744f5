//! What the store says it uses, and what lies on the disk: kept equal while files go, and counted anew when in doubt.

use std::io;
use std::time::Duration;

use super::core::Core;
use super::segments::{lock, write_lock};

/// How often counting is begun anew while files go.
const RECOUNTS: u32 = 5;

/// How long to wait for files that are going.
const RECOUNT_AFTER: Duration = Duration::from_millis(20);

/// What is in quarantine may take this share of the capacity, which it counts against.
const QUARANTINE_SHARE: u64 = 32;

impl Core {
    /// Removes a large file and gives back what it took.
    pub(crate) fn remove_large(&self, number: u64) -> io::Result<()> {
        let _removing = self.capacity.removing();
        self.capacity.sub_used(self.large.remove(number)?);
        Ok(())
    }

    /// Moves large files to quarantine, where they count as before, and gives back what had to go from there.
    pub(crate) fn quarantine_large(&self, numbers: &[u64]) -> io::Result<()> {
        let _removing = self.capacity.removing();
        let limit_bytes = self.capacity.limit_bytes() / QUARANTINE_SHARE;
        self.capacity.sub_used(self.large.quarantine(numbers, limit_bytes)?);
        Ok(())
    }

    /// Counts exactly what is used: segments by their sizes, large files and those in quarantine by theirs.
    pub(crate) fn recount(&self) -> io::Result<()> {
        // Alone: two counts at once would both correct the same error, and what is being compacted counts twice.
        let _one_at_a_time = lock(&self.evicting);
        for _ in 0..RECOUNTS {
            let Some(removals) = self.capacity.removals() else {
                std::thread::sleep(RECOUNT_AFTER);
                continue;
            };
            let (before, segments, first_uncounted) = {
                // Nothing is between being written and being counted. What is written from now on its writer counts.
                let _alone = write_lock(&self.publish);
                let segments: u64 = self.segments.sizes().values().sum();
                (self.capacity.used_bytes(), segments, self.large.next())
            };
            let mut counted = segments + self.large.quarantined()?.iter().map(|(_, bytes)| bytes).sum::<u64>();
            for shard in 0..=u8::MAX {
                let files = self.large.list(shard)?.into_iter();
                counted += files.filter(|(number, _)| *number < first_uncounted).map(|(_, bytes)| bytes).sum::<u64>();
            }
            // A file that went meanwhile may have been counted or not.
            if self.capacity.removals() == Some(removals) {
                if counted > before {
                    self.capacity.add_used(counted - before);
                } else {
                    self.capacity.sub_used(before - counted);
                }
                return Ok(());
            }
        }
        tracing::warn!("too much is going on to count what the store holds; the next verification does");
        Ok(())
    }
}

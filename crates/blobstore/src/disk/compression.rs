//! Compressing what rests. Small blobs are stored as they come, because compressing them would take longer than writing
//! them; what is compressible is compressed once nobody asks the store for anything.
//!
//! That is what compaction does to what it copies, so a segment is compressed by rewriting it like any other. Whether it
//! pays is judged by samples: nothing has to be remembered over restarts, and what was compressed already, or cannot be, is
//! told by them too.
//!
//! What always holds: a segment is rewritten only if that makes it smaller by a good part, so what is copied along again and
//! again is bounded by what is saved.
//!
//! Deliberately absent: blobs with files of their own.

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::core::Core;
use super::record::RecordKind;
use super::scan::{self, Scanned, Unreadable};
use super::zstandard;
use crate::Encoding;

/// Places in a segment that samples are taken from ...
const SAMPLES: u64 = 8;

/// ... and how much from each.
const SAMPLE_BYTES: u64 = 256 << 10;

/// A segment is rewritten when at least one byte in so many of its samples goes.
const WORTHWHILE_SAVING: u64 = 4;

/// Less is not worth a segment of its own.
const LEAST_SAVING_BYTES: u64 = 64 << 10;

/// How much of the disk stays free whatever could be compressed.
const LEFT_FREE_BYTES: u64 = 1 << 30;

/// A turn ends with the first segment after this time.
const TURN: Duration = Duration::from_millis(250);

/// Turns take no more than one part in so many of the time of one core.
const SHARE: u32 = 4;

/// Where compressing has come to.
pub(crate) struct Compression {
    /// Segments that were looked at, of those that are there.
    seen: BTreeSet<u32>,
    /// Where the active segment ended when it was last looked for.
    end: (u32, u64),
    /// What of it was judged.
    judged: (u32, u64),
    due: Instant,
}

impl Compression {
    pub(crate) fn new() -> Self {
        Self { seen: BTreeSet::new(), end: (0, 0), judged: (0, 0), due: Instant::now() }
    }

    /// Looks at segments for a while, if it is time to and the store is quiet, and compresses those of which that pays.
    pub(crate) fn go_on(&mut self, core: &Core) {
        if !self.is_quiet(core) || Instant::now() < self.due {
            return;
        }
        let began = processor_time();
        let spent = || processor_time().saturating_sub(began);
        let settled = core.settled_segments();
        self.seen.retain(|number| settled.contains_key(number));
        let mut unseen =
            settled.into_keys().filter(|number| !self.seen.contains(number)).collect::<Vec<_>>().into_iter();
        if unseen.len() == 0 {
            self.look_at_active(core);
        }
        while spent() < TURN
            && let Some(number) = unseen.next()
        {
            if core.would_shrink(number) && !core.compress(number) {
                break;
            }
            self.seen.insert(number);
        }
        self.due = Instant::now() + spent() * (SHARE - 1);
    }

    /// Whether nobody reads, and nothing was written since the last look.
    fn is_quiet(&mut self, core: &Core) -> bool {
        let (number, bytes, _) = core.segments.end();
        let is_unchanged = std::mem::replace(&mut self.end, (number, bytes)) == (number, bytes);
        is_unchanged && core.is_quiet()
    }

    /// Seals the active segment if compressing it pays. The next look finds it.
    fn look_at_active(&mut self, core: &Core) {
        if self.judged != self.end {
            self.judged = self.end;
            if core.would_shrink(self.end.0) {
                core.segments.seal_active();
            }
        }
    }
}

impl Core {
    /// Whether compressing a segment saves enough; not, if it cannot be read.
    fn would_shrink(&self, number: u32) -> bool {
        let mut sampled = Sampled::default();
        let looked = (0..SAMPLES).try_for_each(|sample| {
            let from = self.segments.size_of(number) / SAMPLES * sample;
            let until = sampled.bytes + SAMPLE_BYTES;
            scan::some_records(&self.segments, number, from.max(sampled.end), |record| {
                sampled.add(&record)?;
                Ok(if sampled.bytes < until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
        });
        if let Err(error) = looked {
            tracing::warn!(segment = number, %error, "a segment could not be looked at");
            return false;
        }
        sampled.saved >= LEAST_SAVING_BYTES && sampled.saved * WORTHWHILE_SAVING >= sampled.bytes
    }

    /// Rewrites a segment, if there is room for both. Whether there was.
    fn compress(&self, number: u32) -> bool {
        // A closed store has nobody who would miss it.
        let Ok(_one_at_a_time) = self.evicting() else { return false };
        let bytes = self.segments.size_of(number);
        let free = self.layer.free_bytes(&self.config.data_dir).unwrap_or(0);
        let (Ok(mut reservation), true) = (self.capacity.reserve(bytes), free >= bytes + LEFT_FREE_BYTES) else {
            return false;
        };
        if let Err(error) = self.rewrite(number, Unreadable::Fails, &mut reservation) {
            tracing::warn!(segment = number, %error, "a segment could not be compressed");
        }
        true
    }

    /// Whether nobody has moved bytes for a while.
    pub(crate) fn is_quiet(&self) -> bool {
        /// Seconds.
        const QUIET_S: u32 = 2;
        self.clock.now().saturating_sub(self.last_busy.load(Ordering::Relaxed)) >= QUIET_S
    }
}

/// What is known of a segment by samples.
#[derive(Default)]
struct Sampled {
    bytes: u64,
    saved: u64,
    /// Where the last record of them ends.
    end: u64,
}

impl Sampled {
    fn add(&mut self, record: &Scanned) -> io::Result<()> {
        self.bytes += record.header.record_bytes();
        self.end = u64::from(record.offset) + record.header.record_bytes();
        let is_plain = record.header.kind == RecordKind::Blob && record.header.encoding == Encoding::Identity;
        if let Some(payload) = record.payload.as_ref().filter(|_| is_plain)
            && let Some(compressed) = zstandard::compress_if_worthwhile(payload)?
        {
            self.saved += (payload.len() - compressed.len()) as u64;
        }
        Ok(())
    }
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

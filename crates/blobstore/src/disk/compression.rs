//! Compressing what rests. Small blobs are stored as they come, because compressing them would take longer than writing
//! them; what is compressible is compressed later, by the thread for which nobody waits.
//!
//! That is what compaction does to what it copies, so a segment is compressed by rewriting it like any other. Whether it
//! pays is judged by a sample of its beginning: nothing has to be remembered over restarts, and what was compressed
//! already, or cannot be, is told from it too.
//!
//! Deliberately absent: blobs with files of their own, and segments whose beginning is not like the rest.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::core::Core;
use super::record::RecordKind;
use super::scan::{self, Unreadable};
use super::zstandard;
use crate::Encoding;

/// How much of a segment is tried.
const SAMPLE_BYTES: u64 = 2 << 20;

/// A segment is rewritten when at least one byte in so many of its sample goes.
const WORTHWHILE_SAVING: u64 = 8;

/// Less is not worth a segment of its own.
const LEAST_SAVING_BYTES: u64 = 64 << 10;

/// A turn ends with the first segment after this time.
const TURN: Duration = Duration::from_millis(250);

/// Turns take no more than one part in so many of the time of one core.
const SHARE: u32 = 4;

/// Where compressing has come to.
pub(crate) struct Compression {
    /// Segments that were looked at, of those that are there.
    seen: BTreeSet<u32>,
    /// How far the active segment was written when it was last looked at.
    active_bytes: (u32, u64),
    /// What of it was judged.
    judged: (u32, u64),
    due: Instant,
}

impl Compression {
    pub(crate) fn new() -> Self {
        Self { seen: BTreeSet::new(), active_bytes: (0, 0), judged: (0, 0), due: Instant::now() }
    }

    /// Looks at segments for a while, if it is time to, and compresses those of which that pays.
    pub(crate) fn go_on(&mut self, core: &Core) {
        if Instant::now() < self.due {
            return;
        }
        let began = processor_time();
        let spent = || processor_time().saturating_sub(began);
        let settled = core.settled_segments();
        self.seen.retain(|number| settled.contains_key(number));
        let unseen: Vec<u32> = settled.into_keys().filter(|number| !self.seen.contains(number)).collect();
        if unseen.is_empty() {
            self.look_at_active(core);
        }
        for number in unseen {
            // Whatever comes of it: what fails now would fail again.
            self.seen.insert(number);
            if core.would_shrink(number) {
                core.rewrite_for_space(number);
            }
            if spent() >= TURN {
                break;
            }
        }
        self.due = Instant::now() + spent() * (SHARE - 1);
    }

    /// Seals the active segment when nothing more comes and compressing it pays. The next look finds it.
    fn look_at_active(&mut self, core: &Core) {
        let (number, bytes, _) = core.segments.end();
        let is_at_rest = std::mem::replace(&mut self.active_bytes, (number, bytes)) == (number, bytes);
        if is_at_rest && self.judged != (number, bytes) {
            self.judged = (number, bytes);
            if core.would_shrink(number) {
                core.segments.seal_active();
            }
        }
    }
}

impl Core {
    /// Whether compressing the beginning of a segment saves enough; not, if it cannot be read.
    fn would_shrink(&self, number: u32) -> bool {
        let (mut bytes, mut saved) = (0, 0);
        let looked = scan::first_records(&self.segments, number, |record| {
            bytes += record.header.record_bytes();
            let is_plain = record.header.kind == RecordKind::Blob && record.header.encoding == Encoding::Identity;
            if let Some(payload) = record.payload.filter(|_| is_plain)
                && let Some(compressed) = zstandard::compress_if_smaller(&payload)?
            {
                saved += (payload.len() - compressed.len()) as u64;
            }
            Ok(if bytes < SAMPLE_BYTES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        if let Err(error) = looked {
            tracing::warn!(segment = number, %error, "a segment could not be looked at");
            return false;
        }
        saved >= LEAST_SAVING_BYTES && saved * WORTHWHILE_SAVING >= bytes
    }

    fn rewrite_for_space(&self, number: u32) {
        // A closed store has nobody who would miss it.
        let Ok(_one_at_a_time) = self.evicting() else { return };
        if let Err(error) = self.rewrite(number, Unreadable::Fails, &mut self.capacity.unreserved()) {
            tracing::warn!(segment = number, %error, "a segment could not be compressed");
        }
    }
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

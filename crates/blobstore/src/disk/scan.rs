//! Walking the records of a segment, from its first byte to where it stops making sense.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use thiserror::Error;

use super::file_layer::StoreFile;
use super::record::{HEADER_BYTES, Position, RecordHeader, RecordKey, payload_check};
use super::segments::Segments;

/// A record found by a walk.
pub(crate) struct Scanned {
    pub offset: u32,
    pub header: RecordHeader,
    /// `None` when the payload is damaged.
    pub payload: Option<Vec<u8>>,
}

/// Records larger than this are no records: the store writes none.
const MAX_PAYLOAD_BYTES: u64 = 1 << 30;

/// How far a walk looks for the next record after damaged bytes.
const STEP_BYTES: usize = 64 << 10;

/// As [`STEP_BYTES`] where the disk fails to read some of them: so much goes with what cannot be read.
const SECTOR_BYTES: usize = 4096;

/// What a walk does about bytes that the disk fails to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It fails.
    Fails,
    /// It goes on behind them, as if they were damaged.
    Skip,
}

/// The disk failed to read: what is there may be given up in the end, for which no other failure is a reason.
#[derive(Debug, Error)]
#[error("the disk fails to read: {0}")]
struct CannotRead(#[source] io::Error);

/// Marks a failure to read.
pub(crate) fn cannot_read(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), CannotRead(error))
}

/// Whether a failure was one to read.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<CannotRead>())
}

/// The bytes of a segment.
struct Walk<'a> {
    file: &'a Arc<dyn StoreFile>,
    key: RecordKey,
    segment: u32,
    end: u64,
    unreadable: Unreadable,
}

/// Visits every record of a segment from `from` on; none when the segment is gone. Past damaged bytes it looks for the
/// next record that is whole, so that one bad header loses one record and not the rest of the segment.
pub(crate) fn records(
    segments: &Segments,
    segment: u32,
    from: u64,
    visit: impl FnMut(Scanned) -> io::Result<()>,
) -> io::Result<()> {
    records_as(segments, segment, from, Unreadable::Fails, visit)
}

/// As [`records`], where the disk may fail to read some.
pub(crate) fn records_as(
    segments: &Segments,
    segment: u32,
    from: u64,
    unreadable: Unreadable,
    mut visit: impl FnMut(Scanned) -> io::Result<()>,
) -> io::Result<()> {
    walk(segments, segment, from, unreadable, |record| visit(record).map(ControlFlow::Continue))
}

/// Calls `visit` for the records of a segment from the first one that begins at `from` or later, until it has seen enough.
pub(crate) fn some_records(
    segments: &Segments,
    segment: u32,
    from: u64,
    visit: impl FnMut(Scanned) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    walk(segments, segment, from, Unreadable::Fails, visit)
}

fn walk(
    segments: &Segments,
    segment: u32,
    from: u64,
    unreadable: Unreadable,
    mut visit: impl FnMut(Scanned) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let Some(file) = &segments.file(segment)? else { return Ok(()) };
    // What lies behind is the rest of an append that failed, and was refused.
    let end = file.size()?.min(segments.size_of(segment));
    let walk = Walk { file, key: segments.key(), segment, end, unreadable };
    let mut at = from;
    while at + HEADER_BYTES as u64 <= walk.end {
        match walk.record_at(at)? {
            Some(record) => {
                let next = at + record.header.record_bytes();
                if visit(record)?.is_break() {
                    break;
                }
                at = next;
            }
            None => match walk.next_header(at + 1)? {
                Some(next) => at = next,
                None => break,
            },
        }
    }
    Ok(())
}

impl Walk<'_> {
    fn record_at(&self, at: u64) -> io::Result<Option<Scanned>> {
        let mut head = vec![0; HEADER_BYTES + 256];
        let Some(filled) = self.read(&mut head, at)? else { return Ok(None) };
        head.truncate(filled);
        let Ok(offset) = u32::try_from(at) else { return Ok(None) };
        let Some(header) = self.header(offset, &head) else { return Ok(None) };
        if header.payload_bytes > MAX_PAYLOAD_BYTES || at + header.record_bytes() > self.end {
            return Ok(None);
        }
        let mut payload = vec![0; usize::try_from(header.payload_bytes).unwrap_or(0)];
        let filled = self.read(&mut payload, at + header.head_bytes() as u64)?;
        let sound = filled == Some(payload.len()) && payload_check(&payload) == header.payload_check;
        Ok(Some(Scanned { offset, header, payload: sound.then_some(payload) }))
    }

    /// As the file reads; `None` for what is to be skipped. What it fails to read is told apart from other failures.
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<Option<usize>> {
        match (self.file.read_at(buffer, at), self.unreadable) {
            (Err(_), Unreadable::Skip) => Ok(None),
            (read, _) => read.map(Some).map_err(cannot_read),
        }
    }

    fn header(&self, offset: u32, head: &[u8]) -> Option<RecordHeader> {
        RecordHeader::decode(self.key, Position::Segment { segment: self.segment, offset }, head)
    }

    /// The next place that has a header which reads back.
    fn next_header(&self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        let step = match self.unreadable {
            Unreadable::Fails => STEP_BYTES,
            Unreadable::Skip => SECTOR_BYTES,
        };
        // Neighbouring windows overlap by a header, so that none is missed at an edge.
        let mut window = vec![0; step + HEADER_BYTES + 256];
        while at + HEADER_BYTES as u64 <= self.end {
            let filled = self.read(&mut window, at)?.unwrap_or(0);
            let is_header = |start: &usize| {
                u32::try_from(at + *start as u64)
                    .is_ok_and(|offset| self.header(offset, &window[*start..filled]).is_some())
            };
            if let Some(start) = (0..step.min(filled)).find(is_header) {
                return Ok(Some(at + start as u64));
            }
            at += step as u64;
        }
        Ok(None)
    }
}

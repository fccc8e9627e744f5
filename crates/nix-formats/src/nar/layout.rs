use std::ops::Range;

use bytes::Bytes;

use super::grammar::NarLimits;
use super::writer::Framing;
use super::{NarError, NarEvent};

/// Where everything is within an archive whose contents are elsewhere: what a server needs to answer a range without
/// reading what comes before it.
///
/// Files are numbered in the order of the archive, from 0. Memory: the framing (about 200 bytes for an entry) and 24
/// bytes for a file.
#[derive(Clone, Debug)]
pub struct NarLayout {
    /// All framing, one piece after the other.
    framing: Bytes,
    files: Vec<FilePlace>,
    size_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct FilePlace {
    /// Framing before the contents, in bytes.
    framing_before: usize,
    /// Where the contents begin in the archive.
    offset: u64,
    size_bytes: u64,
}

/// A part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NarPart {
    /// Bytes that stand around contents.
    Framing(Bytes),
    /// Bytes of a file.
    Contents {
        /// The number of the file.
        file: usize,
        /// Where in the file.
        range: Range<u64>,
    },
}

impl NarLayout {
    /// Lays out the archive of `events`, in which contents may be left out.
    ///
    /// # Errors
    /// [`NarError`] when the events do not make an archive within the limits.
    pub fn new<'a>(events: impl IntoIterator<Item = &'a NarEvent>, limits: NarLimits) -> Result<Self, NarError> {
        let mut framing = Framing::new(limits);
        let mut files = Vec::new();
        let mut contents_bytes = 0_u64;
        for event in events {
            if matches!(event, NarEvent::FileEnd) {
                framing.grammar.skip_contents();
            }
            framing.write(event)?;
            let framing_before = framing.buffer.len();
            if let NarEvent::File { size_bytes, .. } = *event {
                files.push(FilePlace { framing_before, offset: framing_before as u64 + contents_bytes, size_bytes });
                contents_bytes = contents_bytes.saturating_add(size_bytes);
            }
            if contents_bytes.saturating_add(framing_before as u64) > limits.size_bytes {
                return Err(NarError::TooLarge(limits.size_bytes));
            }
        }
        let size_bytes = contents_bytes + framing.buffer.len() as u64;
        if !framing.grammar.is_complete() {
            return Err(NarError::Truncated(size_bytes));
        }
        Ok(Self { framing: framing.buffer.freeze(), files, size_bytes })
    }

    /// The size of the archive in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where the contents of every file are in the archive, in order.
    pub fn contents(&self) -> impl ExactSizeIterator<Item = Range<u64>> + '_ {
        self.files.iter().map(|file| file.offset..file.offset + file.size_bytes)
    }

    /// The parts that make `range` of the archive, in order and without empty ones. What lies beyond the end of the
    /// archive is left out.
    pub fn parts(&self, range: Range<u64>) -> impl Iterator<Item = NarPart> + '_ {
        let range = range.start..range.end.min(self.size_bytes);
        // The first file that is not wholly before the range; framing before it may be.
        let first = self.files.partition_point(|file| file.offset + file.size_bytes <= range.start);
        // One step beyond the last file: the framing after it.
        (first..=self.files.len())
            .take_while({
                let end = range.end;
                move |file| self.framing_place(*file).start < end
            })
            .flat_map(move |file| [self.framing_part(file, &range), self.contents_part(file, &range)])
            .flatten()
    }

    /// Where the framing before file number `file` is in the archive.
    fn framing_place(&self, file: usize) -> Range<u64> {
        let start = match file.checked_sub(1).and_then(|before| self.files.get(before)) {
            Some(before) => before.offset + before.size_bytes,
            None => 0,
        };
        start..self.files.get(file).map_or(self.size_bytes, |file| file.offset)
    }

    fn framing_part(&self, file: usize, range: &Range<u64>) -> Option<NarPart> {
        let place = self.framing_place(file);
        let part = overlap(&place, range)?;
        let end = self.files.get(file).map_or(self.framing.len(), |file| file.framing_before);
        // Framing is in memory, so these distances fit.
        let back = |from: u64| end - usize::try_from(place.end - from).unwrap_or(end);
        Some(NarPart::Framing(self.framing.slice(back(part.start)..back(part.end))))
    }

    fn contents_part(&self, file: usize, range: &Range<u64>) -> Option<NarPart> {
        let place = self.files.get(file)?;
        let part = overlap(&(place.offset..place.offset + place.size_bytes), range)?;
        Some(NarPart::Contents { file, range: part.start - place.offset..part.end - place.offset })
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> Option<Range<u64>> {
    let both = one.start.max(other.start)..one.end.min(other.end);
    (both.start < both.end).then_some(both)
}

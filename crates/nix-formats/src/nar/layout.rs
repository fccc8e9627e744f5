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

/// Makes a [`NarLayout`] of events; contents may be left out.
#[derive(Debug)]
pub struct NarLayoutBuilder {
    framing: Framing,
    files: Vec<FilePlace>,
    /// Bytes of all files so far.
    contents_bytes: u64,
}

impl NarLayoutBuilder {
    /// Begins a layout.
    #[must_use]
    pub fn new(limits: NarLimits) -> Self {
        Self { framing: Framing::new(limits), files: Vec::new(), contents_bytes: 0 }
    }

    /// Takes the next event.
    ///
    /// # Errors
    /// [`NarError`] when the event has no place here, or leads beyond the limits; nothing more may be added then.
    pub fn add(&mut self, event: &NarEvent) -> Result<(), NarError> {
        if matches!(event, NarEvent::FileEnd) {
            self.framing.grammar.skip_contents();
        }
        self.framing.write(event)?;
        let framing_before = self.framing.buffer.len();
        if let NarEvent::File { size_bytes, .. } = *event {
            let offset = self.size_bytes();
            self.files.push(FilePlace { framing_before, offset, size_bytes });
            self.contents_bytes = self.contents_bytes.saturating_add(size_bytes);
        }
        let limit = self.framing.grammar.limits().size_bytes;
        if self.size_bytes() > limit { Err(NarError::TooLarge(limit)) } else { Ok(()) }
    }

    /// Ends the layout.
    ///
    /// # Errors
    /// [`NarError::Truncated`] when events are missing.
    pub fn finish(self) -> Result<NarLayout, NarError> {
        let size_bytes = self.size_bytes();
        if !self.framing.grammar.is_complete() {
            return Err(NarError::Truncated(size_bytes));
        }
        Ok(NarLayout { framing: self.framing.buffer.freeze(), files: self.files, size_bytes })
    }

    fn size_bytes(&self) -> u64 {
        self.contents_bytes.saturating_add(self.framing.buffer.len() as u64)
    }

    /// Where the contents of the file that was added last begin in the archive; 0 before the first one.
    #[must_use]
    pub fn contents_offset(&self) -> u64 {
        self.files.last().map_or(0, |file| file.offset)
    }
}

impl NarLayout {
    /// The size of the archive in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// About what this takes of memory, in bytes.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.framing.len() + self.files.len() * size_of::<FilePlace>()
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

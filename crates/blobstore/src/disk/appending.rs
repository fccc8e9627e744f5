//! What one append writes: headers and short payloads copied together, long pieces of payloads where they are.

use std::io::{self, IoSlice};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::file_layer::StoreFile;
use super::record::payload_check;

/// A piece shorter than this costs less to copy than to write by itself.
const COPIED_BELOW_BYTES: usize = 8 << 10;

/// The payload of a record, in memory.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'a> {
    /// In one piece.
    Whole(&'a [u8]),
    /// In the pieces that it came in.
    Pieces(&'a [Bytes]),
}

impl<'a> Payload<'a> {
    /// Bytes of all pieces.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Pieces(pieces) => pieces.iter().map(Bytes::len).sum(),
        }
    }

    /// As [`payload_check`].
    pub(crate) fn check(self) -> u64 {
        match self {
            Self::Whole(bytes) => payload_check(bytes),
            Self::Pieces([piece]) => payload_check(piece),
            Self::Pieces(pieces) => check_of(pieces.iter().map(|piece| &piece[..])),
        }
    }

    fn for_each(self, mut take: impl FnMut(&'a [u8])) {
        match self {
            Self::Whole(bytes) => take(bytes),
            Self::Pieces(pieces) => pieces.iter().for_each(|piece| take(piece)),
        }
    }
}

/// As [`payload_check`], of pieces one after another.
pub(crate) fn check_of<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut check = Xxh3::new();
    pieces.for_each(|piece| check.update(piece));
    check.digest()
}

/// What is about to be written, in order.
pub(crate) struct Appending<'a> {
    buffer: Vec<u8>,
    parts: Vec<Part<'a>>,
    bytes: usize,
}

enum Part<'a> {
    /// The next so many bytes of the buffer.
    Copied(usize),
    Shared(&'a [u8]),
}

impl<'a> Appending<'a> {
    /// Nothing yet. `buffer` is used again.
    pub(crate) fn new(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self { buffer, parts: Vec::new(), bytes: 0 }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies what `encode` appends.
    pub(crate) fn copy(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.buffer.len();
        encode(&mut self.buffer);
        let bytes = self.buffer.len() - before;
        self.bytes += bytes;
        match self.parts.last_mut() {
            Some(Part::Copied(last)) => *last += bytes,
            _ => self.parts.push(Part::Copied(bytes)),
        }
    }

    pub(crate) fn payload(&mut self, payload: Payload<'a>) {
        payload.for_each(|piece| {
            if piece.len() < COPIED_BELOW_BYTES {
                self.copy(|buffer| buffer.extend_from_slice(piece));
            } else {
                self.bytes += piece.len();
                self.parts.push(Part::Shared(piece));
            }
        });
    }

    /// Writes everything, and returns the buffer.
    pub(crate) fn write(self, file: &dyn StoreFile, offset: u64) -> (Vec<u8>, io::Result<()>) {
        let result = match self.parts.as_slice() {
            [] => Ok(()),
            [Part::Copied(_)] => file.write_at(&self.buffer, offset),
            parts => {
                let mut copied = self.buffer.as_slice();
                let slice = |part: &Part<'a>| match part {
                    Part::Copied(bytes) => {
                        let (slice, rest) = copied.split_at(*bytes);
                        copied = rest;
                        IoSlice::new(slice)
                    }
                    Part::Shared(piece) => IoSlice::new(piece),
                };
                let mut slices: Vec<IoSlice<'_>> = parts.iter().map(slice).filter(|slice| !slice.is_empty()).collect();
                file.write_slices_at(&mut slices, offset)
            }
        };
        (self.buffer, result)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file_layer::{FileLayer, SystemFiles};
    use super::*;

    #[test]
    fn short_and_long_pieces_are_written_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = SystemFiles.create(&folder.path().join(Path::new("file"))).unwrap();
        let lengths = [1, COPIED_BELOW_BYTES, 3, 0, 200_000, COPIED_BELOW_BYTES - 1, 5];
        let pieces = lengths.map(|length| Bytes::from(vec![length.to_le_bytes()[0] ^ 0x55; length]));
        let mut appending = Appending::new(b"left from before".to_vec());
        appending.copy(|buffer| buffer.extend_from_slice(b"head"));
        appending.payload(Payload::Pieces(&pieces));
        appending.payload(Payload::Whole(b"tail"));
        let expected = [b"head".as_slice(), &pieces.concat(), b"tail"].concat();
        assert_eq!(appending.bytes(), expected.len());
        appending.write(file.as_ref(), 0).1.unwrap();
        let mut read = vec![0; expected.len() + 1];
        assert_eq!(file.read_at(&mut read, 0).unwrap(), expected.len());
        assert!(read[..expected.len()] == expected);
    }

    #[test]
    fn a_check_is_that_of_the_whole_however_it_is_cut() {
        let whole: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for length in [0, 1, 17, 240, 241, 1024, 5000, whole.len()] {
            let whole = &whole[..length];
            for cut in [1, 7, 255, 4096] {
                let pieces: Vec<Bytes> = whole.chunks(cut.max(length / 1000 + 1)).map(Bytes::copy_from_slice).collect();
                assert_eq!(Payload::Pieces(&pieces).check(), payload_check(whole), "{length} by {cut}");
            }
        }
    }
}

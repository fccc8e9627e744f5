//! zstd, always with a bound on what comes out.

use std::io::{self, Read, Write};

use zstd::stream::{raw, zio};

/// The window that a frame may ask for, as a power of two: 8 MiB, as every level of the reference tool up to 19 does. It
/// bounds the memory that one stream can claim.
const WINDOW_LOG_MAX: u32 = 23;

/// Fast, and good enough for objects that are mostly read: the level for what we compress ourselves.
const LEVEL: i32 = 1;

/// Compresses into one frame that states its content size.
pub(crate) fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL)
}

/// As [`compress`], if that saves an eighth: less is not worth decoding for.
pub(crate) fn compress_if_worthwhile(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let compressed = compress(bytes)?;
    Ok((compressed.len() < bytes.len() / 8 * 7).then_some(compressed))
}

/// Decodes all frames in `bytes`. Fails when they are not whole, or when more than `size` bytes come out; fewer are
/// returned as they are.
pub(crate) fn decompress(bytes: &[u8], size: u64) -> Result<Vec<u8>, DecodeError> {
    let capacity = usize::try_from(size).map_err(|_| DecodeError::TooLong)?;
    // Frames that state their size decode in one go; the rest take the slow road.
    if let Ok(mut decompressor) = zstd::bulk::Decompressor::new()
        && decompressor.window_log_max(WINDOW_LOG_MAX).is_ok()
        && let Ok(decoded) = decompressor.decompress(bytes, capacity)
    {
        return Ok(decoded);
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    let mut decoded = Vec::new();
    decoder.take(size + 1).read_to_end(&mut decoded)?;
    if decoded.len() as u64 > size { Err(DecodeError::TooLong) } else { Ok(decoded) }
}

/// Why compressed bytes cannot be used.
#[derive(Debug)]
pub(crate) enum DecodeError {
    /// More bytes come out than were announced.
    TooLong,
    /// They are not zstd, or not whole.
    Invalid(io::Error),
    /// Whoever takes what comes out failed.
    Sink(io::Error),
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        Self::Invalid(error)
    }
}

/// The memory that decoding a stream of so many bytes takes at most.
pub(crate) fn window_bytes(size: u64) -> u64 {
    size.min(1 << WINDOW_LOG_MAX)
}

/// Decodes frames that arrive in pieces into `W`. What comes out is handed on as it comes, and never held.
pub(crate) struct StreamDecoder<W: Write> {
    decoder: zio::Writer<BoundedSink<W>, raw::Decoder<'static>>,
}

impl<W: Write> StreamDecoder<W> {
    /// At most `size` bytes may come out.
    pub(crate) fn new(sink: W, size: u64) -> io::Result<Self> {
        let sink = BoundedSink { sink, left: size, failure: None };
        let mut decoder = raw::Decoder::new()?;
        decoder.set_parameter(raw::DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self { decoder: zio::Writer::new(sink, decoder) })
    }

    /// Takes bytes from the front of a piece until it is used up, or until `enough` bytes have come out and perhaps a few
    /// MiB more: a small piece can become a huge one. Returns how many were taken.
    pub(crate) fn write(&mut self, piece: &[u8], enough: u64) -> Result<usize, DecodeError> {
        /// Input bytes a step: what comes out of one is at most what 1 KiB of zstd can describe.
        const STEP: usize = 1024;
        let left_before = self.decoder.writer().left;
        let mut taken = 0;
        for step in piece.chunks(STEP) {
            let result = self.decoder.write_all(step).and_then(|()| self.decoder.flush());
            result.map_err(|error| self.failed(error))?;
            taken += step.len();
            if left_before - self.decoder.writer().left >= enough {
                break;
            }
        }
        Ok(taken)
    }

    fn failed(&mut self, error: io::Error) -> DecodeError {
        match self.decoder.writer_mut().failure.take() {
            Some(failure) => DecodeError::Sink(failure),
            None if error.kind() == io::ErrorKind::FileTooLarge => DecodeError::TooLong,
            None => DecodeError::Invalid(error),
        }
    }

    /// What took the bytes. Fails when the last frame has not come to its end.
    pub(crate) fn finish(mut self) -> Result<W, DecodeError> {
        self.decoder.finish().map_err(|error| self.failed(error))?;
        Ok(self.decoder.into_inner().0.sink)
    }
}

/// Takes decoded bytes up to a bound.
struct BoundedSink<W> {
    sink: W,
    left: u64,
    /// Why the sink failed: the decoder tells only that it did.
    failure: Option<io::Error>,
}

impl<W: Write> Write for BoundedSink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        if let Err(error) = self.sink.write_all(bytes) {
            self.failure = Some(error);
            return Err(io::Error::other("the sink failed"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pieces: &[&[u8]], size: u64) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = StreamDecoder::new(Vec::new(), size)?;
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                rest = &rest[decoder.write(rest, 1)?..];
            }
        }
        decoder.finish()
    }

    #[test]
    fn several_frames_and_skippable_ones_are_one_blob() {
        let mut bytes = compress(b"hello ").unwrap();
        bytes.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z']);
        bytes.extend_from_slice(&compress(b"world").unwrap());
        assert_eq!(decompress(&bytes, 11).unwrap(), b"hello world");
        assert_eq!(stream(&[&bytes], 11).unwrap(), b"hello world");
        let singles: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(stream(&singles, 11).unwrap(), b"hello world");
    }

    #[test]
    fn a_frame_without_its_size_decodes() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&[7; 100_000]).unwrap();
        let bytes = encoder.finish().unwrap();
        assert_eq!(decompress(&bytes, 100_000).unwrap(), vec![7; 100_000]);
    }

    #[test]
    fn a_bomb_stops_at_the_announced_size() {
        let bytes = compress(&vec![0; 64 << 20]).unwrap();
        assert!(matches!(decompress(&bytes, 1000), Err(DecodeError::TooLong)));
        assert!(matches!(stream(&[&bytes], 1000), Err(DecodeError::TooLong)));
    }

    #[test]
    fn garbage_and_cut_frames_are_refused() {
        let bytes = compress(b"some bytes that are compressed").unwrap();
        let cut = &bytes[..bytes.len() - 2];
        assert!(matches!(decompress(cut, 30), Err(DecodeError::Invalid(_))));
        assert!(matches!(stream(&[cut], 30), Err(DecodeError::Invalid(_))));
        assert!(matches!(decompress(b"not zstd at all", 30), Err(DecodeError::Invalid(_))));
        let mut trailing = bytes;
        trailing.extend_from_slice(b"garbage");
        assert!(matches!(decompress(&trailing, 30), Err(DecodeError::Invalid(_))));
        assert!(matches!(stream(&[&trailing], 30), Err(DecodeError::Invalid(_))));
        assert!(matches!(stream(&[b"not zstd at all"], 30), Err(DecodeError::Invalid(_))));
    }

    #[test]
    fn a_piece_that_becomes_huge_is_decoded_in_steps() {
        let bytes = compress(&vec![0; 256 << 20]).unwrap();
        let mut decoder = StreamDecoder::new(io::sink(), 256 << 20).unwrap();
        let (mut at, mut steps) = (0, 0);
        while at < bytes.len() {
            at += decoder.write(&bytes[at..], 8 << 20).unwrap();
            steps += 1;
        }
        assert!(steps >= 4, "{} bytes in {steps} steps", bytes.len());
    }

    #[test]
    fn the_failure_of_the_sink_is_told() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut decoder = StreamDecoder::new(Full, 100).unwrap();
        let failed = decoder.write(&compress(b"some bytes").unwrap(), 1);
        assert!(matches!(failed, Err(DecodeError::Sink(error)) if error.kind() == io::ErrorKind::StorageFull));
    }
}

//! Decompression, in a thread that may wait: whatever the compression, the caller asks for the next piece.
//!
//! A decoder never runs ahead: what a few bytes expand to comes out piece by piece, and whoever finds that it is too
//! much stops asking. The memory that a stream can claim for its window is bounded.

use std::io::{self, Read};

use brotli_decompressor::Decompressor as BrotliDecoder;
use bytes::Bytes;
use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use gf_nix_formats::Compression;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use zstd::stream::read::Decoder as ZstdDecoder;

use super::source::Source;
use super::{Halt, IngestError};

/// Decoded bytes come out in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;

/// What the xz family may use: its highest presets need 65 MiB.
const LZMA_MEMORY_BYTES: u64 = 96 << 20;

/// The largest window of zstd, as a power of two: 128 MiB, which is what `--ultra --long` asks for.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What brotli reads at once.
const BROTLI_INPUT_BYTES: usize = 64 << 10;

/// An upload, decoded.
pub(super) struct Decoder {
    compression: Compression,
    format: Format,
}

enum Format {
    None(Box<Source>),
    Lzma(Box<XzDecoder<Source>>),
    Zstd(Box<ZstdDecoder<'static, Source>>),
    Bzip2(Box<MultiBzDecoder<Source>>),
    Brotli(Box<BrotliDecoder<Source>>),
    Gzip(Box<MultiGzDecoder<Source>>),
}

/// Whether there is a decoder.
pub(super) const fn is_supported(compression: Compression) -> bool {
    use Compression::{Br, Bzip2, Gzip, Lzip, Lzma, None, Xz, Zstd};
    matches!(compression, None | Xz | Lzma | Lzip | Zstd | Bzip2 | Br | Gzip)
}

/// The most that a decoder, and the pieces on their way through it, use of memory.
pub(super) const fn memory_bytes(compression: Compression) -> u64 {
    const PIECES_BYTES: u64 = 8 << 20;
    match compression {
        Compression::Xz | Compression::Lzma | Compression::Lzip => LZMA_MEMORY_BYTES + PIECES_BYTES,
        Compression::Zstd => (1 << ZSTD_WINDOW_LOG) + PIECES_BYTES,
        // The window that brotli has without its extension for large ones.
        Compression::Br => (16 << 20) + PIECES_BYTES,
        _ => PIECES_BYTES,
    }
}

impl Decoder {
    /// Decodes what `source` gives.
    pub(super) fn new(compression: Compression, source: Source) -> Result<Self, Halt> {
        let lzma = |stream: Result<Stream, liblzma::stream::Error>, source| {
            let stream = stream.map_err(|error| undecodable(compression, error.into()))?;
            Ok::<_, Halt>(Format::Lzma(Box::new(XzDecoder::new_stream(source, stream))))
        };
        let format = match compression {
            // The hash of the archive is that of the file then.
            Compression::None => Format::None(Box::new(source)),
            Compression::Xz => lzma(Stream::new_stream_decoder(LZMA_MEMORY_BYTES, CONCATENATED), source.hashed())?,
            Compression::Lzma => lzma(Stream::new_lzma_decoder(LZMA_MEMORY_BYTES), source.hashed())?,
            Compression::Lzip => lzma(Stream::new_lzip_decoder(LZMA_MEMORY_BYTES, CONCATENATED), source.hashed())?,
            Compression::Zstd => {
                Format::Zstd(Box::new(zstd_decoder(source.hashed()).map_err(|error| undecodable(compression, error))?))
            }
            Compression::Bzip2 => Format::Bzip2(Box::new(MultiBzDecoder::new(source.hashed()))),
            Compression::Br => Format::Brotli(Box::new(BrotliDecoder::new(source.hashed(), BROTLI_INPUT_BYTES))),
            Compression::Gzip => Format::Gzip(Box::new(MultiGzDecoder::new(source.hashed()))),
            Compression::Lz4 | Compression::Compress | Compression::Grzip | Compression::Lrzip | Compression::Lzop => {
                return Err(IngestError::Unsupported(compression).into());
            }
        };
        Ok(Self { compression, format })
    }

    /// The next decoded piece; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Halt> {
        let compression = self.compression;
        let read: &mut dyn Read = match &mut self.format {
            Format::None(source) => return source.next(),
            Format::Lzma(decoder) => decoder,
            Format::Zstd(decoder) => decoder,
            Format::Bzip2(decoder) => decoder,
            Format::Brotli(decoder) => decoder,
            Format::Gzip(decoder) => decoder,
        };
        let mut piece = vec![0; PIECE_BYTES];
        let mut filled = 0;
        while filled < piece.len() {
            match read.read(&mut piece[filled..]).map_err(|error| undecodable(compression, error))? {
                0 => break,
                bytes => filled += bytes,
            }
        }
        piece.truncate(filled);
        Ok((filled > 0).then(|| piece.into()))
    }

    /// Checks that the upload has nothing after the end of what was decoded, and hands it back.
    pub(super) fn finish(self) -> Result<Source, Halt> {
        let mut source = match self.format {
            Format::None(source) => *source,
            Format::Lzma(decoder) => decoder.into_inner(),
            Format::Zstd(decoder) => decoder.finish(),
            Format::Bzip2(decoder) => decoder.into_inner(),
            Format::Brotli(decoder) => decoder.into_inner(),
            Format::Gzip(decoder) => decoder.into_inner(),
        };
        match source.next()? {
            None => Ok(source),
            Some(_) => Err(undecodable(self.compression, io::Error::other("there are bytes after its end"))),
        }
    }
}

fn zstd_decoder(source: Source) -> io::Result<ZstdDecoder<'static, Source>> {
    let mut decoder = ZstdDecoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// What the source said comes back as it was; all else is about the compressed bytes.
fn undecodable(compression: Compression, error: io::Error) -> Halt {
    error
        .downcast::<Halt>()
        .unwrap_or_else(|error| IngestError::Undecodable { compression, reason: error.to_string() }.into())
}

//! Archives for clients that remember how they sent them.
//!
//! Who pushes an archive as `nar/<hash>.nar.xz` remembers for a month that there is one, and that it is xz. Archives are
//! not kept as they came, so it is compressed once more on the way, as quickly as the format allows: neither the size
//! nor the bytes are those of then, and nobody compares them.

use std::io::{self, Write};
use std::mem::take;

use bytes::Bytes;
use bzip2::write::BzEncoder;
use flate2::Crc;
use flate2::write::GzEncoder;
use gf_nix_formats::Compression;
use liblzma::stream::{Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;
use tokio::task::spawn_blocking;
use zstd::stream::write::Encoder as ZstdEncoder;

/// The quickest that each format has.
const LEVEL: u32 = 1;

/// The most bytes of one block of brotli.
const BROTLI_BLOCK_BYTES: usize = 1 << 16;

/// Compresses what is given piece by piece.
pub(super) enum Recompressor {
    Xz(XzEncoder<Vec<u8>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
    Bzip2(BzEncoder<Vec<u8>>),
    Brotli(StoredBrotli),
    Gzip(GzEncoder<Vec<u8>>),
    Lzip(LzipEncoder),
}

impl Recompressor {
    /// For what was uploaded with this compression; `None` where there is no encoder.
    pub(super) fn new(compression: Compression) -> io::Result<Option<Self>> {
        Ok(Some(match compression {
            Compression::Xz => Self::Xz(XzEncoder::new(Vec::new(), LEVEL)),
            Compression::Zstd => Self::Zstd(ZstdEncoder::new(Vec::new(), 1)?),
            Compression::Bzip2 => Self::Bzip2(BzEncoder::new(Vec::new(), bzip2::Compression::new(LEVEL))),
            Compression::Br => Self::Brotli(StoredBrotli::default()),
            Compression::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::fast())),
            Compression::Lzip => Self::Lzip(LzipEncoder::new()?),
            _ => return Ok(None),
        }))
    }

    /// Takes a piece, away from the threads that serve others, and gives what comes out, perhaps nothing.
    pub(super) async fn push(mut self, piece: Bytes) -> io::Result<(Self, Bytes)> {
        let pushed = spawn_blocking(move || {
            self.write(&piece)?;
            let out = take(self.out()).into();
            Ok((self, out))
        });
        pushed.await.map_err(io::Error::other)?
    }

    /// What is left at the end.
    pub(super) async fn finish(self) -> io::Result<Bytes> {
        let rest = spawn_blocking(move || match self {
            Self::Xz(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Bzip2(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.finish()),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Lzip(encoder) => encoder.finish(),
        });
        Ok(rest.await.map_err(io::Error::other)??.into())
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Self::Xz(encoder) => encoder.write_all(piece),
            Self::Zstd(encoder) => encoder.write_all(piece),
            Self::Bzip2(encoder) => encoder.write_all(piece),
            Self::Brotli(encoder) => {
                encoder.write(piece);
                Ok(())
            }
            Self::Gzip(encoder) => encoder.write_all(piece),
            Self::Lzip(encoder) => encoder.write(piece),
        }
    }

    fn out(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Xz(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Bzip2(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => &mut encoder.out,
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Lzip(encoder) => encoder.lzma.get_mut(),
        }
    }
}

/// Brotli of blocks that are not compressed (RFC 7932, 9.2): an encoder would be a large library for a rare case.
#[derive(Default)]
pub(super) struct StoredBrotli {
    out: Vec<u8>,
    began: bool,
}

impl StoredBrotli {
    fn write(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BROTLI_BLOCK_BYTES) {
            // From the lowest bit: not the last block, a length of four digits, the length less one, not compressed.
            let length = u32::try_from(block.len() - 1).unwrap_or_default();
            let header = (length << 3) | (1 << 19);
            // In front of all stands one bit for the smallest window.
            let header = if self.began { header } else { header << 1 };
            self.began = true;
            self.out.extend_from_slice(&header.to_le_bytes()[..3]);
            self.out.extend_from_slice(block);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        // The last block, and empty.
        self.out.push(if self.began { 0b11 } else { 0b110 });
        self.out
    }
}

/// The dictionary of lzip files that are written here, as a power of two, in bytes.
const LZIP_DICTIONARY_LOG: u8 = 20;

/// Lzip: one member, which is LZMA between a header and the sums of what went into it.
pub(super) struct LzipEncoder {
    lzma: XzEncoder<Vec<u8>>,
    sum: Crc,
    bytes: u64,
}

impl LzipEncoder {
    fn new() -> io::Result<Self> {
        let mut options = LzmaOptions::new_preset(LEVEL)?;
        // As lzip prescribes them.
        options.dict_size(1 << LZIP_DICTIONARY_LOG).literal_context_bits(3).literal_position_bits(0).position_bits(2);
        let stream = Stream::new_raw_encoder(Filters::new().lzma1(&options))?;
        let mut header = b"LZIP\x01".to_vec();
        header.push(LZIP_DICTIONARY_LOG);
        Ok(Self { lzma: XzEncoder::new_stream(header, stream), sum: Crc::new(), bytes: 0 })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.sum.update(piece);
        self.bytes += piece.len() as u64;
        self.lzma.write_all(piece)
    }

    fn finish(mut self) -> io::Result<Vec<u8>> {
        /// The header, and the sum and the two sizes at the end.
        const AROUND_BYTES: u64 = 6 + 20;
        self.lzma.try_finish()?;
        let member_bytes = self.lzma.total_out() + AROUND_BYTES;
        let mut out = take(self.lzma.get_mut());
        out.extend_from_slice(&self.sum.sum().to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&member_bytes.to_le_bytes());
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    async fn compress(compression: Compression, pieces: &[Bytes]) -> Vec<u8> {
        let mut encoder = Recompressor::new(compression).unwrap().unwrap();
        let mut whole = Vec::new();
        for piece in pieces {
            let (rest, out) = encoder.push(piece.clone()).await.unwrap();
            encoder = rest;
            whole.extend_from_slice(&out);
        }
        whole.extend_from_slice(&encoder.finish().await.unwrap());
        whole
    }

    fn decompress(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut decoder: Box<dyn Read + '_> = match compression {
            Compression::Xz => Box::new(liblzma::read::XzDecoder::new(bytes)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
            Compression::Bzip2 => Box::new(bzip2::read::BzDecoder::new(bytes)),
            Compression::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Compression::Lzip => {
                let stream = Stream::new_lzip_decoder(1 << 26, 0).unwrap();
                Box::new(liblzma::read::XzDecoder::new_stream(bytes, stream))
            }
            _ => Box::new(brotli_decompressor::Decompressor::new(bytes, 4096)),
        };
        let mut decoded = Vec::new();
        decoder.read_to_end(&mut decoded).unwrap();
        decoded
    }

    #[tokio::test]
    async fn what_is_compressed_again_decodes_to_the_same() {
        let piece: Bytes = (0..200_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        for pieces in [vec![], vec![Bytes::from_static(b"x")], vec![piece.clone(), piece.slice(..1), piece]] {
            use Compression::{Br, Bzip2, Gzip, Lzip, Xz, Zstd};
            for compression in [Xz, Zstd, Bzip2, Br, Gzip, Lzip] {
                let compressed = compress(compression, &pieces).await;
                assert_eq!(decompress(compression, &compressed), pieces.concat(), "{compression:?}");
            }
        }
        assert!(Recompressor::new(Compression::Lz4).unwrap().is_none());
    }
}

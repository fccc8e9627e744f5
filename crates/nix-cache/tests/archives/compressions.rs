//! Archives in every compression that is read.

use std::io::Write as _;

use gf_nix_cache::archives::{Expected, IngestError};
use gf_nix_formats::{Compression, NarHash};
use liblzma::stream::{LzmaOptions, Stream};

use crate::fixture::{Fixture, OWNER, body};
use crate::generated::{Numbers, nar, tree};

/// `nix copy` with `compression=br` wrote it, of the tree below.
const TREE: &[u8] = include_bytes!("../../../nix-formats/tests/golden/nar/tree.nar");
const TREE_BROTLI: &[u8] = include_bytes!("golden/tree.nar.br");
/// `lzip` writes no other format, and nothing here writes it: `xz` cannot.
pub(crate) const ALL: [Compression; 7] = [
    Compression::None,
    Compression::Xz,
    Compression::Zstd,
    Compression::Bzip2,
    Compression::Br,
    Compression::Gzip,
    Compression::Lzma,
];

/// One stream of `bytes`.
pub(crate) fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 3);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lzma => {
            let options = LzmaOptions::new_preset(3).unwrap();
            let stream = Stream::new_lzma_encoder(&options).unwrap();
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(bytes, 3).unwrap(),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Br => stored_brotli(bytes),
        other => panic!("nothing writes {}", other.name()),
    }
}

/// Brotli that compresses nothing (RFC 7932, 9.2): a window of 64 KiB, then meta-blocks as they are, then an empty one.
fn stored_brotli(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (number, block) in bytes.chunks(1 << 16).enumerate() {
        // Only the first byte of the stream has the window, one bit of zero; then come: not the last (1 bit), four
        // nibbles of length (2 bits), the length less one (16 bits), uncompressed (1 bit).
        let shift = u32::from(number == 0);
        let length = u32::try_from(block.len() - 1).unwrap();
        let header = (length << 3 | 1 << 19) << shift;
        stream.extend_from_slice(&header.to_le_bytes()[..3]);
        stream.extend_from_slice(block);
    }
    // The last one, and empty.
    stream.push(3);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_is_read() {
    let fixture = Fixture::new().await;
    let nar = nar(&tree(&mut Numbers::new(11), 300, 0));
    for compression in ALL {
        let file = compress(&nar, compression);
        for piece_bytes in [1 + file.len() / 500, 70_000] {
            let expected = Expected {
                file_hash: Some(*NarHash::of(&file).as_bytes()),
                file_size: Some(file.len() as u64),
                nar_hash: Some(NarHash::of(&nar)),
                nar_size: Some(nar.len() as u64),
            };
            let ingested = fixture.archives.ingest(OWNER, compression, body(&file, piece_bytes), expected).await;
            let ingested = ingested.unwrap_or_else(|error| panic!("{}: {error}", compression.name()));
            assert_eq!(ingested.file_size, file.len() as u64);
            fixture.check(&ingested, &nar).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn brotli_of_nix_is_read() {
    let fixture = Fixture::new().await;
    let ingested = fixture.take(TREE_BROTLI, Compression::Br).await.unwrap();
    fixture.check(&ingested, TREE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_one_after_another_are_one_archive() {
    let fixture = Fixture::new().await;
    for compression in [Compression::Xz, Compression::Zstd, Compression::Bzip2, Compression::Gzip] {
        let parts = TREE.chunks(999).map(|part| compress(part, compression));
        let file: Vec<u8> = parts.flatten().collect();
        let ingested = fixture.take(&file, compression).await.unwrap();
        fixture.check(&ingested, TREE).await;
    }
    // Padding of xz and a frame of zstd that is to be skipped.
    let mut padded = compress(TREE, Compression::Xz);
    padded.extend_from_slice(&[0; 8]);
    assert!(fixture.take(&padded, Compression::Xz).await.is_ok());
    let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z'];
    skippable.extend_from_slice(&compress(TREE, Compression::Zstd));
    assert!(fixture.take(&skippable, Compression::Zstd).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_decoder_is_refused_unread() {
    let fixture = Fixture::new().await;
    for compression in [Compression::Lz4, Compression::Compress, Compression::Grzip, Compression::Lzop] {
        let taken = fixture.take(TREE, compression).await;
        assert!(matches!(taken, Err(IngestError::Unsupported(refused)) if refused == compression));
    }
}

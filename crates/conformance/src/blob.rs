//! Content that cases make up, and its forms on the wire.

use std::io::Write;

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::bytestream::WriteRequest;

use crate::finding::{Checked, Finding};

/// Bytes and their digest.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

impl Blob {
    pub(crate) fn of(function: DigestFunction, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(function, &bytes), bytes }
    }

    pub(crate) fn message(message: &impl prost::Message) -> Self {
        Self::of(DigestFunction::Sha256, message.encode_to_vec())
    }

    pub(crate) fn wire(&self) -> WireDigest {
        WireDigest::from(self.digest)
    }

    /// The digest with the right hash and another size.
    pub(crate) fn wire_with_size(&self, size_bytes: i64) -> WireDigest {
        WireDigest::from_text(self.digest.hash_hex().as_str(), size_bytes)
    }

    pub(crate) fn size_bytes(&self) -> i64 {
        i64::try_from(self.bytes.len()).unwrap_or(i64::MAX)
    }

    /// As one zstd frame that states its content size.
    pub(crate) fn zstd(&self) -> Checked<Bytes> {
        zstd_frame(&self.bytes)
    }
}

/// One zstd frame that states its content size.
pub(crate) fn zstd_frame(bytes: &[u8]) -> Checked<Bytes> {
    zstd::bulk::compress(bytes, 1).map(Bytes::from).map_err(local)
}

/// One zstd frame as a stream writes it: without its content size.
pub(crate) fn zstd_frame_of_unknown_size(bytes: &[u8]) -> Checked<Bytes> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).map_err(local)?;
    encoder.write_all(bytes).map_err(local)?;
    encoder.finish().map(Bytes::from).map_err(local)
}

/// One small zstd frame that holds `size_bytes` zeros.
pub(crate) fn zstd_bomb(size_bytes: usize) -> Checked<Bytes> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).map_err(local)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..size_bytes / zeros.len() {
        encoder.write_all(&zeros).map_err(local)?;
    }
    encoder.finish().map(Bytes::from).map_err(local)
}

/// A frame that decoders must pass over.
pub(crate) fn skippable_frame(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    [&0x184D_2A50_u32.to_le_bytes()[..], &length.to_le_bytes(), bytes].concat()
}

/// The content of zstd frames, refused beyond `at_most` bytes.
pub(crate) fn unzstd(bytes: &[u8], at_most: usize) -> Checked<Vec<u8>> {
    use std::io::Read;
    let mut content = Vec::new();
    let mut decoder = zstd::stream::Decoder::new(bytes).map_err(local)?.take(at_most as u64 + 1);
    decoder
        .read_to_end(&mut content)
        .map_err(|error| Finding::Fail(format!("the server sent {} bytes that are not zstd: {error}", bytes.len())))?;
    Ok(content)
}

fn local(error: std::io::Error) -> Finding {
    Finding::Fail(format!("the suite itself cannot compress: {error}"))
}

/// The requests of a whole upload, in pieces of at most `piece_bytes`; only the first names the resource.
pub(crate) fn write_requests(name: &str, bytes: &Bytes, piece_bytes: usize) -> Vec<WriteRequest> {
    let mut requests = Vec::new();
    let mut offset = 0;
    loop {
        let end = bytes.len().min(offset + piece_bytes);
        requests.push(WriteRequest {
            resource_name: if offset == 0 { name.to_owned() } else { String::new() },
            write_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            finish_write: end == bytes.len(),
            data: bytes.slice(offset..end),
        });
        if end == bytes.len() {
            return requests;
        }
        offset = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_cut_into_pieces() {
        let sizes = |length: usize| {
            let requests = write_requests("n", &vec![0; length].into(), 4);
            requests.iter().map(|r| (r.write_offset, r.data.len(), r.finish_write)).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0), [(0, 0, true)]);
        assert_eq!(sizes(4), [(0, 4, true)]);
        assert_eq!(sizes(9), [(0, 4, false), (4, 4, false), (8, 1, true)]);
    }

    #[test]
    fn frames_of_all_kinds_are_read_back() {
        let parts =
            [zstd_frame(b"one").unwrap(), skippable_frame(b"??").into(), zstd_frame_of_unknown_size(b"two").unwrap()];
        assert_eq!(unzstd(&parts.concat(), 100).unwrap(), b"onetwo");
        assert!(zstd_bomb(64 << 20).unwrap().len() < 64 << 10);
    }
}

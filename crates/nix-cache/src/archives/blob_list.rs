//! The list of the blobs of an archive, as a blob: for each its SHA-256 and its size, 8 bytes, the low end first.

use bytes::{BufMut as _, Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction};

/// A hash and a size.
const ENTRY_BYTES: usize = 40;

/// Writes a list.
pub(super) fn encode(blobs: &[Digest]) -> Bytes {
    let mut list = BytesMut::with_capacity(blobs.len() * ENTRY_BYTES);
    for blob in blobs {
        list.extend_from_slice(blob.hash());
        list.put_u64_le(blob.size_bytes());
    }
    list.freeze()
}

/// Reads a list; `None` when it is none.
pub(super) fn decode(list: &[u8]) -> Option<Vec<Digest>> {
    let (entries, []) = list.as_chunks::<ENTRY_BYTES>() else { return None };
    let digest = |entry: &[u8; ENTRY_BYTES]| {
        let (hash, size) = entry.split_first_chunk()?;
        Some(Digest::new(DigestFunction::Sha256, *hash, u64::from_le_bytes(*size.first_chunk()?)))
    };
    entries.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip() {
        let blobs: Vec<Digest> = (0..5_u8).map(|byte| Digest::of(DigestFunction::Sha256, &[byte; 300])).collect();
        assert_eq!(decode(&encode(&blobs)), Some(blobs.clone()));
        assert_eq!(decode(&[]), Some(Vec::new()));
        assert_eq!(decode(&encode(&blobs)[1..]), None);
    }
}

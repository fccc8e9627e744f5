//! Blobs whose digest is known to be right, since it was computed from their bytes.

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction, Hasher};

use crate::gathering::Gathering;

/// A blob in memory that was hashed here. It is made by hashing alone, so a store takes its digest for granted: bytes
/// that are hashed while they come need not be hashed again where they are written.
#[derive(Clone, Debug)]
pub struct HashedBlob {
    digest: Digest,
    pieces: Vec<Bytes>,
}

impl HashedBlob {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(function: DigestFunction, bytes: Bytes) -> Self {
        let mut hashing = BlobHasher::new(function);
        hashing.update(bytes);
        hashing.finish()
    }

    /// The digest of the bytes.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes in order; no piece is empty.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The bytes in order; no piece is empty.
    #[must_use]
    pub fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }
}

/// Makes a [`HashedBlob`] of pieces as they come. They are kept and not copied, but for short ones.
pub struct BlobHasher {
    hasher: Hasher,
    gathering: Gathering,
}

impl BlobHasher {
    /// Begins with no bytes.
    #[must_use]
    pub fn new(function: DigestFunction) -> Self {
        Self { hasher: Hasher::new(function), gathering: Gathering::default() }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: Bytes) {
        self.hasher.update(&bytes);
        self.gathering.push(bytes);
    }

    /// The blob of all bytes taken.
    #[must_use]
    pub fn finish(mut self) -> HashedBlob {
        HashedBlob { digest: self.hasher.finish(), pieces: self.gathering.take() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_pieces() {
        let pieces =
            [5, 10_000, 0, 1, 4096, 70_000].map(|length: usize| Bytes::from(vec![length.to_le_bytes()[0]; length]));
        for function in DigestFunction::ALL {
            let mut hashing = BlobHasher::new(function);
            pieces.iter().for_each(|piece| hashing.update(piece.clone()));
            let blob = hashing.finish();
            assert_eq!(blob.digest(), Digest::of(function, &pieces.concat()));
            assert!(blob.pieces().concat() == pieces.concat());
            let empty = HashedBlob::of(function, Bytes::new());
            assert_eq!((empty.digest(), empty.pieces().len()), (Digest::empty(function), 0));
        }
    }
}

//! Random blobs, their digests and names, and what a core needs to hash them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::bytestream as bs;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use ring::digest::SHA256;

use crate::load::as_float;

/// Bytes in one `WriteRequest`. Of 16 KiB, 64 KiB, 256 KiB and 1 MiB this moved the most on the floor.
const WRITE_PIECE_BYTES: usize = 64 << 10;

/// A blob as a client holds it.
#[derive(Clone)]
pub(crate) struct Blob {
    /// SHA-256 and size.
    pub(crate) digest: rex::Digest,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

/// Random bytes, fast. Seeded by the system, so that a digest of an earlier run never comes again.
pub(crate) struct Source(SmallRng);

impl Source {
    /// A source that no other run repeats.
    pub(crate) fn fresh() -> Self {
        Self(SmallRng::from_os_rng())
    }

    /// A source that gives the same bytes for the same seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// A random blob that does not compress.
    pub(crate) fn blob(&mut self, size: usize) -> Blob {
        let mut bytes = vec![0; size];
        self.0.fill_bytes(&mut bytes);
        Blob { digest: digest_of(&bytes), bytes }
    }

    /// A digest of nothing in particular, which states `size_bytes`.
    pub(crate) fn digest(&mut self, size_bytes: i64) -> rex::Digest {
        rex::Digest { hash: hex::encode(self.key()), size_bytes }
    }

    /// Thirty-two random bytes, as a digest has them.
    pub(crate) fn key(&mut self) -> [u8; 32] {
        self.0.random()
    }

    /// A number below `end`; 0 when there is none.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// A seed for [`Self::seeded`].
    pub(crate) fn seed(&mut self) -> u64 {
        self.0.random()
    }

    /// Brings `items` into random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.below(end + 1);
            items.swap(end, other);
        }
    }
}

/// The digest of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> rex::Digest {
    let hash = hex::encode(ring::digest::digest(&SHA256, bytes));
    rex::Digest { hash, size_bytes: i64::try_from(bytes.len()).unwrap_or(i64::MAX) }
}

/// The request that reads a blob whole.
pub(crate) fn read_request(digest: &rex::Digest) -> Arc<bs::ReadRequest> {
    let resource_name = format!("blobs/{}/{}", digest.hash, digest.size_bytes);
    Arc::new(bs::ReadRequest { resource_name, read_offset: 0, read_limit: 0 })
}

/// The messages that upload a blob.
pub(crate) fn write_messages(blob: &Blob) -> Arc<[Arc<bs::WriteRequest>]> {
    let mut name = format!("uploads/{}/blobs/{}/{}", uuid::Uuid::new_v4(), blob.digest.hash, blob.digest.size_bytes);
    let mut write_offset = 0;
    let message = |piece: &[u8]| {
        let offset = write_offset;
        write_offset += i64::try_from(piece.len()).unwrap_or(i64::MAX);
        Arc::new(bs::WriteRequest {
            resource_name: std::mem::take(&mut name),
            write_offset: offset,
            finish_write: write_offset == blob.digest.size_bytes,
            data: piece.to_vec(),
        })
    };
    blob.bytes.chunks(WRITE_PIECE_BYTES).map(message).collect()
}

/// What one core hashes with SHA-256 now, in bytes a second: the best of a few tries, since neighbours disturb.
pub(crate) fn sha256_bytes_per_second() -> f64 {
    let bytes = vec![0xa5; 16 << 20];
    let one = || {
        let started = Instant::now();
        std::hint::black_box(ring::digest::digest(&SHA256, std::hint::black_box(&bytes)));
        started.elapsed()
    };
    let fastest = (0..8).map(|_| one()).min().unwrap_or(Duration::MAX);
    as_float(16 << 20) / fastest.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_cut_into_messages_that_make_up_the_blob() {
        let blob = Source::seeded(1).blob(3 * WRITE_PIECE_BYTES + 5);
        let messages = write_messages(&blob);
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.data.iter().copied()).collect();
        assert_eq!(bytes, blob.bytes);
        assert!(messages[0].resource_name.ends_with(&format!("/blobs/{}/{}", blob.digest.hash, bytes.len())));
        assert!(messages[1..].iter().all(|message| message.resource_name.is_empty()));
        assert_eq!(messages.iter().filter(|message| message.finish_write).count(), 1);
        assert!(messages.last().is_some_and(|message| message.finish_write));
    }

    #[test]
    fn a_seed_repeats_itself_and_a_fresh_source_does_not() {
        assert_eq!(Source::seeded(7).blob(100).digest, Source::seeded(7).blob(100).digest);
        assert_ne!(Source::fresh().blob(100).digest, Source::fresh().blob(100).digest);
    }

    #[test]
    fn digests_are_sha256_in_hexadecimal() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(b"abc"), rex::Digest { hash: expected.into(), size_bytes: 3 });
    }
}

use crate::{Digest, DigestFunction};

/// Computes a digest over bytes that arrive in pieces.
///
/// SHA-256 is `ring`'s, which picks SHA-NI, AVX2 or plain code when it runs; BLAKE3 is the reference crate.
#[derive(Clone)]
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "hashing a small blob must not cost an allocation")]
enum State {
    Sha256(ring::digest::Context),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Starts over no bytes.
    #[must_use]
    pub fn new(function: DigestFunction) -> Self {
        let state = match function {
            DigestFunction::Sha256 => State::Sha256(ring::digest::Context::new(&ring::digest::SHA256)),
            DigestFunction::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        };
        Self { state, size_bytes: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(context) => context.update(bytes),
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
        self.size_bytes += bytes.len() as u64;
    }

    /// Bytes taken so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all bytes taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        let mut hash = [0; 32];
        let function = match self.state {
            State::Sha256(context) => {
                hash.copy_from_slice(context.finish().as_ref());
                DigestFunction::Sha256
            }
            State::Blake3(hasher) => {
                hash = *hasher.finalize().as_bytes();
                DigestFunction::Blake3
            }
        };
        Digest::new(function, hash, self.size_bytes)
    }
}

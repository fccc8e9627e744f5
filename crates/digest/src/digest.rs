use std::fmt;

use thiserror::Error;

use crate::{DigestFunction, Hasher};

/// The identity of a blob: digest function, hash and size of its uncompressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    hash: [u8; 32],
    size_bytes: u64,
    function: DigestFunction,
}

/// Why text and a number are not a digest. All are the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DigestError {
    /// The hash has the wrong length.
    #[error("the hash has {actual} characters; {function} has 64")]
    Length {
        /// Characters found.
        actual: usize,
        /// The function that was asked for.
        function: DigestFunction,
    },
    /// A character is not one of `0-9a-f`.
    #[error("the hash must be lower-case hexadecimal")]
    NotLowerHex,
    /// The size is below zero.
    #[error("the size is negative: {0}")]
    NegativeSize(i64),
}

impl Digest {
    /// Takes a digest apart that is known to be right: one that was computed here or read from the store.
    #[must_use]
    pub const fn new(function: DigestFunction, hash: [u8; 32], size_bytes: u64) -> Self {
        Self { hash, size_bytes, function }
    }

    /// Reads the hexadecimal hash and size that a client sent.
    ///
    /// # Errors
    /// [`DigestError`] when the hash is not 64 lower-case hexadecimal characters or the size is negative.
    pub fn parse(function: DigestFunction, hash: &str, size_bytes: i64) -> Result<Self, DigestError> {
        let size_bytes = u64::try_from(size_bytes).map_err(|_| DigestError::NegativeSize(size_bytes))?;
        Ok(Self { hash: parse_hash(function, hash.as_bytes())?, size_bytes, function })
    }

    /// Computes the digest of `bytes`.
    #[must_use]
    pub fn of(function: DigestFunction, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(function);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of no bytes, which every store holds.
    #[must_use]
    pub fn empty(function: DigestFunction) -> Self {
        Self::of(function, &[])
    }

    /// The digest function.
    #[must_use]
    pub const fn function(&self) -> DigestFunction {
        self.function
    }

    /// The hash, 32 bytes.
    #[must_use]
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Size of the uncompressed blob in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether this names the blob of no bytes. A zero size with another hash names nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.size_bytes == 0
    }

    /// The hash as 64 lower-case hexadecimal characters, without allocating.
    #[must_use]
    pub fn hash_hex(&self) -> HashHex {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.hash) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        HashHex(text)
    }
}

/// A hash in hexadecimal; see [`Digest::hash_hex`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashHex([u8; 64]);

impl HashHex {
    /// The 64 characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The array is filled from an ASCII table, so this is never the fallback.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The 64 characters as bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Display for HashHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `sha256:<hash>/<size>`, for logs and messages; never a wire format.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.function, self.hash_hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse_hash(function: DigestFunction, text: &[u8]) -> Result<[u8; 32], DigestError> {
    let text: &[u8; 64] = text.try_into().map_err(|_| DigestError::Length { actual: text.len(), function })?;
    let mut hash = [0; 32];
    // Nibbles of bad characters are 0xff; one test at the end keeps the loop free of branches.
    let mut bad = 0;
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (NIBBLE[usize::from(pair[0])], NIBBLE[usize::from(pair[1])]);
        bad |= high | low;
        *byte = high << 4 | (low & 15);
    }
    if bad & 0xf0 == 0 { Ok(hash) } else { Err(DigestError::NotLowerHex) }
}

/// The value of each lower-case hexadecimal digit, 0xff for every other byte.
const NIBBLE: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    // Vectors from FIPS 180-4 and the BLAKE3 paper.
    const SHA256_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const BLAKE3_EMPTY: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    #[test]
    fn known_vectors() {
        assert_eq!(Digest::of(DigestFunction::Sha256, b"abc").hash_hex().as_str(), SHA256_ABC);
        assert_eq!(Digest::empty(DigestFunction::Blake3).hash_hex().as_str(), BLAKE3_EMPTY);
    }

    #[test]
    fn bad_text_is_refused() {
        let parse = |hash: &str, size| Digest::parse(DigestFunction::Sha256, hash, size);
        assert_eq!(parse(&SHA256_ABC.to_uppercase(), 3), Err(DigestError::NotLowerHex));
        assert!(matches!(parse("ba78", 3), Err(DigestError::Length { actual: 4, .. })));
        assert_eq!(parse(&SHA256_ABC.replace('b', "g"), 3), Err(DigestError::NotLowerHex));
        assert_eq!(parse(SHA256_ABC, -1), Err(DigestError::NegativeSize(-1)));
        assert_eq!(parse(SHA256_ABC, 3), Ok(Digest::of(DigestFunction::Sha256, b"abc")));
    }

    proptest::proptest! {
        #[test]
        fn text_round_trips(hash: [u8; 32], size in 0..i64::MAX) {
            let digest = Digest::new(DigestFunction::Blake3, hash, size.unsigned_abs());
            assert_eq!(Digest::parse(DigestFunction::Blake3, digest.hash_hex().as_str(), size), Ok(digest));
        }
    }
}

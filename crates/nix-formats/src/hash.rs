//! Hashes with the name of their algorithm, in the four spellings that Nix has.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use thiserror::Error;

use crate::base32::{decode_base32, encode_base32, encoded_base32_length};

/// The hash algorithms that store paths and content addresses use.
///
/// BLAKE3 is not among them: Nix has it behind an experimental feature only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// Broken since long; it still names old sources.
    Md5,
    /// Broken too; sources and git objects.
    Sha1,
    /// What Nix uses for everything of its own.
    Sha256,
    /// Sources, mostly of npm.
    Sha512,
}

impl HashAlgorithm {
    /// The name that precedes a hash.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a hash.
    #[must_use]
    pub const fn length(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// The longest hash, in bytes.
const MAX_LENGTH: usize = 64;

/// A hash of one of the algorithms. Displayed as `sha256:<base 32>`, the form that Nix writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash {
    algorithm: HashAlgorithm,
    /// Zero beyond the algorithm's length.
    bytes: [u8; MAX_LENGTH],
}

/// Why text or bytes are not a hash.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HashError {
    /// Neither `algorithm:hash` nor `algorithm-base64`.
    #[error("a hash must say its algorithm: `sha256:…` or `sha256-…`")]
    NoAlgorithm,
    /// An algorithm that is not known here.
    #[error("the hash algorithm is not one of md5, sha1, sha256 and sha512")]
    UnknownAlgorithm,
    /// The wrong number of characters or bytes.
    #[error("{actual} characters are no hash of {algorithm} in base 16, 32 or 64", algorithm = .algorithm.name())]
    Length {
        /// Characters, or bytes, found.
        actual: usize,
        /// The algorithm it should be of.
        algorithm: HashAlgorithm,
    },
    /// The length is right, the digits are not, or it is not the canonical spelling.
    #[error("the hash has a digit that its base has not, or is not in canonical form")]
    Digits,
}

impl Hash {
    /// Takes the bytes of a hash that was computed.
    ///
    /// # Errors
    /// [`HashError::Length`] when the algorithm gives another number of bytes.
    pub fn new(algorithm: HashAlgorithm, hash: &[u8]) -> Result<Self, HashError> {
        if hash.len() != algorithm.length() {
            return Err(HashError::Length { actual: hash.len(), algorithm });
        }
        let mut bytes = [0; MAX_LENGTH];
        bytes[..hash.len()].copy_from_slice(hash);
        Ok(Self { algorithm, bytes })
    }

    /// The SHA-256 of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        NarHash::of(bytes).into()
    }

    /// Reads `algorithm:hash` in base 16, 32 or 64, told apart by length as Nix does, or `algorithm-base64` (SRI).
    ///
    /// # Errors
    /// [`HashError`] for any other text; capitals in base 16 and second spellings in base 32 and 64 are refused.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let at = text.find([':', '-']).ok_or(HashError::NoAlgorithm)?;
        let (name, rest) = text.split_at(at);
        let algorithm = HashAlgorithm::from_name(name).ok_or(HashError::UnknownAlgorithm)?;
        let (separator, digits) = rest.split_at(1);
        let length = algorithm.length();
        if separator == "-" || digits.len() == base64_length(length) {
            return Self::parse_base64(algorithm, digits);
        }
        if digits.len() == encoded_base32_length(length) {
            return Self::parse_base32(algorithm, digits);
        }
        Self::parse_base16(algorithm, digits)
    }

    /// Reads lower-case hexadecimal digits without the algorithm's name.
    ///
    /// # Errors
    /// [`HashError`] for another length or another character.
    pub fn parse_base16(algorithm: HashAlgorithm, digits: &str) -> Result<Self, HashError> {
        let mut bytes = [0; MAX_LENGTH];
        let length = algorithm.length();
        if digits.len() != length * 2 {
            return Err(HashError::Length { actual: digits.len(), algorithm });
        }
        if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(HashError::Digits);
        }
        hex::decode_to_slice(digits, &mut bytes[..length]).map_err(|_| HashError::Digits)?;
        Ok(Self { algorithm, bytes })
    }

    fn parse_base32(algorithm: HashAlgorithm, digits: &str) -> Result<Self, HashError> {
        let mut bytes = [0; MAX_LENGTH];
        decode_base32(digits, &mut bytes[..algorithm.length()]).map_err(|_| HashError::Digits)?;
        Ok(Self { algorithm, bytes })
    }

    fn parse_base64(algorithm: HashAlgorithm, digits: &str) -> Result<Self, HashError> {
        if digits.len() != base64_length(algorithm.length()) {
            return Err(HashError::Length { actual: digits.len(), algorithm });
        }
        Self::new(algorithm, &BASE64.decode(digits).map_err(|_| HashError::Digits)?)
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The hash itself, as many bytes as its algorithm gives.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.length()]
    }

    /// Lower-case hexadecimal, without the algorithm's name.
    #[must_use]
    pub fn base16(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// Nix's base 32, without the algorithm's name.
    #[must_use]
    pub fn base32(&self) -> String {
        encode_base32(self.as_bytes())
    }

    /// Base 64 with padding, without the algorithm's name.
    #[must_use]
    pub fn base64(&self) -> String {
        BASE64.encode(self.as_bytes())
    }

    /// `algorithm-base64`, as Subresource Integrity spells it.
    #[must_use]
    pub fn sri(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.base64())
    }
}

const fn base64_length(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.base32())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The SHA-256 of an archive: what a client verifies, and what a signature covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarHash([u8; 32]);

impl NarHash {
    /// Takes a SHA-256 that was computed over an archive.
    #[must_use]
    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// Hashes a whole archive that is in memory.
    #[must_use]
    pub fn of(nar: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, nar).as_ref());
        Self(hash)
    }

    /// The SHA-256, 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Nix's base 32, 52 characters, as in the names of archives.
    #[must_use]
    pub fn base32(&self) -> String {
        encode_base32(&self.0)
    }
}

impl From<NarHash> for Hash {
    fn from(hash: NarHash) -> Self {
        let mut bytes = [0; MAX_LENGTH];
        bytes[..32].copy_from_slice(&hash.0);
        Self { algorithm: HashAlgorithm::Sha256, bytes }
    }
}

impl TryFrom<Hash> for NarHash {
    type Error = HashError;

    fn try_from(hash: Hash) -> Result<Self, HashError> {
        let length = || HashError::Length { actual: hash.as_bytes().len(), algorithm: HashAlgorithm::Sha256 };
        hash.as_bytes().try_into().map(Self).map_err(|_| length())
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.base32())
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_gives_the_same_hash() {
        // `nix hash to-base32|to-base64|to-sri --type A` of 2.8.0 and 2.34.8 over the hashes of "abc".
        let rows = include_str!("../tests/golden/hashes.txt");
        let mut count = 0;
        for row in rows.lines().filter(|row| !row.starts_with('#')) {
            let fields: Vec<&str> = row.split(' ').collect();
            let [name, base16, base32, base64, sri] = fields[..] else { panic!("{row}") };
            let hash = Hash::parse(sri).unwrap();
            for spelling in [base16, base32, base64] {
                assert_eq!(Hash::parse(&format!("{name}:{spelling}")), Ok(hash), "{row}");
            }
            assert_eq!((hash.base16().as_str(), hash.base32().as_str()), (base16, base32));
            assert_eq!((hash.base64().as_str(), hash.sri().as_str()), (base64, sri));
            assert_eq!(hash.to_string(), format!("{name}:{base32}"));
            count += 1;
        }
        assert_eq!(count, 4);
    }

    #[test]
    fn other_text_is_refused() {
        let hex = "a9993e364706816aba3e25717850c26c9cd0d89d";
        assert!(Hash::parse(&format!("sha1:{hex}")).is_ok());
        assert_eq!(Hash::parse(hex), Err(HashError::NoAlgorithm));
        assert_eq!(Hash::parse(&format!("blake3:{hex}")), Err(HashError::UnknownAlgorithm));
        assert_eq!(Hash::parse(&format!("sha1:{}", hex.to_uppercase())), Err(HashError::Digits));
        assert!(matches!(Hash::parse(&format!("sha256:{hex}")), Err(HashError::Length { actual: 40, .. })));
        // The last character before the padding has bits beyond the hash.
        assert_eq!(Hash::parse("sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J1="), Err(HashError::Digits));
        assert!(Hash::parse("sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0").is_err());
        assert!(NarHash::try_from(Hash::parse(&format!("sha1:{hex}")).unwrap()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(md5|sha1|sha256|sha512)?[:-]?[0-9a-zA-Z+/=]{0,100}") {
            if let Ok(hash) = Hash::parse(&text) {
                let spellings = [hash.base16(), hash.base32(), hash.base64()];
                assert!(spellings.iter().any(|spelling| text.ends_with(spelling.as_str())), "{text}");
            }
        }
    }
}

//! Signatures and sets of them. What is signed is up to the caller: see [`crate::fingerprint`].

use std::collections::BTreeSet;
use std::collections::btree_set;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use thiserror::Error;

use crate::key::{KeyError, KeyName, PublicKey, parse_named};

/// An Ed25519 signature with the name of its key: `name:base64`.
///
/// Ordered by its text, as Nix orders signatures.
#[derive(Clone)]
pub struct Signature {
    text: Arc<str>,
    signature: [u8; 64],
}

/// Why text is not a signature.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// Not `name:base64` of 64 bytes.
    #[error("the signature is not `name:base64` of 64 bytes")]
    Malformed(#[source] KeyError),
    /// Over [`Signatures::MAX`].
    #[error("there are more than {max} signatures", max = Signatures::MAX)]
    TooMany,
}

impl Signature {
    /// Puts a name to the bytes of a signature.
    #[must_use]
    pub fn new(key: &KeyName, signature: &[u8; 64]) -> Self {
        Self { text: format!("{key}:{}", BASE64.encode(signature)).into(), signature: *signature }
    }

    /// Reads `name:base64`.
    ///
    /// # Errors
    /// [`SignatureError::Malformed`] for anything else.
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let (_, signature) = parse_named(text).map_err(SignatureError::Malformed)?;
        Ok(Self { text: text.into(), signature })
    }

    /// `name:base64`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the key that is said to have signed.
    #[must_use]
    pub fn key_name(&self) -> &str {
        self.text.split_once(':').map_or("", |(name, _)| name)
    }

    /// The signature in base 64.
    #[must_use]
    pub fn base64(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, digits)| digits)
    }

    /// The signature, 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.signature
    }
}

/// The signatures of one thing: a set in the order of their text, of at most [`Signatures::MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures(BTreeSet<Signature>);

impl Signatures {
    /// The most that are kept for one thing.
    pub const MAX: usize = 64;

    /// Adds one; one that is there already changes nothing. Answers whether it is new.
    ///
    /// # Errors
    /// [`SignatureError::TooMany`] when the set is full; it is unchanged then.
    pub fn insert(&mut self, signature: Signature) -> Result<bool, SignatureError> {
        if self.0.contains(&signature) {
            return Ok(false);
        }
        if self.0.len() == Self::MAX {
            return Err(SignatureError::TooMany);
        }
        Ok(self.0.insert(signature))
    }

    /// Adds those of another set. Answers whether any is new.
    ///
    /// # Errors
    /// [`SignatureError::TooMany`] when not all fit; those that do are added.
    pub fn merge(&mut self, other: &Self) -> Result<bool, SignatureError> {
        let mut changed = false;
        for signature in other {
            changed |= self.insert(signature.clone())?;
        }
        Ok(changed)
    }

    /// The first of `keys` that signed `message`, by a signature of this set.
    #[must_use]
    pub fn verified_by<'a>(&self, message: &[u8], keys: &'a [PublicKey]) -> Option<&'a PublicKey> {
        keys.iter().find(|key| self.0.iter().any(|signature| key.verifies(message, signature)))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All, in the order of their text.
    pub fn iter(&self) -> btree_set::Iter<'_, Signature> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Signatures {
    type Item = &'a Signature;
    type IntoIter = btree_set::Iter<'a, Signature>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl PartialEq for Signature {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Signature {}

impl PartialOrd for Signature {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Signature {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(name: &str, byte: u8) -> Signature {
        Signature::new(&KeyName::new(name).unwrap(), &[byte; 64])
    }

    #[test]
    fn sets_merge_in_the_order_of_the_text() {
        let mut one = Signatures::default();
        assert_eq!(one.insert(signature("a", 1)), Ok(true));
        assert_eq!(one.insert(signature("a", 1)), Ok(false));
        let mut other = one.clone();
        other.insert(signature("a-1", 1)).unwrap();
        assert_eq!(one.merge(&other), Ok(true));
        assert_eq!(one.merge(&other), Ok(false));
        // `-` sorts before `:`.
        assert_eq!(one.iter().map(Signature::key_name).collect::<Vec<_>>(), ["a-1", "a"]);
        for byte in 0..62 {
            one.insert(signature("b", byte)).unwrap();
        }
        assert_eq!(one.insert(signature("c", 0)), Err(SignatureError::TooMany));
        assert_eq!(one.insert(signature("a", 1)), Ok(false));
        assert_eq!(one.len(), Signatures::MAX);
    }

    proptest::proptest! {
        #[test]
        fn text_round_trips(name in "[!-9;-~]{1,20}", byte: u8) {
            let written = signature(&name, byte);
            let read = Signature::parse(written.as_str()).unwrap();
            assert_eq!((read.key_name(), read.as_bytes()), (name.as_str(), &[byte; 64]));
            assert_eq!(format!("{}:{}", read.key_name(), read.base64()), written.as_str());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,120}") {
            if let Ok(signature) = Signature::parse(&text) {
                assert_eq!(signature.as_str(), text);
            }
        }
    }
}

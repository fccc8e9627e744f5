//! The keys of a cache: an Ed25519 key with a name, as text `name:base64`.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use thiserror::Error;

use crate::signature::Signature;

/// The name of a key, such as `cache.example.org-1`. Clients choose the key of a signature by it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(Arc<str>);

/// The half of a key that clients list in `trusted-public-keys`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    name: KeyName,
    key: [u8; 32],
}

/// The half of a key that signs. Its secret is never displayed but by [`SecretKey::reveal`].
pub struct SecretKey {
    name: KeyName,
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

/// Why text is not a key or the name of one. No variant carries any of the text, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// No `:` between name and key.
    #[error("a key is written `name:base64`")]
    Shape,
    /// The name is empty, too long, or has a character that would end it early.
    #[error("the name of a key has 1 to {max} visible characters of ASCII, none of them `:`", max = KeyName::MAX_LENGTH)]
    Name,
    /// Not base 64 in canonical form.
    #[error("the key is not canonical base 64")]
    Base64,
    /// The wrong number of bytes.
    #[error("the key has {actual} bytes where {expected} are needed")]
    Length {
        /// Bytes found.
        actual: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// The public half within a secret key is not that of its seed.
    #[error("the halves of the secret key do not belong together")]
    Mismatch,
}

impl KeyName {
    /// The longest name accepted, in characters.
    pub const MAX_LENGTH: usize = 256;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`KeyError::Name`] when it could not be read back from `name:base64`.
    pub fn new(name: &str) -> Result<Self, KeyError> {
        let good = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.bytes().all(good) {
            return Err(KeyError::Name);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Splits `name:base64` and decodes the second half into exactly `N` bytes.
pub(crate) fn parse_named<const N: usize>(text: &str) -> Result<(KeyName, [u8; N]), KeyError> {
    let (name, digits) = text.split_once(':').ok_or(KeyError::Shape)?;
    let name = KeyName::new(name)?;
    let bytes = decode(digits)?;
    Ok((name, bytes))
}

/// Decodes base 64 into exactly `N` bytes.
pub(crate) fn decode<const N: usize>(digits: &str) -> Result<[u8; N], KeyError> {
    let bytes = BASE64.decode(digits).map_err(|_| KeyError::Base64)?;
    bytes.try_into().map_err(|bytes: Vec<u8>| KeyError::Length { actual: bytes.len(), expected: N })
}

impl PublicKey {
    /// Reads `name:base64`. White space around it is ignored, since files of keys often end in a new line.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, key) = parse_named(text.trim_ascii())?;
        Ok(Self { name, key })
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    /// Whether `signature` carries this key's name and is its signature of `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        signature.key_name() == self.name.as_str()
            && UnparsedPublicKey::new(&ED25519, &self.key).verify(message, signature.as_bytes()).is_ok()
    }
}

impl SecretKey {
    /// Makes the key of 32 bytes that the caller took from a good source of randomness.
    ///
    /// # Errors
    /// [`KeyError`] never, unless the cryptography library refuses every seed.
    pub fn from_seed(name: KeyName, seed: [u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Mismatch)?;
        Ok(Self { name, seed, pair })
    }

    /// Reads what `nix key generate-secret` writes: `name:base64(seed, public half)`, white space around it ignored.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong; [`KeyError::Mismatch`] when the two halves do not belong together.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, halves) = parse_named::<64>(text.trim_ascii())?;
        let mut seed = [0; 32];
        seed.copy_from_slice(&halves[..32]);
        let pair = Ed25519KeyPair::from_seed_and_public_key(&seed, &halves[32..]).map_err(|_| KeyError::Mismatch)?;
        Ok(Self { name, seed, pair })
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    /// The public half, under the same name.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey { name: self.name.clone(), key }
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        Signature::new(&self.name, &signature)
    }

    /// The secret itself, as Nix writes it into a file.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{}:{}", self.name, BASE64.encode([&self.seed, self.pair.public_key().as_ref()].concat()))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `name:base64`, as in `trusted-public-keys`.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, BASE64.encode(self.key))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `nix key generate-secret --key-name golden-1` and `nix key convert-secret-to-public`, 2.8.0. Used for tests only.
    const SECRET: &str = include_str!("../tests/golden/secret-key");
    const PUBLIC: &str = include_str!("../tests/golden/public-key");

    #[test]
    fn keys_of_nix_are_read_and_written() {
        let secret = SecretKey::parse(SECRET).unwrap();
        assert_eq!(secret.reveal(), SECRET.trim());
        assert_eq!(secret.public().to_string(), PUBLIC.trim());
        assert_eq!(PublicKey::parse(PUBLIC), Ok(secret.public()));
        assert_eq!(format!("{secret:?}"), "SecretKey(golden-1)");
        let again = SecretKey::from_seed(secret.name().clone(), secret.seed).unwrap();
        assert_eq!(again.reveal(), secret.reveal());
    }

    #[test]
    fn a_signature_counts_for_its_key_name_and_message_only() {
        let secret = SecretKey::parse(SECRET).unwrap();
        let signature = secret.sign(b"message");
        assert!(secret.public().verifies(b"message", &signature));
        assert!(!secret.public().verifies(b"massage", &signature));
        let renamed = PublicKey::parse(&PUBLIC.replace("golden-1", "golden-2")).unwrap();
        assert!(!renamed.verifies(b"message", &signature));
    }

    #[test]
    fn other_text_is_refused() {
        let good = PUBLIC.trim();
        let key = &good["golden-1:".len()..];
        assert_eq!(PublicKey::parse(key), Err(KeyError::Shape));
        assert_eq!(PublicKey::parse(&format!(":{key}")), Err(KeyError::Name));
        assert_eq!(PublicKey::parse(&format!("a b:{key}")), Err(KeyError::Name));
        assert_eq!(PublicKey::parse(&format!("{good}=")), Err(KeyError::Base64));
        assert_eq!(PublicKey::parse("a:AAAA"), Err(KeyError::Length { actual: 3, expected: 32 }));
        // The public half of a key of zeros is not zeros.
        let zeros = format!("a:{}", BASE64.encode([0; 64]));
        assert_eq!(SecretKey::parse(&zeros).unwrap_err(), KeyError::Mismatch);
    }
}

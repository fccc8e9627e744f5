//! JSON Web Tokens (RFC 7515, 7519) of the two algorithms that Attic uses: is this text signed with that key?
//!
//! What always holds: the key says which algorithm it is for, and a token that names another is refused, so neither
//! `alg: none` nor a public key taken for a shared secret gets anybody in. No claim is looked at before the signature
//! was found right.
//!
//! Deliberately absent: encrypted tokens, keys that come with the token (`jwk`, `jku`, `x5u`), making tokens.

use std::fmt;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use ring::{hmac, signature};
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use thiserror::Error;

use crate::secret::Fingerprint;

/// The longest token that is looked at; Attic's are a few hundred characters.
const MAX_TOKEN_LENGTH: usize = 16 << 10;
/// RFC 7518, 3.2: a shared secret is at least as long as the hash.
const MIN_SECRET_BYTES: usize = 32;

/// What tokens are checked with.
#[derive(Clone)]
pub struct JwtKey(Kind);

#[derive(Clone)]
enum Kind {
    Hs256(hmac::Key),
    /// A public key as RFC 8017 writes it (`RSAPublicKey`).
    Rs256(Vec<u8>),
}

/// Why text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JwtKeyError {
    /// It is not base64.
    #[error("it is not base64 text")]
    Base64,
    /// A short secret can be guessed from one token.
    #[error(
        "the secret has {0} bytes, and at least {MIN_SECRET_BYTES} are needed: make it with `openssl rand -base64 64`"
    )]
    ShortSecret(usize),
    /// It is no key in PEM, or not of RSA.
    #[error("it is not an RSA key in PEM, or that in base64: {0}")]
    Rsa(String),
}

/// Why a token is not one of the key's. For logs; who presents it learns no more than that it is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JwtFault {
    /// Not three parts of base64 with a JSON header.
    #[error("it does not have the form of a token")]
    Form,
    /// It names another algorithm than that of the key.
    #[error("it names another algorithm than the key is for")]
    Algorithm,
    /// It was not signed with this key, or was changed since.
    #[error("its signature is not of the key")]
    Signature,
    /// It names a key that its issuer does not publish, or none where there are several.
    #[error("its issuer publishes no such key")]
    UnknownKey,
}

/// The parts of a token, of which nothing was checked yet.
pub(crate) struct Unverified<'t> {
    signed: &'t [u8],
    header: Header,
    claims: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    /// Which of the issuer's keys.
    kid: Option<String>,
    /// Extensions that whoever does not know them must not pass over (RFC 7515, 4.1.11): we know none.
    crit: Option<serde::de::IgnoredAny>,
}

impl JwtKey {
    /// A shared secret for HS256: the base64 text of its bytes.
    ///
    /// # Errors
    /// [`JwtKeyError`].
    pub fn hs256(base64: &str) -> Result<Self, JwtKeyError> {
        let secret = decode(base64)?;
        if secret.len() < MIN_SECRET_BYTES {
            return Err(JwtKeyError::ShortSecret(secret.len()));
        }
        Ok(Self(Kind::Hs256(hmac::Key::new(hmac::HMAC_SHA256, &secret))))
    }

    /// The private key that RS256 tokens are signed with, of which only the public half is kept: its PEM, or the base64
    /// text of that.
    ///
    /// # Errors
    /// [`JwtKeyError`].
    pub fn rs256_private(text: &str) -> Result<Self, JwtKeyError> {
        let (kind, der) = pem(text)?;
        let pair = match kind {
            SectionKind::RsaPrivateKey => RsaKeyPair::from_der(&der),
            SectionKind::PrivateKey => RsaKeyPair::from_pkcs8(&der),
            _ => return Err(JwtKeyError::Rsa("it is not a private key".to_owned())),
        };
        let pair = pair.map_err(|error| JwtKeyError::Rsa(error.to_string()))?;
        Ok(Self(Kind::Rs256(pair.public_key().as_ref().to_vec())))
    }

    /// The public key that RS256 tokens are checked with: its PEM, or the base64 text of that.
    ///
    /// # Errors
    /// [`JwtKeyError`].
    pub fn rs256_public(text: &str) -> Result<Self, JwtKeyError> {
        let (kind, der) = pem(text)?;
        match kind {
            SectionKind::PublicKey => match inner_key(&der) {
                Some(key) => Ok(Self(Kind::Rs256(key.to_vec()))),
                None => Err(JwtKeyError::Rsa("it is a key of another kind".to_owned())),
            },
            _ => Err(JwtKeyError::Rsa("it is not a public key".to_owned())),
        }
    }

    const fn algorithm(&self) -> &'static str {
        match self.0 {
            Kind::Hs256(_) => "HS256",
            Kind::Rs256(_) => "RS256",
        }
    }

    /// The claims of a token, as JSON text, and the fingerprint of what was signed, when it was signed with this key. Whether
    /// they hold now is not asked here.
    pub(crate) fn verify(&self, token: &str) -> Result<(Vec<u8>, Fingerprint), JwtFault> {
        let token = Unverified::read(token)?;
        let fingerprint = token.fingerprint();
        let claims = token.verify(self.algorithm(), |message, signature| match &self.0 {
            Kind::Hs256(key) => hmac::verify(key, message, signature).is_ok(),
            Kind::Rs256(key) => is_signed(key, message, signature),
        });
        Ok((claims?, fingerprint))
    }
}

impl<'t> Unverified<'t> {
    /// Takes a token apart.
    pub(crate) fn read(token: &'t str) -> Result<Self, JwtFault> {
        if token.len() > MAX_TOKEN_LENGTH {
            return Err(JwtFault::Form);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtFault::Form)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtFault::Form)?;
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| JwtFault::Form);
        let (header, claims, signature) = (part(header)?, part(claims)?, part(signature)?);
        let header = serde_json::from_slice(&header).map_err(|_| JwtFault::Form)?;
        Ok(Self { signed: signed.as_bytes(), header, claims, signature })
    }

    /// Which of the issuer's keys it names.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// The algorithm that it names; the key says which one counts.
    pub(crate) fn algorithm(&self) -> &str {
        &self.header.alg
    }

    /// The claims, before it is known whose they are: for finding out whose keys to check with, and nothing else.
    pub(crate) fn unverified_claims(&self) -> &[u8] {
        &self.claims
    }

    /// Of what was signed, and not of the signature: of one text there can be several right ones.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_bytes(self.signed)
    }

    /// The claims, when this algorithm is named and finds the signature right.
    pub(crate) fn verify(self, algorithm: &str, fits: impl FnOnce(&[u8], &[u8]) -> bool) -> Result<Vec<u8>, JwtFault> {
        if self.header.alg != algorithm || self.header.crit.is_some() {
            return Err(JwtFault::Algorithm);
        }
        if fits(self.signed, &self.signature) { Ok(self.claims) } else { Err(JwtFault::Signature) }
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JwtKey({})", self.algorithm())
    }
}

/// Whether text may be a token: the header of one is a JSON object in base64.
pub(crate) fn looks_like_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

fn is_signed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let algorithm: &'static dyn signature::VerificationAlgorithm = &RSA_PKCS1_2048_8192_SHA256;
    UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
}

fn decode(base64: &str) -> Result<Vec<u8>, JwtKeyError> {
    BASE64_STANDARD.decode(base64.trim()).map_err(|_| JwtKeyError::Base64)
}

fn pem(text: &str) -> Result<(SectionKind, Vec<u8>), JwtKeyError> {
    let decoded;
    let pem = if text.trim_start().starts_with("-----BEGIN") {
        text.as_bytes()
    } else {
        decoded = decode(text)?;
        &decoded
    };
    <(SectionKind, Vec<u8>)>::from_pem_slice(pem).map_err(|error| JwtKeyError::Rsa(error.to_string()))
}

/// The `RSAPublicKey` in a `SubjectPublicKeyInfo` (RFC 5280, 4.1): a sequence of the algorithm, which for RSA has one
/// way to be written, and a string of bits, none of them unused.
fn inner_key(der: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 0x03;
    const RSA: &[u8] = &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let (contents, after) = element(SEQUENCE, der)?;
    let (bits, rest) = element(BIT_STRING, contents.strip_prefix(RSA)?)?;
    if after.is_empty() && rest.is_empty() { bits.strip_prefix(&[0]) } else { None }
}

/// The contents of the element that stands first, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match der.strip_prefix(&[tag])? {
        [length @ 0..=0x7f, rest @ ..] => (usize::from(*length), rest),
        [0x81, length, rest @ ..] => (usize::from(*length), rest),
        [0x82, high, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
pub(crate) mod tests;

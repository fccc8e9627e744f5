//! The keys that an issuer of tokens publishes (RFC 7517), and how long they are believed.
//!
//! What always holds: a key is only used with the algorithm that its kind is for, whatever a token or the set says.
//!
//! Deliberately absent: fetching, which a [`crate::trust::KeySource`] does; keys of other kinds than RSA and P-256,
//! which are passed over, as are those that are not for signatures.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use thiserror::Error;

use crate::jwt::{JwtFault, Unverified};

/// The longest set that is read; those of large issuers have a few thousand bytes.
pub const MAX_KEY_SET_BYTES: usize = 256 << 10;
/// The most keys of a set that are looked at.
const MAX_KEYS: usize = 64;

/// How long a set is used without asking anew.
const FRESH: Duration = Duration::from_secs(600);
/// How long a set is used while its issuer cannot be asked. Longer than a night; a key that was taken back because it
/// leaked is believed no longer than this.
const BELIEVED: Duration = Duration::from_secs(12 * 3600);
/// How long to wait after asking, whatever came of it, also when a token names a key that is not there: strangers can
/// make up names of keys.
const PAUSE: Duration = Duration::from_secs(30);

/// The keys of one issuer.
#[derive(Debug)]
pub(crate) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// An uncompressed point.
    P256(Vec<u8>),
}

/// Text that is no set of keys.
#[derive(Debug, Error)]
pub enum KeySetError {
    /// It is too long.
    #[error("it has more than {MAX_KEY_SET_BYTES} bytes")]
    TooLong,
    /// It is not JSON with a list of keys.
    #[error("it is not a set of keys: {0}")]
    Json(#[from] serde_json::Error),
    /// There is nothing to check signatures with.
    #[error("it has no key for RS256 or ES256")]
    NoKey,
}

#[derive(Deserialize)]
struct WireSet {
    keys: Vec<WireKey>,
}

#[derive(Deserialize)]
struct WireKey {
    kty: String,
    #[serde(rename = "use")]
    usage: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_KEY_SET_BYTES {
            return Err(KeySetError::TooLong);
        }
        let set: WireSet = serde_json::from_slice(text)?;
        let keys: Vec<Key> = set.keys.into_iter().take(MAX_KEYS).filter_map(Key::read).collect();
        if keys.is_empty() { Err(KeySetError::NoKey) } else { Ok(Self(keys)) }
    }

    /// The claims of a token that one of the keys signed: the one that it names, or the only one.
    pub(crate) fn verify(&self, token: Unverified<'_>) -> Result<Vec<u8>, JwtFault> {
        let named = match token.key_id() {
            Some(id) => self.named(id, token.algorithm()),
            None => self.0.first().filter(|_| self.0.len() == 1),
        };
        match &named.ok_or(JwtFault::UnknownKey)?.kind {
            Kind::Rsa(key) => token.verify("RS256", |message, signature| {
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }),
            Kind::P256(point) => token.verify("ES256", |message, signature| {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }),
        }
    }
}

impl KeySet {
    /// The key of this name. Two of different kinds may share one, and then the algorithm says which is meant.
    fn named(&self, id: &str, algorithm: &str) -> Option<&Key> {
        let mut named = self.0.iter().filter(|key| key.id.as_deref() == Some(id));
        let first = named.clone().next();
        named.find(|key| key.algorithm() == algorithm).or(first)
    }
}

impl Key {
    const fn algorithm(&self) -> &'static str {
        match self.kind {
            Kind::Rsa(_) => "RS256",
            Kind::P256(_) => "ES256",
        }
    }

    fn read(key: WireKey) -> Option<Self> {
        let part = |text: Option<String>| BASE64_URL_SAFE_NO_PAD.decode(text?).ok();
        let algorithm = match key.kty.as_str() {
            "RSA" => "RS256",
            "EC" if key.crv.as_deref() == Some("P-256") => "ES256",
            _ => return None,
        };
        let is_for_signatures = key.usage.is_none_or(|usage| usage == "sig");
        if !is_for_signatures || key.alg.is_some_and(|named| named != algorithm) {
            return None;
        }
        let kind = if algorithm == "RS256" {
            Kind::Rsa(RsaPublicKeyComponents { n: part(key.n)?, e: part(key.e)? })
        } else {
            let (x, y) = (part(key.x)?, part(key.y)?);
            (x.len() == 32 && y.len() == 32).then(|| Kind::P256([&[4], x.as_slice(), &y].concat()))?
        };
        Some(Self { id: key.kid, kind })
    }
}

/// What is known of an issuer's keys, with the times as durations since any fixed moment. Pure: whoever has it asks
/// what to do, does it, and says what came of it.
#[derive(Debug, Default)]
pub(crate) struct KeyCache {
    keys: Option<(KeySet, Duration)>,
    asked: Option<Duration>,
}

impl KeyCache {
    /// Whether the issuer should be asked now; `unknown` when a token named a key that is not known.
    pub(crate) fn wants(&self, now: Duration, unknown: Unknown) -> bool {
        let stale = self.keys.as_ref().is_none_or(|(_, read)| now.saturating_sub(*read) >= FRESH);
        let rested = self.asked.is_none_or(|asked| now.saturating_sub(asked) >= PAUSE);
        rested && (stale || unknown == Unknown::Yes)
    }

    /// Says that the issuer is being asked.
    pub(crate) const fn asking(&mut self, now: Duration) {
        self.asked = Some(now);
    }

    /// Takes what the issuer answered.
    pub(crate) fn answered(&mut self, keys: KeySet, now: Duration) {
        self.keys = Some((keys, now));
    }

    /// The keys, while they are believed.
    pub(crate) fn keys(&self, now: Duration) -> Option<&KeySet> {
        let (keys, read) = self.keys.as_ref()?;
        (now.saturating_sub(*read) < BELIEVED).then_some(keys)
    }
}

/// Whether a token named a key that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It did.
    Yes,
    /// It did not, or nobody looked yet.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000_000 + seconds)
    }

    fn some_keys() -> KeySet {
        KeySet(vec![Key { id: None, kind: Kind::P256(vec![4; 65]) }])
    }

    #[test]
    fn issuers_are_asked_seldom_and_believed_for_a_night() {
        let mut cache = KeyCache::default();
        assert!(cache.wants(at(0), Unknown::No) && cache.keys(at(0)).is_none());
        cache.asking(at(0));
        // It did not answer: it is left alone for a while, however many tokens come.
        assert!(!cache.wants(at(1), Unknown::No) && !cache.wants(at(29), Unknown::Yes));
        assert!(cache.wants(at(30), Unknown::No));
        cache.asking(at(30));
        cache.answered(some_keys(), at(31));
        assert!(cache.keys(at(31)).is_some() && !cache.wants(at(100), Unknown::No));
        // A key that is not known may be a new one, or made up.
        assert!(cache.wants(at(100), Unknown::Yes));
        cache.asking(at(100));
        assert!(!cache.wants(at(129), Unknown::Yes));
        assert!(!cache.wants(at(630), Unknown::No) && cache.wants(at(631), Unknown::No));
        cache.asking(at(631));
        let night = 31 + 12 * 3600;
        assert!(cache.keys(at(night - 1)).is_some() && cache.keys(at(night)).is_none());
    }

    #[test]
    fn keys_of_two_kinds_may_share_a_name() {
        let point = "A".repeat(43);
        let rsa = r#"{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}"#;
        let p256 = format!(r#"{{"kty":"EC","kid":"a","crv":"P-256","x":"{point}","y":"{point}"}}"#);
        for keys in [format!("{rsa},{p256}"), format!("{p256},{rsa}")] {
            let set = KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes()).unwrap();
            for algorithm in ["RS256", "ES256"] {
                assert_eq!(set.named("a", algorithm).map(Key::algorithm), Some(algorithm));
            }
            assert!(set.named("b", "RS256").is_none() && set.named("a", "none").is_some());
        }
    }

    #[test]
    fn what_is_no_key_is_passed_over() {
        let check = |keys: &str, expected: Option<usize>| {
            let set = KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes());
            assert_eq!(set.ok().map(|set| set.0.len()), expected, "{keys}");
        };
        let x = "A".repeat(43);
        let point = format!(r#""x":"{x}","y":"{x}""#);
        check(r#"{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"a","later":1}"#, Some(1));
        check(&format!(r#"{{"kty":"EC","crv":"P-256",{point}}}"#), Some(1));
        check(&format!(r#"{{"kty":"OKP"}},{{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256",{point}}}"#), Some(1));
        for none in [
            "",
            r#"{"kty":"oct","k":"AAAA"}"#,
            r#"{"kty":"RSA","n":"AQAB"}"#,
            r#"{"kty":"RSA","n":"!","e":"AQAB"}"#,
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB","use":"enc"}"#,
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB","alg":"RS512"}"#,
            r#"{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}"#,
            r#"{"kty":"EC","crv":"P-384","x":"AAAA","y":"AAAA"}"#,
            r#"{"kid":"a"}"#,
        ] {
            check(none, None);
        }
        assert!(matches!(KeySet::parse(&vec![b' '; MAX_KEY_SET_BYTES + 1]), Err(KeySetError::TooLong)));
    }
}

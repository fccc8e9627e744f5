//! Tokens in the format of Attic: which permissions they grant on which caches, and until when.
//!
//! What always holds: of the patterns of a token one decides, and permissions of several are never put together: the
//! one that is the name of the cache itself, or else the first that fits, in the order in which the token has them.
//!
//! Deliberately absent: tenants. The names of caches are one space, and whoever holds the key speaks for all of it. Which
//! single ones were revoked, [`crate::Tokens`] knows.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use thiserror::Error;

use crate::jwt::JwtKey;
use crate::secret::Fingerprint;
use crate::{Denied, Pattern, PermissionName, is_shown};

/// By how much the clocks of an issuer and of this server may differ. Attic's own server allows as much, and an issuer
/// whose clock is a little ahead makes tokens that are not valid yet.
const LEEWAY_S: u64 = 900;
/// Tokens that are remembered as verified: a client presents the same one with each request.
const REMEMBERED: usize = 4096;

/// How tokens in Attic's format are checked.
#[derive(Clone, Debug)]
pub struct AtticConfig {
    /// What they are signed with.
    pub key: JwtKey,
    /// Who must have issued them (`iss`); `None` for anybody who has the key.
    pub issuer: Option<String>,
    /// For whom they must be (`aud`), one of these; empty for anybody.
    pub audiences: Vec<String>,
}

/// A token in Attic's format, which was signed with the configured key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtticToken {
    id: AtticId,
    subject: String,
    /// Seconds since 1970.
    not_before_s: Option<u64>,
    expires_s: Option<u64>,
    caches: Vec<(Pattern, AtticPermissions)>,
}

/// Which token of Attic's format: the SHA-256 of what was signed of it, since of one text there can be several right
/// signatures. It shows as 64 hexadecimal digits, and is no secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AtticId(Fingerprint);

/// Text that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this is no fingerprint of a token in Attic's format: it is 64 hexadecimal digits")]
pub struct AtticIdError;

impl AtticId {
    pub(crate) const fn fingerprint(self) -> Fingerprint {
        self.0
    }
}

impl FromStr for AtticId {
    type Err = AtticIdError;

    fn from_str(text: &str) -> Result<Self, AtticIdError> {
        Fingerprint::parse(text).map(Self).ok_or(AtticIdError)
    }
}

impl fmt::Display for AtticId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AtticId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is granted on a cache, each 0 or 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct AtticPermissions {
    #[serde(rename = "r")]
    pull: Bit,
    #[serde(rename = "w")]
    push: Bit,
    #[serde(rename = "d")]
    delete: Bit,
    #[serde(rename = "cc")]
    create_cache: Bit,
    #[serde(rename = "cr")]
    configure_cache: Bit,
    #[serde(rename = "cq")]
    configure_retention: Bit,
    #[serde(rename = "cd")]
    destroy_cache: Bit,
}

impl AtticToken {
    /// Which one it is.
    #[must_use]
    pub const fn id(&self) -> AtticId {
        self.id
    }

    /// When it cannot be good any more, in seconds since 1970; `None` for never.
    #[must_use]
    pub const fn ends_s(&self) -> Option<u64> {
        match self.expires_s {
            Some(expires_s) => Some(expires_s.saturating_add(LEEWAY_S).saturating_add(1)),
            None => None,
        }
    }

    /// Who it was issued to (`sub`), cut to what a log line bears; only its issuer vouches for it.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The pattern that decides about a cache.
    pub(crate) fn deciding_pattern(&self, cache: &str) -> Option<&Pattern> {
        self.entry(cache).map(|(pattern, _)| pattern)
    }

    /// Whether it grants this on this cache.
    pub(crate) fn grants(&self, permission: PermissionName, cache: &str) -> bool {
        self.entry(cache).is_some_and(|(_, permissions)| permissions.has(permission))
    }

    /// Whether it grants this on any cache.
    pub(crate) fn grants_somewhere(&self, permission: PermissionName) -> bool {
        self.caches.iter().any(|(_, permissions)| permissions.has(permission))
    }

    fn entry(&self, cache: &str) -> Option<&(Pattern, AtticPermissions)> {
        let exact = self.caches.iter().find(|(pattern, _)| pattern.as_str() == cache);
        exact.or_else(|| self.caches.iter().find(|(pattern, _)| pattern.fits(cache)))
    }

    /// Whether it holds at this time.
    fn check_time(&self, now_s: u64) -> Result<(), Denied> {
        if self.expires_s.is_some_and(|end| now_s > end.saturating_add(LEEWAY_S)) {
            return Err(Denied::Expired);
        }
        if self.not_before_s.is_some_and(|begin| begin > now_s.saturating_add(LEEWAY_S)) {
            return Err(Denied::NotYetValid);
        }
        Ok(())
    }
}

impl AtticPermissions {
    const fn has(self, permission: PermissionName) -> bool {
        match permission {
            PermissionName::NixPull => self.pull.0,
            PermissionName::NixPush => self.push.0,
            PermissionName::NixDelete => self.delete.0,
            PermissionName::NixCreateCache => self.create_cache.0,
            PermissionName::NixConfigureCache => self.configure_cache.0,
            PermissionName::NixConfigureRetention => self.configure_retention.0,
            PermissionName::NixDestroyCache => self.destroy_cache.0,
            _ => false,
        }
    }
}

/// Checks tokens, and remembers those that it checked.
pub(crate) struct AtticTokens {
    config: AtticConfig,
    verified: Mutex<HashMap<Fingerprint, Arc<AtticToken>>>,
}

impl AtticTokens {
    pub(crate) fn new(config: AtticConfig) -> Self {
        Self { config, verified: Mutex::default() }
    }

    /// The token that this text is, if it holds at this time.
    pub(crate) fn verify(&self, text: &str, fingerprint: Fingerprint, now_s: u64) -> Result<Arc<AtticToken>, Denied> {
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&fingerprint).cloned();
        let token = match known {
            Some(token) => token,
            None => self.read(text, fingerprint)?,
        };
        token.check_time(now_s)?;
        Ok(token)
    }

    /// The token that this text is, whether it holds now or not.
    pub(crate) fn recognize(&self, text: &str) -> Result<Arc<AtticToken>, Denied> {
        self.read(text, Fingerprint::of(text))
    }

    fn read(&self, text: &str, fingerprint: Fingerprint) -> Result<Arc<AtticToken>, Denied> {
        let refuse = |reason: &dyn fmt::Display| {
            // Strangers can have it written as often as they like, so that it is not for every log.
            tracing::debug!(%reason, "a token in Attic's format was refused");
            Denied::BadCredential
        };
        let (claims, signed) = self.config.key.verify(text).map_err(|fault| refuse(&fault))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|error| refuse(&error))?;
        if self.config.issuer.is_some() && claims.iss != self.config.issuer {
            return Err(refuse(&"its issuer is not the configured one"));
        }
        let audiences = &self.config.audiences;
        if !audiences.is_empty() && !claims.aud.0.iter().any(|audience| audiences.contains(audience)) {
            return Err(refuse(&"it is for none of the configured audiences"));
        }
        let token = Arc::new(AtticToken::new(AtticId(signed), claims));
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(fingerprint, Arc::clone(&token));
        Ok(token)
    }
}

impl fmt::Debug for AtticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.config, f)
    }
}

/// The longest subject that is kept.
const MAX_SUBJECT: usize = 128;

impl AtticToken {
    fn new(id: AtticId, claims: Claims) -> Self {
        let subject = claims.sub.unwrap_or_default();
        Self {
            id,
            subject: subject.chars().filter(|c| is_shown(*c)).take(MAX_SUBJECT).collect(),
            not_before_s: claims.nbf.map(|date| date.0),
            expires_s: claims.exp.map(|date| date.0),
            caches: claims.attic.caches.0,
        }
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    iss: Option<String>,
    #[serde(default)]
    aud: Audiences,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    #[serde(rename = "https://jwt.attic.rs/v1", default)]
    attic: AtticClaim,
}

#[derive(Default, Deserialize)]
struct AtticClaim {
    #[serde(default)]
    caches: Caches,
}

/// Seconds since 1970; RFC 7519 allows fractions, which are cut off.
#[derive(Clone, Copy)]
pub(crate) struct NumericDate(pub(crate) u64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seconds;
        impl Visitor<'_> for Seconds {
            type Value = NumericDate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds since 1970")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<NumericDate, E> {
                Ok(NumericDate(seconds))
            }

            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<NumericDate, E> {
                let whole = std::time::Duration::try_from_secs_f64(seconds).map_err(E::custom)?;
                Ok(NumericDate(whole.as_secs()))
            }
        }
        deserializer.deserialize_any(Seconds)
    }
}

/// 0 or 1, and nothing else: what is not understood must not be taken for yes or for no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bit(bool);

impl<'de> Deserialize<'de> for Bit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Self(false)),
            1 => Ok(Self(true)),
            other => Err(de::Error::custom(format_args!("a permission is 0 or 1, not {other}"))),
        }
    }
}

/// One audience or several.
#[derive(Default)]
pub(crate) struct Audiences(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Audiences {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(audience) => vec![audience],
            OneOrMany::Many(audiences) => audiences,
        }))
    }
}

/// Patterns in the order of the document, each once.
#[derive(Default)]
struct Caches(Vec<(Pattern, AtticPermissions)>);

impl<'de> Deserialize<'de> for Caches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Caches;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("patterns of cache names with permissions")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Caches, A::Error> {
                let mut caches: Vec<(Pattern, AtticPermissions)> = Vec::new();
                while let Some((pattern, permissions)) = map.next_entry::<String, AtticPermissions>()? {
                    if caches.iter().any(|(known, _)| known.as_str() == pattern) {
                        return Err(de::Error::custom("it names a pattern twice"));
                    }
                    caches.push((Pattern::new(&pattern), permissions));
                }
                Ok(Caches(caches))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
pub(crate) mod tests;

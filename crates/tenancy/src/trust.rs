//! Trust in others' identities: rules over the claims of tokens that an OpenID Connect issuer signed (a forge's CI, a
//! cluster's service accounts), and the exchange of such a token for a short one of our own.
//!
//! What always holds: a token counts only when its issuer is one of a rule, a key that this issuer publishes signed it,
//! it is for the audience of that rule, and it holds now. Only then its claims are compared. Grants of several rules
//! that fit add up. What was exchanged is a token like any other: listed, recorded and revocable.
//!
//! Deliberately absent: asking an issuer over the network, which is a [`KeySource`]'s; remembering which tokens were
//! exchanged before (within its life a job may exchange its token again).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::access::now_s;
use crate::attic::{Audiences, NumericDate};
use crate::jwt::{JwtFault, Unverified};
use crate::key_set::{KeyCache, KeySet, Unknown};
use crate::tokens::Exchanged;
use crate::{Denied, Grant, IssuedToken, Pattern, TokenError, Tokens};

/// By how much the clocks of an issuer and of this server may differ.
const LEEWAY_S: u64 = 60;
/// The longest life of what is exchanged.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// How much of a claim is shown in a message, in characters.
const MAX_SHOWN: usize = 200;
/// How long an issuer may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Whom to trust with what.
#[derive(Clone, Debug)]
pub struct TrustRule {
    /// What people call it.
    pub name: String,
    /// The issuer, as it stands in its tokens (`iss`).
    pub issuer: String,
    /// For whom its tokens must be (`aud`).
    pub audience: String,
    /// Claims and what they must be, all of them. `/a/b` is the claim `b` within `a`; of a list, one must fit.
    pub claims: Vec<(String, Pattern)>,
    /// What is granted.
    pub grants: Vec<Grant>,
    /// For how long, at most [`MAX_LIFETIME`].
    pub lifetime: Duration,
}

/// Why an identity is not taken for anybody. For logs, which an operator reads; its presenter learns
/// [`TrustFault::denial`].
#[derive(Debug, Error)]
pub enum TrustFault {
    /// It is not signed by its issuer.
    #[error("it is not a token of its issuer: {0}")]
    Token(#[from] JwtFault),
    /// The claims are not what tokens have.
    #[error("its claims cannot be read: {0}")]
    Claims(#[from] serde_json::Error),
    /// No rule is about its issuer.
    #[error("no rule is about the issuer {0:?}")]
    Issuer(String),
    /// The keys of the issuer are not known.
    #[error("the keys of {issuer} cannot be had: {reason}")]
    Keys {
        /// Which issuer.
        issuer: String,
        /// Why.
        reason: String,
    },
    /// It is for somebody else.
    #[error("it is for {found:?}, and rules about its issuer want another audience")]
    Audience {
        /// For whom.
        found: Vec<String>,
    },
    /// It ended.
    #[error("it expired {0} s ago")]
    Expired(u64),
    /// Its time has not come.
    #[error("it is not valid for another {0} s: clocks differ by more than a minute, or it is for later")]
    NotYetValid(u64),
    /// It is good, and no rule is about what it says.
    #[error("no rule fits its claims; closest is {closest}, where {claim} is {found}")]
    NoRule {
        /// The rule of which the fewest claims are wrong.
        closest: String,
        /// The first that is.
        claim: String,
        /// What it is.
        found: String,
    },
    /// The database of tokens.
    #[error(transparent)]
    Issue(#[from] TokenError),
}

impl TrustFault {
    /// What whoever presented the token is told: nothing of the rules.
    #[must_use]
    pub const fn denial(&self) -> Denied {
        match self {
            Self::Expired(_) => Denied::Expired,
            Self::NotYetValid(_) => Denied::NotYetValid,
            _ => Denied::BadCredential,
        }
    }

    /// Whether the same token may count later: the issuer or the database did not answer.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Keys { .. } | Self::Issue(_))
    }
}

/// Asks an issuer for the keys that it publishes.
#[async_trait]
pub trait KeySource: Send + Sync {
    /// The text of the set of keys, at most [`crate::MAX_KEY_SET_BYTES`], or why there is none.
    async fn fetch(&self, issuer: &str) -> Result<Vec<u8>, String>;
}

/// Exchanges tokens of trusted issuers.
pub struct Exchange {
    rules: Vec<TrustRule>,
    source: Arc<dyn KeySource>,
    tokens: Arc<Tokens>,
    /// Those that rules are about.
    issuers: HashMap<String, Issuer>,
    fetch_timeout: Duration,
}

struct Issuer {
    cache: Mutex<KeyCache>,
    /// One asks, and the others wait for the answer: the jobs of a build begin all at once.
    turn: Semaphore,
}

impl Exchange {
    /// An exchange by these rules.
    #[must_use]
    pub fn new(rules: Vec<TrustRule>, source: Arc<dyn KeySource>, tokens: Arc<Tokens>) -> Self {
        let issuer = || Issuer { cache: Mutex::default(), turn: Semaphore::new(1) };
        let issuers = rules.iter().map(|rule| (rule.issuer.clone(), issuer())).collect();
        Self { rules, source, tokens, issuers, fetch_timeout: FETCH_TIMEOUT }
    }

    /// A short token of our own for one of a trusted issuer.
    ///
    /// # Errors
    /// [`TrustFault`].
    pub async fn exchange(&self, token: &str) -> Result<IssuedToken, TrustFault> {
        self.exchange_at(token, now_s()).await
    }

    async fn exchange_at(&self, token: &str, now_s: u64) -> Result<IssuedToken, TrustFault> {
        let Issued { iss: name } = serde_json::from_slice(Unverified::read(token)?.unverified_claims())?;
        let Some(issuer) = self.issuers.get(&name) else {
            return Err(TrustFault::Issuer(name.chars().take(MAX_SHOWN).collect()));
        };
        let claims = self.verify(token, (&name, issuer), Duration::from_secs(now_s)).await?;
        let admitted = admit(&self.rules, &name, &claims, now_s)?;
        Ok(self.tokens.issue_exchanged(admitted).await?)
    }

    /// The claims, when one of the issuer's keys signed them.
    async fn verify(&self, token: &str, issuer: (&str, &Issuer), now: Duration) -> Result<Vec<u8>, TrustFault> {
        let mut unreachable = self.refresh(issuer, now, Unknown::No).await;
        let mut verified = issuer.1.verify(token, now);
        if matches!(verified, Some(Err(JwtFault::UnknownKey))) {
            unreachable = self.refresh(issuer, now, Unknown::Yes).await;
            verified = issuer.1.verify(token, now);
        }
        let reason = || unreachable.unwrap_or_else(|| "it was asked a moment ago and did not answer".to_owned());
        Ok(verified.ok_or_else(|| TrustFault::Keys { issuer: issuer.0.to_owned(), reason: reason() })??)
    }

    /// Asks the issuer, when it is time to; says why that came to nothing.
    async fn refresh(&self, (name, issuer): (&str, &Issuer), now: Duration, unknown: Unknown) -> Option<String> {
        if !issuer.is_worth_waiting_for(now, unknown) {
            return None;
        }
        let _turn = issuer.turn.acquire().await;
        if !issuer.begin(now, unknown) {
            return None;
        }
        let answer = tokio::time::timeout(self.fetch_timeout, self.source.fetch(name)).await;
        let keys = match answer {
            Ok(Ok(text)) => KeySet::parse(&text).map_err(|error| error.to_string()),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err(format!("no answer in {:?}", self.fetch_timeout)),
        };
        match keys {
            Ok(keys) => {
                issuer.cache().answered(keys, now);
                None
            }
            Err(reason) => {
                tracing::warn!(issuer = name, reason, "the keys of an issuer cannot be had; those that are known stay");
                Some(reason)
            }
        }
    }
}

impl Issuer {
    fn cache(&self) -> MutexGuard<'_, KeyCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the known keys say; `None` when there are none.
    fn verify(&self, token: &str, now: Duration) -> Option<Result<Vec<u8>, JwtFault>> {
        let cache = self.cache();
        let keys = cache.keys(now)?;
        Some(Unverified::read(token).and_then(|token| keys.verify(token)))
    }

    /// Whether an answer is needed: while another asks, those whose keys are known go on with them.
    fn is_worth_waiting_for(&self, now: Duration, unknown: Unknown) -> bool {
        let cache = self.cache();
        unknown == Unknown::Yes || cache.keys(now).is_none() || cache.wants(now, unknown)
    }

    /// Whether to ask now.
    fn begin(&self, now: Duration, unknown: Unknown) -> bool {
        let mut cache = self.cache();
        let begins = cache.wants(now, unknown);
        if begins {
            cache.asking(now);
        }
        begins
    }
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

#[derive(Deserialize)]
struct Standard {
    sub: Option<String>,
    #[serde(default)]
    aud: Audiences,
    exp: NumericDate,
    nbf: Option<NumericDate>,
}

/// What verified claims come to. Pure.
fn admit(rules: &[TrustRule], issuer: &str, claims: &[u8], now_s: u64) -> Result<Exchanged, TrustFault> {
    let standard: Standard = serde_json::from_slice(claims)?;
    let all: Map<String, Value> = serde_json::from_slice(claims)?;
    if now_s > standard.exp.0.saturating_add(LEEWAY_S) {
        return Err(TrustFault::Expired(now_s - standard.exp.0));
    }
    let begin = standard.nbf.map_or(0, |date| date.0);
    if begin > now_s.saturating_add(LEEWAY_S) {
        return Err(TrustFault::NotYetValid(begin - now_s));
    }
    let is_for = |rule: &&TrustRule| rule.issuer == issuer && standard.aud.0.contains(&rule.audience);
    let about: Vec<&TrustRule> = rules.iter().filter(is_for).collect();
    if about.is_empty() {
        return Err(TrustFault::Audience { found: standard.aud.0 });
    }
    let fitting: Vec<&TrustRule> = about.iter().copied().filter(|rule| wrong_claims(rule, &all).is_empty()).collect();
    let Some(lifetime) = fitting.iter().map(|rule| rule.lifetime).min() else { return Err(no_rule(&about, &all)) };
    let mut grants: Vec<Grant> = Vec::new();
    for grant in fitting.iter().flat_map(|rule| &rule.grants) {
        if !grants.contains(grant) {
            grants.push(grant.clone());
        }
    }
    let names: Vec<&str> = fitting.iter().map(|rule| rule.name.as_str()).collect();
    let subject = standard.sub.unwrap_or_default();
    Ok(Exchanged {
        subject,
        issuer: issuer.to_owned(),
        rules: names.join(", "),
        grants,
        lifetime: lifetime.min(MAX_LIFETIME),
    })
}

/// The claims that are not what the rule wants.
fn wrong_claims<'r>(rule: &'r TrustRule, claims: &Map<String, Value>) -> Vec<&'r str> {
    let wrong =
        rule.claims.iter().filter(|(name, pattern)| !find(claims, name).is_some_and(|value| fits(value, pattern)));
    wrong.map(|(name, _)| name.as_str()).collect()
}

fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    let Some(path) = name.strip_prefix('/') else { return claims.get(name) };
    let mut parts = path.split('/');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

fn fits(value: &Value, pattern: &Pattern) -> bool {
    match value {
        Value::String(text) => pattern.fits(text),
        Value::Bool(_) | Value::Number(_) => pattern.fits(&value.to_string()),
        Value::Array(values) => values.iter().any(|value| value.as_str().is_some_and(|text| pattern.fits(text))),
        Value::Null | Value::Object(_) => false,
    }
}

fn no_rule(about: &[&TrustRule], claims: &Map<String, Value>) -> TrustFault {
    let nearest = about.iter().map(|rule| (wrong_claims(rule, claims), rule)).min_by_key(|(wrong, _)| wrong.len());
    let (closest, claim) =
        nearest.map_or(("", ""), |(wrong, rule)| (rule.name.as_str(), wrong.first().copied().unwrap_or_default()));
    let found = find(claims, claim).map_or_else(|| "absent".to_owned(), ToString::to_string);
    let found = found.chars().take(MAX_SHOWN).collect();
    TrustFault::NoRule { closest: closest.to_owned(), claim: claim.to_owned(), found }
}

#[cfg(test)]
mod tests;

//! Trust in others' identities: rules over the claims of tokens that an OpenID Connect issuer signed (a forge's CI, a
//! cluster's service accounts), and the exchange of such a token for a short one of our own.
//!
//! What always holds: a token counts only when its issuer is one of a rule, a key that this issuer publishes signed it,
//! it is for the audience of that rule, and it holds now. Only then its claims are compared. Grants of several rules
//! that fit add up. What was exchanged is a token like any other: listed, recorded and revocable; what was revoked is
//! not exchanged again.
//!
//! Deliberately absent: asking an issuer over the network, which is a [`KeySource`]'s; refusing a token because it was
//! exchanged before (within its life a job may exchange its token again).

mod claims;
mod issuer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gf_digest::InstanceName;
use serde::Deserialize;
use thiserror::Error;

use crate::access::now_s;
use crate::audit::Origin;
use crate::jwt::{JwtFault, Unverified};
use crate::{Denied, Grant, IssuedToken, Pattern, TenantName, TokenError, Tokens};
use claims::{MAX_SHOWN, admit};
use issuer::Issuer;

/// By how much the clocks of an issuer and of this server may differ.
pub(crate) const LEEWAY_S: u64 = 60;
/// The longest life of what is exchanged.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// How long an issuer may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Whom to trust with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustRule {
    /// What people call it.
    pub name: String,
    /// The issuer, as it stands in its tokens (`iss`).
    pub issuer: String,
    /// For whom its tokens must be (`aud`).
    pub audience: String,
    /// Claims and what they must be, all of them. `/a/b` is the claim `b` within `a`; of a list, one must fit.
    pub claims: Vec<(String, Pattern)>,
    /// Where its workloads belong: they are told so. Of several rules that fit, the first says it.
    pub tenant: TenantName,
    /// The instance of the tenant that they are to use.
    pub instance: InstanceName,
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
    /// It could be exchanged again when a revocation is forgotten.
    #[error("it is good for more than a year: have its issuer sign one that ends sooner")]
    TooLong,
    /// Nobody could revoke it by its subject.
    #[error("its subject (`sub`) is longer than 1024 bytes, or has characters that control or format text")]
    Subject,
    /// It is good, and no rule is about what it says.
    #[error("no rule fits its claims; closest is {closest}, where {claim} is {found} and not {wanted}")]
    NoRule {
        /// The rule of which the fewest claims are wrong.
        closest: String,
        /// The first that is.
        claim: String,
        /// What it should be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// It was good, until somebody revoked what it or others of its kind were exchanged for.
    #[error("it was signed before {what} was revoked: its issuer must sign a new one")]
    Revoked {
        /// What.
        what: String,
    },
    /// Its subject holds too many tokens at one time, or all together do.
    #[error("{holder} has {limit} exchanged tokens at one time already: exchange once for a job, and keep the answer")]
    TooMany {
        /// Who.
        holder: String,
        /// How many are too many.
        limit: u64,
    },
    /// No token could be made.
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

/// What an identity was exchanged for.
#[derive(Debug)]
pub struct Admission {
    /// The token, and what it grants.
    pub issued: IssuedToken,
    /// Where its holder belongs.
    pub tenant: TenantName,
    /// The instance to use.
    pub instance: InstanceName,
}

/// Exchanges tokens of trusted issuers.
pub struct Exchange {
    rules: Vec<TrustRule>,
    source: Arc<dyn KeySource>,
    tokens: Arc<Tokens>,
    /// Those that rules are about.
    issuers: HashMap<String, Issuer>,
    fetch_timeout: Duration,
    /// What times of keys are counted from: a clock that is set makes none older or younger.
    began: Instant,
}

impl Exchange {
    /// An exchange by these rules.
    #[must_use]
    pub fn new(rules: Vec<TrustRule>, source: Arc<dyn KeySource>, tokens: Arc<Tokens>) -> Self {
        let issuers = rules.iter().map(|rule| (rule.issuer.clone(), Issuer::new(&rule.issuer))).collect();
        Self { rules, source, tokens, issuers, fetch_timeout: FETCH_TIMEOUT, began: Instant::now() }
    }

    /// The issuers that rules are about, each once.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.issuers.keys().map(String::as_str)
    }

    /// A short token of our own for one of a trusted issuer. It should be run to its end also when the caller has gone:
    /// others may wait for the keys that it asks for.
    ///
    /// # Errors
    /// [`TrustFault`].
    pub async fn exchange(&self, token: &str, origin: &Origin) -> Result<Admission, TrustFault> {
        self.exchange_at(token, origin, now_s(), self.began.elapsed()).await
    }

    /// `since` is a time that only goes on, for the keys.
    async fn exchange_at(
        &self,
        token: &str,
        origin: &Origin,
        now_s: u64,
        since: Duration,
    ) -> Result<Admission, TrustFault> {
        let unverified = Unverified::read(token)?;
        let Claimed { iss: name, .. } = serde_json::from_slice(unverified.unverified_claims())?;
        let Some(issuer) = self.issuers.get(&name) else {
            return Err(TrustFault::Issuer(name.chars().take(MAX_SHOWN).collect()));
        };
        let claims = issuer.verify(self.source.as_ref(), self.fetch_timeout, token, since).await?;
        let admitted = admit(&self.rules, &name, &claims, now_s)?;
        let (tenant, instance) = (admitted.tenant.clone(), admitted.instance.clone());
        let issued = self.tokens.issue_exchanged(admitted, unverified.fingerprint(), origin).await?;
        Ok(Admission { issued, tenant, instance })
    }
}

#[derive(Deserialize)]
struct Claimed {
    iss: String,
    #[serde(default)]
    sub: String,
}

/// Which issuer a token says that it is of. Anybody can make that up; for telling apart who waits for whom.
#[must_use]
pub fn claimed_issuer(token: &str) -> Option<String> {
    let unverified = Unverified::read(token).ok()?;
    let Claimed { iss, .. } = serde_json::from_slice(unverified.unverified_claims()).ok()?;
    Some(iss)
}

/// Whose a token says that it is: `SUBJECT of ISSUER`. Anybody can make that up; for telling an operator which of many
/// was refused.
#[must_use]
pub fn claimed_identity(token: &str) -> Option<String> {
    let unverified = Unverified::read(token).ok()?;
    let Claimed { iss, sub } = serde_json::from_slice(unverified.unverified_claims()).ok()?;
    let cut = |text: String| text.chars().take(MAX_SHOWN).collect::<String>();
    Some(format!("{} of {}", cut(sub), cut(iss)))
}

#[cfg(test)]
mod tests;

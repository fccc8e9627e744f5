//! One issuer: its keys, and whose turn it is to ask for them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{KeySource, TrustFault};
use crate::jwt::{JwtFault, Unverified};
use crate::key_set::{KeyCache, KeySet, Unknown};

/// Tokens with a key that is not known, and that wait for an answer of the issuer. Strangers can make them up: they keep no
/// place that the others need.
const MAX_UNKNOWN: usize = 4;

/// What is known of an issuer that rules are about.
pub(super) struct Issuer {
    name: String,
    cache: Mutex<KeyCache>,
    /// One asks, and the others wait for the answer: the jobs of a build begin all at once.
    turn: Semaphore,
    /// Whose key is not known.
    unknown: Semaphore,
}

impl Issuer {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cache: Mutex::default(),
            turn: Semaphore::new(1),
            unknown: Semaphore::new(MAX_UNKNOWN),
        }
    }

    /// The claims, when one of its keys signed them.
    pub(super) async fn verify(
        &self,
        source: &dyn KeySource,
        limit: Duration,
        token: &str,
        now: Duration,
    ) -> Result<Vec<u8>, TrustFault> {
        let mut unreachable = self.refresh(source, limit, now, Unknown::No).await;
        let mut verified = self.verify_now(token, now);
        if matches!(verified, Some(Err(JwtFault::UnknownKey))) {
            unreachable = match self.unknown.try_acquire() {
                Ok(_place) => self.refresh(source, limit, now, Unknown::Yes).await,
                Err(_) => Some("others wait already for whether it has new ones".to_owned()),
            };
            verified = self.verify_now(token, now);
            // Whether there is such a key is not known: it may be a new one.
            if unreachable.is_some() && matches!(verified, Some(Err(JwtFault::UnknownKey))) {
                verified = None;
            }
        }
        let reason = || unreachable.unwrap_or_else(|| "it was asked a moment ago and did not answer".to_owned());
        Ok(verified.ok_or_else(|| TrustFault::Keys { issuer: self.name.clone(), reason: reason() })??)
    }

    /// Asks the issuer, when it is time to; says why that came to nothing.
    async fn refresh(
        &self,
        source: &dyn KeySource,
        limit: Duration,
        now: Duration,
        unknown: Unknown,
    ) -> Option<String> {
        if !self.is_worth_waiting_for(now, unknown) {
            return None;
        }
        let _turn = self.turn.acquire().await;
        if !self.begin(now, unknown) {
            return None;
        }
        let keys = match tokio::time::timeout(limit, source.fetch(&self.name)).await {
            Ok(Ok(text)) => KeySet::parse(&text).map_err(|error| error.to_string()),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err(format!("no answer in {limit:?}")),
        };
        match keys {
            Ok(keys) => {
                self.cache().answered(keys, now);
                None
            }
            Err(reason) => {
                let issuer = &self.name;
                tracing::warn!(issuer, reason, "the keys of an issuer cannot be had; those that are known stay");
                Some(reason)
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, KeyCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the known keys say; `None` when there are none.
    fn verify_now(&self, token: &str, now: Duration) -> Option<Result<Vec<u8>, JwtFault>> {
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

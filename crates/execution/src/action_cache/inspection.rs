//! What is known of one action's result, for people who ask why it hits or misses; and taking one out on purpose.

use std::time::Duration;

use gf_blobstore::{EntryKey, EntryTable, StoreError};
use gf_digest::Digest;
use gf_reapi::execution::ActionResult;
use gf_tenancy::{ActionCacheRead, Authorized, Operate};
use prost::Message;
use thiserror::Error;

use super::entry::Entry;
use super::{ActionCache, ActionCacheError, ActionId, Provenance, Tombstone, TombstoneError, opaque};

/// Missing blobs that an inspection names.
const MAX_NAMED: usize = 100;

/// The longest reason for a removal, in characters.
const MAX_REASON: usize = 500;

/// The longest quarantine.
const MAX_QUARANTINE: Duration = Duration::from_secs(366 * 86_400);

/// What is known of an action's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// What a look-up answers, and why.
    pub standing: Standing,
    /// Who wrote it; `None` when there is nothing, or when it was written before this was kept.
    pub provenance: Option<Provenance>,
    /// The result as it is kept.
    pub result: Option<ActionResult>,
    /// The blobs that must be there for it to be shown; `None` when that cannot be known.
    pub blobs: Option<u64>,
}

/// What a look-up of an action answers, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A hit.
    Shown,
    /// There is nothing: none was ever written, or it was not asked for within the lease and had to go.
    Absent,
    /// There is a result, and not everything that it names.
    Incomplete {
        /// The first blobs that are not there; none when a directory that it names cannot be read.
        missing: Vec<Digest>,
        /// How many there are.
        missing_count: u64,
    },
    /// A client asks for an action of this hash and another size.
    OtherSize {
        /// The size of the action that the result is of, in bytes.
        size_bytes: u64,
    },
    /// Bytes that HTTP clients keep under this hash, and that are no action result: nothing for clients of gRPC.
    Opaque {
        /// How many.
        size_bytes: u64,
    },
    /// It was removed on purpose.
    Removed(Tombstone),
}

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// What keeps it away from now on.
    pub tombstone: Tombstone,
    /// Whether there was a result.
    pub was_there: bool,
}

/// Why nothing was removed.
#[derive(Debug, Error)]
pub enum RemovalError {
    /// Whoever finds the result missing must be told why.
    #[error("say why in 1 to {MAX_REASON} characters on one line")]
    Reason,
    /// So long is no quarantine.
    #[error("a quarantine lasts from 1 s to {} days", MAX_QUARANTINE.as_secs() / 86_400)]
    Quarantine,
    /// It could not be written down.
    #[error(transparent)]
    Tombstone(#[from] TombstoneError),
    /// It is written down and counts, and the store did not let go of the bytes: that is tried again.
    #[error("the result is hidden, and its bytes could not be removed: {0}")]
    Store(#[from] StoreError),
}

impl ActionCache {
    /// What is known of an action's result. As any look-up, it extends the life of what is there.
    ///
    /// # Errors
    /// [`ActionCacheError::Store`].
    pub async fn inspect(
        &self,
        grant: &Authorized<ActionCacheRead>,
        action: ActionId,
    ) -> Result<Inspection, ActionCacheError> {
        let key = action.key(EntryTable::ActionResult, grant);
        let nothing = |standing| Inspection { standing, provenance: None, result: None, blobs: None };
        if let Some(tombstone) = self.tombstones.find(&key) {
            return Ok(nothing(Standing::Removed(tombstone)));
        }
        let entry = self.store.get_entry(&key).await?.as_ref().and_then(Entry::read);
        let Some(entry) = entry else {
            let opaque = self.store.get_entry(&action.key(EntryTable::OpaqueResult, grant)).await?;
            let provenance = opaque.as_ref().and_then(opaque::provenance);
            let blob = opaque.and_then(|value| opaque::read(&value));
            let standing = blob.map_or(Standing::Absent, |blob| Standing::Opaque { size_bytes: blob.size_bytes() });
            return Ok(Inspection { provenance, ..nothing(standing) });
        };
        let closure = match entry.closure(action.function) {
            Some(closure) => Some(closure),
            None => match self.read_closure(&key, &entry).await {
                Ok(closure) => closure,
                Err(ActionCacheError::Store(error)) => return Err(error.into()),
                Err(_) => None,
            },
        };
        let standing = match (action.size_bytes, entry.action_size_bytes) {
            (Some(asked), Some(size_bytes)) if asked != size_bytes => Standing::OtherSize { size_bytes },
            _ => self.standing(&key, closure.as_deref()).await?,
        };
        Ok(Inspection {
            standing,
            provenance: entry.provenance(),
            blobs: closure.map(|closure| closure.len() as u64),
            result: ActionResult::decode(entry.result).ok(),
        })
    }

    async fn standing(&self, key: &EntryKey, closure: Option<&[Digest]>) -> Result<Standing, ActionCacheError> {
        let Some(closure) = closure else {
            return Ok(Standing::Incomplete { missing: Vec::new(), missing_count: 0 });
        };
        let mut missing = self.store.find_missing(key.owner, closure).await?;
        if missing.is_empty() {
            return Ok(Standing::Shown);
        }
        let missing_count = missing.len() as u64;
        missing.truncate(MAX_NAMED);
        Ok(Standing::Incomplete { missing, missing_count })
    }

    /// Whether a removal says what it has to; its reason, as it is kept.
    ///
    /// # Errors
    /// [`RemovalError::Reason`] or [`RemovalError::Quarantine`].
    pub fn check_removal(reason: &str, quarantine: Duration) -> Result<&str, RemovalError> {
        let reason = checked_reason(reason).ok_or(RemovalError::Reason)?;
        if quarantine < Duration::from_secs(1) || quarantine > MAX_QUARANTINE {
            return Err(RemovalError::Quarantine);
        }
        Ok(reason)
    }

    /// Removes the result of an action, if there is one, and lets none be written for a while. It is gone for good when
    /// this returns.
    ///
    /// # Errors
    /// [`RemovalError`].
    pub async fn remove(
        &self,
        grant: &Authorized<Operate>,
        action: ActionId,
        reason: &str,
        quarantine: Duration,
    ) -> Result<Removal, RemovalError> {
        let reason = Self::check_removal(reason, quarantine)?;
        let removed_s = self.tombstones.now_s();
        let until_s = removed_s.saturating_add(quarantine.as_secs());
        let removed_by = grant.principal().to_string();
        let tombstone = Tombstone { removed_s, until_s, removed_by, reason: reason.to_owned() };
        let key = action.key(EntryTable::ActionResult, grant);
        self.tombstones.set(&key, tombstone.clone()).await?;
        let was_there = self.take_out(&key).await?;
        self.store.make_durable().await?;
        if let Err(error) = self.tombstones.taken_out(&key).await {
            // It is gone, and stays hidden until that is written down.
            tracing::warn!(action = %key.digest, %error, "it is not written down that a removed action result is gone");
        }
        Ok(Removal { tombstone, was_there })
    }

    /// Takes out of the store what removals that were killed or failed left there, and forgets tombstones that are over.
    pub(super) async fn tend(&self) {
        let unfinished = self.tombstones.unfinished();
        if !unfinished.is_empty() {
            let count = unfinished.len();
            match self.finish_removals(unfinished).await {
                Ok(()) => tracing::info!(count, "finished the removal of action results"),
                // They stay hidden, and are tried again.
                Err((left, error)) => {
                    tracing::warn!(count, left, %error, "removed action results may still be in the store");
                }
            }
        }
        if let Err(error) = self.tombstones.forget_ended().await {
            tracing::warn!(%error, "tombstones that are over could not be forgotten");
        }
    }

    /// How many are not known to be gone, and why the last of them is not.
    async fn finish_removals(&self, keys: Vec<EntryKey>) -> Result<(), (usize, RemovalError)> {
        let count = keys.len();
        let (mut taken_out, mut failed) = (Vec::new(), None);
        for key in keys {
            match self.take_out(&key).await {
                Ok(_) => taken_out.push(key),
                Err(error) => failed = Some(RemovalError::from(error)),
            }
        }
        self.store.make_durable().await.map_err(|error| (count, error.into()))?;
        let mut done = 0;
        for key in &taken_out {
            match self.tombstones.taken_out(key).await {
                Ok(()) => done += 1,
                Err(error) => failed = Some(error.into()),
            }
        }
        failed.map_or(Ok(()), |error| Err((count - done, error)))
    }

    /// Whether anything was there.
    async fn take_out(&self, key: &EntryKey) -> Result<bool, StoreError> {
        let _writing = self.writer(&key.digest).lock().await;
        let result = self.store.remove_entry(key).await?;
        let opaque = self.store.remove_entry(&EntryKey { table: EntryTable::OpaqueResult, ..key.clone() }).await?;
        Ok(result || opaque)
    }
}

/// Text that can stand on one line, of a bounded length, and is not empty.
fn checked_reason(text: &str) -> Option<&str> {
    let text = text.trim();
    let is_right = !text.is_empty() && text.chars().count() <= MAX_REASON && !text.chars().any(char::is_control);
    is_right.then_some(text)
}

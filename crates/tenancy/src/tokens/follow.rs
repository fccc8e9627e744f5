//! Keeping the table in step with what other processes issue and revoke.
//!
//! What always holds: nobody who presents a token waits while the table is read anew, which is put together beside the
//! one that is asked. Of what was issued only that is read; what was revoked may have taken others along, so that all
//! are read then.

use std::collections::{HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, RwLockWriteGuard};
use std::time::{Duration, Instant};

use gf_database::{places, sql};

use super::rows::{fingerprint, report, stored};
use super::table::{Entry, Table};
use super::{BATCH, MAX_TOKENS, TokenError, TokenId, Tokens};
use crate::Denied;
use crate::access::now_s;
use crate::audit::{AuditLog, Outcome};
use crate::secret::Fingerprint;

/// For how long tokens are believed while it is not known what others revoked.
pub const BELIEVED: Duration = Duration::from_secs(300);

/// What is recorded when tokens are made or end.
const CHANGES: [&str; 3] = ["token.issue", "token.exchange", REVOKE];
const REVOKE: &str = "token.revoke";

impl Tokens {
    /// Reads again what other processes issued and revoked.
    ///
    /// # Errors
    /// As [`Self::open`]; what was known before stays.
    pub async fn reload(&self) -> Result<(), TokenError> {
        self.read_refused().await?;
        let began = self.changes.fetch_add(1, Ordering::Relaxed);
        let statement = "SELECT * FROM tenancy_token WHERE revoked_s IS NULL AND expires_s > $1 LIMIT $2";
        let most = i64::try_from(MAX_TOKENS).unwrap_or(i64::MAX);
        let rows = self.database.all(sql(statement).bind(stored(now_s())).bind(most)).await?;
        let mut read = HashMap::with_capacity(rows.len());
        for row in &rows {
            read.insert(fingerprint(row)?, Arc::new(Entry::of(&report(row)?, began)));
        }
        self.replace(read, began);
        Ok(())
    }

    /// Takes what was read instead of what was known. Nobody who presents a token waits while it is put together.
    fn replace(&self, read: HashMap<Fingerprint, Arc<Entry>>, began: u64) {
        let editing = self.editing();
        let next = self.read().updated(read, began);
        let before = std::mem::replace(&mut self.table.write().unwrap_or_else(PoisonError::into_inner).good, next);
        drop(editing);
        drop(before);
    }

    /// As [`Self::reload`], if the audit log says that somebody revoked a token since the last call; of what was issued,
    /// only that is read. Cheap enough to be asked every few seconds, however many tokens there are.
    ///
    /// # Errors
    /// As [`Self::reload`]; the next call tries again.
    pub async fn follow(&self) -> Result<(), TokenError> {
        let began = Instant::now();
        let seen = self.seen.load(Ordering::Relaxed);
        let (head, _) = AuditLog::new(self.database.clone()).head().await?;
        match self.made_between(seen, head).await? {
            Some(made) => self.read_made(made).await?,
            None => self.reload().await?,
        }
        self.seen.store(head, Ordering::Relaxed);
        *self.followed.write().unwrap_or_else(PoisonError::into_inner) = began;
        Ok(())
    }

    /// How long ago it was that this process knew what others had revoked.
    #[must_use]
    pub fn followed_ago(&self) -> Duration {
        self.followed.read().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Refuses to believe what may have been revoked too long ago to be known here.
    pub(crate) fn check_followed(&self) -> Result<(), Denied> {
        if self.followed_ago() <= BELIEVED { Ok(()) } else { Err(Denied::Unfollowed) }
    }

    /// As if the database had been away for so long.
    #[cfg(test)]
    pub(crate) fn lose_track_for(&self, time: Duration) {
        *self.followed.write().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_sub(time).unwrap();
    }

    /// The tokens that others made, by the audit log; `None` when that is not all that happened.
    async fn made_between(&self, seen: u64, head: u64) -> Result<Option<HashSet<TokenId>>, TokenError> {
        let changed = sql("SELECT action, subject FROM tenancy_audit \
             WHERE number > $1 AND number <= $2 AND action IN ($3, $4, $5) AND outcome = $6 LIMIT $7")
        .bind(stored(seen))
        .bind(stored(head))
        .bind_all(CHANGES)
        .bind(Outcome::Done.as_str())
        .bind(BATCH);
        let changed = self.database.all(changed).await?;
        if head < seen || changed.len() >= BATCH as usize {
            return Ok(None);
        }
        let mut made = HashSet::new();
        for row in &changed {
            if row.get::<String>("action")? == REVOKE {
                return Ok(None);
            }
            made.insert(TokenId::new(&row.get::<String>("subject")?));
        }
        if !made.is_empty() {
            let table = self.read();
            made.retain(|id| table.good.of_id(id).is_none());
        }
        Ok(Some(made))
    }

    /// Reads these, at most a batch.
    async fn read_made(&self, made: HashSet<TokenId>) -> Result<(), TokenError> {
        if made.is_empty() {
            return Ok(());
        }
        let text = "SELECT * FROM tenancy_token WHERE revoked_s IS NULL AND expires_s > $1 AND id IN";
        let statement = sql(format!("{text} ({})", places(2, made.len()))).bind(stored(now_s()));
        for row in &self.database.all(statement.bind_all(made.iter().map(TokenId::as_str))).await? {
            self.keep(fingerprint(row)?, &report(row)?);
        }
        Ok(())
    }

    // Nothing panics under the locks, and a map is whole between two of its calls.
    pub(super) fn write(&self) -> Editing<'_> {
        let turn = self.editing();
        Editing { table: self.table.write().unwrap_or_else(PoisonError::into_inner), _turn: turn }
    }

    fn editing(&self) -> MutexGuard<'_, ()> {
        self.editing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The table while it is changed.
pub(super) struct Editing<'t> {
    table: RwLockWriteGuard<'t, Table>,
    _turn: MutexGuard<'t, ()>,
}

impl Deref for Editing<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        &self.table
    }
}

impl DerefMut for Editing<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        &mut self.table
    }
}

//! The tokens that are good, in memory, with the last use of each.
//!
//! What always holds: what was revoked here does not come back, whatever is read from the database meanwhile. An id that
//! is here takes as long to look up as one that is not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Token, TokenId, TokenReport};
use crate::secret::Fingerprint;

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) good: Good,
    /// Those that were revoked here, and when they would have ended: what was read from the database just before brings
    /// none of them back.
    revoked: HashMap<Fingerprint, u64>,
    /// Tokens in Attic's format that were revoked, and when each would end.
    refused: HashMap<Fingerprint, u64>,
}

/// Tokens by what is presented, and by what they are called.
#[derive(Debug, Default)]
pub(super) struct Good {
    entries: HashMap<Fingerprint, Arc<Entry>>,
    /// Of all entries, and of nothing else.
    ids: HashMap<TokenId, Fingerprint>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) token: Arc<Token>,
    known_since: u64,
    pub(super) expires_s: u64,
    /// 0 for never.
    used_s: AtomicU64,
    /// Of that, what the database knows.
    saved_s: AtomicU64,
}

impl Table {
    /// What is good by what was read from the database, and by what was kept since the reading began.
    pub(super) fn updated(&self, mut read: HashMap<Fingerprint, Arc<Entry>>, began: u64) -> Good {
        for (fingerprint, before) in &self.good.entries {
            match read.get_mut(fingerprint) {
                // What is used meanwhile is counted in the old one.
                Some(entry) if entry.expires_s == before.expires_s => {
                    before.learn(entry);
                    *entry = Arc::clone(before);
                }
                Some(entry) => entry.touch(before.used_s()),
                None if before.known_since > began => {
                    read.insert(*fingerprint, Arc::clone(before));
                }
                None => {}
            }
        }
        read.retain(|fingerprint, _| !self.revoked.contains_key(fingerprint));
        Good::of(read)
    }

    /// Takes a token that was written down, unless it was revoked since.
    pub(super) fn keep(&mut self, fingerprint: Fingerprint, entry: Entry) {
        if !self.revoked.contains_key(&fingerprint) {
            self.good.insert(fingerprint, Arc::new(entry));
        }
    }

    pub(super) fn revoke(&mut self, fingerprint: Fingerprint, expires_s: u64) {
        self.good.remove(fingerprint);
        self.revoked.insert(fingerprint, expires_s);
    }

    /// Lets in no more a token in Attic's format.
    pub(super) fn refuse(&mut self, fingerprint: Fingerprint, until_s: u64) {
        self.refused.insert(fingerprint, until_s);
    }

    pub(super) fn has_refused(&self, fingerprint: Fingerprint) -> bool {
        self.refused.contains_key(&fingerprint)
    }

    /// Forgets what has ended by itself: it needs no place, and nobody needs to be kept out by it any more.
    pub(super) fn sweep(&mut self, now_s: u64) {
        self.good.keep_if(|entry| now_s < entry.expires_s);
        self.revoked.retain(|_, expires_s| now_s < *expires_s);
        self.refused.retain(|_, until_s| now_s < *until_s);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.good.len() + self.revoked.len() + self.refused.len()
    }
}

impl Good {
    fn of(entries: HashMap<Fingerprint, Arc<Entry>>) -> Self {
        let ids = entries.iter().map(|(fingerprint, entry)| (entry.token.id().clone(), *fingerprint)).collect();
        Self { entries, ids }
    }

    /// The one that is presented.
    pub(super) fn get(&self, fingerprint: Fingerprint) -> Option<&Arc<Entry>> {
        self.entries.get(&fingerprint)
    }

    /// The one of this id.
    pub(super) fn of_id(&self, id: &TokenId) -> Option<(Fingerprint, Arc<Entry>)> {
        let fingerprint = *self.ids.get(id)?;
        Some((fingerprint, Arc::clone(self.get(fingerprint)?)))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn insert(&mut self, fingerprint: Fingerprint, entry: Arc<Entry>) {
        self.ids.insert(entry.token.id().clone(), fingerprint);
        self.entries.insert(fingerprint, entry);
    }

    fn remove(&mut self, fingerprint: Fingerprint) {
        if let Some(entry) = self.entries.remove(&fingerprint) {
            self.ids.remove(entry.token.id());
        }
    }

    fn keep_if(&mut self, is_kept: impl Fn(&Entry) -> bool) {
        let ids = &mut self.ids;
        self.entries.retain(|_, entry| {
            let kept = is_kept(entry);
            if !kept {
                ids.remove(entry.token.id());
            }
            kept
        });
    }
}

impl Entry {
    pub(super) fn of(report: &TokenReport, known_since: u64) -> Self {
        let used_s = report.used_s.unwrap_or_default();
        Self {
            token: Arc::clone(&report.token),
            known_since,
            expires_s: report.expires_s,
            used_s: AtomicU64::new(used_s),
            saved_s: AtomicU64::new(used_s),
        }
    }

    /// Notes a use. Written at most once a second: many threads present the same token.
    pub(super) fn touch(&self, now_s: u64) {
        if self.used_s() < now_s {
            self.used_s.store(now_s, Ordering::Relaxed);
        }
    }

    /// Takes what the database knows of uses.
    fn learn(&self, read: &Self) {
        self.used_s.fetch_max(read.used_s(), Ordering::Relaxed);
        self.saved_s.fetch_max(read.used_s(), Ordering::Relaxed);
    }

    pub(super) fn used_s(&self) -> u64 {
        self.used_s.load(Ordering::Relaxed)
    }

    pub(super) fn is_unsaved(&self) -> bool {
        self.used_s() > self.saved_s.load(Ordering::Relaxed)
    }

    pub(super) fn saved(&self, used_s: u64) {
        self.saved_s.store(used_s, Ordering::Relaxed);
    }
}

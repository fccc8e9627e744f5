//! Closures of actions: found, and leased as long as their actions need them.
//!
//! The same few closures are asked for by thousands of actions, and one has tens of thousands of files: what was found
//! is good for a moment, and what was leased is not walked again before a part of its lease is over.
//!
//! What always holds: a closure that was handed out is leased for most of a lease from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gf_blobstore::{BlobStore, OwnerId};
use gf_nix_formats::StorePath;
use gf_tenancy::{Authorized, Execute};
use tokio::time::Instant;

use super::{Closure, ClosureError, ClosureRoot, Closures};
use crate::actions::{ActionError, find_missing};
use crate::content::owner;

/// A closure that was found is looked for again after this: paths come and go.
const FRESH: Duration = Duration::from_secs(5);
/// The part of a lease after which blobs are leased again.
const LEASE_PART: u32 = 6;
/// What is remembered of each kind; beyond that, everything is forgotten and found anew.
const MAX_FOUND: usize = 256;
const MAX_LEASED: usize = 65_536;

/// Which paths of which tenant.
type Question = (OwnerId, Vec<StorePath>);

/// Finds closures and leases them.
pub(crate) struct Toolchains {
    store: Arc<dyn BlobStore>,
    closures: Arc<dyn Closures>,
    /// How long a lease is relied upon.
    relied: Duration,
    found: Mutex<HashMap<Question, (Instant, Closure)>>,
    /// Roots, and when everything below them was leased.
    leased: Mutex<HashMap<(OwnerId, ClosureRoot), Instant>>,
}

impl Toolchains {
    /// `lease` is that of the store.
    pub(crate) fn new(store: Arc<dyn BlobStore>, closures: Arc<dyn Closures>, lease: Duration) -> Self {
        let relied = lease / LEASE_PART;
        Self { store, closures, relied, found: Mutex::default(), leased: Mutex::default() }
    }

    /// The closure of some store paths, leased.
    ///
    /// # Errors
    /// [`ActionError::Closure`].
    pub(crate) async fn provide(
        &self,
        grant: &Authorized<Execute>,
        mut paths: Vec<StorePath>,
    ) -> Result<Closure, ActionError> {
        if paths.is_empty() {
            return Ok(Closure::default());
        }
        paths.sort();
        paths.dedup();
        let question = (owner(grant), paths);
        let known = lock(&self.found).get(&question).cloned();
        let closure = match known {
            Some((at, closure)) if at.elapsed() < FRESH => closure,
            known => {
                let found = Closure::new(self.closures.closure(grant, &question.1).await?)?;
                // One that is the same is kept once, however many actions wait with it.
                let closure = known.map(|(_, known)| known).filter(|known| *known == found).unwrap_or(found);
                remember(&mut lock(&self.found), question, (Instant::now(), closure.clone()), MAX_FOUND);
                closure
            }
        };
        self.lease(grant, &closure).await?;
        Ok(closure)
    }

    /// Leases everything in a closure, unless that was done lately.
    ///
    /// # Errors
    /// [`ActionError::Closure`]: [`ClosureError::Damaged`] with the paths of which something is missing.
    pub(crate) async fn lease(&self, grant: &Authorized<Execute>, closure: &Closure) -> Result<(), ActionError> {
        let mut damaged = Vec::new();
        for path in closure.paths() {
            let key = (owner(grant), path.root.clone());
            if lock(&self.leased).get(&key).is_some_and(|at| at.elapsed() < self.relied) {
                continue;
            }
            let begun = Instant::now();
            let missing = match &path.root {
                ClosureRoot::Directory(root) => find_missing(&*self.store, key.0, *root, &[]).await?,
                ClosureRoot::File { digest, .. } => self.store.find_missing(key.0, &[*digest]).await?,
                ClosureRoot::Symlink { .. } => continue,
            };
            if missing.is_empty() {
                remember(&mut lock(&self.leased), key, begun, MAX_LEASED);
            } else {
                damaged.push(path.path.clone());
            }
        }
        if damaged.is_empty() { Ok(()) } else { Err(ClosureError::Damaged(damaged).into()) }
    }
}

fn remember<K: Eq + std::hash::Hash, V>(known: &mut HashMap<K, V>, key: K, value: V, max: usize) {
    if known.len() >= max && !known.contains_key(&key) {
        known.clear();
    }
    known.insert(key, value);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

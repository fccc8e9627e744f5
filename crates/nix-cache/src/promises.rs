//! What the store is made to promise, and when it is let go.
//!
//! A blob may be part of many archives, and the store has one promise of it for a tenant. So a collection first finds out
//! which blobs nobody needs, and lets them go then; an upload that comes in between needs some of them again. It says so
//! here, and nobody waits for the finding out.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use gf_digest::Digest;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Default)]
pub(crate) struct Promises {
    /// Read from the promise of blobs until it is noted what needs them; written while blobs are let go.
    order: RwLock<()>,
    /// What was promised since a collection began; absent while there is none.
    lately: Mutex<Option<HashSet<Digest>>>,
    /// One collection at a time.
    collecting: tokio::sync::Mutex<()>,
}

/// Held from the promise of blobs until it is noted what needs them.
pub(crate) struct Promising<'a> {
    promises: &'a Promises,
    _order: RwLockReadGuard<'a, ()>,
}

/// A collection: while it lasts, what is promised is written down.
pub(crate) struct Collecting<'a> {
    promises: &'a Promises,
    _only: tokio::sync::MutexGuard<'a, ()>,
}

impl Promises {
    /// Waits while blobs are let go.
    pub(crate) async fn begin(&self) -> Promising<'_> {
        Promising { _order: self.order.read().await, promises: self }
    }

    /// Waits until all that was promised is noted, and for a collection under way.
    pub(crate) async fn collect(&self) -> Collecting<'_> {
        let only = self.collecting.lock().await;
        let _order = self.order.write().await;
        *self.lately.lock().unwrap_or_else(PoisonError::into_inner) = Some(HashSet::new());
        Collecting { promises: self, _only: only }
    }
}

impl Promising<'_> {
    /// Whether a collection is under way: what was promised earlier may be let go then, and must be promised again.
    pub(crate) fn is_collecting(&self) -> bool {
        self.promises.lately.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes note of what is about to be promised.
    pub(crate) fn add(&self, blobs: &[Digest]) {
        if let Some(lately) = &mut *self.promises.lately.lock().unwrap_or_else(PoisonError::into_inner) {
            lately.extend(blobs);
        }
    }
}

impl Collecting<'_> {
    /// Takes out of `unneeded` what was promised meanwhile. Nothing is promised until the answer is dropped.
    pub(crate) async fn spare(&self, unneeded: &mut HashSet<Digest>) -> RwLockWriteGuard<'_, ()> {
        let order = self.promises.order.write().await;
        if let Some(lately) = &*self.promises.lately.lock().unwrap_or_else(PoisonError::into_inner) {
            unneeded.retain(|blob| !lately.contains(blob));
        }
        order
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        *self.promises.lately.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

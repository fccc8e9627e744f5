//! Paths that are being removed. Whoever reads one meanwhile must say so in the database first, and is told whether it was
//! too late.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use gf_nix_formats::StorePathHash;

use crate::cache::CacheId;

#[derive(Default)]
pub(crate) struct Condemned {
    paths: Mutex<HashSet<(CacheId, StorePathHash)>>,
}

/// Paths are condemned until this is dropped.
pub(crate) struct Sentence<'a> {
    condemned: &'a Condemned,
    cache: CacheId,
    paths: Vec<StorePathHash>,
}

impl Condemned {
    pub(crate) fn condemn(&self, cache: CacheId, paths: &[StorePathHash]) -> Sentence<'_> {
        let mut all = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(paths.iter().map(|path| (cache, *path)));
        Sentence { condemned: self, cache, paths: paths.to_vec() }
    }

    pub(crate) fn has(&self, cache: CacheId, path: StorePathHash) -> bool {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).contains(&(cache, path))
    }
}

impl Drop for Sentence<'_> {
    fn drop(&mut self) {
        let mut all = self.condemned.paths.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &self.paths {
            all.remove(&(self.cache, *path));
        }
    }
}

//! What clients are about to upload: the paths that they asked for and were told are missing.
//!
//! Only a cache with upstreams that it knows by the names of their keys alone needs it: there, a reference that is
//! missing and was not announced was left out by the client because an upstream has it. In memory only; forgotten, a path
//! is visible a moment before what it refers to.

use gf_nix_formats::StorePathHash;
use quick_cache::sync::Cache;

use crate::cache::CacheId;

/// How long an announcement is believed: as long as a push may take between asking and the last path.
const BELIEVED_S: u64 = 60 * 60;

/// The most that are remembered. Beyond it the oldest go.
const MAX: usize = 200_000;

pub(crate) struct Announced {
    paths: Cache<(CacheId, StorePathHash), u64>,
}

impl Default for Announced {
    fn default() -> Self {
        Self { paths: Cache::new(MAX) }
    }
}

impl Announced {
    pub(crate) fn add(&self, cache: CacheId, paths: &[StorePathHash], now_s: u64) {
        for path in paths {
            self.paths.insert((cache, *path), now_s);
        }
    }

    pub(crate) fn has(&self, cache: CacheId, path: StorePathHash, now_s: u64) -> bool {
        self.paths.get(&(cache, path)).is_some_and(|announced_s| now_s < announced_s.saturating_add(BELIEVED_S))
    }
}

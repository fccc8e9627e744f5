//! Other caches, whose paths are served as our own.
//!
//! A narinfo that is not here is asked for there, verified, and noted here; the archive is fetched when it is read first,
//! checked as every upload is, and stays. One asker at a time goes out for the same thing, and what is not there is not
//! asked for again for a minute. What an upstream cannot say is unknown here too.

mod body;
mod fetches;
mod health;
mod wanted;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gf_fetch::Networks;
use gf_nix_formats::{ContentAddress, FileMethod, Hash, NarInfo, StoreDir, StorePathHash};
use quick_cache::sync::Cache as Memory;
use tokio::sync::mpsc;

use super::NixCaches;
use crate::cache::{Cache, CacheId};
use crate::flights::Flights;
use crate::rows::{ArchiveRow, PathRow};
use crate::{CacheError, UpstreamSettings};
pub(super) use fetches::Fetch;
use fetches::Fetches;
use health::Health;
use wanted::Wanted;

/// How long it is believed that an upstream does not have a path.
const ABSENT_S: u64 = 60;

/// Who waits for another's question about the same path asks by itself after this.
const NARINFO_PATIENCE: Duration = Duration::from_secs(60);

/// The most absences that are remembered.
const MAX_ABSENCES: usize = 200_000;

/// Pieces of an archive, of a quarter of a mebibyte, by which a client may be behind what comes of it.
const PIECES_BEHIND: usize = 16;

pub(super) struct Upstreams {
    health: Health,
    /// Since when a cache knows that a path is not there, or not as that cache could take it: which keys it trusts is its
    /// own affair.
    absent: Memory<(CacheId, Arc<str>, StorePathHash), u64>,
    narinfos: Flights<(String, StorePathHash)>,
    fetches: Fetches,
}

impl Upstreams {
    /// Upstreams that are in these networks.
    pub(super) fn new(networks: Networks) -> Self {
        Self {
            health: Health::new(networks),
            absent: Memory::new(MAX_ABSENCES),
            narinfos: Flights::new(1, NARINFO_PATIENCE),
            fetches: Fetches::default(),
        }
    }

    /// Why a URL cannot be that of an upstream.
    pub(super) fn check(&self, url: &str) -> Result<(), String> {
        self.health.check(url)
    }

    /// Ends what is being fetched.
    pub(super) async fn stop(&self) {
        self.fetches.stop().await;
    }
}

impl NixCaches {
    /// A path that one of the upstreams has; it is noted here then.
    pub(super) async fn find_upstream(
        &self,
        cache: &Cache,
        path: StorePathHash,
    ) -> Result<Option<PathRow>, CacheError> {
        let mut unknown = None;
        for upstream in &cache.settings.upstreams {
            match self.ask(cache, upstream, path).await {
                Ok(true) => return Ok(self.find_path(cache, path).await?.filter(PathRow::is_visible)),
                Ok(false) => {}
                // Another one may have it.
                Err(error) => unknown = Some(error),
            }
        }
        unknown.map_or(Ok(None), Err)
    }

    /// Whether this upstream has the path.
    async fn ask(&self, cache: &Cache, upstream: &UpstreamSettings, path: StorePathHash) -> Result<bool, CacheError> {
        let upstreams = &self.shared.upstreams;
        let key = (cache.id, Arc::from(upstream.url.as_str()), path);
        let now_s = self.shared.time.now_s();
        let is_absent = || upstreams.absent.get(&key).is_some_and(|since_s| now_s < since_s.saturating_add(ABSENT_S));
        if is_absent() {
            return Ok(false);
        }
        let _turn = upstreams.narinfos.enter((upstream.url.clone(), path)).await;
        if is_absent() {
            return Ok(false);
        }
        // Another may have noted it while this one waited.
        if self.find_path(cache, path).await?.is_some_and(|row| row.is_visible()) {
            return Ok(true);
        }
        let at = upstreams.health.of(&upstream.url);
        let (url, time) = (narinfo_url(upstream, path), &self.shared.time);
        let text = at.ask(|| time.now_s(), at.client.get_small(&url, NarInfo::MAX_BYTES)).await;
        let text = text.map_err(|reason| CacheError::Upstream { url: upstream.url.clone(), reason })?;
        let store = &cache.settings.store_dir;
        let Some(narinfo) = text.and_then(|text| trusted(store, upstream, path, &text)) else {
            upstreams.absent.insert(key, now_s);
            return Ok(false);
        };
        self.publish_upstream(cache, narinfo, upstream.url.clone()).await?;
        Ok(true)
    }

    /// Fetches the archive of a path from where the path came from, and waits until it is here; `None` when it did not come
    /// from anywhere, or is gone there.
    pub(super) async fn fetch(&self, cache: &Cache, path: &PathRow) -> Result<Option<ArchiveRow>, CacheError> {
        let Some((mut fetch, _)) = self.begin_fetch(cache, path) else { return Ok(None) };
        if !fetch.end().await? {
            return Ok(None);
        }
        self.find_archive(cache.owner, &path.nar_hash).await
    }

    /// Begins to fetch the archive of a path, or joins who does. Who began it gets the archive piece by piece as it comes,
    /// unchecked; the pieces end early when they are not taken.
    pub(super) fn begin_fetch(&self, cache: &Cache, path: &PathRow) -> Option<(Fetch, Option<mpsc::Receiver<Bytes>>)> {
        path.upstream.as_ref()?;
        let (copy, pieces) = mpsc::channel(PIECES_BEHIND);
        let (fetch, is_new) = self.shared.upstreams.fetches.join((cache.owner, path.nar_hash), |progress| {
            let (wanted, caches) = (Wanted::new(cache, path), self.clone());
            async move { wanted.fetch(caches, copy, &progress).await }
        });
        Some((fetch, is_new.then_some(pieces)))
    }
}

fn narinfo_url(upstream: &UpstreamSettings, path: StorePathHash) -> String {
    format!("{}/{path}.narinfo", upstream.url.trim_end_matches('/'))
}

/// A narinfo that is about this path and signed by a key of the upstream, or of which the content names the path. Anything
/// else counts as not there: nobody could use it.
fn trusted(store: &StoreDir, upstream: &UpstreamSettings, path: StorePathHash, text: &[u8]) -> Option<NarInfo> {
    let refuse = |reason: &str| {
        tracing::warn!(upstream = upstream.url, %path, reason, "an upstream's narinfo is not taken");
    };
    let narinfo = NarInfo::parse(store, text).inspect_err(|error| refuse(&error.to_string())).ok()?;
    if narinfo.store_path.hash() != path {
        refuse("it is about another path");
        return None;
    }
    let fingerprint = narinfo.fingerprint(store);
    let is_signed = narinfo.signatures.verified_by(fingerprint.as_bytes(), &upstream.keys).is_some();
    if !is_signed && !names_itself(&narinfo, store) {
        refuse("no key of the upstream signed it, and its hash alone does not prove that it is this path");
        return None;
    }
    Some(narinfo)
}

/// Whether the hash of the archive, which is checked when it comes, gives the path. An address that is not that hash proves
/// nothing of an archive that is still to come.
fn names_itself(narinfo: &NarInfo, store: &StoreDir) -> bool {
    let address = match &narinfo.content_address {
        Some(ContentAddress::Fixed(FileMethod::Recursive, hash)) => *hash == Hash::from(narinfo.nar_hash),
        _ => false,
    };
    address && !narinfo.references.contains(&narinfo.store_path) && narinfo.is_content_addressed(store)
}

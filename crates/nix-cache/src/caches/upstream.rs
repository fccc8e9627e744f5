//! Other caches, whose paths are served as our own.
//!
//! A narinfo that is not here is asked for there, verified, and noted here; the archive is fetched when it is read first,
//! checked as every upload is, and stays. One asker at a time goes out for the same thing, and what is not there is not
//! asked for again for a minute. What an upstream cannot say is unknown here too.

use std::sync::Arc;

use gf_blobstore::OwnerId;
use gf_fetch::{Client, Reach};
use gf_nix_formats::{ContentAddress, FileMethod, Hash, NarHash, NarInfo, StoreDir, StorePathHash};
use quick_cache::sync::Cache as Memory;

use super::NixCaches;
use crate::archives::{Expected, IngestError};
use crate::cache::{Cache, CacheId};
use crate::flights::Flights;
use crate::rows::{ArchiveRow, Origin, PathRow};
use crate::{CacheError, UpstreamSettings};

/// How long it is believed that an upstream does not have a path.
const ABSENT_S: u64 = 60;

/// The most absences that are remembered.
const MAX_ABSENCES: usize = 200_000;

pub(super) struct Upstreams {
    client: Client,
    /// Since when a cache knows that a path is not there, or not as that cache could take it: which keys it trusts is its
    /// own affair.
    absent: Memory<(CacheId, Arc<str>, StorePathHash), u64>,
    narinfos: Flights<(String, StorePathHash)>,
    archives: Flights<(OwnerId, NarHash)>,
}

impl Default for Upstreams {
    fn default() -> Self {
        Self {
            client: Client::new(Reach::Anywhere),
            absent: Memory::new(MAX_ABSENCES),
            narinfos: Flights::new(1),
            archives: Flights::new(1),
        }
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
        let url = format!("{}/{path}.narinfo", upstream.url.trim_end_matches('/'));
        let text = upstreams.client.get_small(&url, NarInfo::MAX_BYTES).await;
        let text = text.map_err(|reason| CacheError::Upstream { url: upstream.url.clone(), reason })?;
        let Some(narinfo) = text.and_then(|text| trusted(cache, upstream, path, &text)) else {
            upstreams.absent.insert(key, now_s);
            return Ok(false);
        };
        self.publish_upstream(cache, narinfo, upstream.url.clone()).await?;
        Ok(true)
    }

    /// Fetches the archive of a path from where the path came from; `None` when it did not come from anywhere, or is gone
    /// there.
    pub(super) async fn fetch(&self, cache: &Cache, path: &PathRow) -> Result<Option<ArchiveRow>, CacheError> {
        let Some(origin) = &path.upstream else { return Ok(None) };
        let _turn = self.shared.upstreams.archives.enter((cache.owner, path.nar_hash)).await;
        if let Some(archive) = self.find_archive(cache.owner, &path.nar_hash).await? {
            return Ok(Some(archive));
        }
        let failed = |reason: String| CacheError::Upstream { url: origin.upstream.clone(), reason };
        let body = self.shared.upstreams.client.get(&archive_url(origin)).await.map_err(failed)?;
        let Some(body) = body else { return Ok(None) };
        let expected = Expected { nar_hash: Some(path.nar_hash), nar_size: Some(path.nar_size), ..Expected::default() };
        let ingested = self.shared.archives.ingest(cache.owner, origin.compression, body, expected).await;
        let ingested = ingested.map_err(|error| match error {
            IngestError::Store(error) => CacheError::Store(error),
            other => failed(format!("its archive of {} is not right: {other}", path.path)),
        })?;
        self.note_archive(cache.owner, &ingested, None).await?;
        tracing::debug!(cache = %cache.name, path = %path.path, upstream = origin.upstream, "fetched");
        self.find_archive(cache.owner, &path.nar_hash).await
    }
}

/// Relative to the upstream, as Nix takes it.
fn archive_url(origin: &Origin) -> String {
    let is_absolute = origin.url.starts_with("http://") || origin.url.starts_with("https://");
    if is_absolute {
        return origin.url.clone();
    }
    format!("{}/{}", origin.upstream.trim_end_matches('/'), origin.url.trim_start_matches('/'))
}

/// A narinfo that is about this path and signed by a key of the upstream, or of which the content names the path. Anything
/// else counts as not there: nobody could use it.
fn trusted(cache: &Cache, upstream: &UpstreamSettings, path: StorePathHash, text: &[u8]) -> Option<NarInfo> {
    let refuse = |reason: &str| {
        tracing::warn!(cache = %cache.name, upstream = upstream.url, %path, reason, "an upstream's narinfo is not taken");
    };
    let store = &cache.settings.store_dir;
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

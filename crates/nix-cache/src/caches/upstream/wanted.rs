//! An archive that is wanted from upstreams, and the work of fetching it.

use bytes::Bytes;
use gf_blobstore::OwnerId;
use gf_fetch::Body;
use gf_nix_formats::{NarInfo, StoreDir};
use tokio::sync::mpsc;

use super::fetches::Progress;
use super::{body, narinfo_url, trusted};
use crate::archives::{Expected, IngestError};
use crate::cache::Cache;
use crate::caches::NixCaches;
use crate::rows::{Origin, PathRow};
use crate::{CacheError, UpstreamSettings};

/// What a fetch needs to know of its cache and its path.
pub(super) struct Wanted {
    owner: OwnerId,
    store_dir: StoreDir,
    upstreams: Vec<UpstreamSettings>,
    path: PathRow,
}

impl Wanted {
    pub(super) fn new(cache: &Cache, path: &PathRow) -> Self {
        Self {
            owner: cache.owner,
            store_dir: cache.settings.store_dir.clone(),
            upstreams: cache.settings.upstreams.clone(),
            path: path.clone(),
        }
    }

    /// Fetches the archive from where the path came from, or from another upstream that has the same; whether it is here
    /// then. What comes of it goes to `copy` on the way, as long as that keeps up.
    pub(super) async fn fetch(
        self,
        caches: NixCaches,
        copy: mpsc::Sender<Bytes>,
        progress: &Progress,
    ) -> Result<bool, CacheError> {
        if caches.find_archive(self.owner, &self.path.nar_hash).await?.is_some() {
            return Ok(true);
        }
        let Some((origin, body)) = self.open(&caches).await? else { return Ok(false) };
        progress.comes();
        let path = &self.path;
        let expected = Expected { nar_hash: Some(path.nar_hash), nar_size: Some(path.nar_size), ..Expected::default() };
        let ingested = caches.shared.archives.ingest_copied(self.owner, origin.compression, body, expected, Some(copy));
        let ingested = ingested.await.map_err(|error| match error {
            IngestError::Store(error) => CacheError::Store(error),
            other => failed(&origin.upstream, format!("its archive of {} is not right: {other}", path.path)),
        })?;
        caches.note_archive(self.owner, &ingested, None).await?;
        tracing::debug!(path = %path.path, upstream = origin.upstream, "fetched");
        Ok(true)
    }

    /// The first body that comes. What cannot be known is told when nobody else has it.
    async fn open(&self, caches: &NixCaches) -> Result<Option<(Origin, Body)>, CacheError> {
        let Some(origin) = &self.path.upstream else { return Ok(None) };
        let mut unknown = match self.open_at(caches, origin).await {
            Ok(Some(body)) => return Ok(Some((origin.clone(), body))),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        for upstream in self.upstreams.iter().filter(|upstream| upstream.url != origin.upstream) {
            let opened = async {
                let Some(origin) = self.ask(caches, upstream).await? else { return Ok(None) };
                let body = self.open_at(caches, &origin).await?;
                Ok(body.map(|body| (origin, body)))
            };
            match opened.await {
                Ok(None) => {}
                Ok(opened) => return Ok(opened),
                Err(error) => drop(unknown.get_or_insert(error)),
            }
        }
        unknown.map_or(Ok(None), Err)
    }

    /// Where another upstream has the same archive.
    async fn ask(&self, caches: &NixCaches, upstream: &UpstreamSettings) -> Result<Option<Origin>, CacheError> {
        let hash = self.path.path.hash();
        let at = caches.shared.upstreams.health.of(&upstream.url);
        let (url, now_s) = (narinfo_url(upstream, hash), || caches.shared.time.now_s());
        let text = at.ask(now_s, at.client.get_small(&url, NarInfo::MAX_BYTES)).await;
        let text = text.map_err(|reason| failed(&upstream.url, reason))?;
        let narinfo = text.and_then(|text| trusted(&self.store_dir, upstream, hash, &text));
        let same = narinfo.filter(|narinfo| narinfo.nar_hash == self.path.nar_hash);
        Ok(same.map(|narinfo| Origin {
            upstream: upstream.url.clone(),
            url: narinfo.url.as_str().to_owned(),
            compression: narinfo.compression,
        }))
    }

    async fn open_at(&self, caches: &NixCaches, origin: &Origin) -> Result<Option<Body>, CacheError> {
        let at = caches.shared.upstreams.health.of(&origin.upstream);
        let (url, now_s) = (archive_url(origin), || caches.shared.time.now_s());
        let opened = at.ask(now_s, body::open(&at.client, &url)).await;
        opened.map_err(|reason| failed(&origin.upstream, reason))
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

fn failed(upstream: &str, reason: String) -> CacheError {
    CacheError::Upstream { url: upstream.to_owned(), reason }
}

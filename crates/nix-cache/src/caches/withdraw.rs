//! Paths whose archive was lost: what is not whole is not shown.

use std::collections::{BTreeMap, BTreeSet};

use gf_blobstore::OwnerId;
use gf_database::{Row, Statement, Transaction, places, sql, work};
use gf_nix_formats::{StorePath, StorePathHash};

use super::NixCaches;
use super::publish::{MAX_ASKED, wait_for};
use crate::CacheError;
use crate::cache::CacheId;
use crate::graph::Graph;
use crate::rows::{ArchiveRow, digest_text};

/// Rows that are read at once.
const PAGE: i64 = 5000;

impl NixCaches {
    /// Takes note that the store lost an archive, for certain. Paths that only had it here are withdrawn, so that they are
    /// uploaded again, and what refers to them waits for them meanwhile. An upload of the same archive that came after
    /// `archive` was read is another one, and stays.
    pub(super) async fn lose_archive(&self, owner: OwnerId, archive: &ArchiveRow) -> Result<(), CacheError> {
        let is_lost = self
            .shared
            .database
            .write(|transaction| work(async move { lose(transaction, owner, archive).await }))
            .await?;
        if is_lost {
            let nar_hash = &archive.nar_hash;
            tracing::error!(owner = owner.0, %nar_hash, "the store lost an archive; its paths are withdrawn");
            self.shared.rendered.forget_all();
        }
        Ok(())
    }
}

/// Whether it was still the upload that was lost.
async fn lose(transaction: &mut Transaction, owner: OwnerId, archive: &ArchiveRow) -> Result<bool, CacheError> {
    let nar_hash = archive.nar_hash.base32();
    let delete = sql("DELETE FROM nix_archives WHERE owner = $1 AND nar_hash = $2 AND upload = $3");
    let delete = delete.bind(owner.0).bind(nar_hash.as_str()).bind(archive.upload);
    if transaction.execute(delete).await? == 0 {
        return Ok(false);
    }
    transaction.execute(let_go_later(owner, archive)).await?;
    let lost = "SELECT p.cache, p.hash FROM nix_paths p JOIN nix_caches c ON c.id = p.cache \
                WHERE c.owner = $1 AND p.nar_hash = $2 AND p.upstream IS NULL";
    let mut by_cache: BTreeMap<CacheId, BTreeSet<StorePathHash>> = BTreeMap::new();
    for row in transaction.all(sql(lost).bind(owner.0).bind(nar_hash)).await? {
        let hash = path_hash(&row.get::<String>("hash")?)?;
        by_cache.entry(CacheId(row.get("cache")?)).or_default().insert(hash);
    }
    for (cache, lost) in by_cache {
        withdraw(transaction, cache, &lost).await?;
    }
    Ok(true)
}

/// Has a collection let go of what nobody else needs of an archive that is gone.
pub(super) fn let_go_later(owner: OwnerId, archive: &ArchiveRow) -> Statement {
    sql("INSERT INTO nix_let_go (owner, blobs) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(owner.0)
        .bind(digest_text(&archive.blobs))
}

/// Removes paths, and hides all that refer to them, directly or not, until they are back.
async fn withdraw(
    transaction: &mut Transaction,
    cache: CacheId,
    lost: &BTreeSet<StorePathHash>,
) -> Result<(), CacheError> {
    let graph = read_graph(transaction, cache).await?;
    let hidden = graph.referrers(lost.iter().copied());
    for path in hidden.difference(lost) {
        let awaited: BTreeSet<StorePathHash> =
            graph.references(*path).iter().filter(|reference| hidden.contains(reference)).copied().collect();
        wait_for(transaction, cache, *path, &awaited).await?;
        let count = "UPDATE nix_paths SET waiting = (SELECT COUNT(*) FROM nix_awaited WHERE cache = $1 AND path = $2) \
                     WHERE cache = $1 AND hash = $2";
        transaction.execute(sql(count).bind(cache.0).bind(path.to_string())).await?;
    }
    let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
    for some in lost.chunks(MAX_ASKED) {
        let delete = format!("DELETE FROM nix_paths WHERE cache = $1 AND hash IN ({})", places(2, some.len()));
        transaction.execute(sql(delete).bind(cache.0).bind_all(some.iter().map(String::as_str))).await?;
    }
    Ok(())
}

/// What refers to what in a cache.
async fn read_graph(transaction: &mut Transaction, cache: CacheId) -> Result<Graph, CacheError> {
    let (mut graph, mut after) = (Graph::default(), String::new());
    loop {
        let page = transaction.all(graph_page(cache, &after)).await?;
        if page.is_empty() {
            return Ok(graph);
        }
        add_to_graph(&mut graph, &page, &mut after)?;
    }
}

/// Some paths of a cache and what they refer to, in order.
pub(super) fn graph_page(cache: CacheId, after: &str) -> Statement {
    let page = "SELECT hash, refs FROM nix_paths WHERE cache = $1 AND hash > $2 ORDER BY hash LIMIT $3";
    sql(page).bind(cache.0).bind(after).bind(PAGE)
}

/// Adds such a page, and says in `after` where it ended. Some hundred bytes of each path are kept.
pub(super) fn add_to_graph(graph: &mut Graph, page: &[Row], after: &mut String) -> Result<(), CacheError> {
    for row in page {
        *after = row.get("hash")?;
        graph.insert(path_hash(after)?, &references(&row.get::<String>("refs")?)?);
    }
    Ok(())
}

pub(super) fn path_hash(text: &str) -> Result<StorePathHash, CacheError> {
    StorePathHash::parse(text).map_err(|error| CacheError::row("a path", error))
}

/// The hash parts of a list of base names.
pub(super) fn references(list: &str) -> Result<Vec<StorePathHash>, CacheError> {
    let parse = |name: &str| StorePath::parse(name).map(|path| path.hash());
    let parsed = list.split_ascii_whitespace().map(parse).collect::<Result<_, _>>();
    parsed.map_err(|error| CacheError::row("a path", error))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use gf_blobstore::BlobStore;
    use gf_database::{Database, Location};
    use gf_fetch::Networks;
    use gf_nix_formats::Compression;
    use gf_nix_formats::nar::{NarEvent, NarLimits, NarWriter};
    use gf_testkit::{ManualTime, MemoryBlobStore};

    use super::*;
    use crate::archives::{ArchiveLimits, Archives, Expected};
    use crate::{MIGRATIONS, Parts};

    fn nar() -> Bytes {
        let mut writer = NarWriter::new(NarLimits { size_bytes: 1 << 20, entries: 1, depth: 1 });
        let mut chunks = Vec::new();
        let contents = Bytes::from_static(b"contents");
        let file = NarEvent::File { executable: false, size_bytes: contents.len() as u64 };
        for event in [file, NarEvent::Contents(contents), NarEvent::FileEnd] {
            writer.write(&event, &mut chunks).unwrap();
        }
        writer.finish(&mut chunks).unwrap();
        chunks.concat().into()
    }

    /// Who finds out that an archive is lost may be slower than who uploads it again.
    #[tokio::test]
    async fn what_was_uploaded_again_is_not_lost_with_what_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(folder.path().join("facts.db"));
        let database = Database::open(&location, &[MIGRATIONS]).await.unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(MemoryBlobStore::default());
        let archives = Archives::new(Arc::clone(&store), folder.path().to_owned(), ArchiveLimits::default());
        let (archives, time) = (Arc::new(archives), Arc::new(ManualTime::new(1)));
        let parts =
            Parts { database, store, archives: Arc::clone(&archives), time, upstream_networks: Networks::default() };
        let caches = NixCaches::new(parts);
        let (owner, body) = (OwnerId(1), futures::stream::iter([Ok::<_, std::io::Error>(nar())]));
        let ingested = archives.ingest(owner, Compression::None, body, Expected::default()).await.unwrap();
        caches.note_archive(owner, &ingested, None).await.unwrap();
        let before = caches.find_archive(owner, &ingested.nar_hash).await.unwrap().unwrap();
        caches.note_archive(owner, &ingested, None).await.unwrap();
        caches.lose_archive(owner, &before).await.unwrap();
        let after = caches.find_archive(owner, &ingested.nar_hash).await.unwrap().unwrap();
        caches.lose_archive(owner, &after).await.unwrap();
        assert_eq!(caches.find_archive(owner, &ingested.nar_hash).await.unwrap(), None);
    }
}

//! Paths whose archive was lost: what is not whole is not shown.

use std::collections::BTreeSet;

use gf_blobstore::OwnerId;
use gf_database::{Transaction, sql, work};
use gf_nix_formats::{StorePath, StorePathHash};

use super::NixCaches;
use super::publish::wait_for;
use crate::CacheError;
use crate::cache::CacheId;
use crate::graph::Graph;
use crate::rows::{ArchiveRow, PathRow};

impl NixCaches {
    /// Takes note that the store lost an archive, for certain. Paths that only had it here are withdrawn, so that they are
    /// uploaded again, and what refers to them waits for them meanwhile.
    pub(super) async fn lose_archive(&self, owner: OwnerId, archive: &ArchiveRow) -> Result<(), CacheError> {
        tracing::error!(owner = owner.0, nar_hash = %archive.nar_hash, "the store lost an archive; its paths are withdrawn");
        let nar_hash = &archive.nar_hash.base32();
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    let delete = sql("DELETE FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
                    transaction.execute(delete.bind(owner.0).bind(nar_hash.as_str())).await?;
                    let lost = "SELECT p.cache, p.hash FROM nix_paths p JOIN nix_caches c ON c.id = p.cache \
                            WHERE c.owner = $1 AND p.nar_hash = $2 AND p.upstream IS NULL";
                    for row in transaction.all(sql(lost).bind(owner.0).bind(nar_hash.as_str())).await? {
                        let hash: String = row.get("hash")?;
                        let hash = StorePathHash::parse(&hash).map_err(|error| CacheError::row("a path", error))?;
                        withdraw(transaction, CacheId(row.get("cache")?), hash).await?;
                    }
                    Ok::<_, CacheError>(())
                })
            })
            .await?;
        self.shared.rendered.forget_all();
        Ok(())
    }
}

/// Removes a path, and hides all that refer to it, directly or not, until it is back.
async fn withdraw(transaction: &mut Transaction, cache: CacheId, lost: StorePathHash) -> Result<(), CacheError> {
    let mut graph = Graph::default();
    let mut rows = Vec::new();
    for row in transaction.all(sql("SELECT * FROM nix_paths WHERE cache = $1").bind(cache.0)).await? {
        let row = PathRow::read(&row)?;
        graph.insert(row.path.hash(), row.references.iter().map(StorePath::hash));
        rows.push(row);
    }
    let hidden = graph.referrers([lost]);
    for row in rows.iter().filter(|row| hidden.contains(&row.path.hash()) && row.path.hash() != lost) {
        let awaits = |reference: &&StorePath| **reference != row.path && hidden.contains(&reference.hash());
        let awaited: BTreeSet<StorePath> = row.references.iter().filter(awaits).cloned().collect();
        wait_for(transaction, cache, row.path.hash(), &awaited).await?;
        let count = "UPDATE nix_paths SET waiting = (SELECT COUNT(*) FROM nix_awaited WHERE cache = $1 AND path = $2) \
                     WHERE cache = $1 AND hash = $2";
        transaction.execute(sql(count).bind(cache.0).bind(row.path.hash().to_string())).await?;
    }
    let delete = sql("DELETE FROM nix_paths WHERE cache = $1 AND hash = $2").bind(cache.0).bind(lost.to_string());
    transaction.execute(delete).await?;
    Ok(())
}

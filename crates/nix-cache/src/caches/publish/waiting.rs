//! Paths that wait for what they refer to.

use std::collections::BTreeSet;

use gf_blobstore::ErrorKind;
use gf_database::{Transaction, places, sql};
use gf_nix_formats::{StorePath, StorePathHash};

use super::{MAX_ASKED, Order};
use crate::cache::{Cache, CacheId};
use crate::caches::NixCaches;
use crate::rows::PathRow;
use crate::{CacheError, PublishError};

/// What a path refers to, itself left out, and is not visible in this cache.
pub(super) async fn missing_here(
    transaction: &mut Transaction,
    cache: CacheId,
    row: &PathRow,
) -> Result<BTreeSet<StorePath>, CacheError> {
    let mut missing: BTreeSet<StorePath> = row.references.iter().filter(|path| **path != row.path).cloned().collect();
    let asked: Vec<StorePath> = missing.iter().cloned().collect();
    for some in asked.chunks(MAX_ASKED) {
        let text = format!(
            "SELECT hash, name FROM nix_paths WHERE cache = $1 AND waiting = 0 AND hash IN ({})",
            places(2, some.len())
        );
        let visible = sql(text).bind(cache.0).bind_all(some.iter().map(|path| path.hash().to_string()));
        for row in transaction.all(visible).await? {
            let (hash, name): (String, String) = (row.get("hash")?, row.get("name")?);
            missing.retain(|path| path.as_str() != format!("{hash}-{name}"));
        }
    }
    Ok(missing)
}

/// Notes what a path waits for.
pub(super) async fn wait_for(
    transaction: &mut Transaction,
    cache: CacheId,
    path: StorePathHash,
    awaited: &BTreeSet<StorePath>,
) -> Result<(), CacheError> {
    for reference in awaited {
        let insert = sql("INSERT INTO nix_awaited (cache, reference, path) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING");
        let insert = insert.bind(cache.0).bind(reference.hash().to_string()).bind(path.to_string());
        transaction.execute(insert).await?;
    }
    Ok(())
}

/// Called when a path has become visible: what waited for it waits for one less, and what waits for nothing now is
/// visible too. As many steps as paths become visible.
pub(super) async fn release(
    transaction: &mut Transaction,
    cache: CacheId,
    visible: StorePathHash,
) -> Result<(), CacheError> {
    let mut visible = vec![visible.to_string()];
    while let Some(reference) = visible.pop() {
        let fewer = "UPDATE nix_paths SET waiting = waiting - 1 WHERE cache = $1 AND hash IN \
                     (SELECT path FROM nix_awaited WHERE cache = $1 AND reference = $2)";
        if transaction.execute(sql(fewer).bind(cache.0).bind(reference.as_str())).await? == 0 {
            continue;
        }
        let free = "SELECT p.hash FROM nix_paths p JOIN nix_awaited a ON a.cache = p.cache AND a.path = p.hash \
                    WHERE a.cache = $1 AND a.reference = $2 AND p.waiting = 0";
        for row in transaction.all(sql(free).bind(cache.0).bind(reference.as_str())).await? {
            visible.push(row.get("hash")?);
        }
        let delete = sql("DELETE FROM nix_awaited WHERE cache = $1 AND reference = $2");
        transaction.execute(delete.bind(cache.0).bind(reference)).await?;
    }
    Ok(())
}

impl NixCaches {
    /// What a path refers to that is not here and need not be: an upstream has it, or is taken to have it.
    pub(super) async fn references_elsewhere(
        &self,
        cache: &Cache,
        row: &PathRow,
        order: Order,
    ) -> Result<BTreeSet<StorePath>, PublishError> {
        let mut elsewhere = BTreeSet::new();
        if cache.settings.upstreams.is_empty() && cache.settings.upstream_key_names.is_empty() {
            return Ok(elsewhere);
        }
        let missing = self
            .shared
            .database
            .write(async |transaction: &mut Transaction| missing_here(transaction, cache.id, row).await)
            .await?;
        for path in missing {
            if self.is_elsewhere(cache, &path, order).await? {
                elsewhere.insert(path);
            }
        }
        Ok(elsewhere)
    }

    /// Asks the upstreams. One that cannot say makes a path wait, where paths may.
    async fn is_elsewhere(&self, cache: &Cache, path: &StorePath, order: Order) -> Result<bool, CacheError> {
        let now_s = self.shared.time.now_s();
        let is_announced = || self.shared.announced.has(cache.id, path.hash(), now_s);
        if order == Order::Any && !cache.settings.upstream_key_names.is_empty() && !is_announced() {
            return Ok(true);
        }
        match self.find_upstream(cache, path.hash()).await {
            Ok(found) => Ok(found.is_some_and(|found| found.path == *path)),
            Err(error) if order == Order::Any && error.kind() == ErrorKind::Unavailable => Ok(false),
            Err(error) => Err(error),
        }
    }
}

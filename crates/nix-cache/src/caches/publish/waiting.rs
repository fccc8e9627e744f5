//! Paths that wait for what they refer to.

use std::collections::BTreeSet;

use gf_blobstore::ErrorKind;
use gf_database::{Row, Statement, Transaction, places, sql};
use gf_nix_formats::{StorePath, StorePathHash};

use super::{MAX_ASKED, Order};
use crate::announced::announced;
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
    let mut missing = others(row);
    for question in questions(cache, &missing) {
        strike_out(&mut missing, &transaction.all(question).await?)?;
    }
    Ok(missing)
}

fn others(row: &PathRow) -> BTreeSet<StorePath> {
    row.references.iter().filter(|path| **path != row.path).cloned().collect()
}

/// Asks which of some paths are visible.
fn questions(cache: CacheId, paths: &BTreeSet<StorePath>) -> Vec<Statement> {
    let hashes: Vec<String> = paths.iter().map(|path| path.hash().to_string()).collect();
    let ask = |some: &[String]| {
        let text = "SELECT hash, name FROM nix_paths WHERE cache = $1 AND waiting = 0 AND hash IN";
        sql(format!("{text} ({})", places(2, some.len()))).bind(cache.0).bind_all(some.iter().map(String::as_str))
    };
    hashes.chunks(MAX_ASKED).map(ask).collect()
}

fn strike_out(missing: &mut BTreeSet<StorePath>, visible: &[Row]) -> Result<(), CacheError> {
    for row in visible {
        let (hash, name): (String, String) = (row.get("hash")?, row.get("name")?);
        if let Ok(path) = StorePath::parse(&format!("{hash}-{name}")) {
            missing.remove(&path);
        }
    }
    Ok(())
}

/// Notes what a path waits for.
pub(in crate::caches) async fn wait_for(
    transaction: &mut Transaction,
    cache: CacheId,
    path: StorePathHash,
    awaited: &BTreeSet<StorePathHash>,
) -> Result<(), CacheError> {
    for reference in awaited {
        let insert = sql("INSERT INTO nix_awaited (cache, reference, path) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING");
        let insert = insert.bind(cache.0).bind(reference.to_string()).bind(path.to_string());
        transaction.execute(insert).await?;
    }
    Ok(())
}

/// Called when a path has become visible: what waited for it waits for one less, and what waits for nothing now is
/// visible too. As many steps as paths become visible.
pub(in crate::caches) async fn release(
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
    /// What a path refers to that is not here and need not be: an upstream has it, or its client declares that one has.
    pub(super) async fn references_elsewhere(
        &self,
        cache: &Cache,
        row: &PathRow,
        order: Order,
    ) -> Result<BTreeSet<StorePath>, PublishError> {
        let mut missing = self.missing_references(cache, row).await?;
        let mut elsewhere = match order {
            Order::Any => self.left_out(cache, row, &missing).await?,
            Order::ReferencesFirst => BTreeSet::new(),
        };
        missing.retain(|path| !elsewhere.contains(path));
        elsewhere.extend(self.in_declared_upstreams(cache, missing, order).await?);
        Ok(elsewhere)
    }

    /// What a path refers to and no client sees here.
    pub(in crate::caches) async fn missing_references(
        &self,
        cache: &Cache,
        row: &PathRow,
    ) -> Result<BTreeSet<StorePath>, CacheError> {
        let mut missing = others(row);
        for question in questions(cache.id, &missing) {
            strike_out(&mut missing, &self.shared.database.all(question).await?)?;
        }
        Ok(missing)
    }

    /// What the client of this path left out, as one that knows the upstreams by their keys does: it announced the path, and
    /// nobody announced these or brought them.
    async fn left_out(
        &self,
        cache: &Cache,
        row: &PathRow,
        missing: &BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>, CacheError> {
        if cache.settings.upstream_key_names.is_empty() || missing.is_empty() {
            return Ok(BTreeSet::new());
        }
        let (database, now_s) = (&self.shared.database, self.shared.time.now_s());
        let mut asked: BTreeSet<StorePathHash> = missing.iter().map(StorePath::hash).collect();
        asked.insert(row.path.hash());
        let announced = announced(database, cache.id, &asked, now_s).await?;
        if !announced.contains(&row.path.hash()) {
            return Ok(BTreeSet::new());
        }
        let hidden = self.present(cache.id, &asked.into_iter().collect::<Vec<_>>(), 0).await?;
        let is_left_out =
            |path: &&StorePath| !announced.contains(&path.hash()) && !hidden.contains(&path.hash().to_string());
        Ok(missing.iter().filter(is_left_out).cloned().collect())
    }

    /// Asks the upstreams for these. One that cannot say makes a path wait, where paths may.
    pub(in crate::caches) async fn in_declared_upstreams(
        &self,
        cache: &Cache,
        missing: BTreeSet<StorePath>,
        order: Order,
    ) -> Result<BTreeSet<StorePath>, CacheError> {
        let mut there = BTreeSet::new();
        if cache.settings.upstreams.is_empty() {
            return Ok(there);
        }
        for path in missing {
            match self.find_upstream(cache, path.hash()).await {
                Ok(Some(found)) if found.path == path => drop(there.insert(path)),
                Ok(_) => {}
                Err(error) if order == Order::Any && error.kind() == ErrorKind::Unavailable => {}
                Err(error) => return Err(error),
            }
        }
        Ok(there)
    }
}

//! What is done in the background: uses are written down, promises renewed, paths that wait looked at again, and once a
//! day what nobody needs is collected. Each step is bounded, and may be cut off anywhere.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use gf_blobstore::{ErrorKind, OwnerId};
use gf_database::{Row, sql, work};
use gf_nix_formats::{StorePath, StorePathHash};
use tokio_util::sync::CancellationToken;

use super::NixCaches;
use super::intake::{PROMISE_S, RENEWED_S};
use super::publish::{Order, release};
use crate::CacheError;
use crate::announced::forget_ended;
use crate::cache::Cache;
use crate::rows::{ArchiveRow, PathRow, digest, signed};

/// Between two rounds. What was counted and not written down is lost with a killed process.
const ROUND: Duration = Duration::from_secs(30);

/// Between two collections, in seconds.
const COLLECTION_S: u64 = 24 * 60 * 60;

/// From the start to the first collection, in seconds.
const FIRST_COLLECTION_S: u64 = 60 * 60;

/// Archives, logs and paths of one round.
const BATCH: i64 = 64;

/// How long a path waits before its references are looked for again, in seconds.
const LOOKED_AT_S: u64 = 60;

impl NixCaches {
    /// Tends the caches until told to stop. What fails is logged, and tried again.
    pub async fn tend_until(&self, stopping: CancellationToken) {
        // A server that starts every day collects, too: an hour after it began.
        let mut collected_s = self.shared.time.now_s().saturating_sub(COLLECTION_S - FIRST_COLLECTION_S);
        loop {
            let is_stopped = stopping.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_none();
            if let Err(error) = self.tend().await {
                tracing::warn!(%error, "the Nix caches could not be tended; it is tried again");
            }
            if is_stopped {
                self.shared.upstreams.stop().await;
                return;
            }
            let now_s = self.shared.time.now_s();
            if now_s >= collected_s + COLLECTION_S {
                collected_s = now_s;
                if let Some(Err(error)) = stopping.run_until_cancelled(self.collect_all()).await {
                    tracing::warn!(%error, "what nobody needs could not be collected");
                }
            }
        }
    }

    /// One round: everything that is due, in bounded steps.
    ///
    /// # Errors
    /// [`CacheError`] of the first step that failed; what was done is done.
    pub async fn tend(&self) -> Result<(), CacheError> {
        // What fails in one step says nothing of the others, and nothing is more urgent than the promises.
        let renewed = self.renew_all_archives().await;
        let written = self.shared.uses.write_down(&self.shared.database, self.shared.time.now_s()).await;
        let logs = async {
            while self.renew_logs().await? == BATCH {}
            Ok(())
        };
        let logs = logs.await;
        let looked = self.look_again().await;
        let forgotten = forget_ended(&self.shared.database, self.shared.time.now_s()).await;
        renewed.and(written.and(forgotten).map_err(CacheError::from)).and(logs).and(looked)
    }

    /// Renews promises that end soon, of archives that a path names. One that cannot be renewed now keeps no other from
    /// it, and is tried again in the next round.
    async fn renew_all_archives(&self) -> Result<(), CacheError> {
        let mut after = (i64::MIN, String::new());
        loop {
            let due = self.archives_due(&after).await?;
            for row in &due {
                after = (row.get("owner")?, row.get("nar_hash")?);
                let renewed = async { self.renew_archive(owner(row)?, &ArchiveRow::read(row)?).await };
                if let Err(error) = renewed.await {
                    tracing::warn!(%error, archive = after.1, "the promise for an archive could not be renewed now");
                }
            }
            if due.is_empty() {
                return Ok(());
            }
        }
    }

    async fn archives_due(&self, after: &(i64, String)) -> Result<Vec<Row>, CacheError> {
        let due = "SELECT a.* FROM nix_archives a WHERE a.kept_until_s < $1 AND (a.owner, a.nar_hash) > ($2, $3) \
                   AND EXISTS (SELECT 1 FROM nix_paths p JOIN nix_caches c ON c.id = p.cache \
                   WHERE p.nar_hash = a.nar_hash AND c.owner = a.owner) ORDER BY a.owner, a.nar_hash LIMIT $4";
        let due = sql(due).bind(signed(self.shared.time.now_s() + RENEWED_S)).bind(after.0).bind(after.1.as_str());
        Ok(self.shared.database.all(due.bind(BATCH)).await?)
    }

    async fn renew_archive(&self, owner: OwnerId, archive: &ArchiveRow) -> Result<(), CacheError> {
        let until_s = self.shared.time.now_s() + PROMISE_S;
        let promising = self.shared.promises.begin().await;
        match self.promise(&promising, owner, &archive.blobs, until_s).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return self.lose_archive(owner, archive).await,
            Err(error) => return Err(error),
        }
        let update = sql("UPDATE nix_archives SET kept_until_s = $3 WHERE owner = $1 AND nar_hash = $2");
        let update = update.bind(owner.0).bind(archive.nar_hash.base32()).bind(signed(until_s));
        self.shared.database.execute(update).await?;
        Ok(())
    }

    async fn renew_logs(&self) -> Result<i64, CacheError> {
        let now_s = self.shared.time.now_s();
        let due = sql("SELECT * FROM nix_logs WHERE kept_until_s < $1 LIMIT $2");
        let due = self.shared.database.all(due.bind(signed(now_s + RENEWED_S)).bind(BATCH)).await?;
        for row in &due {
            let (owner, blob) = (owner(row)?, digest(&row.get::<String>("blob")?)?);
            let (cache, derivation): (i64, String) = (row.get("cache")?, row.get("derivation")?);
            let until = std::time::UNIX_EPOCH + Duration::from_secs(now_s + PROMISE_S);
            let promising = self.shared.promises.begin().await;
            promising.add(&[blob]);
            let is_lost = !self.shared.store.keep_until(owner, &[blob], until).await?.is_empty();
            let change = if is_lost {
                sql("DELETE FROM nix_logs WHERE cache = $1 AND derivation = $2").bind(cache).bind(derivation)
            } else {
                sql("UPDATE nix_logs SET kept_until_s = $3 WHERE cache = $1 AND derivation = $2")
                    .bind(cache)
                    .bind(derivation)
                    .bind(signed(now_s + PROMISE_S))
            };
            self.shared.database.execute(change).await?;
        }
        Ok(i64::try_from(due.len()).unwrap_or(BATCH))
    }

    /// Looks again for what paths wait for: an upstream may have it now. A few in each round, and the next ones in the
    /// next, so that none waits for others.
    async fn look_again(&self) -> Result<(), CacheError> {
        let waiting = self.next_waiting().await?;
        let mut outcome = Ok(());
        for row in &waiting {
            let name: String = row.get("cache_name")?;
            let name = crate::CacheName::new(&name).map_err(|error| CacheError::row("a cache", error))?;
            let Some(cache) = self.resolve(&name).await? else { continue };
            if cache.settings.upstreams.is_empty() {
                continue;
            }
            let looked = async { self.look_for_references(&cache, &PathRow::read(row)?).await };
            outcome = looked.await.and(outcome);
        }
        outcome
    }

    /// The paths whose turn it is.
    async fn next_waiting(&self) -> Result<Vec<Row>, CacheError> {
        let after = self.shared.looked_at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let before_s = self.shared.time.now_s().saturating_sub(LOOKED_AT_S);
        let waiting = "SELECT p.*, c.name AS cache_name FROM nix_paths p JOIN nix_caches c ON c.id = p.cache \
                       WHERE p.waiting > 0 AND p.created_s <= $1 AND (p.cache, p.hash) > ($2, $3) \
                       ORDER BY p.cache, p.hash LIMIT $4";
        // `name` is the column of both tables: the path's own comes first, and is what is read below.
        let waiting = sql(waiting).bind(signed(before_s)).bind(after.0).bind(after.1.as_str()).bind(BATCH);
        let waiting = self.shared.database.all(waiting).await?;
        let next = match waiting.last() {
            Some(last) if i64::try_from(waiting.len()) == Ok(BATCH) => (last.get("cache")?, last.get("hash")?),
            _ => (i64::MIN, String::new()),
        };
        *self.shared.looked_at.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(waiting)
    }

    async fn look_for_references(&self, cache: &Cache, row: &PathRow) -> Result<(), CacheError> {
        let missing = self.missing_references(cache, row).await?;
        let elsewhere = self.in_declared_upstreams(cache, missing, Order::Any).await?;
        if elsewhere.is_empty() {
            return Ok(());
        }
        let found: BTreeSet<StorePathHash> = elsewhere.iter().map(StorePath::hash).collect();
        let path = row.path.hash().to_string();
        let (found, path) = (&found, path.as_str());
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    for reference in found {
                        let delete = sql("DELETE FROM nix_awaited WHERE cache = $1 AND reference = $2 AND path = $3");
                        let delete = delete.bind(cache.id.0).bind(reference.to_string()).bind(path);
                        if transaction.execute(delete).await? > 0 {
                            let fewer =
                                sql("UPDATE nix_paths SET waiting = waiting - 1 WHERE cache = $1 AND hash = $2");
                            transaction.execute(fewer.bind(cache.id.0).bind(path)).await?;
                        }
                    }
                    let visible = sql("SELECT hash FROM nix_paths WHERE cache = $1 AND hash = $2 AND waiting = 0");
                    if transaction.first(visible.bind(cache.id.0).bind(path)).await?.is_some() {
                        release(transaction, cache.id, row.path.hash()).await?;
                    }
                    Ok::<_, CacheError>(())
                })
            })
            .await
    }
}

pub(super) fn owner(row: &Row) -> Result<OwnerId, CacheError> {
    let number = u32::try_from(row.get::<i64>("owner")?).map_err(|error| CacheError::row("an owner", error))?;
    Ok(OwnerId(number))
}

//! Collecting what nobody needs: paths by the rules of their cache, archives that no path names, promises of blobs that
//! no archive has. It writes nothing into the store, so it works while the store refuses writes.
//!
//! What always holds:
//! - a path that was used after the plan was made stays, and so does what it refers to;
//! - an archive goes only when nothing names it, and a blob is let go only when no archive or log of its tenant has it;
//! - cut off anywhere, it leaves what is right: the next collection goes on.

use std::collections::{BTreeSet, HashSet};

use gf_blobstore::{ErrorKind, OwnerId};
use gf_database::{Transaction, sql, work};
use gf_digest::Digest;
use gf_nix_formats::{StorePath, StorePathHash};
use gf_tenancy::{Authorized, NixConfigureRetention, NixPull};

use super::NixCaches;
use super::keep::owner;
use super::pins::Pin;
use crate::CacheError;
use crate::cache::Cache;
use crate::graph::Graph;
use crate::retention::{Observed, Rules, plan};
use crate::rows::{ArchiveRow, PathRow, digest, signed};

pub use crate::retention::{Removal, WhyRemoved};

/// An archive without a path stays so long, in seconds: `nix copy` uploads all archives before the first narinfo.
const ORPHAN_S: u64 = 2 * 24 * 60 * 60;

/// Paths that go in one transaction.
const BATCH: usize = 200;

/// Archives that go at once, and blobs of theirs that are thought about at once.
const MAX_ARCHIVES: i64 = 500;

/// Blobs in one call to the store.
const MAX_LET_GO: usize = 4096;

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collection {
    /// The paths, each before what it refers to.
    pub removals: Vec<Removal>,
    /// How many of them stay after all, since they were used meanwhile. 0 of a plan.
    pub spared: usize,
}

impl NixCaches {
    /// What would go now, and why. Changes nothing.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn plan_collection(&self, grant: &Authorized<NixPull>) -> Result<Collection, CacheError> {
        let cache = self.cache(grant).await?;
        self.write_down_uses().await?;
        let (removals, _) = self.plan_for(&cache).await?;
        Ok(Collection { removals, spared: 0 })
    }

    /// Removes what [`Self::plan_collection`] says, and the archives of the tenant that no path names any more.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn collect(&self, grant: &Authorized<NixConfigureRetention>) -> Result<Collection, CacheError> {
        let cache = self.cache(grant).await?;
        let collection = self.collect_paths(&cache).await?;
        self.collect_archives(cache.owner).await?;
        Ok(collection)
    }

    /// Collects in all caches of all tenants.
    pub(super) async fn collect_all(&self) -> Result<(), CacheError> {
        for row in self.shared.database.all(sql("SELECT * FROM nix_caches ORDER BY name")).await? {
            let cache = Cache::read(&row)?;
            let Collection { removals, spared } = self.collect_paths(&cache).await?;
            if !removals.is_empty() {
                tracing::info!(cache = %cache.name, paths = removals.len() - spared, "unused paths were removed");
            }
        }
        for row in self.shared.database.all(sql("SELECT DISTINCT owner FROM nix_archives")).await? {
            self.collect_archives(owner(&row)?).await?;
        }
        Ok(())
    }

    async fn collect_paths(&self, cache: &Cache) -> Result<Collection, CacheError> {
        self.write_down_uses().await?;
        let (removals, graph) = self.plan_for(cache).await?;
        let mut kept = BTreeSet::new();
        let mut spared = 0;
        for batch in removals.chunks(BATCH) {
            let hashes: Vec<StorePathHash> = batch.iter().map(|removal| removal.path.hash()).collect();
            let _condemned = self.shared.condemned.condemn(cache.id, &hashes);
            for hash in &hashes {
                self.shared.rendered.forget(cache.id, *hash);
            }
            // What was served until a moment ago counts.
            self.write_down_uses().await?;
            let (graph, before) = (&graph, &kept);
            let removed = self
                .shared
                .database
                .write(|transaction| {
                    work(async move { remove(transaction, cache, batch, graph, before.clone()).await })
                })
                .await?;
            spared += removed.0;
            kept = removed.1;
        }
        Ok(Collection { removals, spared })
    }

    async fn plan_for(&self, cache: &Cache) -> Result<(Vec<Removal>, Graph), CacheError> {
        let now_s = self.shared.time.now_s();
        let statement = "SELECT p.*, a.nar_size AS stored FROM nix_paths p LEFT JOIN nix_archives a ON a.owner = $2 \
                         AND a.nar_hash = p.nar_hash WHERE p.cache = $1";
        let mut graph = Graph::default();
        let mut observed = Vec::new();
        for row in self.shared.database.all(sql(statement).bind(cache.id.0).bind(cache.owner.0)).await? {
            let path = PathRow::read(&row)?;
            graph.insert(path.path.hash(), path.references.iter().map(StorePath::hash));
            observed.push(Observed {
                nar_hash: path.nar_hash,
                stored_bytes: row.get::<Option<i64>>("stored")?.map_or(0, |_| path.nar_size),
                is_visible: path.is_visible(),
                used_s: path.used.used_s,
                served_s: path.used.served_s,
                path: path.path,
                references: path.references,
            });
        }
        let pins = self.pins_of(cache.id).await?;
        let pinned = pins.iter().filter(|pin| pin.holds_at(now_s)).map(|Pin { path, .. }| path.hash()).collect();
        let settings = &cache.settings;
        let rules = Rules {
            retention: settings.retention,
            quota_bytes: settings.quota_bytes,
            grace_s: settings.grace_s,
            now_s,
        };
        Ok((plan(&observed, &pinned, &rules), graph))
    }

    /// Removes archives of a tenant that no path names, and lets their blobs go.
    pub(super) async fn collect_archives(&self, owner: OwnerId) -> Result<(), CacheError> {
        loop {
            let collecting = self.shared.promises.collect().await;
            let orphans = self.remove_orphans(owner).await?;
            if orphans.is_empty() {
                return Ok(());
            }
            let mut unneeded = HashSet::new();
            for orphan in &orphans {
                match self.shared.archives.read_blob_list(owner, orphan.blobs).await {
                    Ok(blobs) => unneeded.extend(blobs),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
                unneeded.insert(orphan.blobs);
            }
            self.spare_needed(owner, &mut unneeded).await?;
            let _order = collecting.spare(&mut unneeded).await;
            let unneeded: Vec<Digest> = unneeded.into_iter().collect();
            for some in unneeded.chunks(MAX_LET_GO) {
                self.shared.store.let_go(owner, some).await?;
            }
        }
    }

    async fn remove_orphans(&self, owner: OwnerId) -> Result<Vec<ArchiveRow>, CacheError> {
        let before_s = signed(self.shared.time.now_s().saturating_sub(ORPHAN_S));
        let orphans = "SELECT a.* FROM nix_archives a WHERE a.owner = $1 AND a.created_s <= $2 AND NOT EXISTS \
                       (SELECT 1 FROM nix_paths p JOIN nix_caches c ON c.id = p.cache \
                       WHERE p.nar_hash = a.nar_hash AND c.owner = a.owner) LIMIT $3";
        let orphans = &sql(orphans).bind(owner.0).bind(before_s).bind(MAX_ARCHIVES);
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    let rows = transaction.all(orphans.clone()).await?;
                    let orphans = rows.iter().map(ArchiveRow::read).collect::<Result<Vec<_>, _>>()?;
                    for orphan in &orphans {
                        let delete = sql("DELETE FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
                        transaction.execute(delete.bind(owner.0).bind(orphan.nar_hash.base32())).await?;
                    }
                    Ok(orphans)
                })
            })
            .await
    }

    /// Takes out what the archives and logs that remain need.
    async fn spare_needed(&self, owner: OwnerId, unneeded: &mut HashSet<Digest>) -> Result<(), CacheError> {
        let mut after = String::new();
        loop {
            let page = "SELECT nar_hash, blobs FROM nix_archives WHERE owner = $1 AND nar_hash > $2 ORDER BY nar_hash LIMIT $3";
            let page = sql(page).bind(owner.0).bind(after.as_str()).bind(MAX_ARCHIVES);
            let page = self.shared.database.all(page).await?;
            let Some(last) = page.last() else { break };
            after = last.get("nar_hash")?;
            for row in &page {
                let list = digest(&row.get::<String>("blobs")?)?;
                unneeded.remove(&list);
                match self.shared.archives.read_blob_list(owner, list).await {
                    Ok(blobs) => blobs.iter().for_each(|blob| {
                        unneeded.remove(blob);
                    }),
                    // It is noticed when it is renewed or read.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let logs = sql("SELECT blob FROM nix_logs WHERE owner = $1").bind(owner.0);
        for row in self.shared.database.all(logs).await? {
            unneeded.remove(&digest(&row.get::<String>("blob")?)?);
        }
        Ok(())
    }

    pub(super) async fn write_down_uses(&self) -> Result<(), CacheError> {
        Ok(self.shared.uses.write_down(&self.shared.database, self.shared.time.now_s()).await?)
    }
}

/// Removes paths that were not used since they were observed. Answers how many stayed, and what stays because of them.
async fn remove(
    transaction: &mut Transaction,
    cache: &Cache,
    batch: &[Removal],
    graph: &Graph,
    mut kept: BTreeSet<StorePathHash>,
) -> Result<(usize, BTreeSet<StorePathHash>), CacheError> {
    let mut spared = 0;
    for removal in batch {
        let hash = removal.path.hash();
        let delete = sql("DELETE FROM nix_paths WHERE cache = $1 AND hash = $2 AND used_s = $3");
        let delete = delete.bind(cache.id.0).bind(hash.to_string()).bind(signed(removal.used_s));
        if kept.contains(&hash) || transaction.execute(delete).await? == 0 {
            spared += 1;
            kept.extend(graph.closure([hash]));
        }
    }
    Ok((spared, kept))
}

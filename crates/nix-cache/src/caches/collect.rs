//! Collecting what nobody needs: paths by the rules of their cache, then what only they needed. It writes nothing into
//! the store, so it works while the store refuses writes.
//!
//! What always holds:
//! - a path that was used after the plan was made stays, and so does what it refers to;
//! - cut off anywhere, it leaves what is right: the next collection goes on;
//! - what fails in one cache or for one tenant keeps no other from being collected;
//! - of one cache at a time about half a kilobyte of each path is in memory.

mod let_go;

use std::collections::BTreeSet;

use gf_database::{Transaction, sql, work};
use gf_nix_formats::{StorePath, StorePathHash};
use gf_tenancy::{Authorized, NixConfigureRetention, NixPull};

use super::NixCaches;
use super::keep::owner;
use super::pins::Pin;
use super::withdraw::{path_hash, references};
use crate::CacheError;
use crate::cache::Cache;
use crate::graph::Graph;
use crate::retention::{Observed, Rules, plan};
use crate::rows::{nar_hash, signed, unsigned};

pub use crate::retention::{Removal, WhyRemoved};

/// Paths that go in one transaction.
const BATCH: usize = 200;

/// Paths that are read at once.
const PAGE: i64 = 5000;

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

    /// Removes what [`Self::plan_collection`] says, and the archives of the tenant that no path names any more. What of
    /// these cannot be let go now is, with a later collection.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn collect(&self, grant: &Authorized<NixConfigureRetention>) -> Result<Collection, CacheError> {
        let cache = self.cache(grant).await?;
        let collection = self.collect_paths(&cache).await?;
        if let Err(error) = self.collect_archives(cache.owner).await {
            tracing::warn!(%error, cache = %cache.name, "what no path names could not be let go; it is tried again");
        }
        Ok(collection)
    }

    /// Collects in all caches of all tenants.
    pub(super) async fn collect_all(&self) -> Result<(), CacheError> {
        for row in self.shared.database.all(sql("SELECT * FROM nix_caches ORDER BY name")).await? {
            let collected = async {
                let cache = Cache::read(&row)?;
                let Collection { removals, spared } = self.collect_paths(&cache).await?;
                if !removals.is_empty() {
                    tracing::info!(cache = %cache.name, paths = removals.len() - spared, "unused paths were removed");
                }
                Ok::<_, CacheError>(())
            };
            if let Err(error) = collected.await {
                tracing::warn!(%error, "a Nix cache could not be collected; it is tried again");
            }
        }
        let owners = "SELECT owner FROM nix_archives UNION SELECT owner FROM nix_let_go";
        for row in self.shared.database.all(sql(owners)).await? {
            if let Err(error) = self.collect_archives(owner(&row)?).await {
                tracing::warn!(%error, "what no path names could not be let go; it is tried again");
            }
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
        let (observed, graph) = self.observe(cache).await?;
        let pins = self.pins_of(cache.id).await?;
        let pinned = pins.iter().filter(|pin| pin.holds_at(now_s)).map(|Pin { path, .. }| path.hash()).collect();
        let settings = &cache.settings;
        let rules = Rules {
            retention: settings.retention,
            quota_bytes: settings.quota_bytes,
            grace_s: settings.grace_s,
            now_s,
        };
        Ok((plan(&observed, &graph, &pinned, &rules), graph))
    }

    async fn observe(&self, cache: &Cache) -> Result<(Vec<Observed>, Graph), CacheError> {
        let page = "SELECT p.hash, p.name, p.nar_hash, p.nar_size, p.refs, p.waiting, p.used_s, p.served_s, \
                    a.nar_size AS stored FROM nix_paths p LEFT JOIN nix_archives a ON a.owner = $2 \
                    AND a.nar_hash = p.nar_hash WHERE p.cache = $1 AND p.hash > $3 ORDER BY p.hash LIMIT $4";
        let (mut graph, mut observed, mut after) = (Graph::default(), Vec::new(), String::new());
        loop {
            let page = sql(page).bind(cache.id.0).bind(cache.owner.0).bind(after.as_str()).bind(PAGE);
            let page = self.shared.database.all(page).await?;
            for row in &page {
                after = row.get("hash")?;
                let hash = path_hash(&after)?;
                graph.insert(hash, &references(&row.get::<String>("refs")?)?);
                let path = StorePath::new(hash, &row.get::<String>("name")?);
                observed.push(Observed {
                    path: path.map_err(|error| CacheError::row("a path", error))?,
                    nar_hash: nar_hash(&row.get::<String>("nar_hash")?)?,
                    stored_bytes: row.get::<Option<i64>>("stored")?.map_or(Ok(0), |_| unsigned(row, "nar_size"))?,
                    is_visible: row.get::<i64>("waiting")? == 0,
                    used_s: unsigned(row, "used_s")?,
                    served_s: unsigned(row, "served_s")?,
                });
            }
            if page.is_empty() {
                return Ok((observed, graph));
            }
        }
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

//! The closure of store paths, for actions that name them as their tools.
//!
//! Only caches that give toolchains are looked into. What one of them cannot say another may: a closure is unknown only
//! when nobody has a path of it and somebody may.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gf_database::{places, sql};
use gf_nix_formats::StorePath;
use gf_tenancy::{Authorized, Permission};

use super::NixCaches;
use super::publish::MAX_ASKED;
use crate::CacheError;
use crate::archives::Root;
use crate::cache::Cache;
use crate::rows::{PathRow, RootText};

/// The most paths of one closure: beyond every closure of a tool seen so far.
const MAX_PATHS: usize = 100_000;

/// One path of a closure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosurePath {
    /// Its base name.
    pub path: StorePath,
    /// What it is, in the store of the tenant.
    pub root: Root,
}

/// What store paths refer to, directly or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closure {
    /// The paths that were named and all that they refer to, in order and each once.
    pub paths: Vec<ClosurePath>,
    /// Those among them that are in no cache of the tenant, nor in an upstream of one.
    pub missing: Vec<StorePath>,
}

impl NixCaches {
    /// The closure of these paths over the caches of the tenant that give toolchains. What only an upstream has is fetched.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known; [`CacheError::TooLarge`] beyond a hundred thousand paths.
    pub async fn closure<P: Permission>(
        &self,
        grant: &Authorized<P>,
        paths: &[StorePath],
    ) -> Result<Closure, CacheError> {
        let mut caches = self.giving_toolchains(grant.tenant().name()).await?;
        caches.sort_by_key(|cache| cache.settings.priority);
        let mut found: BTreeMap<StorePath, Root> = BTreeMap::new();
        let mut missing = BTreeSet::new();
        let mut seen: BTreeSet<StorePath> = paths.iter().cloned().collect();
        let mut next: Vec<StorePath> = seen.iter().cloned().collect();
        while !next.is_empty() {
            if seen.len() > MAX_PATHS {
                return Err(CacheError::TooLarge { what: "a closure", limit: MAX_PATHS, unit: "paths" });
            }
            let asked = std::mem::take(&mut next);
            let mut here = self.visible_in(&caches, &asked).await?;
            for path in asked {
                let known = match here.known.remove(&path) {
                    Some(known) => Some(known),
                    None => self.in_upstreams(&caches, &path, here.unknown.remove(&path)).await?,
                };
                match known {
                    Some(known) => {
                        next.extend(known.references.into_iter().filter(|reference| seen.insert(reference.clone())));
                        found.insert(path, known.root);
                    }
                    None => {
                        missing.insert(path);
                    }
                }
            }
        }
        let paths = found.into_iter().map(|(path, root)| ClosurePath { path, root }).collect();
        Ok(Closure { paths, missing: missing.into_iter().collect() })
    }

    /// The visible ones among some paths, each in the first of the caches that can give it.
    async fn visible_in(&self, caches: &[Arc<Cache>], paths: &[StorePath]) -> Result<Here, CacheError> {
        let mut here = Here::default();
        let questions = caches.iter().flat_map(|cache| paths.chunks(MAX_ASKED).map(move |some| (cache, some)));
        // As a list: an iterator that borrows for longer than one question makes no future that another trait can ask for.
        for (cache, some) in questions.collect::<Vec<_>>() {
            let text = format!(
                "SELECT p.*, a.root FROM nix_paths p LEFT JOIN nix_archives a ON a.owner = $2 AND a.nar_hash = p.nar_hash \
                 WHERE p.cache = $1 AND p.waiting = 0 AND p.hash IN ({})",
                places(3, some.len())
            );
            let hashes = some.iter().map(|path| path.hash().to_string());
            let asked = sql(text).bind(cache.id.0).bind(cache.owner.0).bind_all(hashes);
            for row in self.shared.database.all(asked).await? {
                let path = PathRow::read(&row)?;
                if here.known.contains_key(&path.path) {
                    continue;
                }
                let root = match row.get::<Option<String>>("root")? {
                    Some(text) => Ok(Some(RootText::parse(&text)?)),
                    None => self.fetch(cache, &path).await.map(|archive| archive.map(|archive| archive.root)),
                };
                match root {
                    Ok(Some(root)) => {
                        // What actions use is used, though no client reads it from here.
                        self.shared.uses.archive_read(cache.id, path.nar_hash);
                        here.known.insert(path.path, Known { references: path.references, root });
                    }
                    Ok(None) => {}
                    Err(error) => drop(here.unknown.insert(path.path, error)),
                }
            }
        }
        Ok(here)
    }

    /// A path that an upstream of one of the caches has; the first thing that could not be known, when none has it.
    async fn in_upstreams(
        &self,
        caches: &[Arc<Cache>],
        path: &StorePath,
        mut unknown: Option<CacheError>,
    ) -> Result<Option<Known>, CacheError> {
        for cache in caches {
            match self.in_upstreams_of(cache, path).await {
                Ok(None) => {}
                Ok(Some(known)) => return Ok(Some(known)),
                Err(error) => drop(unknown.get_or_insert(error)),
            }
        }
        unknown.map_or(Ok(None), Err)
    }

    async fn in_upstreams_of(&self, cache: &Arc<Cache>, path: &StorePath) -> Result<Option<Known>, CacheError> {
        let found = self.find_upstream(cache, path.hash()).await?;
        let Some(row) = found.filter(|row| row.path == *path) else { return Ok(None) };
        let Some(archive) = self.fetch(cache, &row).await? else { return Ok(None) };
        self.shared.uses.archive_read(cache.id, row.nar_hash);
        Ok(Some(Known { references: row.references, root: archive.root }))
    }
}

/// What the caches themselves say of some paths.
#[derive(Default)]
struct Here {
    known: BTreeMap<StorePath, Known>,
    /// What is visible, and whose archive cannot be had now.
    unknown: BTreeMap<StorePath, CacheError>,
}

struct Known {
    references: BTreeSet<StorePath>,
    root: Root,
}

impl Closure {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

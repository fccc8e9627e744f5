//! Why a path is here, missing, or not substitutable: the chain from the cache to the bytes, link by link.

use std::collections::BTreeSet;

use gf_blobstore::ErrorKind;
use gf_database::sql;
use gf_nix_formats::{StorePath, StorePathHash};
use gf_tenancy::{Authorized, NixPull};

use super::NixCaches;
use super::withdraw::{add_to_graph, graph_page, path_hash};
use crate::CacheError;
use crate::cache::Cache;
use crate::graph::Graph;
use crate::rows::PathRow;

/// Names in one link; there may be thousands.
const MAX_NAMED: usize = 20;

/// What can be said of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// From the cache to the bytes, in order. It ends with the first link that is broken.
    pub links: Vec<Link>,
    /// Why it stays, where it is here.
    pub kept_by: Vec<Keeper>,
}

/// A link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// It was published here, at this time in seconds since 1970.
    Published {
        /// When.
        at_s: u64,
        /// The upstream that it came from.
        upstream: Option<String>,
    },
    /// Broken: nobody published it here, and none of these upstreams has it.
    NotPublished {
        /// The upstreams that were asked.
        asked: Vec<String>,
    },
    /// Broken: an upstream cannot say whether it has it.
    Unknown {
        /// Which, and why.
        reason: String,
    },
    /// All that it refers to is here or in an upstream.
    ClosureComplete {
        /// How many paths it is, as far as they are here.
        paths: usize,
    },
    /// Broken: it is invisible, for it waits for these, directly or not. Upload them.
    WaitsFor(Vec<StorePath>),
    /// It is signed with these keys; a client must trust one of them, or need none.
    Signed {
        /// The names of the keys.
        keys: Vec<String>,
        /// Whether its content names it, so that no signature is needed.
        is_content_addressed: bool,
    },
    /// Its archive is here and whole.
    ArchiveHere {
        /// Its size in bytes, uncompressed.
        nar_bytes: u64,
    },
    /// Its archive is fetched from the upstream when it is read first.
    ArchiveUpstream {
        /// The upstream.
        upstream: String,
    },
    /// Broken: its archive is not here. Upload the path again.
    ArchiveMissing,
    /// Broken: the store cannot say now whether the archive is whole.
    ArchiveUnknown {
        /// Why.
        reason: String,
    },
}

/// What keeps a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A pin of this name, on this path or one that refers to it.
    Pin(String),
    /// These refer to it directly, and as many more.
    Referrers(Vec<StorePath>, usize),
    /// It was used last at this time, in seconds since 1970.
    Used(u64),
    /// Its narinfo was served last at this time, in seconds since 1970.
    Served(u64),
}

impl Link {
    /// Whether the chain ends here.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        matches!(
            self,
            Self::NotPublished { .. }
                | Self::Unknown { .. }
                | Self::WaitsFor(_)
                | Self::ArchiveMissing
                | Self::ArchiveUnknown { .. }
        )
    }
}

impl Explanation {
    /// The link that is broken; without one, a client that trusts a key of the path can substitute it.
    #[must_use]
    pub fn broken(&self) -> Option<&Link> {
        self.links.iter().find(|link| link.is_broken())
    }
}

impl NixCaches {
    /// Explains one path. Reads no contents.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`], or the database's. What an upstream or the store cannot say is part of the answer.
    pub async fn why(&self, grant: &Authorized<NixPull>, path: StorePathHash) -> Result<Explanation, CacheError> {
        let cache = self.cache(grant).await?;
        let mut explanation = Explanation { links: Vec::new(), kept_by: Vec::new() };
        let row = match self.find_path(&cache, path).await? {
            Some(row) => row,
            None => match self.find_upstream(&cache, path).await {
                Ok(Some(row)) => row,
                Ok(None) => {
                    let asked = cache.settings.upstreams.iter().map(|upstream| upstream.url.clone()).collect();
                    explanation.links.push(Link::NotPublished { asked });
                    return Ok(explanation);
                }
                Err(error) => {
                    explanation.links.push(Link::Unknown { reason: error.to_string() });
                    return Ok(explanation);
                }
            },
        };
        let upstream = row.upstream.as_ref().map(|origin| origin.upstream.clone());
        explanation.links.push(Link::Published { at_s: row.used.created_s, upstream });
        let graph = self.graph_of(&cache).await?;
        explanation.kept_by = self.kept_by(&cache, &row, &graph).await?;
        let is_complete = self.explain_closure(&cache, &row, &graph, &mut explanation.links).await?;
        if is_complete {
            explanation.links.push(signed_by(&cache, &row)?);
            let archive = self.explain_archive(&cache, &row).await?;
            explanation.links.push(archive);
        }
        Ok(explanation)
    }

    /// What refers to what in a cache.
    async fn graph_of(&self, cache: &Cache) -> Result<Graph, CacheError> {
        let (mut graph, mut after) = (Graph::default(), String::new());
        loop {
            let page = self.shared.database.all(graph_page(cache.id, &after)).await?;
            if page.is_empty() {
                return Ok(graph);
            }
            add_to_graph(&mut graph, &page, &mut after)?;
        }
    }

    /// Whether the closure is complete; says what it waits for otherwise.
    async fn explain_closure(
        &self,
        cache: &Cache,
        row: &PathRow,
        graph: &Graph,
        links: &mut Vec<Link>,
    ) -> Result<bool, CacheError> {
        let closure = graph.closure([row.path.hash()]);
        if row.is_visible() {
            links.push(Link::ClosureComplete { paths: closure.len() });
            return Ok(true);
        }
        let mut missing = BTreeSet::new();
        let awaited = sql("SELECT path, reference FROM nix_awaited WHERE cache = $1").bind(cache.id.0);
        let mut wanted = BTreeSet::new();
        for awaited in self.shared.database.all(awaited).await? {
            if closure.contains(&path_hash(&awaited.get::<String>("path")?)?) {
                wanted.insert(awaited.get::<String>("reference")?);
            }
        }
        for path in &closure {
            let Some(row) = self.find_path(cache, *path).await? else { continue };
            let lacks = |reference: &&StorePath| wanted.contains(&reference.hash().to_string());
            missing.extend(row.references.iter().filter(lacks).cloned());
        }
        // What is here and waits itself is not what has to be uploaded.
        let mut leaves = Vec::new();
        for path in missing {
            if leaves.len() < MAX_NAMED && self.find_path(cache, path.hash()).await?.is_none() {
                leaves.push(path);
            }
        }
        links.push(Link::WaitsFor(leaves));
        Ok(false)
    }

    async fn explain_archive(&self, cache: &Cache, row: &PathRow) -> Result<Link, CacheError> {
        if let Some(archive) = self.find_archive(cache.owner, &row.nar_hash).await? {
            match self.shared.archives.open(cache.owner, &archive.root, archive.nar_size).await {
                Ok(_) => return Ok(Link::ArchiveHere { nar_bytes: archive.nar_size }),
                // Withdrawn, so that pushing it again is what helps.
                Err(error) if error.kind() == ErrorKind::NotFound => self.lose_archive(cache.owner, &archive).await?,
                Err(error) => return Ok(Link::ArchiveUnknown { reason: error.to_string() }),
            }
        }
        let upstream = row.upstream.as_ref().map(|origin| origin.upstream.clone());
        Ok(upstream.map_or(Link::ArchiveMissing, |upstream| Link::ArchiveUpstream { upstream }))
    }

    async fn kept_by(&self, cache: &Cache, row: &PathRow, graph: &Graph) -> Result<Vec<Keeper>, CacheError> {
        let hash = row.path.hash();
        let above = graph.referrers([hash]);
        let now_s = self.shared.time.now_s();
        let pins = self.pins_of(cache.id).await?;
        let holding = pins.into_iter().filter(|pin| pin.holds_at(now_s) && above.contains(&pin.path.hash()));
        let mut keepers: Vec<Keeper> = holding.map(|pin| Keeper::Pin(pin.name)).take(MAX_NAMED).collect();
        let referrers = graph.turned().remove(&hash).unwrap_or_default();
        let mut named = Vec::new();
        for referrer in referrers.iter().take(MAX_NAMED) {
            named.extend(self.find_path(cache, *referrer).await?.map(|referrer| referrer.path));
        }
        if !named.is_empty() {
            keepers.push(Keeper::Referrers(named, referrers.len().saturating_sub(MAX_NAMED)));
        }
        keepers.push(Keeper::Used(row.used.used_s));
        if row.used.served_s > 0 {
            keepers.push(Keeper::Served(row.used.served_s));
        }
        Ok(keepers)
    }
}

fn signed_by(cache: &Cache, row: &PathRow) -> Result<Link, CacheError> {
    let narinfo = row.narinfo()?;
    // The cache signs with its key of today whenever it serves.
    let mut keys = BTreeSet::from([cache.key.name().as_str().to_owned()]);
    keys.extend(narinfo.signatures.iter().map(|signature| signature.key_name().to_owned()));
    let is_content_addressed = narinfo.is_content_addressed(&cache.settings.store_dir);
    Ok(Link::Signed { keys: keys.into_iter().collect(), is_content_addressed })
}

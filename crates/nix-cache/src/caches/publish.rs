//! Paths that become visible.
//!
//! What always holds:
//! - a path is visible only while its archive and all that it refers to are here, or in a declared upstream;
//! - the first writer of a path wins; later ones add signatures of the same content, and change nothing else;
//! - what is answered is durable.

mod check;
mod waiting;

pub(super) use waiting::{release, wait_for};

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::Stream;
use gf_database::{Transaction, Value, places, sql, work};
use gf_nix_formats::{Compression, ContentAddress, NarHash, NarInfo, Signatures, StorePath, StorePathHash, SystemName};
use gf_tenancy::{Authorized, NixPush};

use super::{ArchiveFile, NixCaches};
use crate::archives::Expected;
use crate::cache::Cache;
use crate::retention::RECENT_S;
use crate::rows::{Origin, PathRow, Use, lines, signed};
use crate::{CacheError, PublishError};

/// Values of one statement that asks for many rows: far below what either database takes.
pub(super) const MAX_ASKED: usize = 500;

/// Hash parts in one question of a client.
pub const MAX_ASKED_PATHS: usize = 100_000;

/// In which order a client publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// What a path refers to comes before it, as `nix copy` does: a reference that is missing is a mistake.
    ReferencesFirst,
    /// As it happens, as Attic's client does: a path waits, invisible, for what it refers to.
    Any,
}

/// What became of a path. In all cases the client is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It is visible now.
    New,
    /// It is here, and will be visible when these are.
    Waiting(BTreeSet<StorePath>),
    /// It was here, and has more signatures now.
    Signed,
    /// It was here; nothing changed.
    Known,
    /// It was here with other content or other references: the first writer wins, and this is what it wrote.
    KeptFirst(NarHash),
}

/// A path that comes with its archive, uncompressed, as Attic's client sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedPath {
    /// The path.
    pub path: StorePath,
    /// The hash of its archive.
    pub nar_hash: NarHash,
    /// The size of its archive in bytes.
    pub nar_size: u64,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// The system that it is for.
    pub system: Option<SystemName>,
    /// How it follows from its content.
    pub content_address: Option<ContentAddress>,
    /// Signatures of it.
    pub signatures: Signatures,
}

/// What became of an upload of a path with its archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// What became of the path.
    pub publication: Publication,
    /// Whether the tenant had the archive already; its body was not read then.
    pub is_deduplicated: bool,
}

impl NixCaches {
    /// Publishes a path whose archive was uploaded before. `asked` is the hash part in the URL. The narinfo's own `URL` and
    /// `Compression` are not kept: this server has its own.
    ///
    /// # Errors
    /// [`PublishError`]: anything about the narinfo that is not so is the caller's fault, and nothing is kept of it.
    pub async fn publish(
        &self,
        grant: &Authorized<NixPush>,
        asked: StorePathHash,
        narinfo: NarInfo,
        order: Order,
    ) -> Result<Publication, PublishError> {
        let cache = self.cache(grant).await?;
        if narinfo.store_path.hash() != asked {
            return Err(PublishError::OtherPath { path: narinfo.store_path, asked });
        }
        check::uploaded_file(self, &cache, &narinfo).await?;
        self.publish_row(&cache, new_row(narinfo, None), order).await
    }

    /// Takes in a path with its archive, and publishes it. An archive that the tenant has already is not read.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn upload_path<S, E>(
        &self,
        grant: &Authorized<NixPush>,
        path: UploadedPath,
        body: S,
    ) -> Result<Uploaded, PublishError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let cache = self.cache(grant).await?;
        let mut is_deduplicated = self.renew_orphan(cache.owner, &path.nar_hash).await?;
        if !is_deduplicated {
            let file = ArchiveFile { hash: *path.nar_hash.as_bytes(), compression: Compression::None };
            let _turn = self.shared.uploads.enter((cache.owner, file)).await;
            // Another may have brought it while this one waited.
            is_deduplicated = self.renew_orphan(cache.owner, &path.nar_hash).await?;
            if !is_deduplicated {
                self.take_in(&cache, &path, body).await?;
            }
        }
        let publication = self.publish_row(&cache, path.into(), Order::Any).await?;
        Ok(Uploaded { publication, is_deduplicated })
    }

    async fn take_in<S, E>(&self, cache: &Cache, path: &UploadedPath, body: S) -> Result<(), PublishError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let expected = Expected { nar_hash: Some(path.nar_hash), nar_size: Some(path.nar_size), ..Expected::default() };
        let ingested = self.shared.archives.ingest(cache.owner, Compression::None, body, expected).await?;
        Ok(self.note_archive(cache.owner, &ingested, None).await?)
    }

    /// Which of these paths are not here, in the order asked, each once. What waits for others is here.
    ///
    /// A client that asks says what it is about to upload: see [`Settings::upstream_key_names`](crate::Settings).
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known; [`CacheError::TooLarge`] beyond [`MAX_ASKED_PATHS`].
    pub async fn missing_paths(
        &self,
        grant: &Authorized<NixPush>,
        paths: &[StorePathHash],
    ) -> Result<Vec<StorePathHash>, CacheError> {
        if paths.len() > MAX_ASKED_PATHS {
            return Err(CacheError::TooLarge { what: "the question", limit: MAX_ASKED_PATHS, unit: "paths" });
        }
        let cache = self.cache(grant).await?;
        let mut seen = BTreeSet::new();
        let distinct: Vec<StorePathHash> = paths.iter().copied().filter(|path| seen.insert(*path)).collect();
        let mut present = BTreeSet::new();
        for some in distinct.chunks(MAX_ASKED) {
            let text = format!("SELECT hash FROM nix_paths WHERE cache = $1 AND hash IN ({})", places(2, some.len()));
            let asked = sql(text).bind(cache.id.0).bind_all(some.iter().map(ToString::to_string));
            for row in self.shared.database.all(asked).await? {
                present.insert(row.get::<String>("hash")?);
            }
        }
        let missing: Vec<_> = distinct.into_iter().filter(|path| !present.contains(&path.to_string())).collect();
        self.shared.announced.add(cache.id, &missing, self.shared.time.now_s());
        Ok(missing)
    }

    /// Publishes a path whose archive is here.
    pub(super) async fn publish_row(
        &self,
        cache: &Cache,
        mut row: PathRow,
        order: Order,
    ) -> Result<Publication, PublishError> {
        check::signatures(cache, &row)?;
        let archive = self.find_archive(cache.owner, &row.nar_hash).await?;
        let archive = archive.ok_or(PublishError::NoArchive(row.nar_hash))?;
        if archive.nar_size != row.nar_size {
            return Err(PublishError::OtherSize { announced: row.nar_size, actual: archive.nar_size });
        }
        check::content_address(cache, &row, &archive.root)?;
        let elsewhere = self.references_elsewhere(cache, &row, order).await?;
        sign(cache, &mut row)?;
        let now_s = self.shared.time.now_s();
        row.used = Use { created_s: now_s, used_s: now_s, ..Use::default() };
        let (row, elsewhere) = (&row, &elsewhere);
        let publication = self
            .shared
            .database
            .write(|transaction| work(async move { publish_in(transaction, cache, row, elsewhere, order).await }))
            .await?;
        // What refers to it may have become visible, and none of that was rendered before; signatures were.
        if publication == Publication::Signed {
            self.shared.rendered.forget(cache.id, row.path.hash());
        }
        Ok(publication)
    }

    /// Notes a path that an upstream has, whose archive may not be here yet. The first writer wins here too.
    pub(super) async fn publish_upstream(
        &self,
        cache: &Cache,
        narinfo: NarInfo,
        upstream: String,
    ) -> Result<(), CacheError> {
        let origin = Origin { upstream, url: narinfo.url.as_str().to_owned(), compression: narinfo.compression };
        let mut row = new_row(narinfo, Some(origin));
        let now_s = self.shared.time.now_s();
        row.used = Use { created_s: now_s, used_s: now_s, ..Use::default() };
        sign(cache, &mut row)?;
        let row = &row;
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    if insert(transaction, cache, row).await? {
                        waiting::release(transaction, cache.id, row.path.hash()).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

/// Everything that must be seen and done at once.
async fn publish_in(
    transaction: &mut Transaction,
    cache: &Cache,
    row: &PathRow,
    elsewhere: &BTreeSet<StorePath>,
    order: Order,
) -> Result<Publication, PublishError> {
    let existing = sql("SELECT * FROM nix_paths WHERE cache = $1 AND hash = $2");
    let existing = existing.bind(cache.id.0).bind(row.path.hash().to_string());
    if let Some(existing) = transaction.first(existing).await? {
        return add_signatures(transaction, cache, &PathRow::read(&existing)?, row).await;
    }
    // Seen before, but a collection may have been quicker.
    let archive = sql("SELECT nar_size FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
    if transaction.first(archive.bind(cache.owner.0).bind(row.nar_hash.base32())).await?.is_none() {
        return Err(PublishError::NoArchive(row.nar_hash));
    }
    let missing: BTreeSet<StorePath> =
        waiting::missing_here(transaction, cache.id, row).await?.difference(elsewhere).cloned().collect();
    if let (Order::ReferencesFirst, Some(missing)) = (order, missing.first()) {
        return Err(PublishError::MissingReference { path: row.path.clone(), missing: missing.clone() });
    }
    use_references(transaction, cache, row).await?;
    let row = PathRow { waiting: missing.len() as u64, ..row.clone() };
    insert(transaction, cache, &row).await?;
    waiting::wait_for(transaction, cache.id, row.path.hash(), &missing).await?;
    if missing.is_empty() {
        waiting::release(transaction, cache.id, row.path.hash()).await?;
        return Ok(Publication::New);
    }
    Ok(Publication::Waiting(missing))
}

/// A path that is referred to is used: a collection that planned to remove it finds that out. What was used in the last
/// minute is not planned to be removed, so most of the time nothing is written.
async fn use_references(transaction: &mut Transaction, cache: &Cache, row: &PathRow) -> Result<(), CacheError> {
    let (now_s, references) = (row.used.used_s, row.references.iter().collect::<Vec<_>>());
    for some in references.chunks(MAX_ASKED) {
        let text = format!(
            "UPDATE nix_paths SET used_s = $2 WHERE cache = $1 AND used_s < $3 AND hash IN ({})",
            places(4, some.len())
        );
        let update = sql(text).bind(cache.id.0).bind(signed(now_s)).bind(signed(now_s.saturating_sub(RECENT_S / 5)));
        transaction.execute(update.bind_all(some.iter().map(|path| path.hash().to_string()))).await?;
    }
    Ok(())
}

/// Inserts a path, unless there is one; whether it did.
async fn insert(transaction: &mut Transaction, cache: &Cache, row: &PathRow) -> Result<bool, CacheError> {
    let values: Vec<Value> = row.values();
    let text = format!("INSERT INTO nix_paths VALUES ($1, {}) ON CONFLICT DO NOTHING", places(2, values.len()));
    Ok(transaction.execute(sql(text).bind(cache.id.0).bind_all(values)).await? > 0)
}

async fn add_signatures(
    transaction: &mut Transaction,
    cache: &Cache,
    existing: &PathRow,
    new: &PathRow,
) -> Result<Publication, PublishError> {
    let is_same = (existing.nar_hash, existing.nar_size) == (new.nar_hash, new.nar_size)
        && existing.path == new.path
        && existing.references == new.references;
    if !is_same {
        return Ok(Publication::KeptFirst(existing.nar_hash));
    }
    let mut signatures = existing.signatures.clone();
    if !signatures.merge(&new.signatures)? {
        return Ok(Publication::Known);
    }
    let update = sql("UPDATE nix_paths SET signatures = $3 WHERE cache = $1 AND hash = $2");
    let update = update.bind(cache.id.0).bind(new.path.hash().to_string()).bind(lines(&signatures));
    transaction.execute(update).await?;
    Ok(Publication::Signed)
}

/// Adds the signature of the cache.
fn sign(cache: &Cache, row: &mut PathRow) -> Result<(), PublishError> {
    let narinfo = row.narinfo()?;
    let ours = cache.key.sign(narinfo.fingerprint(&cache.settings.store_dir).as_bytes());
    row.signatures.insert(ours)?;
    Ok(())
}

pub(super) fn new_row(narinfo: NarInfo, upstream: Option<Origin>) -> PathRow {
    PathRow {
        path: narinfo.store_path,
        nar_hash: narinfo.nar_hash,
        nar_size: narinfo.nar_size,
        references: narinfo.references,
        deriver: narinfo.deriver,
        system: narinfo.system,
        content_address: narinfo.content_address,
        signatures: narinfo.signatures,
        waiting: 0,
        upstream,
        used: Use::default(),
    }
}

impl From<UploadedPath> for PathRow {
    fn from(path: UploadedPath) -> Self {
        Self {
            path: path.path,
            nar_hash: path.nar_hash,
            nar_size: path.nar_size,
            references: path.references,
            deriver: path.deriver,
            system: path.system,
            content_address: path.content_address,
            signatures: path.signatures,
            waiting: 0,
            upstream: None,
            used: Use::default(),
        }
    }
}

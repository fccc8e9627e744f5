//! Paths that become visible.
//!
//! What always holds:
//! - a path is visible only while its archive and all that it refers to are here, or in a declared upstream, as durable
//!   facts say;
//! - the first writer of a path that clients see wins; later ones add signatures of the same content, and change nothing
//!   else. Who wrote what nobody ever saw has won nothing yet: a path that is complete takes its place;
//! - what is answered is durable. Those who publish at the same time share one commit, and an answer waits for it.

mod check;
mod waiting;

pub(super) use waiting::{release, wait_for};

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use gf_blobstore::OwnerId;
use gf_database::{Transaction, Value, places, sql, work};
use gf_nix_formats::{Compression, ContentAddress, NarHash, NarInfo, Signatures, StorePath, StorePathHash, SystemName};
use gf_tenancy::{Authorized, NixPush};

use super::lookup::Rendered;
use super::{ArchiveFile, NixCaches};
use crate::announced::{ANNOUNCED_S, announce, fulfil};
use crate::archives::Expected;
use crate::cache::{Cache, CacheId};
use crate::retention::RECENT_S;
use crate::rows::{Origin, PathRow, Use, lines, signed};
use crate::together::Together;
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

/// What publishing comes down to once everything was checked that can be checked outside of a transaction.
pub(super) struct Publishing {
    cache: CacheId,
    owner: OwnerId,
    /// Whether clients announce what they bring to this cache.
    is_announced: bool,
    row: PathRow,
    elsewhere: BTreeSet<StorePath>,
    order: Order,
}

/// Those who publish at the same time.
pub(super) type Publishers = Together<Publishing, Result<Publication, PublishError>>;

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
        let now_s = self.shared.time.now_s();
        if cache.settings.upstream_key_names.is_empty() {
            let present = self.present(cache.id, &distinct, 0).await?;
            return Ok(distinct.into_iter().filter(|path| !present.contains(&path.to_string())).collect());
        }
        // What has waited for longer than a push takes may wait for what its next client leaves out.
        let present = self.present(cache.id, &distinct, now_s.saturating_sub(ANNOUNCED_S)).await?;
        let missing: Vec<_> = distinct.into_iter().filter(|path| !present.contains(&path.to_string())).collect();
        announce(&self.shared.database, cache.id, &missing, now_s).await?;
        Ok(missing)
    }

    /// Which of these paths are here, visible or waiting since `since_s` or later.
    async fn present(
        &self,
        cache: CacheId,
        paths: &[StorePathHash],
        since_s: u64,
    ) -> Result<BTreeSet<String>, CacheError> {
        let mut present = BTreeSet::new();
        for some in paths.chunks(MAX_ASKED) {
            let text = format!(
                "SELECT hash FROM nix_paths WHERE cache = $1 AND (waiting = 0 OR created_s >= $2) AND hash IN ({})",
                places(3, some.len())
            );
            let asked = sql(text).bind(cache.0).bind(signed(since_s)).bind_all(some.iter().map(ToString::to_string));
            for row in self.shared.database.all(asked).await? {
                present.insert(row.get::<String>("hash")?);
            }
        }
        Ok(present)
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
        let is_announced = !cache.settings.upstream_key_names.is_empty();
        let publishing = Publishing { cache: cache.id, owner: cache.owner, is_announced, row, elsewhere, order };
        self.shared.publishers.bring(publishing, |all| self.publish_all(all)).await
    }

    /// In one transaction, or each in its own where that fails: what is the matter with one is no concern of the others.
    async fn publish_all(&self, all: Vec<Arc<Publishing>>) -> Vec<Result<Publication, PublishError>> {
        match self.publish_at_once(&all).await {
            Ok(publications) => return publications,
            Err(CacheError::Database(error)) if error.is_unavailable() => {
                // Asking once for each would take as long for each, and they have waited.
                let error = Arc::new(CacheError::Database(error));
                return all.iter().map(|_| Err(CacheError::Shared(Arc::clone(&error)).into())).collect();
            }
            Err(_) => {}
        }
        let mut publications = Vec::new();
        for one in &all {
            let published = self.publish_at_once(std::slice::from_ref(one)).await;
            publications.push(published.map_or_else(|error| Err(error.into()), |mut one| one.remove(0)));
        }
        publications
    }

    async fn publish_at_once(
        &self,
        all: &[Arc<Publishing>],
    ) -> Result<Vec<Result<Publication, PublishError>>, CacheError> {
        let _forgetting = Forgetting { rendered: &self.shared.rendered, all };
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    let mut publications = Vec::new();
                    for one in all {
                        match publish_in(transaction, one).await {
                            // Nothing of any is kept.
                            Err(PublishError::Cache(error)) => return Err(error),
                            // What is refused was refused before anything was written.
                            publication => publications.push(publication),
                        }
                    }
                    Ok(publications)
                })
            })
            .await
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
            .write(|transaction| work(async move { Ok(take_from_upstream(transaction, cache, row).await?) }))
            .await
    }
}

/// Forgets how paths were rendered once they were written, or may have been: whether those who brought them still wait, and
/// whether whoever wrote them does.
struct Forgetting<'a> {
    rendered: &'a Rendered,
    all: &'a [Arc<Publishing>],
}

impl Drop for Forgetting<'_> {
    fn drop(&mut self) {
        for one in self.all {
            self.rendered.forget(one.cache, one.row.path.hash());
        }
    }
}

/// Everything that must be seen and done at once.
async fn publish_in(transaction: &mut Transaction, publishing: &Publishing) -> Result<Publication, PublishError> {
    let Publishing { cache, owner, is_announced, row, elsewhere, order } = publishing;
    let (cache, order) = (*cache, *order);
    let existing = existing(transaction, cache, row).await?;
    if let Some(existing) = existing.as_ref().filter(|existing| existing.is_visible()) {
        return add_signatures(transaction, cache, existing, row).await;
    }
    // Seen before, but a collection may have been quicker.
    let archive = sql("SELECT nar_size FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
    if transaction.first(archive.bind(owner.0).bind(row.nar_hash.base32())).await?.is_none() {
        return Err(PublishError::NoArchive(row.nar_hash));
    }
    let missing: BTreeSet<StorePath> =
        waiting::missing_here(transaction, cache, row).await?.difference(elsewhere).cloned().collect();
    if let (Order::ReferencesFirst, Some(missing)) = (order, missing.first()) {
        return Err(PublishError::MissingReference { path: row.path.clone(), missing: missing.clone() });
    }
    let mut row = PathRow { waiting: missing.len() as u64, ..row.clone() };
    let is_hidden = existing.is_some();
    match existing {
        Some(first) if first.has_content_of(&row) => drop(row.signatures.merge(&first.signatures)?),
        // Nobody saw either of them yet, so the first stays.
        Some(first) if !missing.is_empty() => return Ok(Publication::KeptFirst(first.nar_hash)),
        Some(_) | None => {}
    }
    use_references(transaction, cache, &row).await?;
    if is_hidden {
        remove_hidden(transaction, cache, &row).await?;
    }
    insert(transaction, cache, &row).await?;
    if *is_announced {
        transaction.execute(fulfil(cache, row.path.hash())).await?;
    }
    if missing.is_empty() {
        waiting::release(transaction, cache, row.path.hash()).await?;
        return Ok(Publication::New);
    }
    let awaited = missing.iter().map(StorePath::hash).collect();
    waiting::wait_for(transaction, cache, row.path.hash(), &awaited).await?;
    Ok(Publication::Waiting(missing))
}

/// Notes a path that an upstream has. What waits here under its name waits no longer: it is complete there. With other
/// content it goes, for nobody ever saw it.
async fn take_from_upstream(transaction: &mut Transaction, cache: &Cache, row: &PathRow) -> Result<(), PublishError> {
    let mut row = row.clone();
    match existing(transaction, cache.id, &row).await? {
        Some(existing) if existing.is_visible() => return Ok(()),
        Some(first) if first.has_content_of(&row) => {
            row.signatures.merge(&first.signatures)?;
            row = PathRow { signatures: row.signatures, waiting: 0, ..first };
        }
        Some(_) | None => {}
    }
    remove_hidden(transaction, cache.id, &row).await?;
    insert(transaction, cache.id, &row).await?;
    Ok(waiting::release(transaction, cache.id, row.path.hash()).await?)
}

async fn existing(transaction: &mut Transaction, cache: CacheId, row: &PathRow) -> Result<Option<PathRow>, CacheError> {
    let existing = sql("SELECT * FROM nix_paths WHERE cache = $1 AND hash = $2");
    let existing = existing.bind(cache.0).bind(row.path.hash().to_string());
    transaction.first(existing).await?.map(|row| PathRow::read(&row)).transpose()
}

/// A path that is referred to is used: a collection that planned to remove it finds that out. What was used in the last
/// minute is not planned to be removed, so most of the time nothing is written.
async fn use_references(transaction: &mut Transaction, cache: CacheId, row: &PathRow) -> Result<(), CacheError> {
    let (now_s, references) = (row.used.used_s, row.references.iter().collect::<Vec<_>>());
    for some in references.chunks(MAX_ASKED) {
        let text = format!(
            "UPDATE nix_paths SET used_s = $2 WHERE cache = $1 AND used_s < $3 AND hash IN ({})",
            places(4, some.len())
        );
        let update = sql(text).bind(cache.0).bind(signed(now_s)).bind(signed(now_s.saturating_sub(RECENT_S / 5)));
        transaction.execute(update.bind_all(some.iter().map(|path| path.hash().to_string()))).await?;
    }
    Ok(())
}

/// Removes a path that is hidden, with what it waits for.
async fn remove_hidden(transaction: &mut Transaction, cache: CacheId, row: &PathRow) -> Result<(), CacheError> {
    let hidden = sql("DELETE FROM nix_paths WHERE cache = $1 AND hash = $2 AND waiting > 0");
    transaction.execute(hidden.bind(cache.0).bind(row.path.hash().to_string())).await?;
    Ok(())
}

async fn insert(transaction: &mut Transaction, cache: CacheId, row: &PathRow) -> Result<(), CacheError> {
    let values: Vec<Value> = row.values();
    let insert = format!("INSERT INTO nix_paths VALUES ($1, {})", places(2, values.len()));
    transaction.execute(sql(insert).bind(cache.0).bind_all(values)).await?;
    Ok(())
}

async fn add_signatures(
    transaction: &mut Transaction,
    cache: CacheId,
    existing: &PathRow,
    new: &PathRow,
) -> Result<Publication, PublishError> {
    if !existing.has_content_of(new) {
        return Ok(Publication::KeptFirst(existing.nar_hash));
    }
    let mut signatures = existing.signatures.clone();
    if !signatures.merge(&new.signatures)? {
        return Ok(Publication::Known);
    }
    let update = sql("UPDATE nix_paths SET signatures = $3 WHERE cache = $1 AND hash = $2");
    let update = update.bind(cache.0).bind(new.path.hash().to_string()).bind(lines(&signatures));
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

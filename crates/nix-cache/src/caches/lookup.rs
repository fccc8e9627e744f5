//! What clients read: narinfos, archives, listings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gf_blobstore::{ErrorKind, StoreError};
use gf_database::sql;
use gf_nix_formats::{Compression, NarHash, StorePathHash};
use gf_tenancy::{Authorized, NixPull};
use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;

use super::NixCaches;
use super::coming::ComingArchive;
use super::intake::{ArchiveFacts, ArchiveFile, FoundArchive};
use crate::CacheError;
use crate::archives::{Archive, Root};
use crate::cache::{Cache, CacheId};
use crate::rows::{ArchiveRow, PathRow, signed};
use crate::uses::UseCount;

/// What rendered narinfos may take of memory, in bytes: a hundred thousand of them, and more.
const MEMORY_BYTES: u64 = 192 << 20;

/// How many there are, more or less: for the size of tables, no limit.
const TYPICAL_COUNT: usize = 100_000;

/// Listings that are made at one time.
pub(super) const LISTINGS: usize = 4;

/// The answer about a path. What cannot be known is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Its narinfo, as it goes to the client.
    Present(Bytes),
    /// It is not here, for certain.
    Absent,
}

/// How a client asks for an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveName {
    /// By its hash, as the narinfos of this server say.
    Nar(NarHash),
    /// By the file that it was uploaded in, as the narinfo says that its uploader remembers.
    File(ArchiveFile),
    /// By the path that it is of, as Attic does.
    Path(StorePathHash),
}

/// An archive that is read by a client.
pub enum Reading {
    /// It is here.
    Here(OpenedArchive),
    /// It comes from an upstream, and goes on to the client meanwhile.
    Coming(ComingArchive),
}

/// An archive that can be read.
pub struct OpenedArchive {
    /// Its hash and its size: what an `ETag` and a `Content-Length` are made of.
    pub facts: ArchiveFacts,
    /// Its bytes, uncompressed.
    pub archive: Archive,
    /// How who asked for it by this name expects it.
    pub compression: Compression,
}

impl NixCaches {
    /// The narinfo of a path. Serving it counts as use: the path stays for the grace of the cache.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known; a client must be told to try again, and not that it is absent.
    pub async fn lookup(&self, grant: &Authorized<NixPull>, path: StorePathHash) -> Result<Lookup, CacheError> {
        let cache = self.cache(grant).await?;
        if let Some(narinfo) = self.shared.rendered.get(cache.id, path) {
            self.shared.uses.narinfo_served(&narinfo.uses);
            return Ok(Lookup::Present(narinfo.bytes));
        }
        let version = self.shared.rendered.version();
        let row = match self.find_path(&cache, path).await? {
            Some(row) if row.is_visible() => Some(row),
            // What waits here for others may be complete there.
            _ => self.find_upstream(&cache, path).await?,
        };
        let Some(row) = row else { return Ok(Lookup::Absent) };
        if self.shared.condemned.has(cache.id, path) && !self.reprieve(&cache, path).await? {
            return Ok(Lookup::Absent);
        }
        let narinfo = Narinfo { bytes: render(&cache, &row)?, uses: Arc::new(UseCount::new(cache.id, path)) };
        self.shared.uses.narinfo_served(&narinfo.uses);
        self.shared.rendered.insert(cache.id, path, narinfo.clone(), version);
        Ok(Lookup::Present(narinfo.bytes))
    }

    /// Hash and size of an archive that a path of this cache names; `None` when there is none.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known.
    pub async fn find(
        &self,
        grant: &Authorized<NixPull>,
        archive: ArchiveName,
    ) -> Result<Option<FoundArchive>, CacheError> {
        let cache = self.cache(grant).await?;
        let Some((row, compression)) = self.path_of(&cache, archive).await? else { return Ok(None) };
        let facts = ArchiveFacts { nar_hash: row.nar_hash, nar_size: row.nar_size };
        Ok(Some(FoundArchive { facts, compression }))
    }

    /// Opens an archive that a path of this cache names; `None` when there is none. What an upstream has is fetched
    /// first, and stays here.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known, or not be fetched.
    pub async fn open_archive(
        &self,
        grant: &Authorized<NixPull>,
        archive: ArchiveName,
    ) -> Result<Option<OpenedArchive>, CacheError> {
        let cache = self.cache(grant).await?;
        let Some((path, compression)) = self.path_of(&cache, archive).await? else { return Ok(None) };
        let Some((row, archive)) = self.open_path(&cache, &path).await? else { return Ok(None) };
        self.shared.uses.archive_read(cache.id, row.nar_hash);
        Ok(Some(OpenedArchive { facts: row.facts(), archive, compression }))
    }

    /// The `.ls` of a path; `None` when there is no such path, or none of it can be made: its names are not UTF-8, which JSON
    /// cannot say, or it was too large to be taken apart. A few are made at one time, since each is in memory as a whole.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known.
    pub async fn listing(
        &self,
        grant: &Authorized<NixPull>,
        path: StorePathHash,
    ) -> Result<Option<String>, CacheError> {
        let cache = self.cache(grant).await?;
        let path = self.find_path(&cache, path).await?.filter(PathRow::is_visible);
        let Some(path) = path else { return Ok(None) };
        let Some((row, _)) = self.open_path(&cache, &path).await? else { return Ok(None) };
        if matches!(row.root, Root::Opaque(_)) {
            return Ok(None);
        }
        let _turn = self.shared.listings.acquire().await.map_err(|_| CacheError::Store(StoreError::Closed))?;
        let listing = self.shared.archives.list(cache.owner, &row.root).await?;
        Ok(listing.to_json().ok())
    }

    /// As [`Self::open_archive`], for a client that takes the whole archive: what an upstream has goes on to it while it comes.
    ///
    /// # Errors
    /// As [`Self::open_archive`].
    pub async fn read_archive(
        &self,
        grant: &Authorized<NixPull>,
        archive: ArchiveName,
    ) -> Result<Option<Reading>, CacheError> {
        let cache = self.cache(grant).await?;
        let Some((path, compression)) = self.path_of(&cache, archive).await? else { return Ok(None) };
        self.shared.uses.archive_read(cache.id, path.nar_hash);
        let here = |(row, archive): (ArchiveRow, Archive)| {
            Reading::Here(OpenedArchive { facts: row.facts(), archive, compression })
        };
        if let Some(stored) = self.open_stored(&cache, &path).await? {
            return Ok(Some(here(stored)));
        }
        let Some((mut fetch, pieces)) = self.begin_fetch(&cache, &path) else { return Ok(None) };
        let facts = ArchiveFacts { nar_hash: path.nar_hash, nar_size: path.nar_size };
        if let (Some(pieces), Compression::None) = (pieces, compression)
            && fetch.is_coming().await
        {
            let coming = ComingArchive::new(self.clone(), cache.owner, facts, pieces, fetch);
            return Ok(Some(Reading::Coming(coming)));
        }
        if !fetch.end().await? {
            return Ok(None);
        }
        Ok(self.open_stored(&cache, &path).await?.map(here))
    }

    /// The archive of a path, from the store or else its upstream.
    pub(super) async fn open_path(
        &self,
        cache: &Cache,
        path: &PathRow,
    ) -> Result<Option<(ArchiveRow, Archive)>, CacheError> {
        if let Some(stored) = self.open_stored(cache, path).await? {
            return Ok(Some(stored));
        }
        let Some(row) = self.fetch(cache, path).await? else { return Ok(None) };
        let archive = self.shared.archives.open(cache.owner, &row.root, row.nar_size).await?;
        Ok(Some((row, archive)))
    }

    /// The archive of a path, if the store has it. A path whose blobs the store lost for certain is withdrawn with all that
    /// refer to it.
    async fn open_stored(&self, cache: &Cache, path: &PathRow) -> Result<Option<(ArchiveRow, Archive)>, CacheError> {
        let Some(row) = self.find_archive(cache.owner, &path.nar_hash).await? else { return Ok(None) };
        match self.shared.archives.open(cache.owner, &row.root, row.nar_size).await {
            Ok(archive) => Ok(Some((row, archive))),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.lose_archive(cache.owner, &row).await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A visible path of the cache that names this archive, and how the file of this name is compressed.
    async fn path_of(&self, cache: &Cache, archive: ArchiveName) -> Result<Option<(PathRow, Compression)>, CacheError> {
        let file = match archive {
            ArchiveName::Path(hash) => {
                let path = self.find_path(cache, hash).await?.filter(PathRow::is_visible);
                return Ok(path.map(|path| (path, Compression::None)));
            }
            ArchiveName::Nar(hash) => {
                if let Some(path) = self.path_with(cache, &hash).await? {
                    return Ok(Some((path, Compression::None)));
                }
                ArchiveFile { hash: *hash.as_bytes(), compression: Compression::None }
            }
            ArchiveName::File(file) => file,
        };
        let Some(found) = self.find_file(cache.owner, file).await? else { return Ok(None) };
        let path = self.path_with(cache, &found.facts.nar_hash).await?;
        Ok(path.map(|path| (path, found.compression)))
    }

    async fn path_with(&self, cache: &Cache, nar_hash: &NarHash) -> Result<Option<PathRow>, CacheError> {
        // By the archive alone: few caches share one, and an index over both would be as large as the table.
        let statement = "SELECT * FROM nix_paths WHERE nar_hash = $1 AND cache = $2 AND waiting = 0 LIMIT 1";
        let row = self.shared.database.first(sql(statement).bind(nar_hash.base32()).bind(cache.id.0)).await?;
        row.map(|row| PathRow::read(&row)).transpose()
    }

    /// Saves a path that is being removed, before its narinfo is served; whether it is not too late.
    async fn reprieve(&self, cache: &Cache, path: StorePathHash) -> Result<bool, CacheError> {
        let update = sql("UPDATE nix_paths SET used_s = $3, served_s = $3 WHERE cache = $1 AND hash = $2");
        let update = update.bind(cache.id.0).bind(path.to_string()).bind(signed(self.shared.time.now_s()));
        Ok(self.shared.database.execute(update).await? > 0)
    }

    /// A path of the cache, visible or not.
    pub(super) async fn find_path(&self, cache: &Cache, path: StorePathHash) -> Result<Option<PathRow>, CacheError> {
        let statement = sql("SELECT * FROM nix_paths WHERE cache = $1 AND hash = $2");
        let row = self.shared.database.first(statement.bind(cache.id.0).bind(path.to_string())).await?;
        row.map(|row| PathRow::read(&row)).transpose()
    }
}

/// A narinfo with a signature of the cache's key of today: a path that was published under an older one gets it here.
fn render(cache: &Cache, row: &PathRow) -> Result<Bytes, CacheError> {
    let store = &cache.settings.store_dir;
    let mut narinfo = row.narinfo()?;
    let ours = cache.key.sign(narinfo.fingerprint(store).as_bytes());
    // With no place left, it has sixty-four others.
    let _ = narinfo.signatures.insert(ours);
    Ok(narinfo.format(store).into())
}

#[derive(Clone)]
struct Narinfo {
    bytes: Bytes,
    uses: Arc<UseCount>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(CacheId, StorePathHash), Narinfo> for ByBytes {
    fn weight(&self, _key: &(CacheId, StorePathHash), narinfo: &Narinfo) -> u64 {
        // The entry itself, its counter and the places in the tables take about so much beside the text.
        narinfo.bytes.len() as u64 + 256
    }
}

/// Narinfos as they are sent, in memory.
pub(super) struct Rendered {
    memory: Memory<(CacheId, StorePathHash), Narinfo, ByBytes>,
    /// Counts changes of what may be rendered: what was read before a change is not remembered after it.
    version: AtomicU64,
}

impl Default for Rendered {
    fn default() -> Self {
        Self { memory: Memory::with_weighter(TYPICAL_COUNT, MEMORY_BYTES, ByBytes), version: AtomicU64::new(0) }
    }
}

impl Rendered {
    fn get(&self, cache: CacheId, path: StorePathHash) -> Option<Narinfo> {
        self.memory.get(&(cache, path))
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Remembers a narinfo that was read at `version`.
    fn insert(&self, cache: CacheId, path: StorePathHash, narinfo: Narinfo, version: u64) {
        self.memory.insert((cache, path), narinfo);
        if self.version() != version {
            self.memory.remove(&(cache, path));
        }
    }

    /// Called after a visible path was changed.
    pub(super) fn forget(&self, cache: CacheId, path: StorePathHash) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.memory.remove(&(cache, path));
    }

    /// Called after many were.
    pub(super) fn forget_all(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.memory.clear();
    }
}

//! Static binary caches: a cache as a folder that any web server can serve and any Nix can read, out of here and in.
//!
//! Both can be cut off anywhere and begun again: what is there already is passed over.

use std::path::{Component, Path, PathBuf};

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt, stream};
use gf_blobstore::{ByteRange, ErrorKind};
use gf_database::sql;
use gf_digest::{DigestFunction, Hasher};
use gf_nix_formats::{CacheInfo, Compression, NarHash, NarInfo, NarUrl};
use gf_tenancy::{Authorized, NixPull, NixPush};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::publish::new_row;
use super::{NixCaches, Order, Publication};
use crate::archives::{Archive, Expected};
use crate::cache::Cache;
use crate::rows::PathRow;
use crate::{CacheError, PublishError};

/// Paths that are read from the database at once.
const PAGE: i64 = 500;

/// Bytes that are read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// The level of zstd: the fastest that is not much larger than the best.
const LEVEL: i32 = 3;

/// The most narinfos of a folder that is imported.
const MAX_NARINFOS: usize = 1_000_000;

/// Paths that were not imported are listed up to so many.
const MAX_LISTED: usize = 1000;

/// What was exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// Paths that were written.
    pub paths: u64,
    /// Paths that were there already.
    pub known: u64,
    /// Paths whose archive is nowhere to be had.
    pub missing: u64,
    /// Bytes of archives, uncompressed.
    pub nar_bytes: u64,
}

/// What was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Paths that are here now, visible or not.
    pub paths: u64,
    /// Paths that were here already.
    pub known: u64,
    /// Those among the new ones that wait for others, which the folder does not have.
    pub waiting: u64,
    /// What was not taken, and why; the first thousand.
    pub refused: Vec<(String, String)>,
    /// How much was not taken.
    pub refused_count: u64,
}

impl NixCaches {
    /// Writes all visible paths of a cache into a folder, which is made when it is not there. Every archive comes before
    /// the narinfo that names it.
    ///
    /// # Errors
    /// [`CacheError::Folder`], or what reading says.
    pub async fn export(&self, grant: &Authorized<NixPull>, folder: &Path) -> Result<Export, CacheError> {
        let cache = self.cache(grant).await?;
        let archives = folder.join("nar");
        fs::create_dir_all(&archives).await.map_err(failed(&archives))?;
        write_whole(&folder.join("nix-cache-info"), cache.info().format().as_bytes()).await?;
        let mut export = Export::default();
        let mut after = String::new();
        loop {
            let page = "SELECT * FROM nix_paths WHERE cache = $1 AND waiting = 0 AND hash > $2 ORDER BY hash LIMIT $3";
            let page = sql(page).bind(cache.id.0).bind(after.as_str()).bind(PAGE);
            let page = self.shared.database.all(page).await?;
            let Some(last) = page.last() else { return Ok(export) };
            after = last.get("hash")?;
            for row in &page {
                self.export_path(&cache, folder, &PathRow::read(row)?, &mut export).await?;
            }
        }
    }

    async fn export_path(
        &self,
        cache: &Cache,
        folder: &Path,
        row: &PathRow,
        export: &mut Export,
    ) -> Result<(), CacheError> {
        let narinfo = folder.join(format!("{}.narinfo", row.path.hash()));
        if fs::try_exists(&narinfo).await.map_err(failed(&narinfo))? {
            export.known += 1;
            return Ok(());
        }
        let Some((_, archive)) = self.open_path(cache, row).await? else {
            export.missing += 1;
            return Ok(());
        };
        let (hash, size) = write_archive(folder, row, &archive).await?;
        let url = NarUrl::new(&url(&hash)).map_err(|error| CacheError::row("a path", error))?;
        let written = NarInfo {
            url,
            compression: Compression::Zstd,
            file_hash: Some(hash.into()),
            file_size: Some(size),
            ..row.narinfo()?
        };
        write_whole(&narinfo, written.format(&cache.settings.store_dir).as_bytes()).await?;
        export.paths += 1;
        export.nar_bytes += row.nar_size;
        Ok(())
    }

    /// Takes in a folder as [`Self::export`] and `nix copy --to file://` write it. Paths whose references are neither here
    /// nor in the folder wait for them.
    ///
    /// # Errors
    /// [`CacheError::Folder`], and what fails for a reason of this server; a file that is wrong is part of the answer.
    pub async fn import(&self, grant: &Authorized<NixPush>, folder: &Path) -> Result<Import, CacheError> {
        let cache = self.cache(grant).await?;
        let info = folder.join("nix-cache-info");
        let text = fs::read(&info).await.map_err(failed(&info))?;
        let store_dir = CacheInfo::parse(&text).map(|info| info.store_dir);
        if store_dir.as_ref() != Ok(&cache.settings.store_dir) {
            let text = format!("{} is not of a cache for {}", info.display(), cache.settings.store_dir);
            return Err(CacheError::Setting(text));
        }
        let mut import = Import::default();
        for name in narinfos(folder).await? {
            match self.import_path(&cache, folder, &name).await {
                Ok(Publication::New) => import.paths += 1,
                Ok(Publication::Waiting(_)) => {
                    import.paths += 1;
                    import.waiting += 1;
                }
                Ok(Publication::Signed | Publication::Known | Publication::KeptFirst(_)) => import.known += 1,
                Err(error) if error.kind() == ErrorKind::Invalid => import.refuse(name, &error),
                // A file that the narinfo names and the folder does not have.
                Err(error @ PublishError::Cache(CacheError::Folder { .. })) => import.refuse(name, &error),
                Err(error) => return Err(error.into()),
            }
        }
        import.waiting = self.still_waiting(&cache, import.waiting).await?;
        Ok(import)
    }

    async fn import_path(&self, cache: &Cache, folder: &Path, name: &str) -> Result<Publication, PublishError> {
        let path = folder.join(name);
        let text = fs::read(&path).await.map_err(failed(&path))?;
        let narinfo = NarInfo::parse(&cache.settings.store_dir, &text)?;
        if !self.renew_orphan(cache.owner, &narinfo.nar_hash).await? {
            let archive = inside(folder, narinfo.url.as_str())?;
            let file = File::open(&archive).await.map_err(failed(&archive))?;
            let expected =
                Expected { nar_hash: Some(narinfo.nar_hash), nar_size: Some(narinfo.nar_size), ..Expected::default() };
            let ingested =
                self.shared.archives.ingest(cache.owner, narinfo.compression, pieces(file), expected).await?;
            self.note_archive(cache.owner, &ingested, None).await?;
        }
        self.publish_row(cache, new_row(narinfo, None), Order::Any).await
    }

    /// What waited when it was taken in may have become visible by what came after it.
    async fn still_waiting(&self, cache: &Cache, most: u64) -> Result<u64, CacheError> {
        let count = sql("SELECT COUNT(*) AS paths FROM nix_paths WHERE cache = $1 AND waiting > 0").bind(cache.id.0);
        let row = self.shared.database.first(count).await?;
        let waiting = row.map(|row| crate::rows::unsigned(&row, "paths")).transpose()?.unwrap_or(0);
        Ok(waiting.min(most))
    }
}

impl Import {
    fn refuse(&mut self, name: String, error: &PublishError) {
        self.refused_count += 1;
        if self.refused.len() < MAX_LISTED {
            self.refused.push((name, error.to_string()));
        }
    }
}

/// The names of all narinfos in a folder, sorted.
async fn narinfos(folder: &Path) -> Result<Vec<String>, CacheError> {
    let mut names = Vec::new();
    let mut entries = fs::read_dir(folder).await.map_err(failed(folder))?;
    while let Some(entry) = entries.next_entry().await.map_err(failed(folder))? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".narinfo") {
            names.push(name);
        }
        if names.len() > MAX_NARINFOS {
            return Err(CacheError::TooLarge { what: "the folder", limit: MAX_NARINFOS, unit: "narinfos" });
        }
    }
    names.sort();
    Ok(names)
}

/// A relative URL as a path that does not lead out of the folder.
fn inside(folder: &Path, url: &str) -> Result<PathBuf, PublishError> {
    let path = Path::new(url);
    let stays = path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    if !stays || url.contains("://") {
        return Err(CacheError::Setting(format!("the URL `{url}` leads out of the folder")).into());
    }
    Ok(folder.join(path))
}

fn pieces(file: File) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    stream::try_unfold(file, |mut file| async move {
        let mut piece = BytesMut::with_capacity(READ_BYTES);
        let read = file.read_buf(&mut piece).await?;
        Ok((read > 0).then(|| (piece.freeze(), file)))
    })
}

/// Writes an archive, compressed, and answers the hash and the size of the file.
async fn write_archive(folder: &Path, row: &PathRow, archive: &Archive) -> Result<(NarHash, u64), CacheError> {
    let unfinished = folder.join(format!("nar/.{}.unfinished", row.path.hash()));
    let failed = || failed(&unfinished);
    let mut file = File::create(&unfinished).await.map_err(failed())?;
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(failed())?;
    let mut hasher = Hasher::new(DigestFunction::Sha256);
    let mut read = archive.read(ByteRange::ALL)?;
    while let Some(piece) = read.try_next().await? {
        std::io::Write::write_all(&mut encoder, &piece).map_err(failed())?;
        let ready = std::mem::take(encoder.get_mut());
        hasher.update(&ready);
        file.write_all(&ready).await.map_err(failed())?;
    }
    let rest = encoder.finish().map_err(failed())?;
    hasher.update(&rest);
    file.write_all(&rest).await.map_err(failed())?;
    file.sync_all().await.map_err(failed())?;
    let digest = hasher.finish();
    let hash = NarHash::new(*digest.hash());
    fs::rename(&unfinished, folder.join(url(&hash))).await.map_err(failed())?;
    Ok((hash, digest.size_bytes()))
}

fn url(file: &NarHash) -> String {
    format!("nar/{}.nar{}", file.base32(), Compression::Zstd.suffix())
}

/// Writes a file so that it is there whole or not at all.
async fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    let unfinished = path.with_extension("unfinished");
    let mut file = File::create(&unfinished).await.map_err(failed(&unfinished))?;
    file.write_all(bytes).await.map_err(failed(&unfinished))?;
    file.sync_all().await.map_err(failed(&unfinished))?;
    fs::rename(&unfinished, path).await.map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> CacheError + use<> {
    let path = path.display().to_string();
    move |source| CacheError::Folder { path: path.clone(), source }
}

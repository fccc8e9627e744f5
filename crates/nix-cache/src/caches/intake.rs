//! Archives that clients upload, before the narinfos that name them.
//!
//! What always holds: when an upload is answered, the blobs of the archive are durable and promised by the store, and so
//! is the note which archive came in which file. A narinfo that follows finds it, after a restart too.

use std::error::Error;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use gf_blobstore::{OwnerId, StoreError};
use gf_database::{sql, work};
use gf_digest::Digest;
use gf_nix_formats::{Compression, NarHash};
use gf_tenancy::{Authorized, NixPush};

use super::NixCaches;
use super::administration::random;
use crate::archives::{Expected, Ingested, ReadError};
use crate::promises::Promising;
use crate::rows::{ArchiveRow, RootText, digest_text, file_hash, signed, unsigned};
use crate::{CacheError, PublishError};

const DAY_S: u64 = 24 * 60 * 60;

/// How long the store is made to promise what a tenant has; renewed while it is needed.
pub(super) const PROMISE_S: u64 = 60 * DAY_S;

/// Promises that end sooner than this are renewed. A server that is down for less keeps everything.
pub(super) const RENEWED_S: u64 = 30 * DAY_S;

/// Uploads of one file that are read at the same time. A second one, so that a slow client does not hold up a quick one;
/// no third, so that sixty-four clients do not do the same work sixty-four times. One who waited for both for as long as
/// [`ArchiveLimits::patience`](crate::archives::ArchiveLimits) says is read all the same: they may be slow.
pub(super) const UPLOADS_OF_ONE_FILE: usize = 2;

/// An archive that was uploaded so lately has time enough to get a path.
const RENEWED_ORPHAN_S: u64 = 60 * 60;

/// Blobs in one question to the store.
const MAX_PROMISED: usize = 4096;

/// The file that an archive comes in, as its URL says: `nar/<base 32 of hash>.nar<suffix of compression>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveFile {
    /// The SHA-256 of the file.
    pub hash: [u8; 32],
    /// How it is compressed.
    pub compression: Compression,
}

/// An archive that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveFacts {
    /// Its hash.
    pub nar_hash: NarHash,
    /// Its size in bytes, uncompressed.
    pub nar_size: u64,
}

/// An archive that is here, and how who asks for it by this name expects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundArchive {
    /// The archive.
    pub facts: ArchiveFacts,
    /// How the file of this name is compressed.
    pub compression: Compression,
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It was read, and is here now.
    Stored(ArchiveFacts),
    /// It was here already; the body was not read, or not to its end.
    AlreadyHere(ArchiveFacts),
}

impl NixCaches {
    /// Takes in an archive: decodes, checks and stores it. `size_bytes` is the size of the file, if the client said it.
    /// When this answers, the archive is durable.
    ///
    /// An archive that the tenant has is not read again. Of several uploads of one file at the same time two are read, and
    /// the others wait for one of them, but not for long.
    ///
    /// # Errors
    /// [`PublishError::Ingest`] when the body is not what its name says or cannot be stored; [`PublishError::Cache`].
    pub async fn accept_archive<S, E>(
        &self,
        grant: &Authorized<NixPush>,
        file: ArchiveFile,
        size_bytes: Option<u64>,
        body: S,
    ) -> Result<Accepted, PublishError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let owner = self.cache(grant).await?.owner;
        if let Some(known) = self.find_file_for_push(owner, file).await? {
            return Ok(Accepted::AlreadyHere(known.facts));
        }
        let _turn = self.shared.uploads.enter((owner, file)).await;
        if let Some(known) = self.find_file_for_push(owner, file).await? {
            return Ok(Accepted::AlreadyHere(known.facts));
        }
        let (compression, body) = with_compression(file.compression, body).await;
        let file = ArchiveFile { compression, ..file };
        let expected = Expected { file_hash: Some(file.hash), file_size: size_bytes, ..Expected::default() };
        let ingested = self.shared.archives.ingest(owner, file.compression, body, expected).await?;
        self.note_archive(owner, &ingested, Some(file)).await?;
        Ok(Accepted::Stored(ArchiveFacts { nar_hash: ingested.nar_hash, nar_size: ingested.nar_size }))
    }

    /// Whether a client need not upload this file, since the tenant has the archive that comes in it.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`], or [`CacheError::Database`] when that cannot be known.
    pub async fn has_archive(
        &self,
        grant: &Authorized<NixPush>,
        file: ArchiveFile,
    ) -> Result<Option<FoundArchive>, CacheError> {
        let owner = self.cache(grant).await?.owner;
        self.find_file_for_push(owner, file).await
    }

    /// The archive that came in this file. Who is told of it publishes a path of it next, so its time as one without a
    /// path begins anew.
    async fn find_file_for_push(&self, owner: OwnerId, file: ArchiveFile) -> Result<Option<FoundArchive>, CacheError> {
        let Some(found) = self.find_file(owner, file).await? else { return Ok(None) };
        self.renew_orphan(owner, &found.facts.nar_hash).await.map(|is_here| is_here.then_some(found))
    }

    /// Begins the time of an archive without a path anew; whether it is still here.
    pub(super) async fn renew_orphan(&self, owner: OwnerId, nar_hash: &NarHash) -> Result<bool, CacheError> {
        let now_s = self.shared.time.now_s();
        let created = sql("SELECT created_s FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
        let created = self.shared.database.first(created.bind(owner.0).bind(nar_hash.base32())).await?;
        let Some(row) = created else { return Ok(false) };
        if unsigned(&row, "created_s")? + RENEWED_ORPHAN_S > now_s {
            return Ok(true);
        }
        let update = sql("UPDATE nix_archives SET created_s = $3 WHERE owner = $1 AND nar_hash = $2");
        let update = update.bind(owner.0).bind(nar_hash.base32()).bind(signed(now_s));
        Ok(self.shared.database.execute(update).await? > 0)
    }

    /// Makes an archive durable, has the store promise it, and notes it, in this order.
    pub(super) async fn note_archive(
        &self,
        owner: OwnerId,
        ingested: &Ingested,
        file: Option<ArchiveFile>,
    ) -> Result<(), CacheError> {
        // Nothing is let go meanwhile, so that an archive is not taken away that was found to be promised.
        let promising = self.shared.promises.begin().await;
        let now_s = self.shared.time.now_s();
        let (is_promised, until_s) = match self.promised_until(owner, &ingested.nar_hash).await? {
            Some(until_s) if until_s >= now_s + RENEWED_S && !promising.is_collecting() => (true, until_s),
            _ => (false, now_s + PROMISE_S),
        };
        if !is_promised {
            self.promise(&promising, owner, &ingested.blobs, until_s).await?;
        }
        self.shared.store.make_durable().await?;
        let archive = "INSERT INTO nix_archives (owner, nar_hash, nar_size, root, blobs, created_s, kept_until_s, upload) \
                       VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (owner, nar_hash) DO UPDATE SET \
                       root = excluded.root, blobs = excluded.blobs, created_s = excluded.created_s, \
                       kept_until_s = excluded.kept_until_s, upload = excluded.upload";
        let archive = sql(archive)
            .bind(owner.0)
            .bind(ingested.nar_hash.base32())
            .bind(signed(ingested.nar_size))
            .bind(RootText::format(&ingested.root))
            .bind(digest_text(&ingested.blobs))
            .bind(signed(now_s))
            .bind(signed(until_s))
            .bind(i64::from_le_bytes(random()?));
        let named = file.map(|file| {
            sql("INSERT INTO nix_archive_files (owner, file_hash, compression, nar_hash) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT DO NOTHING")
            .bind(owner.0)
            .bind(file_hash(&file.hash))
            .bind(file.compression.name())
            .bind(ingested.nar_hash.base32())
        });
        let (archive, named) = (&archive, &named);
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    transaction.execute(archive.clone()).await?;
                    if let Some(named) = named {
                        transaction.execute(named.clone()).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    /// Has the store promise an archive until a moment.
    pub(super) async fn promise(
        &self,
        promising: &Promising<'_>,
        owner: OwnerId,
        list: &Digest,
        until_s: u64,
    ) -> Result<(), CacheError> {
        let mut blobs = self.shared.archives.read_blob_list(owner, *list).await?;
        blobs.push(*list);
        promising.add(&blobs);
        let until = UNIX_EPOCH + Duration::from_secs(until_s);
        for some in blobs.chunks(MAX_PROMISED) {
            let missing = self.shared.store.keep_until(owner, some, until).await?;
            if let Some(missing) = missing.first() {
                return Err(ReadError::Store(StoreError::NotFound(*missing)).into());
            }
        }
        Ok(())
    }

    /// The archive that came in this file. One that is named as if it were not compressed may be, in one of the ways that
    /// have no suffix.
    pub(super) async fn find_file(
        &self,
        owner: OwnerId,
        file: ArchiveFile,
    ) -> Result<Option<FoundArchive>, CacheError> {
        let named = "SELECT a.*, f.compression FROM nix_archive_files f JOIN nix_archives a ON a.owner = f.owner \
                     AND a.nar_hash = f.nar_hash WHERE f.owner = $1 AND f.file_hash = $2 AND f.compression IN ($3, $4, $5)";
        let [first, second, third] = match file.compression {
            Compression::None => [Compression::None, Compression::Gzip, Compression::Lzma],
            one => [one; 3],
        };
        let named = sql(named).bind(owner.0).bind(file_hash(&file.hash));
        let named = named.bind(first.name()).bind(second.name()).bind(third.name());
        if let Some(row) = self.shared.database.first(named).await? {
            let compression = Compression::from_name(&row.get::<String>("compression")?);
            let compression = compression.ok_or_else(|| CacheError::row("the file of an archive", "no compression"))?;
            return Ok(Some(FoundArchive { facts: ArchiveRow::read(&row)?.facts(), compression }));
        }
        if file.compression != Compression::None {
            return Ok(None);
        }
        // The archive itself, which may have come in another file.
        let archive = self.find_archive(owner, &NarHash::new(file.hash)).await?;
        Ok(archive.map(|archive| FoundArchive { facts: archive.facts(), compression: Compression::None }))
    }

    /// The archive with this hash.
    pub(super) async fn find_archive(&self, owner: OwnerId, hash: &NarHash) -> Result<Option<ArchiveRow>, CacheError> {
        let statement = sql("SELECT * FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
        let row = self.shared.database.first(statement.bind(owner.0).bind(hash.base32())).await?;
        row.map(|row| ArchiveRow::read(&row)).transpose()
    }

    async fn promised_until(&self, owner: OwnerId, hash: &NarHash) -> Result<Option<u64>, CacheError> {
        let statement = sql("SELECT kept_until_s FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
        let row = self.shared.database.first(statement.bind(owner.0).bind(hash.base32())).await?;
        row.map(|row| unsigned(&row, "kept_until_s")).transpose()
    }
}

/// How a file is compressed that says it is not: some ways have no suffix, and so come under the same name. Its beginning
/// tells them apart; the body is as it was.
async fn with_compression<S, E>(
    said: Compression,
    body: S,
) -> (Compression, impl Stream<Item = Result<Bytes, Box<dyn Error + Send + Sync>>> + Send)
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let mut body = Box::pin(body.map(|piece| piece.map_err(Into::into)));
    let mut first = None;
    let mut compression = said;
    if said == Compression::None {
        first = body.next().await;
        compression = match &first {
            Some(Ok(piece)) if piece.starts_with(&[0x1f, 0x8b]) => Compression::Gzip,
            Some(Ok(piece)) if piece.starts_with(&[0x5d, 0, 0]) => Compression::Lzma,
            _ => said,
        };
    }
    (compression, futures::stream::iter(first).chain(body))
}

impl ArchiveRow {
    pub(super) const fn facts(&self) -> ArchiveFacts {
        ArchiveFacts { nar_hash: self.nar_hash, nar_size: self.nar_size }
    }
}

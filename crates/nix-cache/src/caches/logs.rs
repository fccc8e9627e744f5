//! Build logs, which are blobs of the tenant.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use gf_blobstore::{Accept, BlobRead, ByteRange, Encoding, ErrorKind, StoreError};
use gf_database::sql;
use gf_digest::{Digest, DigestFunction};
use gf_nix_formats::StorePath;
use gf_tenancy::{Authorized, NixPull, NixPush};

use super::NixCaches;
use super::intake::PROMISE_S;
use crate::CacheError;
use crate::rows::{digest, digest_text, signed};

/// The longest log, in bytes, uncompressed.
pub const MAX_LOG_BYTES: usize = 64 << 20;

/// Bytes that are handed to the store at once.
const SLICE_BYTES: usize = 256 << 10;

/// A log that can be read.
pub struct Log {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its bytes, as they are.
    pub read: BlobRead,
}

impl NixCaches {
    /// Keeps the log of a derivation, uncompressed; a later one replaces it.
    ///
    /// # Errors
    /// [`CacheError::TooLarge`], [`CacheError::Name`] for what is no derivation, and what the store says.
    pub async fn put_log(
        &self,
        grant: &Authorized<NixPush>,
        derivation: &StorePath,
        log: Bytes,
    ) -> Result<(), CacheError> {
        let cache = self.cache(grant).await?;
        if !derivation.is_derivation() {
            return Err(CacheError::Name(format!("{derivation} is not a derivation, so it has no log")));
        }
        if log.len() > MAX_LOG_BYTES {
            return Err(CacheError::TooLarge { what: "the log", limit: MAX_LOG_BYTES, unit: "bytes" });
        }
        let store = &self.shared.store;
        let blob = Digest::of(DigestFunction::Sha256, &log);
        let mut upload = store.upload(cache.owner, blob, Encoding::Identity).await?;
        let mut rest = log;
        while !rest.is_empty() {
            upload.write(rest.split_to(rest.len().min(SLICE_BYTES))).await?;
        }
        upload.finish().await?;
        let promising = self.shared.promises.begin().await;
        promising.add(&[blob]);
        let now_s = self.shared.time.now_s();
        let until_s = now_s + PROMISE_S;
        let missing = store.keep_until(cache.owner, &[blob], UNIX_EPOCH + Duration::from_secs(until_s)).await?;
        if let Some(missing) = missing.first() {
            return Err(StoreError::NotFound(*missing).into());
        }
        store.make_durable().await?;
        let upsert = "INSERT INTO nix_logs (cache, derivation, owner, blob, created_s, kept_until_s) \
                      VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (cache, derivation) DO UPDATE SET \
                      blob = excluded.blob, created_s = excluded.created_s, kept_until_s = excluded.kept_until_s";
        let upsert = sql(upsert)
            .bind(cache.id.0)
            .bind(derivation.as_str())
            .bind(cache.owner.0)
            .bind(digest_text(&blob))
            .bind(signed(now_s))
            .bind(signed(until_s));
        self.shared.database.execute(upsert).await?;
        Ok(())
    }

    /// Opens the log of a derivation; `None` when there is none.
    ///
    /// # Errors
    /// [`CacheError`] when it cannot be known.
    pub async fn log(&self, grant: &Authorized<NixPull>, derivation: &StorePath) -> Result<Option<Log>, CacheError> {
        let cache = self.cache(grant).await?;
        let statement = sql("SELECT blob FROM nix_logs WHERE cache = $1 AND derivation = $2");
        let row = self.shared.database.first(statement.bind(cache.id.0).bind(derivation.as_str())).await?;
        let Some(row) = row else { return Ok(None) };
        let blob = digest(&row.get::<String>("blob")?)?;
        match self.shared.store.read(cache.owner, blob, ByteRange::ALL, Accept::Identity).await {
            Ok(read) => Ok(Some(Log { size_bytes: blob.size_bytes(), read })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

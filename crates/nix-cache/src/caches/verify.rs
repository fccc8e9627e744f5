//! Proving that a cache is what it says: every archive is read and hashed, every signature and reference checked. What is
//! proved to be lost is withdrawn, so that a push brings it back.

use futures::TryStreamExt;
use gf_blobstore::{ByteRange, ErrorKind};
use gf_database::sql;
use gf_digest::{Digest, DigestFunction, Hasher};
use gf_nix_formats::StorePath;
use gf_tenancy::{Authorized, NixPull};

use super::NixCaches;
use crate::CacheError;
use crate::archives::ReadError;
use crate::cache::Cache;
use crate::rows::{ArchiveRow, PathRow};

/// Paths that are read from the database at once.
const PAGE: i64 = 500;

/// Problems that are listed; further ones are only counted.
const MAX_LISTED: usize = 1000;

/// What was proved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Visible paths that were checked.
    pub paths: u64,
    /// Those among them whose archive an upstream has and this server has not fetched.
    pub not_fetched: u64,
    /// Bytes of archives that were read and hashed, uncompressed.
    pub nar_bytes: u64,
    /// How many problems there are.
    pub problem_count: u64,
    /// The first thousand of them.
    pub problems: Vec<Problem>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path.
    pub path: StorePath,
    /// What is wrong with it.
    pub what: String,
}

impl NixCaches {
    /// Checks everything that is visible in a cache. Takes as long as reading all of it does. Paths whose archive is lost, or
    /// is another one than was uploaded, are withdrawn: pushed again, they are whole.
    ///
    /// # Errors
    /// [`CacheError`] when the database cannot be asked. What the store says of an archive is a problem of that path.
    pub async fn verify(&self, grant: &Authorized<NixPull>) -> Result<Verification, CacheError> {
        let cache = self.cache(grant).await?;
        let mut verification = Verification::default();
        let mut after = String::new();
        loop {
            let page = "SELECT * FROM nix_paths WHERE cache = $1 AND waiting = 0 AND hash > $2 ORDER BY hash LIMIT $3";
            let page = sql(page).bind(cache.id.0).bind(after.as_str()).bind(PAGE);
            let page = self.shared.database.all(page).await?;
            let Some(last) = page.last() else { return Ok(verification) };
            after = last.get("hash")?;
            for row in &page {
                self.verify_path(&cache, &PathRow::read(row)?, &mut verification).await?;
            }
        }
    }

    async fn verify_path(
        &self,
        cache: &Cache,
        row: &PathRow,
        verification: &mut Verification,
    ) -> Result<(), CacheError> {
        verification.paths += 1;
        // Upstreams are not asked: they may have what is not here.
        let settings = &cache.settings;
        let may_be_elsewhere = !settings.upstreams.is_empty() || !settings.upstream_key_names.is_empty();
        for reference in row.references.iter().filter(|reference| !may_be_elsewhere && **reference != row.path) {
            let is_here = self.find_path(cache, reference.hash()).await?.is_some_and(|row| row.is_visible());
            if !is_here {
                verification.add(row, format!("it refers to {reference}, which is not here"));
            }
        }
        let fingerprint = row.narinfo()?.fingerprint(&cache.settings.store_dir);
        let ours = [cache.key.public()];
        for signature in row.signatures.iter().filter(|signature| signature.key_name() == ours[0].name().as_str()) {
            if !ours[0].verifies(fingerprint.as_bytes(), signature) {
                verification.add(row, "the signature of this cache is not one of it".to_owned());
            }
        }
        match self.hash_archive(cache, row).await? {
            Ok(Some(bytes)) => verification.nar_bytes += bytes,
            Ok(None) => verification.not_fetched += 1,
            Err(problem) => verification.add(row, problem),
        }
        Ok(())
    }

    /// Reads and hashes an archive: its size; `None` when it is only in an upstream; or what is wrong.
    async fn hash_archive(&self, cache: &Cache, row: &PathRow) -> Result<Result<Option<u64>, String>, CacheError> {
        let Some(archive) = self.find_archive(cache.owner, &row.nar_hash).await? else {
            let is_upstream = row.upstream.is_some();
            return Ok(if is_upstream { Ok(None) } else { Err("its archive is not here".to_owned()) });
        };
        let problem = match self.hash_stored(cache, &archive).await {
            Ok(digest) if digest.hash() == row.nar_hash.as_bytes() && digest.size_bytes() == row.nar_size => {
                return Ok(Ok(Some(row.nar_size)));
            }
            Ok(digest) => format!("its archive is {digest}, not {} with {} bytes", row.nar_hash, row.nar_size),
            Err(error) if error.kind() == ErrorKind::NotFound => format!("blobs are missing: {error}"),
            Err(error @ (ReadError::Malformed(_) | ReadError::Size { .. })) => error.to_string(),
            // It may be whole: the store cannot say now.
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.lose_archive(cache.owner, &archive).await?;
        Ok(Err(format!("{problem}; it was withdrawn: push it again")))
    }

    async fn hash_stored(&self, cache: &Cache, archive: &ArchiveRow) -> Result<Digest, ReadError> {
        let opened = self.shared.archives.open(cache.owner, &archive.root, archive.nar_size).await?;
        let mut hasher = Hasher::new(DigestFunction::Sha256);
        let mut pieces = opened.read(ByteRange::ALL)?;
        while let Some(piece) = pieces.try_next().await? {
            hasher.update(&piece);
        }
        Ok(hasher.finish())
    }
}

impl Verification {
    fn add(&mut self, row: &PathRow, what: String) {
        self.problem_count += 1;
        if self.problems.len() < MAX_LISTED {
            self.problems.push(Problem { path: row.path.clone(), what });
        }
    }
}

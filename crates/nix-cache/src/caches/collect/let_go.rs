//! Archives that no path names, and promises of blobs that no archive has.
//!
//! An archive goes first, and the list of its blobs is noted in its place; that note goes when its blobs were let go. So a
//! collection that ends anywhere loses no work, and a list that cannot be read now waits alone for the next collection.
//!
//! What always holds:
//! - an archive goes only when nothing names it, and a blob is let go only when no archive or log of its tenant has it;
//!   while it cannot be known what one of them has, nothing of that tenant is let go;
//! - about a million digests are in memory, and the list of one archive.

use std::collections::HashSet;

use gf_blobstore::{ErrorKind, OwnerId};
use gf_database::{sql, work};
use gf_digest::Digest;

use crate::CacheError;
use crate::archives::ReadError;
use crate::caches::NixCaches;
use crate::caches::withdraw::let_go_later;
use crate::rows::{ArchiveRow, digest, digest_text, signed};

/// An archive without a path stays so long, in seconds: `nix copy` uploads all archives before the first narinfo.
const ORPHAN_S: u64 = 2 * 24 * 60 * 60;

/// Archives that go in one transaction, and that are read at once.
const MAX_ARCHIVES: i64 = 500;

/// Blobs that are thought about at once, unless a single archive has more.
const MAX_BLOBS: usize = 500_000;

/// What stands in a list for each blob, in bytes.
const LISTED_BYTES: u64 = 40;

/// Blobs in one call to the store.
const MAX_LET_GO: usize = 4096;

/// Lists whose blobs are let go together.
#[derive(Default)]
struct Batch {
    lists: Vec<Digest>,
    blobs: HashSet<Digest>,
}

impl NixCaches {
    /// Removes archives of a tenant that no path names, and lets their blobs go.
    pub(in crate::caches) async fn collect_archives(&self, owner: OwnerId) -> Result<(), CacheError> {
        while self.remove_orphans(owner).await? > 0 {}
        let mut after = String::new();
        loop {
            let collecting = self.shared.promises.collect().await;
            let Some(Batch { lists, mut blobs }) = self.next_batch(owner, &mut after).await? else { return Ok(()) };
            self.spare_needed(owner, &mut blobs).await?;
            let order = collecting.spare(&mut blobs).await;
            let unneeded: Vec<Digest> = blobs.into_iter().collect();
            for some in unneeded.chunks(MAX_LET_GO) {
                self.shared.store.let_go(owner, some).await?;
            }
            drop(order);
            for list in lists {
                let done = sql("DELETE FROM nix_let_go WHERE owner = $1 AND blobs = $2");
                self.shared.database.execute(done.bind(owner.0).bind(digest_text(&list))).await?;
            }
        }
    }

    /// How many went.
    async fn remove_orphans(&self, owner: OwnerId) -> Result<usize, CacheError> {
        let before_s = signed(self.shared.time.now_s().saturating_sub(ORPHAN_S));
        let orphans = "SELECT a.* FROM nix_archives a WHERE a.owner = $1 AND a.created_s <= $2 AND NOT EXISTS \
                       (SELECT 1 FROM nix_paths p JOIN nix_caches c ON c.id = p.cache \
                       WHERE p.nar_hash = a.nar_hash AND c.owner = a.owner) LIMIT $3";
        let orphans = &sql(orphans).bind(owner.0).bind(before_s).bind(MAX_ARCHIVES);
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    let rows = transaction.all(orphans.clone()).await?;
                    for row in &rows {
                        let orphan = ArchiveRow::read(row)?;
                        transaction.execute(let_go_later(owner, &orphan)).await?;
                        let delete = sql("DELETE FROM nix_archives WHERE owner = $1 AND nar_hash = $2");
                        transaction.execute(delete.bind(owner.0).bind(orphan.nar_hash.base32())).await?;
                    }
                    Ok(rows.len())
                })
            })
            .await
    }

    /// The blobs of the lists that come next; `None` after the last. A list that cannot be read now is passed over.
    async fn next_batch(&self, owner: OwnerId, after: &mut String) -> Result<Option<Batch>, CacheError> {
        loop {
            let page = sql("SELECT blobs FROM nix_let_go WHERE owner = $1 AND blobs > $2 ORDER BY blobs LIMIT $3");
            let page = page.bind(owner.0).bind(after.as_str()).bind(MAX_ARCHIVES);
            let page = self.shared.database.all(page).await?;
            let mut batch = Batch::default();
            for row in &page {
                let text: String = row.get("blobs")?;
                let list = digest(&text)?;
                let size = usize::try_from(list.size_bytes() / LISTED_BYTES).unwrap_or(usize::MAX);
                if !batch.lists.is_empty() && batch.blobs.len().saturating_add(size) > MAX_BLOBS {
                    break;
                }
                *after = text;
                match self.shared.archives.read_blob_list(owner, list).await {
                    Ok(blobs) => batch.blobs.extend(blobs),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    // What it listed is kept until the promises end by themselves.
                    Err(error @ ReadError::Malformed(_)) => {
                        tracing::warn!(%error, "the blobs of an archive are unknown")
                    }
                    Err(error) => {
                        tracing::warn!(%error, %list, "what an archive had cannot be let go now; it is tried again");
                        continue;
                    }
                }
                batch.blobs.insert(list);
                batch.lists.push(list);
            }
            if !batch.lists.is_empty() {
                return Ok(Some(batch));
            }
            if page.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Takes out what the archives and logs that remain need.
    async fn spare_needed(&self, owner: OwnerId, unneeded: &mut HashSet<Digest>) -> Result<(), CacheError> {
        let mut after = String::new();
        loop {
            let page = "SELECT * FROM nix_archives WHERE owner = $1 AND nar_hash > $2 ORDER BY nar_hash LIMIT $3";
            let page = sql(page).bind(owner.0).bind(after.as_str()).bind(MAX_ARCHIVES);
            let page = self.shared.database.all(page).await?;
            for row in &page {
                after = row.get("nar_hash")?;
                let archive = ArchiveRow::read(row)?;
                unneeded.remove(&archive.blobs);
                for blob in self.blobs_of(owner, &archive).await? {
                    unneeded.remove(&blob);
                }
            }
            if page.is_empty() {
                break;
            }
        }
        let logs = sql("SELECT blob FROM nix_logs WHERE owner = $1").bind(owner.0);
        for row in self.shared.database.all(logs).await? {
            unneeded.remove(&digest(&row.get::<String>("blob")?)?);
        }
        Ok(())
    }

    /// The blobs of an archive that is here, by its list or else by a walk through it. One that is lost has none.
    async fn blobs_of(&self, owner: OwnerId, archive: &ArchiveRow) -> Result<Vec<Digest>, CacheError> {
        let archives = &self.shared.archives;
        let error = match archives.read_blob_list(owner, archive.blobs).await {
            Ok(blobs) => return Ok(blobs),
            Err(error) => error,
        };
        let is_bad = matches!(error, ReadError::Malformed(_)) || error.kind() == ErrorKind::NotFound;
        if !is_bad {
            return Err(error.into());
        }
        match archives.blobs(owner, &archive.root).await {
            Ok(blobs) => Ok(blobs),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.lose_archive(owner, archive).await?;
                Ok(Vec::new())
            }
            Err(error) => Err(error.into()),
        }
    }
}

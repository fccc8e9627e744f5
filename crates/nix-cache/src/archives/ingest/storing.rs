//! The task that writes to the store what an archive is made of.

use std::sync::Arc;

use bytes::Bytes;
use gf_blobstore::{BlobStore, Encoding, HashedBlob, OwnerId, StoreError};
use gf_digest::{Digest, DigestFunction};
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

use super::IngestError;
use super::spool::Spooled;

/// What is to be done, in order.
pub(super) enum Job {
    /// Write small blobs.
    Batch(Vec<HashedBlob>),
    /// Write an archive that no directory can hold.
    Upload(Digest, Spooled),
    /// Tell when everything before this is stored.
    Settle(oneshot::Sender<()>),
}

/// Does all jobs. Ends at the first failure, or when nobody can send another one.
pub(super) async fn store_all(
    store: Arc<dyn BlobStore>,
    owner: OwnerId,
    mut jobs: mpsc::Receiver<Job>,
) -> Result<(), IngestError> {
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Batch(blobs) => write_missing(store.as_ref(), owner, blobs).await?,
            Job::Upload(digest, spooled) => upload_missing(store.as_ref(), owner, digest, spooled).await?,
            Job::Settle(settled) => {
                // Who asked may have gone.
                let _ = settled.send(());
            }
        }
    }
    Ok(())
}

/// Writes those that the store has not, which is cheaper to ask than to write; what it has is kept for the lease.
async fn write_missing(store: &dyn BlobStore, owner: OwnerId, mut blobs: Vec<HashedBlob>) -> Result<(), StoreError> {
    let digests: Vec<Digest> = blobs.iter().map(HashedBlob::digest).collect();
    let missing = store.find_missing(owner, &digests).await?;
    if missing.len() < blobs.len() {
        // Missing ones are in the order asked, and no digest was asked twice.
        let mut missing = missing.into_iter().peekable();
        blobs.retain(|blob| missing.next_if_eq(&blob.digest()).is_some());
    }
    if blobs.is_empty() {
        return Ok(());
    }
    store.write_hashed(owner, blobs).await.into_iter().collect()
}

async fn upload_missing(
    store: &dyn BlobStore,
    owner: OwnerId,
    digest: Digest,
    mut spooled: Spooled,
) -> Result<(), IngestError> {
    if store.find_missing(owner, &[digest]).await?.is_empty() {
        return Ok(());
    }
    let mut upload = store.upload(owner, digest, Encoding::Identity).await?;
    while let Some(piece) = spooled.next().await.map_err(IngestError::Scratch)? {
        upload.write(piece).await?;
        yield_now().await;
    }
    upload.finish().await?;
    Ok(())
}

/// Stores a blob that is in memory, whatever its size.
pub(super) async fn store_one(store: &dyn BlobStore, owner: OwnerId, mut bytes: Bytes) -> Result<Digest, StoreError> {
    /// What is hashed in one go: a fraction of a millisecond.
    const SLICE_BYTES: usize = 256 << 10;
    let digest = Digest::of(DigestFunction::Sha256, &bytes);
    let mut upload = store.upload(owner, digest, Encoding::Identity).await?;
    while !bytes.is_empty() {
        upload.write(bytes.split_to(bytes.len().min(SLICE_BYTES))).await?;
        yield_now().await;
    }
    upload.finish().await?;
    Ok(digest)
}

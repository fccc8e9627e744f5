//! The content-addressed store as a tenant sees it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use gf_blobstore::{Accept, BlobRead, BlobStore, ByteRange, Encoding, NewBlob, OwnerId, StoreError, Upload};
use gf_digest::{Digest, DigestFunction, Hasher};
use gf_tenancy::{Authorized, CasRead, CasWrite, Permission};
use tokio::task::yield_now;

/// Blobs of tenants. Cheap to clone.
#[derive(Clone)]
pub struct Content {
    store: Arc<dyn BlobStore>,
    max_blob_size_bytes: u64,
}

/// The store's number for the tenant of a grant.
pub(crate) fn owner<P: Permission>(grant: &Authorized<P>) -> OwnerId {
    OwnerId(grant.tenant().id().number())
}

impl Content {
    /// Serves what `store` holds; larger blobs than `max_blob_size_bytes` are refused.
    #[must_use]
    pub fn new(store: Arc<dyn BlobStore>, max_blob_size_bytes: u64) -> Self {
        Self { store, max_blob_size_bytes }
    }

    /// The digests that must be uploaded, each once, in the order asked. The others are kept for the lease.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot know.
    pub async fn find_missing(
        &self,
        grant: &Authorized<CasRead>,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, StoreError> {
        self.store.find_missing(owner(grant), digests).await
    }

    /// The whole digest of the blob with this hash.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot know.
    pub async fn size_of(
        &self,
        grant: &Authorized<CasRead>,
        function: DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError> {
        self.store.size_of(owner(grant), function, hash).await
    }

    /// Opens a part of a blob.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::OutOfRange`] or [`StoreError::Io`].
    pub async fn read(
        &self,
        grant: &Authorized<CasRead>,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        self.store.read(owner(grant), digest, range, accept).await
    }

    /// Reads whole small blobs, one answer for each. The caller bounds the sum of their sizes.
    pub async fn read_batch(
        &self,
        grant: &Authorized<CasRead>,
        digests: &[Digest],
        accept: Accept,
    ) -> Vec<Result<(Bytes, Encoding), StoreError>> {
        self.store.read_batch(owner(grant), digests, accept).await
    }

    /// Stores whole blobs, one answer for each. The caller bounds the sum of their sizes.
    pub async fn write_batch(&self, grant: &Authorized<CasWrite>, blobs: Vec<NewBlob>) -> Vec<Result<(), StoreError>> {
        self.store.write_batch(owner(grant), blobs).await
    }

    /// Begins an upload in pieces.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] or [`StoreError::NoSpace`].
    pub async fn upload(
        &self,
        grant: &Authorized<CasWrite>,
        digest: Digest,
        encoding: Encoding,
    ) -> Result<Box<dyn Upload>, StoreError> {
        self.check_size(digest)?;
        self.store.upload(owner(grant), digest, encoding).await
    }

    /// Stores a blob that arrived whole and may be large, in slices, so that others get their turn in between.
    ///
    /// # Errors
    /// As [`Self::upload`], and what is wrong with the bytes.
    pub async fn write_large(
        &self,
        grant: &Authorized<CasWrite>,
        digest: Digest,
        encoding: Encoding,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        write_slices(self.upload(grant, digest, encoding).await?, bytes).await
    }

    /// Whether a writer need not upload this blob, since its tenant has it. Extends the lease.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for what could never be uploaded, [`StoreError::Io`] when the store cannot know.
    pub async fn has(&self, grant: &Authorized<CasWrite>, digest: Digest) -> Result<bool, StoreError> {
        self.check_size(digest)?;
        Ok(self.store.find_missing(owner(grant), &[digest]).await?.is_empty())
    }

    /// The chunks that make up a blob, in order; each can be read from now on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or [`StoreError::NotSplit`] when the blob is smaller than a chunk.
    pub async fn split(&self, grant: &Authorized<CasRead>, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        self.store.split(owner(grant), digest).await
    }

    /// Makes a blob out of chunks. When the blob is there already nothing is done, except that it and those of the
    /// chunks that exist are kept for the lease.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for a chunk, [`StoreError::ChunksMismatch`] when they make up something else.
    pub async fn splice(
        &self,
        grant: &Authorized<CasWrite>,
        digest: Digest,
        chunks: &[Digest],
    ) -> Result<(), StoreError> {
        self.check_size(digest)?;
        let owner = owner(grant);
        let asked: Vec<Digest> = std::iter::once(digest).chain(chunks.iter().copied()).collect();
        let missing = self.store.find_missing(owner, &asked).await?;
        match missing.iter().find(|missing| **missing != digest) {
            _ if !missing.contains(&digest) => Ok(()),
            Some(chunk) => Err(StoreError::NotFound(*chunk)),
            None => self.store.splice(owner, digest, chunks).await,
        }
    }

    const fn check_size(&self, digest: Digest) -> Result<(), StoreError> {
        if digest.size_bytes() > self.max_blob_size_bytes {
            return Err(StoreError::TooLarge { digest, limit_bytes: self.max_blob_size_bytes });
        }
        Ok(())
    }
}

/// What is hashed in one go: a fraction of a millisecond.
const SLICE_BYTES: usize = 256 << 10;

/// Uploads bytes that are at hand.
pub(crate) async fn write_slices(mut upload: Box<dyn Upload>, mut bytes: Bytes) -> Result<(), StoreError> {
    while !bytes.is_empty() {
        upload.write(bytes.split_to(bytes.len().min(SLICE_BYTES))).await?;
        yield_now().await;
    }
    upload.finish().await
}

/// The digest of bytes that may be many.
pub(crate) async fn digest_of(function: DigestFunction, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(function);
    for slice in bytes.chunks(SLICE_BYTES) {
        hasher.update(slice);
        yield_now().await;
    }
    hasher.finish()
}

/// Reads a whole blob that a service looks into itself. One of more than `max_bytes` is refused unread.
pub(crate) async fn read_whole(
    store: &dyn BlobStore,
    owner: OwnerId,
    digest: Digest,
    max_bytes: u64,
) -> Result<Bytes, StoreError> {
    if digest.size_bytes() > max_bytes {
        return Err(StoreError::TooLarge { digest, limit_bytes: max_bytes });
    }
    let mut read = store.read(owner, digest, ByteRange::ALL, Accept::Identity).await?;
    let Some(first) = read.next().await? else { return Ok(Bytes::new()) };
    let Some(second) = read.next().await? else { return Ok(first) };
    let mut whole = BytesMut::with_capacity(usize::try_from(digest.size_bytes()).unwrap_or_default());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(piece) = read.next().await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

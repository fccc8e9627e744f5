//! [`QuotaStore`]: a store in which each tenant has its share.
//!
//! Everything that brings bytes is asked for first, whatever edge it came by; all else goes through as it is.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gf_blobstore::{
    Accept, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, HashedBlob, Named, NamelessUpload, NewBlob, OwnerId,
    StoreError, Upload,
};
use gf_digest::{Digest, DigestFunction};

use super::{Coming, Held, OverQuota, Quotas};

/// Blobs that come together have no more bytes than this.
const MOST_IN_A_BATCH_BYTES: u64 = 2 << 20;

/// A store in which each tenant has its share.
pub(crate) struct QuotaStore {
    store: Arc<dyn BlobStore>,
    quotas: Arc<Quotas>,
}

impl QuotaStore {
    pub(crate) const fn new(store: Arc<dyn BlobStore>, quotas: Arc<Quotas>) -> Self {
        Self { store, quotas }
    }
}

impl QuotaStore {
    /// What is here already costs nothing, also where the share is used up.
    async fn hold(&self, owner: OwnerId, bytes: u64, coming: Coming) -> Result<Held, OverQuota> {
        match bytes {
            0 => Ok(Held::nothing()),
            bytes => self.quotas.admit(owner, bytes, coming).await,
        }
    }

    async fn hold_for(&self, owner: OwnerId, digest: Digest, coming: Coming) -> Result<Held, StoreError> {
        let missing = self.store.find_missing(owner, &[digest]).await?;
        Ok(self.hold(owner, missing.iter().map(Digest::size_bytes).sum(), coming).await?)
    }
}

#[async_trait]
impl BlobStore for QuotaStore {
    async fn find_missing(&self, owner: OwnerId, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        self.store.find_missing(owner, digests).await
    }

    async fn keep_until(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: SystemTime,
    ) -> Result<Vec<Digest>, StoreError> {
        self.store.keep_until(owner, digests, until).await
    }

    async fn let_go(&self, owner: OwnerId, digests: &[Digest]) -> Result<(), StoreError> {
        self.store.let_go(owner, digests).await
    }

    async fn make_durable(&self) -> Result<(), StoreError> {
        self.store.make_durable().await
    }

    async fn size_of(
        &self,
        owner: OwnerId,
        function: DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError> {
        self.store.size_of(owner, function, hash).await
    }

    async fn read(
        &self,
        owner: OwnerId,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        self.store.read(owner, digest, range, accept).await
    }

    async fn read_batch(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        accept: Accept,
    ) -> Vec<Result<(Bytes, Encoding), StoreError>> {
        self.store.read_batch(owner, digests, accept).await
    }

    async fn write_batch(&self, owner: OwnerId, blobs: Vec<NewBlob>) -> Vec<Result<(), StoreError>> {
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        let mut missing: HashSet<Digest> = match self.store.find_missing(owner, &digests).await {
            Ok(missing) => missing.into_iter().collect(),
            // The store says so itself when it is asked to take them.
            Err(_) => digests.into_iter().collect(),
        };
        let (mut admitted, mut held, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (at, blob) in blobs.into_iter().enumerate() {
            let bytes = if missing.contains(&blob.digest) { counted(&blob) } else { 0 };
            match self.hold(owner, bytes, Coming::Uploaded).await {
                Ok(space) => {
                    // The same once more costs nothing.
                    missing.remove(&blob.digest);
                    admitted.push(blob);
                    held.push(space);
                }
                Err(over) => refused.push((at, over)),
            }
        }
        let mut answers = self.store.write_batch(owner, admitted).await;
        let stored = answers.iter().zip(held).filter(|(answer, _)| answer.is_ok());
        stored.for_each(|(_, space)| space.settle_all());
        // From the first on, so that each stands where it was in the batch.
        refused.into_iter().for_each(|(at, over)| answers.insert(at.min(answers.len()), Err(over.into())));
        answers
    }

    /// They are parts of one thing, of which none is of use without the others: all are admitted, or none.
    async fn write_hashed(&self, owner: OwnerId, blobs: Vec<HashedBlob>) -> Vec<Result<(), StoreError>> {
        let digests: Vec<Digest> = blobs.iter().map(HashedBlob::digest).collect();
        let missing: HashSet<Digest> = match self.store.find_missing(owner, &digests).await {
            Ok(missing) => missing.into_iter().collect(),
            // The store says so itself when it is asked to take them.
            Err(_) => digests.iter().copied().collect(),
        };
        let held = match self.hold(owner, missing.iter().map(Digest::size_bytes).sum(), Coming::Uploaded).await {
            Ok(held) => held,
            Err(over) => return digests.iter().map(|_| Err(over.clone().into())).collect(),
        };
        let written = self.store.write_hashed(owner, blobs).await;
        let came = written.iter().zip(&digests).filter(|(result, _)| result.is_ok()).map(|(_, digest)| *digest);
        let came: HashSet<Digest> = came.filter(|digest| missing.contains(digest)).collect();
        held.settle(came.iter().map(Digest::size_bytes).sum());
        written
    }

    async fn upload(&self, owner: OwnerId, digest: Digest, encoding: Encoding) -> Result<Box<dyn Upload>, StoreError> {
        let held = self.hold_for(owner, digest, Coming::Uploaded).await?;
        let upload = self.store.upload(owner, digest, encoding).await?;
        Ok(Box::new(QuotaUpload { upload, held }))
    }

    async fn upload_nameless(
        &self,
        owner: OwnerId,
        function: DigestFunction,
    ) -> Result<Box<dyn NamelessUpload>, StoreError> {
        let upload = self.store.upload_nameless(owner, function).await?;
        let quotas = Arc::clone(&self.quotas);
        Ok(Box::new(QuotaNamelessUpload {
            upload,
            quotas,
            owner,
            held: Held::nothing(),
            held_bytes: 0,
            received_bytes: 0,
        }))
    }

    async fn split(&self, owner: OwnerId, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        self.store.split(owner, digest).await
    }

    async fn splice(&self, owner: OwnerId, digest: Digest, chunks: &[Digest]) -> Result<(), StoreError> {
        let held = self.hold_for(owner, digest, Coming::PutTogether).await?;
        self.store.splice(owner, digest, chunks).await?;
        held.settle_put_together();
        Ok(())
    }

    async fn get_entry(&self, key: &EntryKey) -> Result<Option<Bytes>, StoreError> {
        self.store.get_entry(key).await
    }

    async fn put_entry(&self, key: &EntryKey, value: Bytes) -> Result<(), StoreError> {
        let bytes = value.len() as u64;
        let held = self.quotas.admit(key.owner, bytes, Coming::Uploaded).await?;
        self.store.put_entry(key, value).await?;
        held.settle(bytes);
        Ok(())
    }

    async fn remove_entry(&self, key: &EntryKey) -> Result<bool, StoreError> {
        self.store.remove_entry(key).await
    }
}

/// What a blob of a batch may take. What it says of its size is not believed: the store refuses what is not so.
fn counted(blob: &NewBlob) -> u64 {
    let (announced, came) = (blob.digest.size_bytes(), blob.bytes.len() as u64);
    match blob.encoding {
        Encoding::Identity if came == announced => came,
        Encoding::Identity => 0,
        Encoding::Zstd => announced.min(MOST_IN_A_BATCH_BYTES),
    }
}

/// An upload that gives back what it held when it comes to nothing.
struct QuotaUpload {
    upload: Box<dyn Upload>,
    held: Held,
}

#[async_trait]
impl Upload for QuotaUpload {
    fn already_present(&self) -> bool {
        self.upload.already_present()
    }

    fn received_bytes(&self) -> u64 {
        self.upload.received_bytes()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.upload.write(bytes).await
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { upload, held } = *self;
        upload.finish().await?;
        held.settle_all();
        Ok(())
    }
}

/// An upload of unknown size holds more in steps of this size.
const HELD_AT_ONCE_BYTES: u64 = 1 << 20;

/// An upload that holds more as it grows, and that is charged for if what came was not here.
struct QuotaNamelessUpload {
    upload: Box<dyn NamelessUpload>,
    quotas: Arc<Quotas>,
    owner: OwnerId,
    held: Held,
    held_bytes: u64,
    received_bytes: u64,
}

#[async_trait]
impl NamelessUpload for QuotaNamelessUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let received_bytes = self.received_bytes + bytes.len() as u64;
        if let Some(lacking @ 1..) = received_bytes.checked_sub(self.held_bytes) {
            let more = lacking.max(HELD_AT_ONCE_BYTES);
            self.held.add(self.quotas.admit(self.owner, more, Coming::Uploaded).await?);
            self.held_bytes += more;
        }
        self.received_bytes = received_bytes;
        self.upload.write(bytes).await
    }

    async fn finish(self: Box<Self>) -> Result<Named, StoreError> {
        let Self { upload, held, .. } = *self;
        let named = upload.finish().await?;
        held.settle(if named.is_new { named.digest.size_bytes() } else { 0 });
        Ok(named)
    }
}

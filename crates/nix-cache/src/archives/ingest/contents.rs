//! The contents of the file that is being read.

use bytes::Bytes;
use gf_blobstore::{BlobHasher, HashedBlob, NamelessUpload, StoreError};
use gf_digest::{Digest, DigestFunction};
use tokio::runtime::Handle;

use super::dismantling::Destination;

/// Files up to this size are written to the store in batches, larger ones as uploads of their own.
const SMALL_BYTES: u64 = 1 << 20;

/// A file on its way. It is hashed once, here or by the store.
pub(super) enum Contents {
    /// A small one, as the pieces that it came in.
    Small(Box<BlobHasher>),
    /// A large one, which the store takes as it comes.
    Large(Box<dyn NamelessUpload>, Handle),
}

/// A file that was read.
pub(super) enum Gathered {
    /// A small one.
    Small(HashedBlob),
    /// A large one, which is in the store.
    Stored(Digest),
}

impl Contents {
    /// Begins a file of `size_bytes`.
    pub(super) fn new(size_bytes: u64, to: &Destination) -> Result<Self, StoreError> {
        if size_bytes <= SMALL_BYTES {
            return Ok(Self::Small(Box::new(BlobHasher::new(DigestFunction::Sha256))));
        }
        let upload = to.runtime.block_on(to.store.upload_nameless(to.owner, DigestFunction::Sha256))?;
        Ok(Self::Large(upload, to.runtime.clone()))
    }

    /// Takes the next bytes. May wait for the store.
    pub(super) fn add(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        match self {
            Self::Small(hashing) => {
                hashing.update(bytes);
                Ok(())
            }
            Self::Large(upload, runtime) => runtime.block_on(upload.write(bytes)),
        }
    }

    /// The whole file.
    pub(super) fn finish(self) -> Result<Gathered, StoreError> {
        match self {
            Self::Small(hashing) => Ok(Gathered::Small(hashing.finish())),
            Self::Large(upload, runtime) => Ok(Gathered::Stored(runtime.block_on(upload.finish())?.digest)),
        }
    }
}

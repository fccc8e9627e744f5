//! The content-addressed store: bytes in, under their digest; the same bytes out, or nothing.
//!
//! [`BlobStore`] is the seam that services see. [`DiskBlobStore`] is the embedded implementation: small blobs in
//! append-only segments, large ones in files of their own, a persistent index over both.
//!
//! Deliberately absent: product rules. The store knows owners by number and entries by key; who may ask, and what
//! an action result means, is decided above.
//!
//! What always holds:
//! - bytes are served only after their checksum matched, and stored only after their digest did;
//! - a digest exists for an owner only if that owner proved to hold the bytes;
//! - what was reported present is kept for the lease, and what was promised until then; when nothing may go, writes are
//!   refused;
//! - what the disk failed to make durable is never taken for durable;
//! - the index can be lost: segments and files carry everything that is needed to build it again.

mod blob_store;
mod disk;
mod error;
mod gathering;
mod hashed_blob;

pub use blob_store::{
    Accept, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, EntryTable, LONGEST_PROMISE, Named, NamelessUpload,
    NewBlob, OwnerId, Pieces, Upload,
};
#[cfg(feature = "measure")]
pub use disk::measure;
pub use disk::{
    CHUNK_AVERAGE_BYTES, CHUNK_SEED, CollectionReport, DiskBlobStore, EvictionPlan, FileLayer, Histogram, LeasePolicy,
    MachineTime, OpenError, RecoveryReport, Repair, ScrubStats, Stock, StoreConfig, StoreFile, StoreStats, SystemFiles,
    TimeSource, VerifyReport, plan,
};
pub use error::{ErrorKind, StoreError};
pub use hashed_blob::{BlobHasher, HashedBlob};

//! The embedded implementation: everything in one folder of a local file system.
//!
//! ```text
//! FORMAT      version of the layout, and the key of its checks
//! LOCK        held by the one process that has the store open
//! checkpoint  how far the index agrees with the records
//! epoch       number of the last start, should the checkpoint be lost
//! scrub       how far the scrub has come
//! distrusted  there while the disk may have failed to keep what was written since the checkpoint
//! index/      64 tables
//! segments/   append-only files of records
//! large/      one file for each large blob
//! incoming/   uploads under way; emptied at every start
//! quarantine/ large files that were damaged, or whole and in no table, the latest; they count as used
//! ```
//!
//! Read [`record`] and [`index`] for the formats, [`lease`] and [`eviction`] for the rules (pure), [`store`] for how
//! they come together.

mod account;
mod appending;
mod cached_read;
mod capacity;
mod checkpoint;
mod chunks;
mod clock;
mod collect;
mod compression;
mod core;
mod decoding;
mod doubtful;
mod durability;
mod eviction;
mod file_layer;
mod flushes;
mod folder;
mod hot_blocks;
mod index;
mod lane;
mod large;
mod lease;
mod maintenance;
#[cfg(feature = "measure")]
pub mod measure;
mod nameless;
mod note;
mod promises;
mod read;
mod record;
mod recovery;
mod scan;
mod scrub;
mod segments;
mod stock;
mod store;
mod upload;
mod verify;
mod write;
mod zstandard;

pub use self::chunks::{CHUNK_AVERAGE_BYTES, CHUNK_SEED};
pub use self::clock::{MachineTime, TimeSource};
pub use self::collect::CollectionReport;
pub use self::core::StoreConfig;
pub use self::eviction::{EvictionPlan, Histogram, plan};
pub use self::file_layer::{FileLayer, StoreFile, SystemFiles};
pub use self::lease::LeasePolicy;
pub use self::recovery::RecoveryReport;
pub use self::scrub::ScrubStats;
pub use self::stock::Stock;
pub use self::store::{DiskBlobStore, OpenError, StoreStats};
pub use self::verify::{Repair, VerifyReport};

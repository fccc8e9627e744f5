//! Archives, taken apart into blobs and put together again.
//!
//! [`Archives::ingest`] decodes, checks and takes apart an archive while it arrives; [`Archives::open`] puts one together
//! again, byte for byte, whole or any part of it. What stands between the two is a [`Root`] and the blobs that it needs.
//!
//! Deliberately absent: paths, caches, signatures, and any memory of what was taken in. An archive that nobody notes
//! leaves blobs that nobody needs, and the store lets them go.
//!
//! What always holds:
//! - an archive is taken only if it is the one canonical archive of its tree, so what is read has the bytes that came in;
//! - the blobs of an archive are in the store before [`Archives::ingest`] answers, and as durable as its writes;
//! - memory is bounded whatever arrives: by the limits for what is not contents, and by constants for contents.

mod blob_list;
mod ingest;
mod layout;
mod limits;
mod read;
mod root;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::BlobStore;

use ingest::{SpoolMemory, Turns};
use layout::Layouts;

pub use ingest::{Expected, IngestError, Ingested};
pub use limits::ArchiveLimits;
pub use read::{Archive, ArchiveRead, ReadError, ZstdRead};
pub use root::Root;

/// The archives of all tenants, in one store. Shared by reference or in an `Arc`.
pub struct Archives {
    store: Arc<dyn BlobStore>,
    scratch: PathBuf,
    limits: ArchiveLimits,
    layouts: Layouts,
    spool_memory: SpoolMemory,
    spool_files: SpoolMemory,
    names_memory: SpoolMemory,
    turns: Turns,
}

impl Archives {
    /// Keeps archives in `store`. What no directory can hold, and memory neither while it arrives, waits in `scratch`, a folder that
    /// must exist, in files without a name: nothing is left there by a killed process.
    #[must_use]
    pub fn new(store: Arc<dyn BlobStore>, scratch: PathBuf, limits: ArchiveLimits) -> Self {
        let layouts = Layouts::new(limits.layout_cache_bytes);
        let turns = Turns::new(&limits);
        let spool_memory = SpoolMemory::new(limits.spool_bytes);
        let spool_files = SpoolMemory::of_files(limits.scratch_bytes);
        let names_memory = SpoolMemory::new(limits.names_bytes);
        Self { store, scratch, limits, layouts, spool_memory, spool_files, names_memory, turns }
    }

    /// How long who waits bears with others who send slowly.
    pub(crate) const fn patience(&self) -> Duration {
        self.limits.patience
    }
}

//! The service: binary caches by name, and everything that may be done with one.
//!
//! This file holds what all of it shares; each family of operations has a file of its own.

mod administration;
mod closure;
mod collect;
mod documents;
mod folder;
mod intake;
mod keep;
mod logs;
mod lookup;
mod pins;
mod publish;
mod upstream;
mod verify;
mod why;

use std::sync::Arc;

use gf_blobstore::{BlobStore, OwnerId, TimeSource};
use gf_database::Database;
use gf_tenancy::{Authorized, Permission};

pub use administration::{CacheReport, NewCache, NewKey, UpstreamReport};
pub use closure::{Closure, ClosurePath};
pub use collect::{Collection, Removal, WhyRemoved};
pub use documents::{DocumentKind, Kept};
pub use folder::{ExportCompression, FolderReport};
pub use intake::{Accepted, ArchiveFile};
pub use logs::Log;
pub use lookup::{ArchiveName, Lookup, OpenedArchive};
pub use pins::Pin;
pub use publish::{Order, Publication, UploadedPath};
pub use verify::{Problem, Verification};
pub use why::{Explanation, Link, Verdict};

use crate::archives::Archives;
use crate::cache::{Cache, Registry};
use crate::{CacheError, CacheName};
use intake::Flights;
use lookup::Rendered;
use upstream::Upstreams;

/// What the service is made of.
pub struct Parts {
    /// Facts.
    pub database: Database,
    /// Bytes.
    pub store: Arc<dyn BlobStore>,
    /// Archives in that store.
    pub archives: Arc<Archives>,
    /// The time.
    pub time: Arc<dyn TimeSource>,
}

/// All binary caches of a server. Cheap to clone.
#[derive(Clone)]
pub struct NixCaches {
    shared: Arc<Shared>,
}

struct Shared {
    database: Database,
    store: Arc<dyn BlobStore>,
    archives: Arc<Archives>,
    time: Arc<dyn TimeSource>,
    registry: Registry,
    rendered: Rendered,
    flights: Flights,
    upstreams: Upstreams,
    /// Read while blobs are promised to be kept and the archive that needs them is noted; written while blobs are let
    /// go, so that what is let go is never what was promised a moment ago.
    promises: tokio::sync::RwLock<()>,
}

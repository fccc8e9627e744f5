//! The service: binary caches by name, and everything that may be done with one.
//!
//! This file holds what all of it shares; each family of operations has a file of its own.

mod administration;
mod closure;
mod collect;
mod coming;
mod documents;
mod intake;
mod keep;
mod logs;
mod lookup;
mod pins;
mod publish;
mod upstream;
mod verify;
mod why;
mod withdraw;

use std::sync::{Arc, Mutex};

use gf_blobstore::{BlobStore, OwnerId, TimeSource};
use gf_database::Database;
use gf_fetch::Networks;
use tokio::sync::Semaphore;

pub use administration::{CacheReport, NewCache, NewKey, UpstreamReport};
pub use closure::{Closure, ClosurePath};
pub use collect::{Collection, Removal, WhyRemoved};
pub use coming::ComingArchive;
pub use documents::Kept;
pub use intake::{Accepted, ArchiveFacts, ArchiveFile, FoundArchive};
pub use logs::{Log, MAX_LOG_BYTES};
pub use lookup::{ArchiveName, Lookup, OpenedArchive, Reading};
pub use pins::Pin;
pub use publish::{MAX_ASKED_PATHS, Order, Publication, Uploaded, UploadedPath};
pub use verify::{Problem, Verification};
pub use why::{Explanation, Keeper, Link};

use crate::archives::Archives;
use crate::cache::Registry;
use crate::condemned::Condemned;
use crate::flights::Flights;
use crate::promises::Promises;
use crate::uses::Uses;
use lookup::Rendered;
use publish::Publishers;
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
    /// Where upstreams may be: who sets up a cache must not look around in the network of the server.
    pub upstream_networks: Networks,
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
    uses: Uses,
    uploads: Flights<(OwnerId, ArchiveFile)>,
    publishers: Publishers,
    upstreams: Upstreams,
    condemned: Condemned,
    promises: Promises,
    /// The path that was looked at last among those that wait: its cache and its hash.
    looked_at: Mutex<(i64, String)>,
    /// Turns to make a listing.
    listings: Semaphore,
}

impl NixCaches {
    /// Serves what the parts hold. Nothing is tended until [`Self::tend_until`] is called.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { database, store, archives, time, upstream_networks } = parts;
        Self {
            shared: Arc::new(Shared {
                database,
                store,
                time,
                registry: Registry::default(),
                rendered: Rendered::default(),
                uses: Uses::default(),
                uploads: Flights::new(intake::UPLOADS_OF_ONE_FILE, archives.patience()),
                publishers: Publishers::default(),
                upstreams: Upstreams::new(upstream_networks),
                condemned: Condemned::default(),
                promises: Promises::default(),
                archives,
                looked_at: Mutex::new((i64::MIN, String::new())),
                listings: Semaphore::new(lookup::LISTINGS),
            }),
        }
    }
}

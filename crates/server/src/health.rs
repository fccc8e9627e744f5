//! `/healthz`: the process lives. `/readyz`: the store really takes and gives back bytes.
//!
//! What always holds: an answer comes within [`PROBE_TIMEOUT`], and at most one probe runs at a time, however many
//! ask and however long the disk hangs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use gf_blobstore::{BlobStore, EntryKey, EntryTable, OwnerId, StoreError};
use gf_digest::{Digest, DigestFunction, InstanceName};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::timeout;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A verdict this young is given again, so that strangers cannot make the disk work.
const VERDICT_AGE: Duration = Duration::from_secs(1);
/// Tenants' numbers are hashes of their names; this one is the server's own.
const SERVER_OWNER: OwnerId = OwnerId(0);

/// Why the server is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum NotReady {
    /// The folder of the data is gone or cannot be written.
    #[error("the data folder {path} cannot be used: {problem}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The store failed to write or read.
    #[error("the store does not work: {0}")]
    Store(String),
    /// The store gave back something else than was written.
    #[error("the store gave back other bytes than were written: run `gf store verify`")]
    WrongBytes,
    /// The probe did not come back in time.
    #[error("the store did not answer within {} s: look at the disk", PROBE_TIMEOUT.as_secs())]
    Slow,
}

impl NotReady {
    /// What strangers may know: no path, and nothing else that the system says.
    const fn in_public(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "the data folder cannot be used",
            Self::Store(_) => "the store does not work",
            Self::WrongBytes => "the store gave back other bytes than were written",
            Self::Slow => "the store did not answer in time",
        }
    }
}

/// Tries the store when asked.
#[derive(Clone)]
pub(crate) struct Readiness {
    store: Arc<dyn BlobStore>,
    folder: Arc<Path>,
    last: Arc<Mutex<Option<Verdict>>>,
}

struct Verdict {
    at: Instant,
    result: Result<(), NotReady>,
}

impl Readiness {
    /// Watches a store whose files are in `folder`.
    #[must_use]
    pub(crate) fn new(store: Arc<dyn BlobStore>, folder: &Path) -> Self {
        Self { store, folder: folder.into(), last: Arc::default() }
    }

    /// Whether the store works now.
    ///
    /// # Errors
    /// [`NotReady`] says why not.
    pub(crate) async fn check(&self) -> Result<(), NotReady> {
        timeout(PROBE_TIMEOUT, self.check_unbounded()).await.unwrap_or(Err(NotReady::Slow))
    }

    async fn check_unbounded(&self) -> Result<(), NotReady> {
        let last = Arc::clone(&self.last).lock_owned().await;
        if let Some(verdict) = last.as_ref().filter(|verdict| verdict.at.elapsed() < VERDICT_AGE) {
            return verdict.result.clone();
        }
        let folder = Arc::clone(&self.folder);
        // The lock goes along: while a probe hangs on the disk, no other is begun.
        let (mut last, probed) = tokio::task::spawn_blocking(move || (last, probe_folder(&folder)))
            .await
            .map_err(|error| NotReady::Store(error.to_string()))?;
        let result = match probed {
            Ok(()) => self.probe_store().await,
            Err(error) => Err(NotReady::Folder { path: self.folder.to_path_buf(), problem: error.to_string() }),
        };
        *last = Some(Verdict { at: Instant::now(), result: result.clone() });
        result
    }

    /// Through the seam, as a client's bytes go. The same entry is written each time, so nothing piles up.
    async fn probe_store(&self) -> Result<(), NotReady> {
        let failed = |error: StoreError| NotReady::Store(error.to_string());
        let instance = InstanceName::new("").map_err(|error| NotReady::Store(error.to_string()))?;
        let digest = Digest::of(DigestFunction::Sha256, b"readyz");
        let key = EntryKey { table: EntryTable::OpaqueResult, owner: SERVER_OWNER, instance, digest };
        let value = Bytes::from(stamp().into_bytes());
        self.store.put_entry(&key, value.clone()).await.map_err(failed)?;
        let read = self.store.get_entry(&key).await.map_err(failed)?;
        if read.as_ref() == Some(&value) { Ok(()) } else { Err(NotReady::WrongBytes) }
    }
}

/// Open files outlive their folder, so the store may not notice that it was removed or turned read-only.
fn probe_folder(folder: &Path) -> io::Result<()> {
    let path = folder.join(".readyz");
    let value = stamp();
    std::fs::write(&path, &value)?;
    let read = std::fs::read_to_string(&path)?;
    std::fs::remove_file(&path)?;
    if read == value { Ok(()) } else { Err(io::Error::other("a file was read back with other bytes")) }
}

/// Text that is another at each call.
fn stamp() -> String {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

/// `/healthz` and `/readyz`.
pub(crate) fn router(readiness: Readiness) -> Router {
    Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(ready)).with_state(readiness)
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.check().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => {
            tracing::warn!(%reason, "not ready");
            let text = format!("{}: `gf status` and the log say more\n", reason.in_public());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

//! `/healthz`: the process lives. `/readyz`: the store really takes and gives back bytes, and what other processes revoked
//! is known here.
//!
//! A full store is ready: it refuses writes and goes on being read, and a balancer that takes the server away for it would
//! end the reading as well.
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
use gf_blobstore::{BlobStore, EntryKey, EntryTable, ErrorKind, OwnerId, StoreError};
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_tenancy::BELIEVED;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::timeout;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A verdict this young is given again, so that strangers cannot make the disk work.
const VERDICT_AGE: Duration = Duration::from_secs(1);
/// Tenants' numbers are hashes of their names; this one is the server's own.
const SERVER_OWNER: OwnerId = OwnerId(0);

/// That the server is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// To read and to write.
    Whole,
    /// To read only; what stands in the way of writes.
    Full(String),
}

/// After so long without knowing what other processes revoked the server is not ready. It believes tokens for
/// [`gf_tenancy::BELIEVED`].
const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);

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
    /// It is not known what other processes revoked.
    #[error(
        "what other processes revoked has not been known here for {} s: look at the database; after {} s no token is believed",
        .0.as_secs(), BELIEVED.as_secs()
    )]
    Unfollowed(Duration),
}

impl NotReady {
    /// What strangers may know: no path, and nothing else that the system says.
    const fn in_public(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "the data folder cannot be used",
            Self::Store(_) => "the store does not work",
            Self::WrongBytes => "the store gave back other bytes than were written",
            Self::Slow => "the store did not answer in time",
            Self::Unfollowed(_) => "what was revoked elsewhere is not known here, since the database does not answer",
        }
    }
}

/// Tries the store when asked.
#[derive(Clone)]
pub(crate) struct Readiness {
    followed_ago: Option<Arc<dyn Fn() -> Duration + Send + Sync>>,
    store: Arc<dyn BlobStore>,
    folder: Arc<Path>,
    last: Arc<Mutex<Option<Verdict>>>,
}

struct Verdict {
    at: Instant,
    result: Result<Ready, NotReady>,
}

impl Readiness {
    /// Watches a store whose files are in `folder`.
    #[must_use]
    pub(crate) fn new(store: Arc<dyn BlobStore>, folder: &Path) -> Self {
        Self { followed_ago: None, store, folder: folder.into(), last: Arc::default() }
    }

    /// Watches also how long ago it was known what other processes revoked.
    #[must_use]
    pub(crate) fn following(self, ago: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { followed_ago: Some(Arc::new(ago)), ..self }
    }

    /// Whether the store works now.
    ///
    /// # Errors
    /// [`NotReady`] says why not.
    pub(crate) async fn check(&self) -> Result<Ready, NotReady> {
        let ready = timeout(PROBE_TIMEOUT, self.check_unbounded()).await.unwrap_or(Err(NotReady::Slow))?;
        match self.followed_ago.as_ref().map(|ago| ago()) {
            Some(ago) if ago > FOLLOWED_WITHIN => Err(NotReady::Unfollowed(ago)),
            _ => Ok(ready),
        }
    }

    async fn check_unbounded(&self) -> Result<Ready, NotReady> {
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
            Err(error) if is_full(&error) => self.probe_reading("the disk is full".to_owned()).await,
            Err(error) => Err(NotReady::Folder { path: self.folder.to_path_buf(), problem: error.to_string() }),
        };
        *last = Some(Verdict { at: Instant::now(), result: result.clone() });
        result
    }

    /// Through the seam, as a client's bytes go. The same entry is written each time, so nothing piles up.
    async fn probe_store(&self) -> Result<Ready, NotReady> {
        let key = probe_key()?;
        let value = Bytes::from(stamp().into_bytes());
        match self.store.put_entry(&key, value.clone()).await {
            Ok(()) => {}
            Err(full) if full.kind() == ErrorKind::Exhausted => return self.probe_reading(full.to_string()).await,
            Err(error) => return Err(failed(&error)),
        }
        let read = self.store.get_entry(&key).await.map_err(|error| failed(&error))?;
        if read.as_ref() == Some(&value) { Ok(Ready::Whole) } else { Err(NotReady::WrongBytes) }
    }

    /// Of a store that takes nothing: whether it can still be read.
    async fn probe_reading(&self, full: String) -> Result<Ready, NotReady> {
        self.store.get_entry(&probe_key()?).await.map_err(|error| failed(&error))?;
        Ok(Ready::Full(full))
    }
}

fn probe_key() -> Result<EntryKey, NotReady> {
    let instance = InstanceName::new("").map_err(|error| NotReady::Store(error.to_string()))?;
    let digest = Digest::of(DigestFunction::Sha256, b"readyz");
    Ok(EntryKey { table: EntryTable::OpaqueResult, owner: SERVER_OWNER, instance, digest })
}

fn failed(error: &StoreError) -> NotReady {
    NotReady::Store(error.to_string())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
        Ok(Ready::Whole) => (StatusCode::OK, "ready\n".to_owned()),
        Ok(Ready::Full(_)) => (StatusCode::OK, "ready to read; full: writes are refused\n".to_owned()),
        Err(reason) => {
            tracing::warn!(%reason, "not ready");
            let text = format!("{}: `gf status` and the log say more\n", reason.in_public());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use gf_blobstore::{Encoding, NewBlob};
    use gf_testkit::MemoryBlobStore;

    use super::*;

    #[tokio::test]
    async fn a_full_store_is_ready_to_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = MemoryBlobStore::with_capacity(100);
        let readiness = |store: &MemoryBlobStore| Readiness::new(Arc::new(store.clone()), folder.path());
        assert_eq!(readiness(&store).check().await, Ok(Ready::Whole));

        let bytes = Bytes::from_static(&[7; 100]);
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        let blob = NewBlob { digest, bytes, encoding: Encoding::Identity };
        store.write_batch(OwnerId(1), vec![blob]).await.remove(0).unwrap();
        assert!(matches!(readiness(&store).check().await, Ok(Ready::Full(_))));

        store.set_failing(true);
        assert!(matches!(readiness(&store).check().await, Err(NotReady::Store(_))));
    }

    #[tokio::test]
    async fn who_does_not_know_what_was_revoked_is_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let readiness =
            |ago| Readiness::new(Arc::new(MemoryBlobStore::default()), folder.path()).following(move || ago);
        assert_eq!(readiness(FOLLOWED_WITHIN).check().await, Ok(Ready::Whole));
        let late = FOLLOWED_WITHIN + Duration::from_secs(1);
        assert_eq!(readiness(late).check().await, Err(NotReady::Unfollowed(late)));
        let (status, text) = ready(State(readiness(late))).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.starts_with("what was revoked elsewhere is not known here"), "{text}");
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_is_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let readiness = Readiness::new(Arc::new(MemoryBlobStore::default()), &folder.path().join("gone"));
        assert!(matches!(readiness.check().await, Err(NotReady::Folder { .. })));
    }
}

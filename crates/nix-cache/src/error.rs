use gf_blobstore::{ErrorKind, StoreError};
use gf_database::DatabaseError;
use gf_nix_formats::{HashError, KeyError, NarHash, NarInfoError, SignatureError, StorePath, StorePathHash};
use gf_tenancy::NoRandomness;
use thiserror::Error;

use crate::CacheName;
use crate::archives::{IngestError, ReadError};

/// Why a cache cannot do what it was asked. [`CacheError::kind`] says whose fault it is.
#[derive(Debug, Error)]
pub enum CacheError {
    /// There is no such cache, for all that the tenant of the grant may know.
    #[error("there is no cache {0} here")]
    NoSuchCache(String),
    /// The name is taken, by this tenant or another.
    #[error("there is a cache {0} already")]
    Exists(CacheName),
    /// A setting that cannot be. The text says which, and what would do.
    #[error("{0}")]
    Setting(String),
    /// A name of a cache, a pin or a document that is none.
    #[error("{0}")]
    Name(String),
    /// A signing key that is none.
    #[error("in the signing key of a cache")]
    Key(#[from] KeyError),
    /// Something with this name is here, and says something else. The first stays.
    #[error("{0} is here already, and says something else; the first one stays")]
    Conflict(String),
    /// More of something than there may be at once.
    #[error("{what} has more than {limit} {unit}")]
    TooLarge {
        /// What was sent, or asked for.
        what: &'static str,
        /// The most.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
    /// The system gives no random numbers, so no key can be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// An upstream cannot say now. What it has is unknown.
    #[error("the upstream {url} cannot say: {reason}")]
    Upstream {
        /// Which.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The database failed. What it would have said is unknown.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A row that no version of this program writes.
    #[error("the database holds {what} that cannot be read: {reason}")]
    Row {
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The store failed. What it would have said is unknown.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An archive that should be here cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What several wait for failed.
    #[error(transparent)]
    Shared(std::sync::Arc<Self>),
}

impl CacheError {
    /// Whose fault this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchCache(_) => ErrorKind::NotFound,
            Self::Exists(_)
            | Self::Setting(_)
            | Self::Name(_)
            | Self::Key(_)
            | Self::Conflict(_)
            | Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Store(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Shared(error) => error.kind(),
            Self::NoRandomness(_) | Self::Upstream { .. } | Self::Database(_) | Self::Row { .. } => {
                ErrorKind::Unavailable
            }
        }
    }

    pub(crate) fn row(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Row { what, reason: reason.to_string() }
    }
}

/// Why an archive was not accepted or a path not published. Nothing of it is visible then.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The cache, the database or the store.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The archive is not what it was announced to be, or was not taken for another reason.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// A narinfo that cannot be read.
    #[error(transparent)]
    NarInfo(#[from] NarInfoError),
    /// A hash that cannot be read.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// The narinfo was sent to the URL of another path.
    #[error("this is the narinfo of {path}, not of a path that begins with {asked}")]
    OtherPath {
        /// What it is about.
        path: StorePath,
        /// The hash part that it was sent under.
        asked: StorePathHash,
    },
    /// No archive with this hash was uploaded.
    #[error("no archive {0} is here: upload it first")]
    NoArchive(NarHash),
    /// The archive that the narinfo names has another hash.
    #[error("the archive that was uploaded has the hash {actual}, but the narinfo says {announced}")]
    OtherArchive {
        /// What the narinfo says.
        announced: NarHash,
        /// What the archive has.
        actual: NarHash,
    },
    /// The archive has another size.
    #[error("the archive has {actual} bytes, but the narinfo says {announced}")]
    OtherSize {
        /// What the narinfo says.
        announced: u64,
        /// What the archive has.
        actual: u64,
    },
    /// A path that it refers to is neither here nor in a declared upstream.
    #[error("{path} refers to {missing}, which is neither here nor in a declared upstream: upload that first")]
    MissingReference {
        /// What was published.
        path: StorePath,
        /// The first reference that is missing.
        missing: StorePath,
    },
    /// A signature says it was made with a key that is known here, and was not.
    #[error("the signature with the key {0} is not one of this path")]
    ForgedSignature(String),
    /// Too many signatures.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The content address is not that of the path or not that of its content.
    #[error("{path} does not have the content address that its narinfo says: {reason}")]
    ContentAddress {
        /// The path.
        path: StorePath,
        /// What does not fit.
        reason: &'static str,
    },
}

impl PublishError {
    /// Whose fault this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Cache(error) => error.kind(),
            Self::Ingest(error) => error.kind(),
            _ => ErrorKind::Invalid,
        }
    }
}

impl From<DatabaseError> for PublishError {
    fn from(error: DatabaseError) -> Self {
        Self::Cache(error.into())
    }
}

impl From<StoreError> for PublishError {
    fn from(error: StoreError) -> Self {
        Self::Cache(error.into())
    }
}

use gf_digest::Digest;
use thiserror::Error;

/// What can go wrong in the store. [`StoreError::kind`] says whose fault it is.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The blob does not exist for this owner.
    #[error("{0} is not here")]
    NotFound(Digest),
    /// The bytes do not have the digest that they were announced under.
    #[error("the bytes announced as {announced} are {actual}")]
    DigestMismatch {
        /// What the caller said.
        announced: Digest,
        /// What the bytes are.
        actual: Digest,
    },
    /// More or fewer bytes arrived than the digest says.
    #[error("{digest} was announced, but {received_bytes} bytes arrived")]
    SizeMismatch {
        /// What the caller said.
        digest: Digest,
        /// Uncompressed bytes received, or as many as were read before giving up.
        received_bytes: u64,
    },
    /// The blob is larger than the store takes.
    #[error("{digest} is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// What the caller said.
        digest: Digest,
        /// The largest blob accepted, in bytes.
        limit_bytes: u64,
    },
    /// More bytes arrived than a blob may have.
    #[error("more than the limit of {limit_bytes} bytes arrived for one blob")]
    TooLong {
        /// The largest blob accepted, in bytes.
        limit_bytes: u64,
    },
    /// A read began beyond the end of the blob.
    #[error("offset {offset} is beyond the end of {digest}")]
    OutOfRange {
        /// The blob.
        digest: Digest,
        /// Where the read should have begun.
        offset: u64,
    },
    /// The compressed bytes are not valid.
    #[error("the compressed bytes of {digest} cannot be decoded: {reason}")]
    Undecodable {
        /// What the caller said.
        digest: Digest,
        /// What the decoder said.
        reason: String,
    },
    /// The chunks given for a splice do not make up the blob.
    #[error("the chunks do not make up {0}")]
    ChunksMismatch(Digest),
    /// The blob cannot be split usefully: it is smaller than a chunk.
    #[error("{0} is not split into chunks")]
    NotSplit(Digest),
    /// A promise was asked for that reaches further ahead than the store promises.
    #[error("blobs are promised for at most {} days", limit.as_secs() / 86_400)]
    TooFarAhead {
        /// The longest promise.
        limit: std::time::Duration,
    },
    /// Nothing may be evicted: all space is under lease, or the file system is full.
    #[error("no space for {needed_bytes} bytes: {reason}")]
    NoSpace {
        /// What was asked for.
        needed_bytes: u64,
        /// How much less in use or set aside would have been enough, at most; `u64::MAX` when it never fits, and 0 when that
        /// is not known.
        short_bytes: u64,
        /// What stands in the way, and what frees it.
        reason: String,
    },
    /// The owner has used what it may; others are not concerned.
    #[error("{reason}")]
    OverQuota {
        /// How much it uses of what, and what helps.
        reason: String,
        /// When trying again may help; `None` when time alone does not.
        retry_after: Option<std::time::Duration>,
    },
    /// The file system or the store below failed. Whether the blob exists is unknown.
    #[error("{doing}: {source}")]
    Io {
        /// What the store was doing.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store is shutting down.
    #[error("the store is shutting down")]
    Closed,
}

/// Whose fault an error is, and so how an edge answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The thing asked for is not there.
    NotFound,
    /// The caller sent something wrong; sending it again will not help.
    Invalid,
    /// An offset beyond the end.
    OutOfRange,
    /// No space now; it may come back.
    Exhausted,
    /// The environment failed; trying again may help.
    Unavailable,
}

impl StoreError {
    /// Whose fault this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::NotSplit(_) => ErrorKind::NotFound,
            Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::TooLarge { .. }
            | Self::TooLong { .. }
            | Self::Undecodable { .. }
            | Self::ChunksMismatch(_)
            | Self::TooFarAhead { .. } => ErrorKind::Invalid,
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::NoSpace { .. } | Self::OverQuota { .. } => ErrorKind::Exhausted,
            Self::Io { .. } | Self::Closed => ErrorKind::Unavailable,
        }
    }
}

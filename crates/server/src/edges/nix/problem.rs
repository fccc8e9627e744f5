//! From what went wrong to what a client of Nix or Attic is told. The only place where that is decided.
//!
//! Nix takes 404, 403 and (before 2.35) 401 for "absent" and remembers it for an hour; it tries again after 408, 429 and
//! most of 5xx; everything else ends its command. So 404 is only said of what is certainly not here, and what cannot be
//! known is 503.

use std::error::Error;

use axum::http::StatusCode;
use gf_blobstore::{ErrorKind, StoreError};
use gf_nix_cache::archives::{IngestError, ReadError};
use gf_nix_cache::{CacheError, PublishError};
use gf_nix_formats::NarInfoError;
use gf_nix_formats::nar::NarError;

use super::target::TargetError;
use crate::edges::plain_http::{BodyError, Problem};

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        let status = match error {
            TargetError::Nothing => StatusCode::NOT_FOUND,
            TargetError::Malformed(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<CacheError> for Problem {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Store(error) => error.into(),
            CacheError::Shared(error) if error.kind() == ErrorKind::Exhausted => {
                Self::of_kind(ErrorKind::Exhausted, &Chain(error.as_ref()))
            }
            CacheError::Read(ReadError::Store(error)) => unreadable(error),
            CacheError::Conflict(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            CacheError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            // What the database or an upstream says is for the operator.
            error if error.kind() == ErrorKind::Unavailable => unknown(&error),
            error => Self::of_kind(error.kind(), &Chain(&error)),
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Cache(error) => error.into(),
            PublishError::Ingest(error) => error.into(),
            PublishError::NarInfo(error) => error.into(),
            error => Self::of_kind(error.kind(), &Chain(&error)),
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Store(error) => error.into(),
            IngestError::Body(error) => match error.downcast::<BodyError>() {
                Ok(error) => (*error).into(),
                Err(error) => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            },
            // Its client sends it again.
            IngestError::TooSlow => Self::new(StatusCode::REQUEST_TIMEOUT, error.to_string()),
            IngestError::Unsupported(_) => Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error.to_string()),
            IngestError::TooLarge { .. }
            | IngestError::TooManyNames { .. }
            | IngestError::Archive(NarError::TooLarge(_)) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            error if error.kind() == ErrorKind::Unavailable => unknown(&error),
            error => Self::of_kind(error.kind(), &Chain(&error)),
        }
    }
}

impl From<NarInfoError> for Problem {
    fn from(error: NarInfoError) -> Self {
        let status = match error {
            NarInfoError::TooLong(_) => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, Chain(&error).to_string())
    }
}

/// A blob that was there when the archive was opened, and is not now: what was promised is lost, which is not the same
/// as absent.
fn unreadable(error: StoreError) -> Problem {
    match error.kind() {
        ErrorKind::NotFound => unknown(&error),
        _ => error.into(),
    }
}

/// What cannot be known now.
fn unknown(error: &(dyn Error + 'static)) -> Problem {
    tracing::error!(error = %Chain(error), "a Nix cache cannot answer; callers are told to try again");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this cannot be said now: try again")
}

/// An error with all that it comes from, in one line.
#[derive(Debug)]
pub(super) struct Chain<'a>(pub(super) &'a (dyn Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Error for Chain<'_> {}

//! From what went wrong to what an HTTP client is told. The only place where that is decided.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use gf_blobstore::{ErrorKind, StoreError};
use gf_execution::ActionCacheError;
use gf_tenancy::Denied;

use super::target::TargetError;

/// An answer that is not what was asked for: a status and one line of text.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    text: String,
    /// The size of what was asked for, where a range did not fit it.
    size_bytes: Option<u64>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), size_bytes: None }
    }

    /// A range that begins behind the end.
    pub(super) fn out_of_range(size_bytes: u64) -> Self {
        let problem = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("the blob has {size_bytes} bytes"));
        Self { size_bytes: Some(size_bytes), ..problem }
    }

    fn of_kind(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        let status = match kind {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
            ErrorKind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::Unavailable => {
                tracing::error!(%error, "the store failed; callers are told to try again");
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.to_string())
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = (self.status, format!("{}\n", self.text)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"gf\", Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        let range = self.size_bytes.and_then(|size| HeaderValue::from_str(&format!("bytes */{size}")).ok());
        if let Some(range) = range {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            error => Self::of_kind(error.kind(), &error),
        }
    }
}

impl From<ActionCacheError> for Problem {
    fn from(error: ActionCacheError) -> Self {
        match error {
            ActionCacheError::Store(error) => error.into(),
            error => Self::of_kind(error.kind(), &error),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            Denied::Unauthenticated(_) | Denied::BadCredential => StatusCode::UNAUTHORIZED,
            Denied::Forbidden(_) => StatusCode::FORBIDDEN,
            Denied::UnknownInstance(_) => StatusCode::NOT_FOUND,
        };
        Self::new(status, denied.to_string())
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        let status = match error {
            TargetError::NotOfTheCache => StatusCode::NOT_FOUND,
            TargetError::Hash(_) | TargetError::Instance(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

//! From what went wrong to what an HTTP client is told.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use gf_blobstore::{ErrorKind, StoreError};
use gf_tenancy::Denied;

use super::BodyError;
use crate::edges::gate::NotDone;
use crate::quotas::{OverQuota, worth_waiting};

/// When a client may ask again what could not be answered, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// An answer that is not what was asked for: a status and one line of text.
#[derive(Debug)]
pub(in crate::edges) struct Problem {
    pub(in crate::edges) status: StatusCode,
    pub(in crate::edges) text: String,
    /// The size of what was asked for, where a range did not fit it.
    size_bytes: Option<u64>,
    /// What may be done here, where something else was tried.
    allow: Option<&'static str>,
    /// When asking again may help.
    retry_after: Option<Duration>,
}

impl Problem {
    pub(in crate::edges) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), size_bytes: None, allow: None, retry_after: None }
    }

    /// A range that begins behind the end.
    pub(in crate::edges) fn out_of_range(size_bytes: u64) -> Self {
        let problem = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("there are {size_bytes} bytes"));
        Self { size_bytes: Some(size_bytes), ..problem }
    }

    /// A method that does not fit the path; `allow` are those that do.
    pub(in crate::edges) fn not_allowed(allow: &'static str) -> Self {
        let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("what can be done here is {allow}"));
        Self { allow: Some(allow), ..problem }
    }

    /// What an error of this kind is to a client. What a person must look at is logged here, once.
    pub(in crate::edges) fn of_kind(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
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

    /// What a tenant is told that has used what it may: what comes back within moments is worth waiting for.
    fn over_quota(reason: String, retry_after: Option<Duration>) -> Self {
        let retry_after = worth_waiting(retry_after);
        let status = match retry_after {
            Some(_) => StatusCode::TOO_MANY_REQUESTS,
            None => StatusCode::INSUFFICIENT_STORAGE,
        };
        Self { retry_after, ..Self::new(status, reason) }
    }

    /// As one line of text.
    pub(in crate::edges) fn into_response(self) -> Response<Body> {
        let response = (self.status, format!("{}\n", self.text)).into_response();
        self.mark(response)
    }

    /// Puts the headers that belong to this problem on an answer that tells of it.
    pub(in crate::edges) fn mark(&self, mut response: Response<Body>) -> Response<Body> {
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"gf\", Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if let Some(wait) = self.retry_after {
            // Whole seconds, and not too early.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)));
        }
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        let range = self.size_bytes.and_then(|size| HeaderValue::from_str(&format!("bytes */{size}")).ok());
        if let Some(range) = range {
            headers.insert(header::CONTENT_RANGE, range);
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            StoreError::OverQuota { reason, retry_after } => Self::over_quota(reason, retry_after),
            error => Self::of_kind(error.kind(), &error),
        }
    }
}

impl From<OverQuota> for Problem {
    fn from(over: OverQuota) -> Self {
        Self::over_quota(over.to_string(), over.retry_after)
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let status = match denied {
            _ if denied.wants_credential() => StatusCode::UNAUTHORIZED,
            _ if denied.is_unavailable() => StatusCode::SERVICE_UNAVAILABLE,
            Denied::UnknownInstance(_) | Denied::UnknownCache(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::FORBIDDEN,
        };
        Self::new(status, denied.to_string())
    }
}

impl From<NotDone> for Problem {
    fn from(error: NotDone) -> Self {
        tracing::error!(%error, "something was not done; its caller is told to try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

/// What it says, as the audit log has it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let status = match error {
            BodyError::CutOff(_) => StatusCode::BAD_REQUEST,
            BodyError::Idle | BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

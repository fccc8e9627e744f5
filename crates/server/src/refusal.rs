//! What REST answers to what it refuses, or cannot do: the status, and one sentence as JSON.
//!
//! What always holds: whoever needs another credential is told how to present one; what the machine or the database says
//! goes to the log, and to callers only where it helps them. Each service says which of its errors is which, beside its
//! routes. Deliberately absent: what clients of caches are answered, who expect text.

use std::error::Error;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gf_database::DatabaseError;
use gf_tenancy::Denied;

use crate::edges::NotRecorded;
use crate::operator::report::Problem;

/// When to ask again what only a database knows that is away, in seconds.
const RETRY_AFTER_S: u32 = 30;

/// An answer that is none of what was asked for.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: String,
    retry_after_s: Option<u32>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after_s: None }
    }

    /// What was sent is not what it should be.
    pub(crate) fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// There is no such thing, for all that this caller may know.
    pub(crate) fn unknown(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// Something that is the case is in the way.
    pub(crate) fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, error)
    }

    /// It cannot be done now. The error goes to the log.
    pub(crate) fn unavailable(error: &(dyn Error + 'static), said: impl Into<String>) -> Self {
        tracing::error!(error, "a request cannot be answered; its caller is told to try again");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, said)
    }

    /// It should have been done. The error goes to the log.
    pub(crate) fn failed(error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    /// Says when to come again.
    pub(crate) fn after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            _ if denied.wants_credential() => Self::new(StatusCode::UNAUTHORIZED, denied.to_string()),
            _ if denied.is_unavailable() => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, denied.to_string()).after(RETRY_AFTER_S)
            }
            _ => Self::new(StatusCode::FORBIDDEN, denied.to_string()),
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<NotRecorded> for Refusal {
    fn from(error: NotRecorded) -> Self {
        Self::unavailable(&error, error.to_string())
    }
}

/// What the database says is for the operator.
impl From<DatabaseError> for Refusal {
    fn from(error: DatabaseError) -> Self {
        Self::unavailable(&error, "this cannot be done now: try again")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error, retry_after_s } = self;
        let mut response = (status, Json(Problem { error })).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use gf_tenancy::PermissionName;

    use super::*;

    #[test]
    fn each_says_what_its_caller_can_do() {
        let check = |refusal: Refusal, status: u16, challenge: Option<&str>, wait: Option<&str>| {
            let response = refusal.into_response();
            let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
            assert_eq!(response.status().as_u16(), status);
            assert_eq!((header(header::WWW_AUTHENTICATE), header(header::RETRY_AFTER)), (challenge, wait), "{status}");
        };
        for denied in [Denied::Unauthenticated(PermissionName::CasRead), Denied::BadCredential, Denied::Expired] {
            check(denied.into(), 401, Some("Bearer"), None);
        }
        check(Denied::Forbidden(PermissionName::CasRead).into(), 403, None, None);
        check(Denied::Unfollowed.into(), 503, None, Some("30"));
        check(Denied::NotEverywhere(PermissionName::Operate).into(), 403, None, None);
        check(Refusal::invalid("no"), 400, None, None);
        check(Refusal::unknown("no"), 404, None, None);
        check(Refusal::conflict("no"), 409, None, None);
        check(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "no").after(30), 429, None, Some("30"));
    }
}

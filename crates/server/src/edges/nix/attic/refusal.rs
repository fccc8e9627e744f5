//! Refusals as Attic's clients read them: JSON with the name of the error.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use gf_nix_cache::{CacheError, PublishError};

use super::wire::ErrorBody;
use crate::edges::plain_http::{BodyError, Problem};

/// A problem, and what Attic calls it.
#[derive(Debug)]
pub(in crate::edges::nix) struct Refusal {
    problem: Problem,
    name: &'static str,
}

impl Refusal {
    pub(in crate::edges::nix) fn into_response(self) -> Response<Body> {
        let Self { problem, name } = self;
        let body = ErrorBody { code: problem.status.as_u16(), error: name, message: &problem.text };
        let mut response = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        problem.mark(response)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let name = match problem.status {
            StatusCode::NOT_FOUND => "NoSuchCache",
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "AccessError",
            status if status.is_client_error() => "RequestError",
            _ => "InternalServerError",
        };
        Self { problem, name }
    }
}

impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        let exists = matches!(error, CacheError::Exists(_));
        let refusal = Self::from(Problem::from(error));
        if exists { Self { name: "CacheAlreadyExists", ..refusal } } else { refusal }
    }
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        Problem::from(error).into()
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        Problem::from(error).into()
    }
}

//! From what went wrong in the HTTP cache to what its client is told.

use axum::http::StatusCode;
use gf_execution::ActionCacheError;

use super::target::TargetError;
use crate::edges::plain_http::Problem;

impl From<ActionCacheError> for Problem {
    fn from(error: ActionCacheError) -> Self {
        match error {
            ActionCacheError::Store(error) => error.into(),
            error @ ActionCacheError::Quarantined { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
            error => Self::of_kind(error.kind(), &error),
        }
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

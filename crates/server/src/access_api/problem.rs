//! From what went wrong to what a caller is told.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use gf_database::DatabaseError;
use gf_nix_cache::CacheError;
use gf_tenancy::{Denied, TokenError};

use crate::operator::report::Problem;

/// Every way in which a call here fails.
pub(super) enum AccessProblem {
    Denied(Denied),
    Body(JsonRejection),
    Query(QueryRejection),
    Invalid(String),
    UnknownPrincipal,
    Busy,
    Token(TokenError),
    Database(DatabaseError),
    Cache(CacheError),
}

impl AccessProblem {
    /// Text that is not what it should be.
    pub(super) fn invalid(text: &str, error: &dyn std::fmt::Display) -> Self {
        let shown: String = text.chars().take(80).collect();
        Self::Invalid(format!("{shown:?}: {error}"))
    }
}

macro_rules! from {
    ($($from:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$from> for AccessProblem {
            fn from(error: $from) -> Self {
                Self::$variant(error)
            }
        }
    )+};
}

from! {
    Denied => Denied,
    JsonRejection => Body,
    QueryRejection => Query,
    TokenError => Token,
    DatabaseError => Database,
    CacheError => Cache,
}

const UNKNOWN_PRINCIPAL: &str = "no such principal is known here: name one as the audit log does (anonymous, \
                                 static-token, worker, token:ID), or leave it out to ask about yourself";
const BUSY: &str = "the audit log is being verified already: wait for it to end";

impl IntoResponse for AccessProblem {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Denied(denied) if denied.wants_credential() => {
                let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
                let problem = Json(Problem { error: denied.to_string() });
                return (StatusCode::UNAUTHORIZED, challenge, problem).into_response();
            }
            Self::Denied(denied) => (StatusCode::FORBIDDEN, denied.to_string()),
            Self::Body(rejection) => (rejection.status(), rejection.body_text()),
            Self::Query(rejection) => (rejection.status(), rejection.body_text()),
            Self::Invalid(text) => (StatusCode::BAD_REQUEST, text),
            Self::UnknownPrincipal => (StatusCode::NOT_FOUND, UNKNOWN_PRINCIPAL.to_owned()),
            Self::Busy => (StatusCode::CONFLICT, BUSY.to_owned()),
            Self::Token(error) => of_token(error),
            Self::Database(error) => unavailable(&error),
            Self::Cache(error) => unavailable(&error),
        };
        (status, Json(Problem { error })).into_response()
    }
}

fn of_token(error: TokenError) -> (StatusCode, String) {
    let status = match &error {
        TokenError::Name | TokenError::Grants | TokenError::Lifetime => StatusCode::BAD_REQUEST,
        TokenError::Exceeds(_) | TokenError::Exchanged | TokenError::BeyondReach => StatusCode::FORBIDDEN,
        TokenError::Unknown(_) => StatusCode::NOT_FOUND,
        TokenError::TooMany(_) => StatusCode::CONFLICT,
        TokenError::NoRandomness(_) | TokenError::Database(_) => return unavailable(&error),
    };
    (status, error.to_string())
}

/// What the database says is for the operator.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> (StatusCode, String) {
    tracing::error!(error, "a question about access cannot be answered; its caller is told to try again");
    (StatusCode::SERVICE_UNAVAILABLE, "this cannot be done now: try again".to_owned())
}

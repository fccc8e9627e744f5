//! From what went wrong to what a caller is told.

use std::error::Error;

use axum::http::StatusCode;
use gf_nix_cache::CacheError;
use gf_tenancy::TokenError;

use crate::refusal::Refusal;

const UNKNOWN_PRINCIPAL: &str = "no such principal is known here: name one as the audit log does (anonymous, \
                                 static-token, worker, token:ID), or leave it out to ask about yourself";
const BUSY: &str = "the audit log is being verified already: wait for it to end";

/// Text that is not what it should be.
pub(super) fn invalid(text: &str, error: &dyn std::fmt::Display) -> Refusal {
    let shown: String = text.chars().take(80).collect();
    Refusal::invalid(format!("{shown:?}: {error}"))
}

/// Nobody of whom the caller may know.
pub(super) fn unknown_principal() -> Refusal {
    Refusal::unknown(UNKNOWN_PRINCIPAL)
}

/// One reads all of the log at a time.
pub(super) fn busy() -> Refusal {
    Refusal::conflict(BUSY)
}

/// No such token would be let in anyway.
pub(super) fn no_attic() -> Refusal {
    Refusal::conflict("this server takes no tokens in Attic's format: [access.attic] names no key")
}

/// What it is is not repeated: it may be a secret of another kind.
pub(super) fn not_attic() -> Refusal {
    Refusal::invalid(
        "this is no token in Attic's format that was signed with this server's key, so that nothing was revoked: paste \
         all of it, and nothing else",
    )
}

/// Neither is named, or both are.
pub(super) fn which_attic() -> Refusal {
    Refusal::invalid("name the token or its fingerprint, one of the two")
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let status = match &error {
            TokenError::Name | TokenError::Grants | TokenError::Lifetime => StatusCode::BAD_REQUEST,
            TokenError::Exceeds(_) | TokenError::Exchanged | TokenError::BeyondReach => StatusCode::FORBIDDEN,
            TokenError::Unknown(_) => StatusCode::NOT_FOUND,
            TokenError::TooMany(_) | TokenError::TooManyRefused(_) | TokenError::OpenServer => StatusCode::CONFLICT,
            TokenError::NoRandomness(_) | TokenError::Database(_) => return cannot_now(&error),
        };
        Self::new(status, error.to_string())
    }
}

impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        cannot_now(&error)
    }
}

/// What the database says is for the operator.
fn cannot_now(error: &(dyn Error + 'static)) -> Refusal {
    Refusal::unavailable(error, "this cannot be done now: try again")
}

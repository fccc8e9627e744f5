//! How far a principal reaches who administers: which tokens it may make, and which it may know of.

use super::Token;
use crate::{Grant, PermissionName, Principal};

/// Whether the caller may make a token with this grant. Whoever holds a token holds what it says, and may hand out what
/// it also lets them administer. Others who were allowed to administer hold everything but attaching workers, which run
/// other people's code: neither the static token nor an open server hands that on.
pub(super) fn may_hand_out(principal: &Principal, grant: &Grant) -> bool {
    match principal {
        Principal::Token(token) => {
            let administers = token.grants.iter().any(|own| own.has(PermissionName::Administer) && own.spans(grant));
            administers && token.grants.iter().any(|own| own.covers(grant))
        }
        Principal::TokenHolder | Principal::Anonymous => !grant.has(PermissionName::Work),
        Principal::Server => true,
        _ => false,
    }
}

/// Whether the caller may know of a token: of those that it could have made, and of its own. What a newer program
/// granted, only those could have made who hold everything.
pub(super) fn sees(principal: &Principal, token: &Token) -> bool {
    match principal {
        Principal::Token(own) if own.id == token.id => true,
        Principal::Token(_) => {
            token.unknown.is_empty() && token.grants.iter().all(|grant| may_hand_out(principal, grant))
        }
        // Whoever holds the static token is the operator, and may revoke also what it could not have made.
        Principal::TokenHolder | Principal::Anonymous | Principal::Server => true,
        _ => false,
    }
}

use gf_digest::InstanceName;
use thiserror::Error;

use crate::PermissionName;

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// No credential, and none but holders may do this.
    #[error(
        "{permission} needs a credential: send `Authorization: Bearer <token>`, or the token as the password of a netrc",
        permission = .0.as_str()
    )]
    Unauthenticated(PermissionName),
    /// A credential that is not known.
    #[error(
        "the credential is not valid: it is not known here, or was revoked; check that all of it was sent, or get a new one"
    )]
    BadCredential,
    /// A credential that was right once.
    #[error(
        "the credential has expired: get a new one from whoever issued it, and put it where this one is: GF_TOKEN or `gf login`, \
         the password in Nix's netrc, `attic login`"
    )]
    Expired,
    /// A credential that will be right.
    #[error("the credential is not valid yet: the clock of its issuer and of this server differ, or it is for later")]
    NotYetValid,
    /// A credential that may have been revoked.
    #[error(
        "whether this credential was revoked elsewhere cannot be known now, since the database does not answer: try again in a \
         minute, or have the operator look at /readyz"
    )]
    Unfollowed,
    /// Known, but not allowed.
    #[error("this credential does not grant {permission}", permission = .0.as_str())]
    Forbidden(PermissionName),
    /// Allowed on some things, and asked for what needs it on all.
    #[error(
        "this credential grants {permission} on some things, and this needs it on all: a grant of {permission} that \
         names no tenant",
        permission = .0.as_str()
    )]
    NotEverywhere(PermissionName),
    /// No such instance, for all that this caller may know.
    #[error("there is no instance {0:?} here; ask the operator which instance names are served")]
    UnknownInstance(InstanceName),
    /// No such Nix cache; told only to whom it would be open.
    #[error("there is no cache {0:?} here")]
    UnknownCache(String),
}

impl Denied {
    /// Whether it is not known now: the 503 of HTTP.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unfollowed)
    }

    /// Whether another credential, or one at all, is what is missing: the 401 of HTTP.
    #[must_use]
    pub const fn wants_credential(&self) -> bool {
        matches!(self, Self::Unauthenticated(_) | Self::BadCredential | Self::Expired | Self::NotYetValid)
    }
}

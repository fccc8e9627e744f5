//! Who calls, as far as the request says: the `authorization` header, of gRPC and HTTP alike, or the certificate of its
//! connection, and where it came from.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use gf_tenancy::audit::Origin;

use crate::listen::PeerCertificate;

/// A caller. What it presents is shown to nobody but the gate.
#[derive(Clone)]
pub(crate) struct Visitor {
    presented: Option<String>,
    certificate: Option<String>,
    origin: Origin,
}

impl Visitor {
    /// Whoever sent this request.
    pub(crate) fn new(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let certificate = extensions.get::<PeerCertificate>().map(|own| own.credential().to_owned());
        Self { presented: credential(headers), certificate, origin: extensions.get().copied().unwrap_or_default() }
    }

    /// As [`Self::new`].
    pub(crate) fn of(head: &Parts) -> Self {
        Self::new(&head.headers, &head.extensions)
    }

    /// What it is known by. The certificate of a connection counts for requests that present nothing themselves.
    pub(crate) fn credential(&self) -> Option<&str> {
        self.presented().or(self.certificate.as_deref())
    }

    /// What the request itself presents.
    pub(crate) fn presented(&self) -> Option<&str> {
        self.presented.as_deref()
    }

    /// Where it is.
    pub(crate) const fn origin(&self) -> Origin {
        self.origin
    }
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

/// The secret that a caller presents: what follows `Bearer`, or the password of `Basic`.
///
/// A header of another form is a credential that fits nothing, not the absence of one.
pub(crate) fn credential(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?;
    Some(value.to_str().ok().and_then(secret).unwrap_or_default())
}

fn secret(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(BASE64_STANDARD.decode(rest).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_schemes() {
        let check = |value: &'static str, expected: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(credential(&headers).as_deref(), Some(expected), "{value}");
        };
        check("Bearer s3cret", "s3cret");
        check("bearer  s3cret", "s3cret");
        check("Basic dXNlcjpzM2NyZXQ=", "s3cret");
        check("Basic dXNlcjphOmI=", "a:b");
        for wrong in ["s3cret", "Bearer", "Basic !", "Basic dXNlcg==", "Digest x"] {
            check(wrong, "");
        }
        assert_eq!(credential(&HeaderMap::new()), None);
    }
}

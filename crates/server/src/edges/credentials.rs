//! The `authorization` header, of gRPC and HTTP alike.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

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

//! What the edges over plain HTTP share: bodies that are read within bounds, ranges, and what a refusal looks like.
//!
//! Deliberately absent: routes and product rules.

mod incoming;
mod problem;
mod range;

pub(super) use incoming::{BodyError, Buffers, Held, Incoming, content_length};
pub(super) use problem::Problem;
pub(super) use range::{Part, part};

use axum::http::{HeaderMap, header};

/// Whether zstd is among the encodings that a client takes, and not with a weight of nothing.
pub(super) fn accepts_zstd(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let is_zstd = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
            let is_refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            is_zstd && !is_refused
        })
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn encodings() {
        for (value, expected) in
            [("gzip, zstd", true), ("ZSTD;q=0.5", true), ("zstd;q=0", false), ("gzip", false), ("", false)]
        {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(accepts_zstd(&headers), expected, "{value}");
        }
    }
}

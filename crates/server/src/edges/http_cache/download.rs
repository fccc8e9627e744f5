//! GET and HEAD.

use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method as Verb, Response, StatusCode, header};
use bytes::Bytes;
use futures::stream;
use gf_blobstore::{Accept, BlobRead, ByteRange, Encoding, StoreError};
use gf_execution::{ActionCacheError, Inlining};
use gf_tenancy::{ActionCacheRead, CasRead};

use super::problem::Problem;
use super::target::Target;
use super::{HttpEdge, conclude};
use crate::metrics::{Call, EdgeMetrics, Lookup};

/// What is found, before its bytes are sent.
enum Found {
    /// All of it is at hand.
    Whole(Bytes),
    /// It is read piece by piece. The length is that of the uncompressed bytes.
    Pieces { read: BlobRead, length: u64, part: Option<Part> },
}

/// The part of a blob that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    first: u64,
    last: u64,
    size: u64,
}

pub(super) async fn get_blob(edge: &Arc<HttpEdge>, target: &Target, head: &Parts, call: Call) -> Response<Body> {
    let found = find_blob(edge, target, head).await;
    answer(edge, &head.method, call, found)
}

pub(super) async fn get_result(edge: &Arc<HttpEdge>, target: &Target, head: &Parts, call: Call) -> Response<Body> {
    let found = find_result(edge, target, &head.headers).await;
    answer(edge, &head.method, call, found)
}

async fn find_blob(edge: &HttpEdge, target: &Target, head: &Parts) -> Result<Found, Problem> {
    let headers = &head.headers;
    let grant = edge.authorize::<CasRead>(headers, target)?;
    let content = &edge.services.content;
    let found = content.size_of(&grant, target.function, target.hash).await?;
    let digest = found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no blob with this hash is here"))?;
    // RFC 9110, 14.2: a range means something to GET alone.
    let part = if head.method == Verb::GET { part(headers, digest.size_bytes())? } else { None };
    let (range, accept) = match part {
        Some(part) => (ByteRange { offset: part.first, limit: Some(part.last - part.first + 1) }, Accept::Identity),
        None if accepts_zstd(headers) => (ByteRange::ALL, Accept::Any),
        None => (ByteRange::ALL, Accept::Identity),
    };
    let read = content.read(&grant, digest, range, accept).await?;
    let length = part.map_or(digest.size_bytes(), |part| part.last - part.first + 1);
    Ok(Found::Pieces { read, length, part })
}

/// An action result, or whatever else a client put there.
async fn find_result(edge: &HttpEdge, target: &Target, headers: &HeaderMap) -> Result<Found, Problem> {
    let grant = edge.authorize::<ActionCacheRead>(headers, target)?;
    let cache = &edge.services.action_cache;
    match cache.get(&grant, target.action(), &Inlining::NONE).await {
        Ok(result) => Ok(Found::Whole(result)),
        Err(ActionCacheError::NotFound) => {
            let (length, read) = cache.get_opaque(&grant, target.action()).await?;
            Ok(Found::Pieces { read, length, part: None })
        }
        Err(error) => Err(error.into()),
    }
}

fn answer(edge: &HttpEdge, verb: &Verb, call: Call, found: Result<Found, Problem>) -> Response<Body> {
    let metrics = &edge.services.state.metrics;
    let found = match found {
        Ok(found) => {
            metrics.http_lookup(Lookup::Hit);
            found
        }
        Err(problem) => {
            if problem.status == StatusCode::NOT_FOUND {
                metrics.http_lookup(Lookup::Miss);
            }
            return conclude(call, problem.into_response());
        }
    };
    let mut response = headers_of(&found);
    if *verb == Verb::HEAD {
        return conclude(call, response);
    }
    *response.body_mut() = match found {
        Found::Whole(bytes) => {
            metrics.bytes_out(bytes.len() as u64);
            call.finish_http(StatusCode::OK);
            Body::from(bytes)
        }
        Found::Pieces { read, .. } => {
            let sending = Sending { read, metrics: Arc::clone(metrics), call };
            Body::from_stream(stream::try_unfold(sending, Sending::next))
        }
    };
    response
}

fn headers_of(found: &Found) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let (length, encoding, part) = match found {
        Found::Whole(bytes) => (bytes.len() as u64, Encoding::Identity, None),
        Found::Pieces { read, length, part } => (*length, read.encoding(), *part),
    };
    if let Some(Part { first, last, size }) = part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        if let Ok(range) = HeaderValue::from_str(&format!("bytes {first}-{last}/{size}")) {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    match encoding {
        Encoding::Identity => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        Encoding::Zstd => {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
        }
    }
    response
}

/// A body under way. Dropped before its end, the call counts as cancelled.
struct Sending {
    read: BlobRead,
    metrics: Arc<EdgeMetrics>,
    call: Call,
}

impl Sending {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        match self.read.next().await {
            Ok(Some(piece)) => {
                self.metrics.bytes_out(piece.len() as u64);
                Ok(Some((piece, self)))
            }
            Ok(None) => {
                self.call.finish_http(StatusCode::OK);
                Ok(None)
            }
            Err(error) => {
                // The status is sent already: all that is left is to cut the body off.
                tracing::error!(%error, "a blob could not be read to its end");
                self.call.finish_http(StatusCode::SERVICE_UNAVAILABLE);
                Err(error)
            }
        }
    }
}

/// Whether zstd is among the encodings that a client takes, and not with a weight of nothing.
fn accepts_zstd(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let is_zstd = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("zstd"));
            let is_refused = parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            is_zstd && !is_refused
        })
    })
}

/// The one range of bytes that was asked for. A header of another form is ignored, as HTTP wants it.
fn part(headers: &HeaderMap, size: u64) -> Result<Option<Part>, Problem> {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, size.saturating_sub(1)),
        (Err(_), Ok(length)) if first.is_empty() => (size.saturating_sub(length), size.saturating_sub(1)),
        _ => return Ok(None),
    };
    if first > last || first >= size {
        return Err(Problem::out_of_range(size));
    }
    Ok(Some(Part { first, last, size }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn encodings() {
        for (value, expected) in
            [("gzip, zstd", true), ("ZSTD;q=0.5", true), ("zstd;q=0", false), ("gzip", false), ("", false)]
        {
            assert_eq!(accepts_zstd(&with(header::ACCEPT_ENCODING, value)), expected, "{value}");
        }
    }

    #[test]
    fn ranges() {
        let check = |value, expected: Option<(u64, u64)>| {
            let part = part(&with(header::RANGE, value), 100).unwrap();
            assert_eq!(part.map(|part| (part.first, part.last)), expected, "{value}");
        };
        check("bytes=0-9", Some((0, 9)));
        check("bytes=90-200", Some((90, 99)));
        check("bytes=90-", Some((90, 99)));
        check("bytes=-10", Some((90, 99)));
        check("bytes=-200", Some((0, 99)));
        for ignored in ["bytes=5-4", "bytes=0-1,3-4", "lines=0-1", "bytes=x-y", "bytes=-"] {
            check(ignored, None);
        }
        assert!(part(&with(header::RANGE, "bytes=100-"), 100).is_err());
        assert!(part(&with(header::RANGE, "bytes=0-0"), 0).is_err());
    }
}

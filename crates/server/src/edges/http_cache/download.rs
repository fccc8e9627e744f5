//! GET and HEAD.

use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method as Verb, Response, StatusCode, header};
use bytes::Bytes;
use futures::stream;
use gf_blobstore::{Accept, BlobRead, ByteRange, Encoding, StoreError};
use gf_execution::{ActionCacheError, Inlining};
use gf_tenancy::{ActionCacheRead, CasRead};

use super::target::Target;
use super::{HttpEdge, conclude};
use crate::edges::plain_http::{Part, Problem, accepts_zstd, part};
use crate::metrics::{Call, EdgeMetrics, Lookup};

/// What is found, before its bytes are sent.
pub(super) enum Found {
    /// All of it is at hand.
    Whole(Bytes),
    /// It is read piece by piece. The length is that of the uncompressed bytes.
    Pieces { read: BlobRead, length: u64, part: Option<Part> },
}

pub(super) async fn get_blob(edge: &Arc<HttpEdge>, target: &Target, head: &Parts, call: Call) -> Response<Body> {
    let found = find_blob(edge, target, head).await;
    answer(edge, &head.method, call, found)
}

pub(super) async fn get_result(edge: &Arc<HttpEdge>, target: &Target, head: &Parts, call: Call) -> Response<Body> {
    let found = find_result(edge, target, head).await;
    answer(edge, &head.method, call, found)
}

async fn find_blob(edge: &HttpEdge, target: &Target, head: &Parts) -> Result<Found, Problem> {
    let headers = &head.headers;
    let grant = edge.authorize::<CasRead>(head, &target.instance)?;
    let content = &edge.services.content;
    let found = content.size_of(&grant, target.function, target.hash).await?;
    let digest = found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no blob with this hash is here"))?;
    // RFC 9110, 14.2: a range means something to GET alone.
    let part = if head.method == Verb::GET { part(headers, digest.size_bytes())? } else { None };
    let (range, accept) = match part {
        Some(part) => (ByteRange { offset: part.first, limit: Some(part.length()) }, Accept::Identity),
        None if accepts_zstd(headers) => (ByteRange::ALL, Accept::Any),
        None => (ByteRange::ALL, Accept::Identity),
    };
    let read = content.read(&grant, digest, range, accept).await?;
    let length = part.map_or(digest.size_bytes(), Part::length);
    Ok(Found::Pieces { read, length, part })
}

/// An action result, or whatever else a client put there.
async fn find_result(edge: &HttpEdge, target: &Target, head: &Parts) -> Result<Found, Problem> {
    let grant = edge.authorize::<ActionCacheRead>(head, &target.instance)?;
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

pub(super) fn answer(edge: &HttpEdge, verb: &Verb, call: Call, found: Result<Found, Problem>) -> Response<Body> {
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
    if let Some(part) = part {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        if let Some(range) = part.content_range() {
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

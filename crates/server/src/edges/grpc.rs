//! gRPC over HTTP/2, as far as the edges need it: framed messages in, framed messages and a status out.
//!
//! Written by hand where the generated server would do, for three reasons: bytes of blobs go out and come in without
//! being copied into a message buffer; an action result is sent as it is stored; and a message that cannot be decoded
//! is answered as the caller's fault. Deliberately absent: message compression (blobs have their own), reflection.
//!
//! What always holds: a message over the limit is refused before it is read; a call ends with a status.

mod fields;
mod inbound;
mod outbound;

use std::future::Future;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method as HttpMethod, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use tonic::{Code, Status};

use super::credentials::Visitor;
pub(super) use fields::{Lists, are_few};
pub(super) use inbound::{Messages, Room};
pub(super) use outbound::{Frames, encode, frame, put_header, stream, unary};

/// The header in front of each message: one byte of flags, four of length.
const HEADER_BYTES: usize = 5;

/// What a gRPC call brings besides its messages.
pub(super) struct Caller {
    /// The metadata.
    pub(super) headers: HeaderMap,
    /// Who calls.
    pub(super) visitor: Visitor,
}

/// Whether this request is meant for a gRPC service, by its media type.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Takes a request apart, or answers what is no gRPC call.
pub(super) fn accept(request: Request<Body>) -> Result<(Caller, Body), Box<Response<Body>>> {
    if request.method() != HttpMethod::POST || !is_grpc(request.headers()) {
        let text = "this path is a gRPC method: POST to it with the media type application/grpc\n";
        return Err(Box::new((StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response()));
    }
    let (head, body) = request.into_parts();
    let visitor = Visitor::of(&head);
    Ok((Caller { headers: head.headers, visitor }, body))
}

/// A call that ends with `status` and nothing else.
pub(super) fn refuse(status: Status) -> Response<Body> {
    status.into_http()
}

/// For how long the caller said that it would wait.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()))
}

/// Runs `call` for as long as that.
pub(super) async fn within<T>(
    timeout: Option<Duration>,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match timeout {
        None => call.await,
        Some(timeout) => match tokio::time::timeout(timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::new(Code::DeadlineExceeded, "the deadline of the call passed")),
        },
    }
}

/// Up to eight digits and a unit. Anything else counts as no deadline, as other servers take it.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        assert_eq!(parse_timeout(b"100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout(b"2H"), Some(Duration::from_secs(7200)));
        for wrong in [&b""[..], b"S", b"123456789S", b"-1S", b"5x", b"1.5S"] {
            assert_eq!(parse_timeout(wrong), None);
        }
    }
}

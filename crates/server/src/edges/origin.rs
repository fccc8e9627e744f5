//! Where a request comes from, noted once for all that handle it: the address, and the trace that it belongs to.
//!
//! The trace is the caller's own when it sends a `traceparent` (W3C Trace Context), else a new one; every answer says
//! which it is. Deliberately absent: spans, and addresses that a proxy names, which anybody could write.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use gf_tenancy::audit::{Origin, TraceId};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The address at the other end of a connection, among the extensions of its requests.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub IpAddr);

/// Numbers that no other process draws: traces are told apart by them, and guarding nothing, they may be guessed.
struct Draw {
    keys: [RandomState; 2],
    next: AtomicU64,
}

static DRAW: LazyLock<Draw> =
    LazyLock::new(|| Draw { keys: [RandomState::new(), RandomState::new()], next: AtomicU64::new(0) });

impl Draw {
    fn trace(&self) -> Option<TraceId> {
        let [high, low] = self.halves();
        TraceId::new((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
    }

    fn halves(&self) -> [u64; 2] {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.keys.each_ref().map(|key| key.hash_one(number))
    }
}

/// Notes the origin of a request among its extensions, and says its trace in the answer.
pub async fn note(mut request: Request, next: Next) -> Response {
    let source = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let trace = given_trace(request.headers()).or_else(|| DRAW.trace());
    request.extensions_mut().insert(Origin { source, trace });
    let mut answer = next.run(request).await;
    if let Some(said) = trace.and_then(traceparent) {
        answer.headers_mut().insert(TRACEPARENT, said);
    }
    answer
}

/// `version-trace-parent-flags`; of a later version, what follows is passed over, as the specification says.
fn given_trace(headers: &HeaderMap) -> Option<TraceId> {
    let mut fields = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let formed = is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    if !formed || version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    TraceId::new(u128::from_str_radix(trace, 16).ok()?.to_be_bytes())
}

/// The parent is this server's part of the trace.
fn traceparent(trace: TraceId) -> Option<HeaderValue> {
    let [part, _] = DRAW.halves();
    let mut text = String::with_capacity(55);
    // Writing into a string does not fail; zero is no part.
    write!(text, "00-{trace}-{:016x}-00", part.max(1)).ok()?;
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(value: &'static str) -> Option<String> {
        let headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(value))]);
        given_trace(&headers).map(|trace| trace.to_string())
    }

    #[test]
    fn the_trace_of_the_caller_is_taken_when_it_is_one() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let same = Some(trace.to_owned());
        assert_eq!(given("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), same);
        assert_eq!(given("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future"), same);
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(given(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn traces_differ_and_are_said_in_full() {
        let (first, second) = (DRAW.trace().unwrap(), DRAW.trace().unwrap());
        assert_ne!(first, second);
        let said = traceparent(first).unwrap();
        let headers = HeaderMap::from_iter([(TRACEPARENT, said)]);
        assert_eq!(given_trace(&headers), Some(first));
    }
}

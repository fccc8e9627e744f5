//! An open server answers to this machine by its own names only: a web page that has its host's name lead here (DNS
//! rebinding), or that asks from another origin, gets nothing, though its requests come from a browser on this machine.
//!
//! Deliberately absent: names that an operator adds. Whoever gives this machine another name closes the server first.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tonic::Status;

use super::grpc;
use super::origin::PeerAddress;

const REFUSED: &str = "this server is open to everybody on this machine, so it answers to an address or to `localhost`, and to no web page \
     of another origin; use http://127.0.0.1, or close it with `gf init`";

/// Refuses what was not asked of this machine by its address or as `localhost`.
pub(crate) async fn only(request: Request, next: Next) -> Response {
    // Its own worker comes without an address.
    let is_ours = request.extensions().get::<PeerAddress>().is_none();
    if is_ours || is_for_this_machine(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    let kind = request.headers().get(CONTENT_TYPE);
    if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return grpc::refuse(Status::permission_denied(REFUSED)).map(axum::body::Body::new);
    }
    (StatusCode::MISDIRECTED_REQUEST, format!("{REFUSED}\n")).into_response()
}

fn is_for_this_machine(uri: &Uri, headers: &HeaderMap) -> bool {
    let hosts = headers.get_all(HOST).iter().map(host_of);
    let named = uri.authority().map(|authority| Some(authority.host()));
    let by_name = hosts.chain(named).all(|host| host.is_some_and(|host| is_local_name(host) || is_address(host)));
    by_name && headers.get_all(ORIGIN).iter().all(|origin| is_of_this_server(origin, uri, headers))
}

fn host_of(header: &HeaderValue) -> Option<&str> {
    let text = header.to_str().ok()?;
    // Parsed for its form; what is shown is the text, without a port.
    let authority: Authority = text.parse().ok()?;
    text.get(..authority.host().len()).filter(|host| *host == authority.host())
}

/// Pages of this server name it as they ask it, with its port: another server of this machine is another origin.
fn is_of_this_server(origin: &HeaderValue, uri: &Uri, headers: &HeaderMap) -> bool {
    let origin = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
    let asked = uri.authority().map(Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok());
    let page = origin.as_ref().and_then(Uri::authority).map(Authority::as_str);
    page.zip(asked).is_some_and(|(page, asked)| page.eq_ignore_ascii_case(asked))
}

/// RFC 6761: `localhost` and what is below it lead to this machine, and browsers take them for nothing else.
fn is_local_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn is_address(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_answered(uri: &str, headers: &[(axum::http::HeaderName, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        is_for_this_machine(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn a_name_that_leads_here_is_not_ours() {
        for host in
            ["127.0.0.1:8980", "127.0.0.1", "[::1]:8980", "localhost:8980", "LOCALHOST", "a.localhost", "10.0.0.7"]
        {
            assert!(is_answered("/x", &[(HOST, host)]), "{host}");
        }
        for host in [
            "evil.example:8980",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "",
            "a@localhost",
            "127.1",
        ] {
            assert!(!is_answered("/x", &[(HOST, host)]), "{host}");
        }
        assert!(is_answered("/x", &[]), "HTTP/1.0, which no browser speaks");
        assert!(is_answered("http://127.0.0.1:8980/x", &[]));
        assert!(!is_answered("http://evil.example:8980/x", &[]));
        assert!(!is_answered("http://localhost/x", &[(HOST, "evil.example")]));
        assert!(!is_answered("/x", &[(HOST, "localhost"), (HOST, "evil.example")]));
    }

    #[test]
    fn a_page_of_another_origin_is_not_answered() {
        for (host, origin) in [
            ("127.0.0.1:8980", "http://127.0.0.1:8980"),
            ("localhost:8980", "http://localhost:8980"),
            ("localhost", "http://LOCALHOST"),
        ] {
            assert!(is_answered("/x", &[(HOST, host), (ORIGIN, origin)]), "{origin}");
        }
        assert!(is_answered("http://[::1]:8980/x", &[(ORIGIN, "http://[::1]:8980")]));
        for origin in ["https://evil.example", "null", "", "http://127.0.0.1:3000", "http://127.0.0.1", "file://"] {
            assert!(!is_answered("/x", &[(HOST, "127.0.0.1:8980"), (ORIGIN, origin)]), "{origin}");
        }
    }
}

//! What WebDAV answers.

use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use gf_execution::NamedValue;

/// The last second that a date of HTTP can say, in milliseconds since 1970.
const LAST_MS: u64 = 253_402_300_799_000;

/// A value is there, whether or not one was before: which of both is not looked up.
pub(super) fn created() -> Response<Body> {
    with_status(StatusCode::CREATED, Body::empty())
}

/// What is known of one thing: of a value, or else of a folder.
pub(super) fn properties(path: &str, value: Option<&NamedValue>) -> Response<Body> {
    let kind = match value {
        None => "<D:resourcetype><D:collection/></D:resourcetype>".to_owned(),
        Some(value) => {
            format!("<D:resourcetype/><D:getcontentlength>{}</D:getcontentlength>", value.size_bytes())
        }
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>{}</D:href>\
         <D:propstat><D:prop>{kind}<D:getlastmodified>{}</D:getlastmodified></D:prop>\
         <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>\n",
        escaped(path),
        http_date(value.map_or(0, |value| value.written_ms)),
    );
    let mut response = with_status(StatusCode::MULTI_STATUS, Body::from(text));
    let xml = HeaderValue::from_static("application/xml; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, xml);
    response
}

fn with_status(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// The path of a request, in which these may stand as they are.
fn escaped(path: &str) -> String {
    path.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn http_date(at_ms: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(at_ms.min(LAST_MS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_http() {
        assert_eq!(http_date(784_111_777_123), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn what_is_in_a_path_is_no_markup() {
        assert_eq!(escaped("/webdav/a&b<c>"), "/webdav/a&amp;b&lt;c&gt;");
    }
}

//! As much of WebDAV (RFC 4918) as a compiler cache asks for: sccache puts and gets bytes under names of its own choice
//! below `{instance/}webdav/`, and wants to know first whether the folder of a name is there.
//!
//! Whoever may read action results may read here, and whoever may write them may write; the bytes are no action results,
//! and nothing that is asked for by a hash is ever answered with them.
//!
//! Deliberately absent: folders that are made, since each is there; lists of what is in them; deleting, moving, locks.
//! What always holds: a value is held whole in memory only within the bound of the edge, and shown only when it is whole.

mod answers;
mod target;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{Method as Verb, Response, StatusCode, header};
use gf_blobstore::ByteRange;
use gf_execution::{NamedValue, ValueName};
use gf_tenancy::{ActionCacheRead, ActionCacheWrite, Authorized};

use super::download::{Found, answer};
use super::{HttpEdge, conclude};
use crate::edges::plain_http::{BodyError, Incoming, Part, Problem, content_length, part};
use crate::metrics::Method;
pub(super) use target::Target;
use target::Thing;

/// The largest value.
const MAX_VALUE_BYTES: usize = 64 << 20;

/// The largest body of a question. What it asks for is not looked at: all that is known is answered.
const MAX_QUESTION_BYTES: usize = 64 << 10;

const ALLOWED: &str = "GET, HEAD, PUT, PROPFIND";

pub(super) async fn serve(edge: &Arc<HttpEdge>, target: Target, request: Request) -> Response<Body> {
    let method = match request.method().as_str() {
        "GET" => Method::HttpGet,
        "HEAD" => Method::HttpHead,
        "PUT" => Method::HttpPut,
        "PROPFIND" => Method::HttpPropfind,
        _ => return Problem::not_allowed(ALLOWED).into_response(),
    };
    let call = edge.services.state.metrics.call(method);
    let (head, body) = request.into_parts();
    let limits = &edge.services.state.limits;
    let mut incoming = Incoming::new(&edge.services.state.metrics, limits.upload_idle_timeout, &head.headers, body);
    let done = match (method, target.thing()) {
        (Method::HttpPut, Ok(Thing::Value(name))) => put(edge, &target, &name, &head, &mut incoming).await,
        (Method::HttpPropfind, Ok(thing)) => describe(edge, &target, &thing, &head, &mut incoming).await,
        (_, Ok(Thing::Value(name))) => {
            return answer(edge, &head.method, call, find(edge, &target, &name, &head).await);
        }
        (_, Ok(Thing::Folder)) => Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "a folder holds no bytes")),
        (_, Err(problem)) => Err(problem),
    };
    match done {
        Ok(response) => conclude(call, response),
        Err(problem) => conclude(call, incoming.refuse(&head, problem.into_response())),
    }
}

async fn find(edge: &HttpEdge, target: &Target, name: &ValueName, head: &Parts) -> Result<Found, Problem> {
    let grant = edge.authorize::<ActionCacheRead>(head, target.instance()?)?;
    let value = look_up(edge, &grant, name).await?;
    // RFC 9110, 14.2: a range means something to GET alone.
    let part = if head.method == Verb::GET { part(&head.headers, value.size_bytes())? } else { None };
    let range = part.map_or(ByteRange::ALL, |part| ByteRange { offset: part.first, limit: Some(part.length()) });
    let read = edge.services.named_values.read(&grant, &value, range).await?;
    Ok(Found::Pieces { read, length: part.map_or(value.size_bytes(), Part::length), part })
}

async fn put(
    edge: &HttpEdge,
    target: &Target,
    name: &ValueName,
    head: &Parts,
    incoming: &mut Incoming,
) -> Result<Response<Body>, Problem> {
    let grant = edge.authorize::<ActionCacheWrite>(head, target.instance()?)?;
    if head.headers.contains_key(header::CONTENT_ENCODING) || head.headers.contains_key(header::CONTENT_RANGE) {
        let text = "a value is taken whole and as it is: send no Content-Encoding and no Content-Range";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    let collected = incoming.collect(&edge.buffers, MAX_VALUE_BYTES, content_length(&head.headers)).await;
    let (bytes, _held) = collected.map_err(|error| match error {
        BodyError::NoRoom => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many values come in at once"),
        error => error.into(),
    })?;
    let size_bytes = bytes.len() as u64;
    edge.services.named_values.put(&grant, name, bytes).await?;
    edge.count(head, &grant, "actioncache.write", size_bytes);
    Ok(answers::created())
}

/// PROPFIND. Of a folder nothing is known but that it is one: each is there, so that none must be made.
async fn describe(
    edge: &HttpEdge,
    target: &Target,
    thing: &Thing,
    head: &Parts,
    incoming: &mut Incoming,
) -> Result<Response<Body>, Problem> {
    let grant = edge.authorize::<ActionCacheRead>(head, target.instance()?)?;
    drop(incoming.collect(&edge.buffers, MAX_QUESTION_BYTES, content_length(&head.headers)).await?);
    if head.headers.get("depth").is_none_or(|depth| depth != "0") {
        let text = "nothing is listed here: ask for one thing, with `Depth: 0`";
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    }
    let value = match thing {
        Thing::Folder => None,
        Thing::Value(name) => Some(look_up(edge, &grant, name).await?),
    };
    Ok(answers::properties(head.uri.path(), value.as_ref()))
}

async fn look_up(
    edge: &HttpEdge,
    grant: &Authorized<ActionCacheRead>,
    name: &ValueName,
) -> Result<NamedValue, Problem> {
    let found = edge.services.named_values.find(grant, name).await?;
    found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no value of this name is here"))
}

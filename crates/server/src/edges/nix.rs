//! Nix binary caches over HTTP: `/nix/<cache>/` for Nix itself, reading and writing, and `/nix/_api/v1/` for Attic.
//!
//! Both see the same paths. A token comes as a bearer, or as the password of a netrc with any user name.
//!
//! Deliberately absent: lists of what is in a cache, and deleting from it. What always holds: nothing but absence is
//! answered as absence; an archive that cannot be sent to its end is cut off; a document is never held beyond its bound,
//! and all of them together are bounded.

mod answer;
mod api;
mod archive;
mod attic;
mod coding;
mod document;
mod door;
mod problem;
mod recompress;
mod sentences;
mod target;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method as Verb, Response};
use axum::routing::any;
use gf_nix_cache::{CacheName, NixCaches};
use gf_tenancy::TenantName;
use tokio::sync::Semaphore;

use super::Gate;
use super::credentials::Visitor;
use super::plain_http::{Buffers, Incoming, Problem};
use crate::capacity::Background;
use crate::metrics::{Call, EdgeMetrics, Method};
use crate::quotas::Quotas;
use answer::Answer;
use door::Door;
use target::{File, Target};

/// Kibibytes of documents that are held in memory at one time: logs are the largest of them.
const BUFFERED_KIB: usize = 256 * 1024;

/// By this, caches in front of the server know what they may keep for everybody.
const VISIBILITY: HeaderName = HeaderName::from_static("x-attic-cache-visibility");

/// What the edge works with.
#[derive(Clone)]
pub struct NixState {
    /// Who may do what, and what is recorded of it.
    pub gate: Gate,
    /// The caches.
    pub caches: NixCaches,
    /// What tenants may use.
    pub quotas: Arc<Quotas>,
    /// Whose the caches are to be that clients make.
    pub tenant: TenantName,
    /// What runs administration to its end, whoever waits for it.
    pub background: Background,
    /// What is counted.
    pub metrics: Arc<EdgeMetrics>,
    /// How long an upload may send nothing before it counts as cut off.
    pub upload_idle_timeout: Duration,
    /// What clients find this server by, unless a proxy says otherwise: `http` or `https`.
    pub scheme: &'static str,
}

/// All caches, below `/nix/`, and what is asked about them below `/api/v1/nix/`. An instance of that name cannot be reached over the HTTP cache beside it.
pub fn router(state: NixState) -> Router {
    let edge = Arc::new(NixEdge { state, buffers: Buffers::new(BUFFERED_KIB), verifying: Semaphore::new(1) });
    Router::new().route("/nix/{*path}", any(serve)).with_state(Arc::clone(&edge)).merge(api::router(edge))
}

struct NixEdge {
    state: NixState,
    buffers: Buffers,
    /// One cache at a time is read as a whole.
    verifying: Semaphore,
}

async fn serve(State(edge): State<Arc<NixEdge>>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut incoming = Incoming::new(&edge.state.metrics, edge.state.upload_idle_timeout, &head.headers, body);
    match Target::parse(head.uri.path()) {
        Ok(Target::File(cache, file)) => serve_file(&edge, &cache, &file, &head, &mut incoming).await,
        Ok(Target::Attic(target)) => {
            let call = edge.state.metrics.call(Method::Attic);
            match attic::serve(&edge, &target, &head, &mut incoming).await {
                Ok(answer) => answer.send(&head.method, call, &edge.state.metrics),
                Err(refusal) => refuse(call, &head, &incoming, refusal.into_response()),
            }
        }
        Err(error) => incoming.refuse(&head, Problem::from(error).into_response()),
    }
}

async fn serve_file(
    edge: &NixEdge,
    cache: &CacheName,
    file: &File,
    head: &Parts,
    incoming: &mut Incoming,
) -> Response<Body> {
    let Some(method) = method_of(&head.method, file) else {
        return incoming.refuse(head, Problem::not_allowed("GET, HEAD, PUT").into_response());
    };
    let call = edge.state.metrics.call(method);
    let answered = match Door::find(edge, cache, Visitor::of(head)).await {
        Ok(door) => answer_file(edge, &door, file, head, incoming).await.map(|answer| show(&door, answer)),
        Err(problem) => Err(problem),
    };
    match answered {
        Ok(answer) => answer.send(&head.method, call, &edge.state.metrics),
        Err(problem) => refuse(call, head, incoming, problem.into_response()),
    }
}

async fn answer_file(
    edge: &NixEdge,
    door: &Door<'_>,
    file: &File,
    head: &Parts,
    incoming: &mut Incoming,
) -> Result<Answer, Problem> {
    match (head.method == Verb::PUT, file) {
        (false, File::Archive(url)) if head.method == Verb::HEAD => archive::head(door, *url).await,
        (false, File::Archive(url)) => archive::get(door, *url, &head.headers).await,
        (true, File::Archive(url)) => archive::put(door, *url, &head.headers, incoming).await,
        (false, File::AtticCacheInfo) => attic::cache_info(door, head),
        (false, file) => document::get(door, file).await,
        (true, file) => document::put(edge, door, file, &head.headers, incoming).await,
    }
}

/// The call that is counted; `None` for what cannot be done with a file.
fn method_of(verb: &Verb, file: &File) -> Option<Method> {
    match (verb, file) {
        (&Verb::GET, File::Archive(_)) => Some(Method::NarGet),
        (&Verb::HEAD, File::Archive(_)) => Some(Method::NarHead),
        (&Verb::PUT, File::Archive(_)) => Some(Method::NarPut),
        (&Verb::GET, _) => Some(Method::NixGet),
        (&Verb::HEAD, _) => Some(Method::NixHead),
        (&Verb::PUT, _) => Some(Method::NixPut),
        _ => None,
    }
}

/// Says of what a public cache answers that it is public.
fn show(door: &Door<'_>, mut answer: Answer) -> Answer {
    if door.is_public() {
        answer.set(VISIBILITY, HeaderValue::from_static("public"));
    }
    answer
}

fn refuse(call: Call, head: &Parts, incoming: &Incoming, response: Response<Body>) -> Response<Body> {
    call.finish_http(response.status());
    incoming.refuse(head, response)
}

//! The cache over plain HTTP: `/ac/{hash}` and `/cas/{hash}`, with the instance in front, for Bazel's
//! `--remote_cache=http://…`, ccache (`layout=bazel`) and whatever else puts and gets by hash. Beside it `/webdav/{name}`, for
//! sccache, which puts and gets by names of its own.
//!
//! A blob may come and go as zstd (`Content-Encoding`, `Accept-Encoding`). Under `/ac/`, what is an action result is
//! treated as one, shared with gRPC clients; anything else is kept as it is for HTTP clients alone.
//!
//! Deliberately absent: listing and deleting. What always holds: a body of unknown length is bounded, and all of them
//! together are.

mod download;
mod problem;
mod target;
mod upload;
mod webdav;

use std::num::NonZero;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::http::{Method as Verb, Response};
use axum::routing::any;
use gf_digest::InstanceName;
use gf_execution::ActionId;
use gf_tenancy::audit::Amount;
use gf_tenancy::{Authorized, InstancePermission};
use tokio::sync::Semaphore;
use tonic::Status;

use super::credentials::Visitor;
use super::plain_http::{Buffers, Problem};
use super::{Services, grpc};
use crate::metrics::{Call, Method};
use target::{Half, Target};

/// Kibibytes of bodies that are held in memory at one time, since their size is told by nothing but themselves.
const BUFFERED_KIB: usize = 256 * 1024;

/// Mounts the cache under every path that no other route takes.
pub(super) fn router(services: Services) -> Router {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let decoding = Arc::new(Semaphore::new(cores));
    let edge = Arc::new(HttpEdge { services, buffers: Buffers::new(BUFFERED_KIB), decoding });
    Router::new().route("/{*path}", any(serve)).with_state(edge)
}

struct HttpEdge {
    services: Services,
    buffers: Buffers,
    /// Turns to decode a body: each takes a core, and the memory of a window.
    decoding: Arc<Semaphore>,
}

impl HttpEdge {
    fn authorize<P: InstancePermission>(
        &self,
        head: &Parts,
        instance: &InstanceName,
    ) -> Result<Authorized<P>, Problem> {
        let state = &self.services.state;
        let grant = state.gate.authorize(&Visitor::of(head), instance)?;
        state.quotas.request(&grant)?;
        Ok(grant)
    }

    /// Counts what was done by right of a grant.
    fn count<P: InstancePermission>(&self, head: &Parts, grant: &Authorized<P>, action: &'static str, bytes: u64) {
        self.services.state.gate.count(&Visitor::of(head), grant, action, Amount::once(bytes));
    }
}

impl Target {
    /// Over HTTP nothing tells the size of an action.
    const fn action(&self) -> ActionId {
        ActionId { function: self.function, hash: self.hash, size_bytes: None }
    }
}

async fn serve(State(edge): State<Arc<HttpEdge>>, Path(path): Path<String>, request: Request) -> Response<Body> {
    if grpc::is_grpc(request.headers()) {
        return grpc::refuse(Status::unimplemented("this server has no such service"));
    }
    if let Some(target) = webdav::Target::find(&path) {
        return webdav::serve(&edge, target, request).await;
    }
    let method = match *request.method() {
        Verb::GET => Method::HttpGet,
        Verb::HEAD => Method::HttpHead,
        Verb::PUT => Method::HttpPut,
        _ => return Problem::not_allowed("GET, HEAD, PUT").into_response(),
    };
    let target = match Target::parse(&path) {
        Ok(target) => target,
        Err(error) => return Problem::from(error).into_response(),
    };
    let call = edge.services.state.metrics.call(method);
    let (head, body) = request.into_parts();
    match (method, target.half) {
        (Method::HttpPut, _) => conclude(call, upload::put(&edge, &target, &head, body).await),
        (_, Half::Cas) => download::get_blob(&edge, &target, &head, call).await,
        (_, Half::ActionCache) => download::get_result(&edge, &target, &head, call).await,
    }
}

fn conclude(call: Call, response: Response<Body>) -> Response<Body> {
    call.finish_http(response.status());
    response
}

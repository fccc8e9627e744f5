//! The Remote Execution API and ByteStream over gRPC.
//!
//! Each method is one function of a caller and a message. What is common lies here: which path is which method, who
//! the caller is, counting, deadlines.
//!
//! Deliberately absent: what is run where and when (the scheduler decides), and what a worker does.

mod action_cache;
mod byte_stream;
mod capabilities;
mod cas;
mod execution;
mod operations;
mod status;
mod uploads;

use std::convert::Infallible;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use bytes::Bytes;
use gf_digest::InstanceName;
use gf_tenancy::audit::Amount;
use gf_tenancy::{Authorized, InstancePermission, PermissionName};
use prost::Message;
use tonic::{Code, Status};
use tower::Service;

use super::Services;
use super::grpc::{self, Caller, Lists, Messages, Room};
use super::workers::{self, Admitted};
use crate::listen;
use crate::metrics::{Call, Method};
pub(super) use status::IntoStatus;
use uploads::Uploads;

/// The most bytes of blobs in one batch; told to clients.
///
/// Half of what gRPC clients take in a message by default (4 MiB), since what is around each blob takes up to 200 bytes:
/// blobs of 100 bytes and more still fit. Smaller ones fill [`MAX_ANSWER_BYTES`] first, and the rest must be asked again.
pub(super) const MAX_BATCH_TOTAL_BYTES: u64 = 2 << 20;

/// The largest answer of a batch, a little under what gRPC clients take by default.
const MAX_ANSWER_BYTES: usize = (4 << 20) - (64 << 10);

/// The largest message taken: a piece of an upload of 4 MiB, and what is around it.
const MAX_MESSAGE_BYTES: usize = 5 << 20;

/// Large messages that are in memory at one time, over all calls.
const ROOM_BYTES: usize = 256 << 20;

/// The services, as they stand in paths.
const SERVICES: [&str; 7] = [
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "build.bazel.remote.execution.v2.ActionCache",
    "build.bazel.remote.execution.v2.Execution",
    "google.bytestream.ByteStream",
    "google.longrunning.Operations",
    "gloriousflywheel.worker.v1.Workers",
];

/// What the methods work with.
struct Edge {
    services: Services,
    uploads: Arc<Uploads>,
    room: Room,
}

impl Deref for Edge {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}

impl Edge {
    /// Grants `P` in an instance to whoever calls, or says why not.
    fn authorize<P: InstancePermission>(&self, caller: &Caller, instance: &str) -> Result<Authorized<P>, Status> {
        let instance = InstanceName::new(instance).map_err(IntoStatus::into_status)?;
        self.authorize_name(caller, &instance)
    }

    fn authorize_name<P: InstancePermission>(
        &self,
        caller: &Caller,
        instance: &InstanceName,
    ) -> Result<Authorized<P>, Status> {
        let grant = self.state.gate.authorize(&caller.visitor, instance).map_err(IntoStatus::into_status)?;
        self.state.quotas.request(&grant).map_err(IntoStatus::into_status)?;
        Ok(grant)
    }

    /// Refuses who may not do this in any instance.
    fn admit(&self, caller: &Caller, permission: PermissionName) -> Result<(), Status> {
        self.state.gate.check(&caller.visitor, permission).map_err(IntoStatus::into_status)
    }

    /// Counts what was done by right of a grant.
    fn count<P: InstancePermission>(
        &self,
        caller: &Caller,
        grant: &Authorized<P>,
        action: &'static str,
        amount: Amount,
    ) {
        self.state.gate.count(&caller.visitor, grant, action, amount);
    }
}

/// Mounts the services.
pub(super) fn router(services: Services) -> Router {
    let limits = services.state.limits;
    let uploads = Uploads::new(limits.parked_uploads, limits.parked_upload_ttl);
    let edge = Edge { services, uploads, room: Room::new(ROOM_BYTES) };
    let reapi = Reapi(Arc::new(edge));
    SERVICES
        .into_iter()
        .fold(Router::new(), |router, service| router.route_service(&format!("/{service}/{{method}}"), reapi.clone()))
}

/// All methods as one service: a path is looked up once.
#[derive(Clone)]
struct Reapi(Arc<Edge>);

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Body>> for Reapi {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let edge = Arc::clone(&self.0);
        let Some(method) = method(request.uri().path()) else {
            return Box::pin(async move { Ok(refuse_unknown(request)) });
        };
        let (caller, body) = match grpc::accept(request) {
            Ok(parts) => parts,
            Err(answer) => return Box::pin(async move { Ok(*answer) }),
        };
        let call = edge.state.metrics.call(method);
        // Nothing is read from those who may do none of this, whatever they name.
        if let Err(status) = edge.admit(&caller, permission(method)) {
            return Box::pin(async move { Ok(conclude(call, Err(status))) });
        }
        let messages = Messages::new(body, MAX_MESSAGE_BYTES, lists(method), edge.room.clone());
        route(method, Exchange { edge, caller, messages, call })
    }
}

/// Which method a path names. Those that are counted, and served, are the same.
fn method(path: &str) -> Option<Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    METHODS.iter().find(|(at, known, _)| SERVICES[*at] == service && *known == name).map(|(_, _, method)| *method)
}

pub(super) fn paths() -> impl Iterator<Item = String> {
    METHODS.iter().map(|(service, name, _)| format!("/{}/{name}", SERVICES[*service]))
}

/// Every method served: the place of its service in [`SERVICES`], its name, and under what it is counted.
const METHODS: [(usize, &str, Method); 21] = [
    (2, "GetActionResult", Method::GetActionResult),
    (1, "FindMissingBlobs", Method::FindMissingBlobs),
    (4, "Read", Method::Read),
    (4, "Write", Method::Write),
    (2, "UpdateActionResult", Method::UpdateActionResult),
    (1, "BatchReadBlobs", Method::BatchReadBlobs),
    (1, "BatchUpdateBlobs", Method::BatchUpdateBlobs),
    (0, "GetCapabilities", Method::GetCapabilities),
    (4, "QueryWriteStatus", Method::QueryWriteStatus),
    (1, "GetTree", Method::GetTree),
    (1, "SplitBlob", Method::SplitBlob),
    (1, "SpliceBlob", Method::SpliceBlob),
    (1, "GetChunkMapping", Method::GetChunkMapping),
    (1, "RegisterChunkMapping", Method::RegisterChunkMapping),
    (3, "Execute", Method::Execute),
    (3, "WaitExecution", Method::WaitExecution),
    (5, "GetOperation", Method::GetOperation),
    (5, "ListOperations", Method::ListOperations),
    (5, "CancelOperation", Method::CancelOperation),
    (5, "WaitOperation", Method::WaitOperation),
    (6, "Attach", Method::Attach),
];

/// What every call of a method needs.
const fn permission(method: Method) -> PermissionName {
    match method {
        Method::GetActionResult => PermissionName::ActionCacheRead,
        Method::UpdateActionResult => PermissionName::ActionCacheWrite,
        Method::BatchUpdateBlobs
        | Method::SpliceBlob
        | Method::RegisterChunkMapping
        | Method::Write
        | Method::QueryWriteStatus
        | Method::HttpPut => PermissionName::CasWrite,
        Method::GetCapabilities
        | Method::FindMissingBlobs
        | Method::BatchReadBlobs
        | Method::GetTree
        | Method::SplitBlob
        | Method::GetChunkMapping
        | Method::Read
        | Method::HttpGet
        | Method::HttpPropfind
        | Method::HttpHead => PermissionName::CasRead,
        Method::Execute
        | Method::WaitExecution
        | Method::GetOperation
        | Method::ListOperations
        | Method::CancelOperation
        | Method::WaitOperation => PermissionName::Execute,
        Method::Attach => PermissionName::Work,
        Method::NixGet | Method::NixHead | Method::NarGet | Method::NarHead => PermissionName::NixPull,
        Method::NixPut | Method::NarPut | Method::Attic => PermissionName::NixPush,
    }
}

/// Where lists may stand in a method's messages.
const fn lists(method: Method) -> Lists {
    match method {
        Method::UpdateActionResult => Lists::with(&[(3, RESULT_LISTS)]),
        Method::Attach => workers::LISTS,
        _ => Lists::FLAT,
    }
}

/// Where lists stand in an `ActionResult`: files and symbolic links have properties, and the metadata have more of
/// their own.
pub(super) const RESULT_LISTS: Lists = {
    const FILE: Lists = Lists::only_within(&[(7, Lists::FLAT)]);
    const SYMLINK: Lists = Lists::only_within(&[(4, Lists::FLAT)]);
    Lists::with(&[(2, FILE), (9, Lists::FLAT), (10, SYMLINK), (11, SYMLINK), (12, SYMLINK)])
};

fn route(method: Method, exchange: Exchange) -> Answer {
    match method {
        Method::GetActionResult => exchange.encoded(action_cache::get),
        Method::UpdateActionResult => exchange.encoded(action_cache::update),
        Method::FindMissingBlobs => exchange.unary(cas::find_missing),
        Method::BatchReadBlobs => exchange.unary(cas::batch_read),
        Method::BatchUpdateBlobs => exchange.unary(cas::batch_update),
        Method::GetTree => exchange.streamed(cas::get_tree),
        Method::SplitBlob => exchange.unary(cas::split),
        Method::SpliceBlob => exchange.unary(cas::splice),
        Method::GetChunkMapping => exchange.streamed(cas::get_chunk_mapping),
        Method::RegisterChunkMapping => exchange.streaming(cas::register_chunk_mapping),
        Method::Read => exchange.streamed(byte_stream::read),
        Method::Write => exchange.streaming(byte_stream::write),
        Method::QueryWriteStatus => exchange.unary(byte_stream::query_write_status),
        Method::GetCapabilities => exchange.unary(capabilities::get),
        Method::Execute => exchange.streamed(execution::execute),
        Method::WaitExecution => exchange.streamed(execution::wait),
        Method::GetOperation => exchange.unary(operations::get),
        Method::ListOperations => exchange.unary(operations::list),
        Method::CancelOperation => exchange.unary(operations::cancel),
        Method::WaitOperation => exchange.unary(operations::wait),
        Method::Attach => exchange.duplex(attach),
        Method::HttpGet
        | Method::HttpHead
        | Method::HttpPut
        | Method::HttpPropfind
        | Method::NixGet
        | Method::NixHead
        | Method::NixPut
        | Method::NarGet
        | Method::NarHead
        | Method::NarPut
        | Method::Attic => {
            exchange.call.finish(Code::Unimplemented);
            Box::pin(async { Ok(grpc::refuse(Status::unimplemented("no gRPC method"))) })
        }
    }
}

fn refuse_unknown(request: Request<Body>) -> Response<Body> {
    match grpc::accept(request) {
        Ok(_) => grpc::refuse(Status::unimplemented("this server has no such method")),
        Err(answer) => *answer,
    }
}

async fn attach(edge: Arc<Edge>, caller: Caller, messages: Messages) -> Result<grpc::Frames, Status> {
    if !edge.state.limits.executes {
        return Err(Status::unimplemented(execution::CACHE_ONLY));
    }
    let admitted = Admitted::new(&edge.state.gate, caller.visitor)?;
    workers::attach(&edge.state.operations, admitted, messages, edge.state.stopping.clone()).await
}

/// A call under way.
struct Exchange {
    edge: Arc<Edge>,
    caller: Caller,
    messages: Messages,
    call: Call,
}

impl Exchange {
    /// One message in, one out.
    fn unary<I, O, F>(self, handler: fn(Arc<Edge>, Caller, I) -> F) -> Answer
    where
        I: Message + Default + 'static,
        O: Message + 'static,
        F: Future<Output = Result<O, Status>> + Send + 'static,
    {
        let Self { edge, caller, mut messages, call } = self;
        let timeout = grpc::timeout(&caller.headers);
        let work = async move {
            let message = handler(edge, caller, messages.only().await?).await?;
            make_room(message.encoded_len()).await?;
            Ok(message)
        };
        Box::pin(async move {
            let answer = grpc::within(timeout, work).await;
            Ok(conclude(call, answer.map(|message| grpc::unary(grpc::encode(&message)))))
        })
    }

    /// One message in, an encoded one out.
    fn encoded<I, F>(self, handler: fn(Arc<Edge>, Caller, I) -> F) -> Answer
    where
        I: Message + Default + 'static,
        F: Future<Output = Result<Bytes, Status>> + Send + 'static,
    {
        let Self { edge, caller, mut messages, call } = self;
        let timeout = grpc::timeout(&caller.headers);
        let work = async move {
            let message = handler(edge, caller, messages.only().await?).await?;
            make_room(message.len()).await?;
            Ok(message)
        };
        Box::pin(async move {
            let answer = grpc::within(timeout, work).await;
            Ok(conclude(call, answer.map(|message| grpc::unary(grpc::frame(&message)))))
        })
    }

    /// Many messages in, one out.
    fn streaming<O, F>(self, handler: fn(Arc<Edge>, Caller, Messages) -> F) -> Answer
    where
        O: Message + 'static,
        F: Future<Output = Result<O, Status>> + Send + 'static,
    {
        let Self { edge, caller, messages, call } = self;
        let timeout = grpc::timeout(&caller.headers);
        let work = handler(edge, caller, messages);
        Box::pin(async move {
            let answer = grpc::within(timeout, work).await;
            Ok(conclude(call, answer.map(|message| grpc::unary(grpc::encode(&message)))))
        })
    }

    /// One message in, many out. Once the answer began, the deadline is the caller's to keep: it resets the stream.
    fn streamed<I, F>(self, handler: fn(Arc<Edge>, Caller, I) -> F) -> Answer
    where
        I: Message + Default + 'static,
        F: Future<Output = Result<grpc::Frames, Status>> + Send + 'static,
    {
        let Self { edge, caller, mut messages, call } = self;
        Box::pin(async move {
            let timeout = grpc::timeout(&caller.headers);
            let work = async { handler(edge, caller, messages.only().await?).await };
            let answer = grpc::within(timeout, work).await;
            Ok(match answer {
                Ok(frames) => grpc::stream(frames, call),
                Err(status) => conclude(call, Err(status)),
            })
        })
    }

    /// Many messages in, many out, for as long as both sides like.
    fn duplex<F>(self, handler: fn(Arc<Edge>, Caller, Messages) -> F) -> Answer
    where
        F: Future<Output = Result<grpc::Frames, Status>> + Send + 'static,
    {
        let Self { edge, caller, messages, call } = self;
        Box::pin(async move {
            Ok(match handler(edge, caller, messages).await {
                Ok(frames) => grpc::stream(frames, call),
                Err(status) => conclude(call, Err(status)),
            })
        })
    }
}

/// Waits until there is room for an answer of so many bytes, beside what the call has taken already.
async fn make_room(bytes: usize) -> Result<(), Status> {
    listen::take_for_answer(bytes).await.map_err(|error| Status::unavailable(error.to_string()))
}

fn conclude(call: Call, answer: Result<Response<Body>, Status>) -> Response<Body> {
    match answer {
        Ok(response) => {
            call.finish(Code::Ok);
            response
        }
        Err(status) => {
            call.finish(status.code());
            grpc::refuse(status)
        }
    }
}

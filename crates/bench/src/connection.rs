//! The load's side of the wire: a few connections and the calls of the table.
//!
//! Requests are prepared before the clock starts and encoded from a shared reference, so that cloning them is no
//! part of what is measured; answers are decoded into the generated messages. Floor and product get the same.

use std::marker::PhantomData;
use std::sync::Arc;

use anyhow::Context;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::bytestream as bs;
use bazel_remote_apis::google::longrunning::Operation;
use futures::{Stream, stream};
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Callers share so many connections, as the jobs of a build behind a few clients do.
pub(crate) const CONNECTIONS: usize = 4;

/// Which of the two servers is being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that stores nothing.
    Floor,
    /// The one that is measured.
    Product,
}

/// The connections to one server.
#[derive(Clone)]
pub(crate) struct Connections {
    /// Whose they are.
    pub(crate) side: Side,
    channels: Arc<[Channel]>,
}

impl Connections {
    /// Connects; the windows and everything else are what the library does by itself.
    pub(crate) async fn open(side: Side, url: &str) -> anyhow::Result<Self> {
        let mut channels = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let channel = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true).connect().await;
            channels.push(channel.with_context(|| format!("connect to {url}"))?);
        }
        Ok(Self { side, channels: channels.into() })
    }

    /// The connection of one caller.
    pub(crate) fn of_caller(&self, caller: usize) -> Connection {
        Connection { side: self.side, channel: self.channels[caller % self.channels.len()].clone() }
    }
}

/// One caller's connection.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Whose it is.
    pub(crate) side: Side,
    channel: Channel,
}

impl Connection {
    /// `FindMissingBlobs`.
    pub(crate) async fn find_missing(
        &self,
        request: Arc<rex::FindMissingBlobsRequest>,
    ) -> Result<rex::FindMissingBlobsResponse, Status> {
        self.unary("/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs", request).await
    }

    /// `BatchUpdateBlobs`.
    pub(crate) async fn batch_update(
        &self,
        request: Arc<rex::BatchUpdateBlobsRequest>,
    ) -> Result<rex::BatchUpdateBlobsResponse, Status> {
        self.unary("/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs", request).await
    }

    /// `BatchReadBlobs`.
    pub(crate) async fn batch_read(
        &self,
        request: Arc<rex::BatchReadBlobsRequest>,
    ) -> Result<rex::BatchReadBlobsResponse, Status> {
        self.unary("/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs", request).await
    }

    /// `GetActionResult`.
    pub(crate) async fn get_action_result(
        &self,
        request: Arc<rex::GetActionResultRequest>,
    ) -> Result<rex::ActionResult, Status> {
        self.unary("/build.bazel.remote.execution.v2.ActionCache/GetActionResult", request).await
    }

    /// `UpdateActionResult`.
    pub(crate) async fn update_action_result(
        &self,
        request: Arc<rex::UpdateActionResultRequest>,
    ) -> Result<rex::ActionResult, Status> {
        self.unary("/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult", request).await
    }

    /// `ByteStream.Write` of messages made beforehand.
    pub(crate) async fn write(&self, messages: Arc<[Arc<bs::WriteRequest>]>) -> Result<bs::WriteResponse, Status> {
        let path = PathAndQuery::from_static("/google.bytestream.ByteStream/Write");
        let mut grpc = self.ready().await?;
        let answer = grpc.client_streaming(Request::new(each(messages)), path, SharedCodec::default()).await?;
        Ok(answer.into_inner())
    }

    /// `ByteStream.Read`; the caller takes the pieces.
    pub(crate) async fn read(&self, request: Arc<bs::ReadRequest>) -> Result<Streaming<bs::ReadResponse>, Status> {
        self.streaming("/google.bytestream.ByteStream/Read", request).await
    }

    /// `Execute`; the caller takes what is said about the operation.
    pub(crate) async fn execute(&self, request: Arc<rex::ExecuteRequest>) -> Result<Streaming<Operation>, Status> {
        self.streaming("/build.bazel.remote.execution.v2.Execution/Execute", request).await
    }

    /// All that a method answers to whoever presents a token.
    pub(crate) async fn answers<M, R>(&self, path: &'static str, token: &str, request: Arc<M>) -> Result<Vec<R>, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let bearer = format!("Bearer {token}").parse().map_err(|_| Status::internal("the token is no header"))?;
        let mut request = Request::new(request);
        request.metadata_mut().insert("authorization", bearer);
        let (mut grpc, path) = (self.ready().await?, PathAndQuery::from_static(path));
        let mut answer = grpc.server_streaming(request, path, SharedCodec::default()).await?.into_inner();
        let mut said = Vec::new();
        while let Some(message) = answer.message().await? {
            said.push(message);
        }
        Ok(said)
    }

    async fn streaming<M, R>(&self, path: &'static str, request: Arc<M>) -> Result<Streaming<R>, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let path = PathAndQuery::from_static(path);
        let mut grpc = self.ready().await?;
        let answer = grpc.server_streaming(Request::new(request), path, SharedCodec::default()).await?;
        Ok(answer.into_inner())
    }

    async fn unary<M, R>(&self, path: &'static str, request: Arc<M>) -> Result<R, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let path = PathAndQuery::from_static(path);
        let mut grpc = self.ready().await?;
        Ok(grpc.unary(Request::new(request), path, SharedCodec::default()).await?.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }
}

fn each(messages: Arc<[Arc<bs::WriteRequest>]>) -> impl Stream<Item = Arc<bs::WriteRequest>> + Send + 'static {
    stream::unfold(0, move |next| {
        let message = messages.get(next).map(|message| (Arc::clone(message), next + 1));
        async move { message }
    })
}

/// The usual protobuf codec, but it encodes what it does not own.
struct SharedCodec<M, R>(PhantomData<(M, R)>);

impl<M, R> Default for SharedCodec<M, R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M, R> Codec for SharedCodec<M, R>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    type Encode = Arc<M>;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<M: Message, R> Encoder for SharedCodec<M, R> {
    type Item = Arc<M>;
    type Error = Status;

    fn encode(&mut self, item: Arc<M>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M, R: Message + Default> Decoder for SharedCodec<M, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

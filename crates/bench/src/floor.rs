//! The floor: the least that a gRPC server of generated stubs can do.
//!
//! It hashes, checks and stores nothing, and holds no state but one buffer. Its answers have the shape and size of
//! right ones, so that encoding them costs what it costs everybody. It is the stock `Server::builder()` of tonic with
//! `TCP_NODELAY` and two worker threads; nothing is tuned beyond that.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::bytestream as bs;
use bazel_remote_apis::google::rpc;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use rex::action_cache_server::{ActionCache, ActionCacheServer};
use rex::content_addressable_storage_server::{ContentAddressableStorage, ContentAddressableStorageServer};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of the largest blob that the floor serves.
const BUFFER_BYTES: usize = 16 << 20;
/// Bytes in one `ReadResponse`. Of 16 KiB, 64 KiB, 256 KiB and 1 MiB this moved the most.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of each blob in a batch.
pub(crate) const SMALL_BLOB_BYTES: usize = 4 << 10;
/// Of the digests asked about, so many are missing.
pub(crate) const MISSING: usize = 10;
/// Outputs of the fixed action result.
pub(crate) const OUTPUTS: usize = 5;
/// An action digest that states this size has no result: the floor can tell hits from misses without a store.
pub(crate) const MISS_SIZE_BYTES: i64 = 404;

#[derive(Clone)]
struct Floor {
    buffer: Arc<[u8]>,
    result: Arc<rex::ActionResult>,
}

/// Listens on `listen`, says so, and serves until the process is killed.
pub(crate) async fn listen(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    serve(listener).await
}

/// Serves whoever comes.
pub(crate) async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let floor = Floor { buffer: vec![0x5a; BUFFER_BYTES].into(), result: Arc::new(result()) };
    tonic::transport::Server::builder()
        .add_service(ContentAddressableStorageServer::new(floor.clone()))
        .add_service(ActionCacheServer::new(floor.clone()))
        .add_service(bs::byte_stream_server::ByteStreamServer::new(floor))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await
        .context("serve the floor")
}

fn result() -> rex::ActionResult {
    let output = |number: usize| rex::OutputFile {
        path: format!("bazel-out/k8-fastbuild/bin/package/target/_objs/output_{number}.o"),
        digest: Some(rex::Digest { hash: "5a".repeat(32), size_bytes: 4096 }),
        ..Default::default()
    };
    rex::ActionResult { output_files: (0..OUTPUTS).map(output).collect(), ..Default::default() }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Floor {
    type GetTreeStream = BoxStream<'static, Result<rex::GetTreeResponse, Status>>;
    type GetChunkMappingStream = BoxStream<'static, Result<rex::GetChunkMappingResponse, Status>>;

    async fn find_missing_blobs(
        &self,
        request: Request<rex::FindMissingBlobsRequest>,
    ) -> Result<Response<rex::FindMissingBlobsResponse>, Status> {
        let mut missing_blob_digests = request.into_inner().blob_digests;
        missing_blob_digests.truncate(MISSING);
        Ok(Response::new(rex::FindMissingBlobsResponse { missing_blob_digests }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<rex::BatchUpdateBlobsRequest>,
    ) -> Result<Response<rex::BatchUpdateBlobsResponse>, Status> {
        let answer = |request: rex::batch_update_blobs_request::Request| rex::batch_update_blobs_response::Response {
            digest: request.digest,
            status: Some(rpc::Status::default()),
        };
        let responses = request.into_inner().requests.into_iter().map(answer).collect();
        Ok(Response::new(rex::BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<rex::BatchReadBlobsRequest>,
    ) -> Result<Response<rex::BatchReadBlobsResponse>, Status> {
        let answer = |digest| rex::batch_read_blobs_response::Response {
            digest: Some(digest),
            data: self.buffer[..SMALL_BLOB_BYTES].to_vec(),
            compressor: 0,
            status: Some(rpc::Status::default()),
        };
        let responses = request.into_inner().digests.into_iter().map(answer).collect();
        Ok(Response::new(rex::BatchReadBlobsResponse { responses }))
    }

    async fn get_tree(&self, _: Request<rex::GetTreeRequest>) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented("no row asks for this"))
    }

    async fn split_blob(&self, _: Request<rex::SplitBlobRequest>) -> Result<Response<rex::SplitBlobResponse>, Status> {
        Err(Status::unimplemented("no row asks for this"))
    }

    async fn splice_blob(
        &self,
        _: Request<rex::SpliceBlobRequest>,
    ) -> Result<Response<rex::SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("no row asks for this"))
    }

    async fn get_chunk_mapping(
        &self,
        _: Request<rex::GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(Status::unimplemented("no row asks for this"))
    }

    async fn register_chunk_mapping(
        &self,
        _: Request<Streaming<rex::RegisterChunkMappingRequest>>,
    ) -> Result<Response<rex::RegisterChunkMappingResponse>, Status> {
        Err(Status::unimplemented("no row asks for this"))
    }
}

#[tonic::async_trait]
impl ActionCache for Floor {
    async fn get_action_result(
        &self,
        request: Request<rex::GetActionResultRequest>,
    ) -> Result<Response<rex::ActionResult>, Status> {
        if request.into_inner().action_digest.is_some_and(|digest| digest.size_bytes == MISS_SIZE_BYTES) {
            return Err(Status::not_found("a miss"));
        }
        Ok(Response::new(rex::ActionResult::clone(&self.result)))
    }

    async fn update_action_result(
        &self,
        request: Request<rex::UpdateActionResultRequest>,
    ) -> Result<Response<rex::ActionResult>, Status> {
        Ok(Response::new(request.into_inner().action_result.unwrap_or_default()))
    }
}

#[tonic::async_trait]
impl bs::byte_stream_server::ByteStream for Floor {
    type ReadStream = BoxStream<'static, Result<bs::ReadResponse, Status>>;

    async fn read(&self, request: Request<bs::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let name = request.into_inner().resource_name;
        let size = name.rsplit('/').next().and_then(|size| size.parse::<usize>().ok());
        let size = size.filter(|size| *size <= BUFFER_BYTES).ok_or_else(|| Status::invalid_argument("no size"))?;
        let buffer = Arc::clone(&self.buffer);
        let pieces = stream::iter((0..size).step_by(PIECE_BYTES))
            .map(move |start| Ok(bs::ReadResponse { data: buffer[start..size.min(start + PIECE_BYTES)].to_vec() }));
        Ok(Response::new(pieces.boxed()))
    }

    async fn write(
        &self,
        request: Request<Streaming<bs::WriteRequest>>,
    ) -> Result<Response<bs::WriteResponse>, Status> {
        let mut messages = request.into_inner();
        let mut received = 0;
        while let Some(message) = messages.message().await? {
            received += message.data.len();
        }
        let committed_size = i64::try_from(received).map_err(|_| Status::out_of_range("too much"))?;
        Ok(Response::new(bs::WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        _: Request<bs::QueryWriteStatusRequest>,
    ) -> Result<Response<bs::QueryWriteStatusResponse>, Status> {
        Err(Status::unimplemented("no row asks for this"))
    }
}

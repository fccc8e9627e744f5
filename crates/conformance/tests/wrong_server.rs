//! The suite must be able to fail: run against a server that says yes to everything, and holds nothing, it passes
//! only the cases that such a server cannot get wrong.

use std::pin::Pin;

use gf_conformance::{Config, Verdict};
use gf_reapi::bytestream::byte_stream_server::{ByteStream, ByteStreamServer};
use gf_reapi::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest, WriteResponse,
};
use gf_reapi::execution::action_cache_server::{ActionCache, ActionCacheServer};
use gf_reapi::execution::capabilities_server::{Capabilities, CapabilitiesServer};
use gf_reapi::execution::content_addressable_storage_server::{
    ContentAddressableStorage, ContentAddressableStorageServer,
};
use gf_reapi::execution::execution_server::{Execution, ExecutionServer};
use gf_reapi::execution::*;
use gf_reapi::longrunning::operations_server::{Operations, OperationsServer};
use gf_reapi::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse,
    Operation, WaitOperationRequest, operation,
};
use gf_reapi::semver::SemVer;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

type Answers<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;
type Answer<M> = Result<Response<M>, Status>;

/// Says yes to everything.
#[derive(Clone)]
struct Yes;

fn yes<M: Default>() -> Answer<M> {
    Ok(Response::new(M::default()))
}

fn once<M: Send + 'static>(message: M) -> Answer<Answers<M>> {
    Ok(Response::new(Box::pin(tokio_stream::once(Ok(message)))))
}

#[tonic::async_trait]
impl ByteStream for Yes {
    type ReadStream = Answers<ReadResponse>;

    async fn read(&self, _: Request<ReadRequest>) -> Answer<Self::ReadStream> {
        once(ReadResponse { data: (&b"yes"[..]).into() })
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Answer<WriteResponse> {
        let mut stream = request.into_inner();
        while let Some(Ok(_)) = stream.next().await {}
        Ok(Response::new(WriteResponse { committed_size: 3 }))
    }

    async fn query_write_status(&self, _: Request<QueryWriteStatusRequest>) -> Answer<QueryWriteStatusResponse> {
        Ok(Response::new(QueryWriteStatusResponse { committed_size: 3, complete: true }))
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Yes {
    type GetTreeStream = Answers<GetTreeResponse>;
    type GetChunkMappingStream = Answers<GetChunkMappingResponse>;

    async fn find_missing_blobs(&self, _: Request<FindMissingBlobsRequest>) -> Answer<FindMissingBlobsResponse> {
        yes()
    }

    async fn batch_update_blobs(&self, request: Request<BatchUpdateBlobsRequest>) -> Answer<BatchUpdateBlobsResponse> {
        let requests = request.into_inner().requests.into_iter();
        let responses =
            requests.map(|request| batch_update_blobs_response::Response { digest: request.digest, status: None });
        Ok(Response::new(BatchUpdateBlobsResponse { responses: responses.collect() }))
    }

    async fn batch_read_blobs(&self, request: Request<BatchReadBlobsRequest>) -> Answer<BatchReadBlobsResponse> {
        let digests = request.into_inner().digests.into_iter();
        let responses = digests.map(|digest| batch_read_blobs_response::Response {
            digest: Some(digest),
            data: (&b"yes"[..]).into(),
            ..Default::default()
        });
        Ok(Response::new(BatchReadBlobsResponse { responses: responses.collect() }))
    }

    async fn get_tree(&self, _: Request<GetTreeRequest>) -> Answer<Self::GetTreeStream> {
        once(GetTreeResponse { directories: vec![Directory::default(); 2], ..Default::default() })
    }

    async fn split_blob(&self, request: Request<SplitBlobRequest>) -> Answer<SplitBlobResponse> {
        let chunk_digests = request.into_inner().blob_digest.into_iter().collect();
        Ok(Response::new(SplitBlobResponse { chunk_digests, chunking_function: 1 }))
    }

    async fn splice_blob(&self, request: Request<SpliceBlobRequest>) -> Answer<SpliceBlobResponse> {
        Ok(Response::new(SpliceBlobResponse { blob_digest: request.into_inner().blob_digest }))
    }

    async fn get_chunk_mapping(&self, request: Request<GetChunkMappingRequest>) -> Answer<Self::GetChunkMappingStream> {
        let chunk_digests = request.into_inner().blob_digest.into_iter().collect();
        once(GetChunkMappingResponse { chunk_digests, chunking_function: 1 })
    }

    async fn register_chunk_mapping(
        &self,
        _: Request<Streaming<RegisterChunkMappingRequest>>,
    ) -> Answer<RegisterChunkMappingResponse> {
        yes()
    }
}

#[tonic::async_trait]
impl ActionCache for Yes {
    async fn get_action_result(&self, _: Request<GetActionResultRequest>) -> Answer<ActionResult> {
        Ok(Response::new(ActionResult { stdout_raw: (&b"yes"[..]).into(), ..Default::default() }))
    }

    async fn update_action_result(&self, _: Request<UpdateActionResultRequest>) -> Answer<ActionResult> {
        yes()
    }
}

/// An operation that was done before it began, and that nobody can tell apart from another.
fn done() -> Operation {
    let response = ExecuteResponse { result: Some(ActionResult::default()), ..Default::default() };
    let response = prost_types::Any { type_url: "yes".into(), value: prost::Message::encode_to_vec(&response) };
    Operation { done: true, result: Some(operation::Result::Response(response)), ..Default::default() }
}

#[tonic::async_trait]
impl Execution for Yes {
    type ExecuteStream = Answers<Operation>;
    type WaitExecutionStream = Answers<Operation>;

    async fn execute(&self, _: Request<ExecuteRequest>) -> Answer<Self::ExecuteStream> {
        once(done())
    }

    async fn wait_execution(&self, _: Request<WaitExecutionRequest>) -> Answer<Self::WaitExecutionStream> {
        once(done())
    }
}

#[tonic::async_trait]
impl Operations for Yes {
    async fn list_operations(&self, _: Request<ListOperationsRequest>) -> Answer<ListOperationsResponse> {
        yes()
    }

    async fn get_operation(&self, _: Request<GetOperationRequest>) -> Answer<Operation> {
        Ok(Response::new(done()))
    }

    async fn delete_operation(&self, _: Request<DeleteOperationRequest>) -> Answer<()> {
        yes()
    }

    async fn cancel_operation(&self, _: Request<CancelOperationRequest>) -> Answer<()> {
        yes()
    }

    async fn wait_operation(&self, _: Request<WaitOperationRequest>) -> Answer<Operation> {
        Ok(Response::new(done()))
    }
}

#[tonic::async_trait]
impl Capabilities for Yes {
    async fn get_capabilities(&self, _: Request<GetCapabilitiesRequest>) -> Answer<ServerCapabilities> {
        let cache = CacheCapabilities {
            digest_functions: vec![0, 1, 9],
            action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities { update_enabled: true }),
            max_batch_total_size_bytes: 1 << 20,
            max_cas_blob_size_bytes: 1 << 30,
            supported_compressors: vec![1, 99],
            supported_batch_update_compressors: vec![1],
            split_blob_support: true,
            splice_blob_support: true,
            fast_cdc_2020_params: Some(FastCdc2020Params { avg_chunk_size_bytes: 1 << 19, seed: 0 }),
            ..Default::default()
        };
        let range = priority_capabilities::PriorityRange { min_priority: 5, max_priority: -5 };
        let execution = ExecutionCapabilities {
            exec_enabled: true,
            digest_functions: vec![0, 1, 9],
            execution_priority_capabilities: Some(PriorityCapabilities { priorities: vec![range] }),
            supported_node_properties: vec!["mtime".into(), "unix_mode".into()],
            ..Default::default()
        };
        let version = |minor| Some(SemVer { major: 2, minor, ..Default::default() });
        Ok(Response::new(ServerCapabilities {
            cache_capabilities: Some(cache),
            execution_capabilities: Some(execution),
            deprecated_api_version: version(14),
            low_api_version: version(0),
            high_api_version: version(13),
        }))
    }
}

/// The cases that ask only whether something is taken, or where the specification leaves the answer to the server.
const YES_IS_RIGHT: [&str; 11] = [
    "22-find-missing-none",
    "23-batch-update-nothing",
    "26-tree-page-token-unknown",
    "27-split-small-blob",
    "28b-get-chunk-mapping-small-blob",
    "29-fastcdc-parameters",
    "32-update-without-result",
    "34-limits",
    "34-malformed-instance",
    "34-unknown-instance",
    "59-cancel-unknown",
];

/// The cases that can be asked of no server from outside, and say so.
const NEVER_ASKED: [&str; 2] = ["58-worker-dies", "63-input-lost-while-executing"];

#[tokio::test]
async fn a_server_that_says_yes_to_everything_fails() {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let serve = Server::builder()
        .add_service(ByteStreamServer::new(Yes))
        .add_service(ContentAddressableStorageServer::new(Yes).max_decoding_message_size(8 << 20))
        .add_service(ActionCacheServer::new(Yes))
        .add_service(CapabilitiesServer::new(Yes))
        .add_service(ExecutionServer::new(Yes))
        .add_service(OperationsServer::new(Yes))
        .serve_with_incoming(incoming);
    let config = Config {
        read_only_token: Some("may not write".into()),
        platform: vec![("OSFamily".into(), "linux".into())],
        ..Config::new(&format!("grpc://{address}"), 1)
    };
    let outcomes = tokio::select! {
        served = serve => panic!("the server ended: {served:?}"),
        outcomes = gf_conformance::run(&config, |_| {}) => outcomes.unwrap(),
    };

    let not_failed: Vec<_> =
        outcomes.iter().filter(|outcome| outcome.verdict != Verdict::Fail).map(|outcome| outcome.case).collect();
    let mut expected = [&YES_IS_RIGHT[..], &NEVER_ASKED].concat();
    expected.sort_unstable();
    assert_eq!(not_failed, expected);
    assert_eq!(outcomes.len(), gf_conformance::case_names().len());
}

#[tokio::test]
async fn nobody_there_is_told_apart_from_failing() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = gf_conformance::run(&Config::new(&format!("grpc://{unused}"), 1), |_| {}).await;
    assert!(matches!(ended, Err(gf_conformance::RunError::Unreachable { .. })), "{ended:?}");
}

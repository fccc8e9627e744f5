//! The server's side in memory: blobs, and one stream that a test drives.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::bytestream::byte_stream_server::ByteStream;
use gf_reapi::bytestream::*;
use gf_reapi::execution::content_addressable_storage_server::ContentAddressableStorage;
use gf_reapi::execution::*;
use gf_reapi::worker::workers_server::Workers;
use gf_reapi::worker::{FromWorker, ToWorker, Welcome, to_worker};
use gf_reapi::{ResourceName, WireDigest, rpc};
use prost_types::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

/// The credential that blobs are read and written with.
pub(crate) const CREDENTIAL: &str = "credential-of-the-assignment";
pub(crate) const TOKEN: &str = "token-of-the-worker";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a worker sees of a server.
#[derive(Clone)]
pub(crate) struct MemoryServer {
    pub(crate) state: Arc<State>,
}

#[derive(Default)]
pub(crate) struct State {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    /// Digests asked of BatchReadBlobs and Read.
    read: Mutex<Vec<Digest>>,
    /// How often each blob was written.
    written: Mutex<HashMap<Digest, usize>>,
    /// Calls for blobs that will be told that nobody is there.
    pub(crate) unavailable: AtomicUsize,
    pub(crate) max_batch_bytes: u64,
    attached: Mutex<Option<mpsc::Sender<Attached>>>,
}

/// One stream of a worker.
pub(crate) struct Attached {
    pub(crate) orders: mpsc::Sender<Result<ToWorker, Status>>,
    pub(crate) said: Streaming<FromWorker>,
}

impl State {
    pub(crate) fn new(max_batch_bytes: u64, attached: mpsc::Sender<Attached>) -> Self {
        Self { max_batch_bytes, attached: Mutex::new(Some(attached)), ..Self::default() }
    }

    pub(crate) fn put(&self, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(DigestFunction::Sha256, &bytes);
        self.blobs.lock().unwrap().insert(digest, bytes);
        digest
    }

    pub(crate) fn get(&self, digest: &WireDigest) -> Bytes {
        let digest = digest.to_digest(DigestFunction::Sha256).unwrap();
        if digest.is_empty() { Bytes::new() } else { self.blobs.lock().unwrap().get(&digest).unwrap().clone() }
    }

    pub(crate) fn remove(&self, digest: &Digest) {
        self.blobs.lock().unwrap().remove(digest);
    }

    /// What was read since the last question.
    pub(crate) fn take_read(&self) -> Vec<Digest> {
        std::mem::take(&mut self.read.lock().unwrap())
    }

    pub(crate) fn times_written(&self, digest: &Digest) -> usize {
        self.written.lock().unwrap().get(digest).copied().unwrap_or_default()
    }

    fn read(&self, digest: Digest) -> Option<Bytes> {
        self.read.lock().unwrap().push(digest);
        self.blobs.lock().unwrap().get(&digest).cloned()
    }

    fn write(&self, named: Digest, bytes: Bytes) -> Result<(), Status> {
        if self.put(bytes) != named {
            return Err(Status::invalid_argument("other bytes than those of the digest"));
        }
        *self.written.lock().unwrap().entry(named).or_default() += 1;
        Ok(())
    }
}

fn check<T>(request: &Request<T>, credential: &str) -> Result<(), Status> {
    let found = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    match found == Some(&format!("Bearer {credential}")) {
        true => Ok(()),
        false => Err(Status::unauthenticated("a wrong credential")),
    }
}

impl State {
    fn check_available(&self) -> Result<(), Status> {
        let take = |left: usize| left.checked_sub(1);
        match self.unavailable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Err(Status::unavailable("not for a moment")),
            Err(_) => Ok(()),
        }
    }
}

fn digest(wire: Option<WireDigest>) -> Digest {
    wire.unwrap_or_default().to_digest(DigestFunction::Sha256).unwrap()
}

#[tonic::async_trait]
impl Workers for MemoryServer {
    type AttachStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn attach(&self, request: Request<Streaming<FromWorker>>) -> Result<Response<Self::AttachStream>, Status> {
        check(&request, TOKEN)?;
        let (orders, ordered) = mpsc::channel(64);
        let welcome = Welcome {
            worker_id: "w-1".to_owned(),
            heartbeat: Some(Duration { seconds: 1, nanos: 0 }),
            max_batch_total_size_bytes: self.state.max_batch_bytes,
        };
        orders.send(Ok(ToWorker { message: Some(to_worker::Message::Welcome(welcome)) })).await.unwrap();
        let attached = self.state.attached.lock().unwrap().clone().unwrap();
        attached.send(Attached { orders, said: request.into_inner() }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(ordered)))
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for MemoryServer {
    async fn find_missing_blobs(
        &self,
        request: Request<FindMissingBlobsRequest>,
    ) -> Result<Response<FindMissingBlobsResponse>, Status> {
        check(&request, CREDENTIAL)?;
        self.state.check_available()?;
        let blobs = self.state.blobs.lock().unwrap();
        let asked = request.into_inner().blob_digests;
        let missing = asked.into_iter().filter(|wire| !blobs.contains_key(&digest(Some(wire.clone()))));
        Ok(Response::new(FindMissingBlobsResponse { missing_blob_digests: missing.collect() }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<BatchUpdateBlobsRequest>,
    ) -> Result<Response<BatchUpdateBlobsResponse>, Status> {
        check(&request, CREDENTIAL)?;
        self.state.check_available()?;
        let requests = request.into_inner().requests;
        let total: usize = requests.iter().map(|request| request.data.len()).sum();
        assert!(total as u64 <= self.state.max_batch_bytes, "a batch beyond the limit");
        let mut responses = Vec::new();
        for request in requests {
            self.state.write(digest(request.digest.clone()), request.data)?;
            let status = Some(rpc::Status::default());
            responses.push(batch_update_blobs_response::Response { digest: request.digest, status });
        }
        Ok(Response::new(BatchUpdateBlobsResponse { responses }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<BatchReadBlobsRequest>,
    ) -> Result<Response<BatchReadBlobsResponse>, Status> {
        check(&request, CREDENTIAL)?;
        self.state.check_available()?;
        let mut responses = Vec::new();
        for wire in request.into_inner().digests {
            let found = self.state.read(digest(Some(wire.clone())));
            let code = if found.is_some() { Code::Ok } else { Code::NotFound };
            responses.push(batch_read_blobs_response::Response {
                digest: Some(wire),
                data: found.unwrap_or_default(),
                compressor: 0,
                status: Some(rpc::Status { code: code as i32, ..rpc::Status::default() }),
            });
        }
        let total: usize = responses.iter().map(|response| response.data.len()).sum();
        assert!(total as u64 <= self.state.max_batch_bytes, "a batch beyond the limit");
        Ok(Response::new(BatchReadBlobsResponse { responses }))
    }

    type GetTreeStream = Answers<GetTreeResponse>;
    async fn get_tree(&self, _: Request<GetTreeRequest>) -> Result<Response<Self::GetTreeStream>, Status> {
        Err(Status::unimplemented("no worker asks for it"))
    }

    async fn split_blob(&self, _: Request<SplitBlobRequest>) -> Result<Response<SplitBlobResponse>, Status> {
        Err(Status::unimplemented("no worker asks for it"))
    }

    async fn splice_blob(&self, _: Request<SpliceBlobRequest>) -> Result<Response<SpliceBlobResponse>, Status> {
        Err(Status::unimplemented("no worker asks for it"))
    }

    type GetChunkMappingStream = Answers<GetChunkMappingResponse>;
    async fn get_chunk_mapping(
        &self,
        _: Request<GetChunkMappingRequest>,
    ) -> Result<Response<Self::GetChunkMappingStream>, Status> {
        Err(Status::unimplemented("no worker asks for it"))
    }

    async fn register_chunk_mapping(
        &self,
        _: Request<Streaming<RegisterChunkMappingRequest>>,
    ) -> Result<Response<RegisterChunkMappingResponse>, Status> {
        Err(Status::unimplemented("no worker asks for it"))
    }
}

#[tonic::async_trait]
impl ByteStream for MemoryServer {
    type ReadStream = Answers<ReadResponse>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        check(&request, CREDENTIAL)?;
        self.state.check_available()?;
        let name = ResourceName::parse(&request.get_ref().resource_name).unwrap();
        let bytes = self.state.read(*name.digest()).ok_or_else(|| Status::not_found("no such blob"))?;
        let pieces: Vec<_> =
            bytes.chunks(10_000).map(|piece| Ok(ReadResponse { data: Bytes::copy_from_slice(piece) })).collect();
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Result<Response<WriteResponse>, Status> {
        check(&request, CREDENTIAL)?;
        self.state.check_available()?;
        let mut messages = request.into_inner();
        let (mut name, mut bytes) = (None, BytesMut::new());
        while let Some(message) = messages.message().await? {
            name.get_or_insert(message.resource_name);
            assert_eq!(message.write_offset, bytes.len() as i64);
            bytes.extend_from_slice(&message.data);
            if message.finish_write {
                break;
            }
        }
        let name = ResourceName::parse(&name.unwrap()).unwrap();
        let committed_size = bytes.len() as i64;
        self.state.write(*name.digest(), bytes.freeze())?;
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        Err(Status::unimplemented("no worker asks for it"))
    }
}

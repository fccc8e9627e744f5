//! Calls of methods by their path, so that tests go through all of them.

use std::future::Future;

use bytes::Bytes;
use gf_digest::Digest;
use gf_reapi::bytestream::byte_stream_client::ByteStreamClient;
use gf_reapi::bytestream::{QueryWriteStatusRequest, ReadRequest, WriteRequest};
use gf_reapi::execution::action_cache_client::ActionCacheClient;
use gf_reapi::execution::capabilities_client::CapabilitiesClient;
use gf_reapi::execution::content_addressable_storage_client::ContentAddressableStorageClient;
use gf_reapi::execution::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest, GetActionResultRequest,
    GetCapabilitiesRequest, GetChunkMappingRequest, GetTreeRequest, OutputFile, RegisterChunkMappingRequest,
    SpliceBlobRequest, SplitBlobRequest, UpdateActionResultRequest, batch_update_blobs_request,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::execution::OF_OPERATIONS;
use crate::server::{Server, TOKEN, noise, sha256};

/// What a caller learns about a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Present,
    Absent,
}

pub(crate) struct Client {
    pub(crate) channel: Channel,
    pub(crate) token: Option<&'static str>,
}

impl Client {
    pub(crate) async fn of(server: &Server, token: Option<&'static str>) -> Self {
        Self { channel: server.channel().await, token }
    }

    pub(crate) async fn holder(server: &Server) -> Self {
        Self::of(server, Some(TOKEN)).await
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = self.token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        request
    }

    pub(crate) fn storage(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel.clone())
    }

    pub(crate) fn bytes(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel.clone())
    }

    pub(crate) fn results(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.channel.clone())
    }

    pub(crate) async fn capabilities(&self, instance: &str) -> Result<bool, Status> {
        let request = self.request(GetCapabilitiesRequest { instance_name: instance.to_owned() });
        let answer = CapabilitiesClient::new(self.channel.clone()).get_capabilities(request).await?.into_inner();
        Ok(answer.cache_capabilities.unwrap().action_cache_update_capabilities.unwrap().update_enabled)
    }

    pub(crate) async fn put(&self, instance: &str, bytes: &[u8]) -> Result<Digest, Status> {
        let entry = batch_update_blobs_request::Request {
            digest: Some(sha256(bytes).into()),
            data: Bytes::copy_from_slice(bytes),
            compressor: 0,
        };
        self.batch_update(instance, entry).await.map(|()| sha256(bytes))
    }

    pub(crate) async fn batch_update(
        &self,
        instance: &str,
        entry: batch_update_blobs_request::Request,
    ) -> Result<(), Status> {
        let request = BatchUpdateBlobsRequest {
            instance_name: instance.to_owned(),
            requests: vec![entry],
            ..BatchUpdateBlobsRequest::default()
        };
        let answer = self.storage().batch_update_blobs(self.request(request)).await?.into_inner();
        let status = answer.responses.into_iter().next().unwrap().status.unwrap();
        if status.code == 0 { Ok(()) } else { Err(Status::new(Code::from(status.code), status.message)) }
    }

    pub(crate) async fn write(&self, messages: Vec<WriteRequest>) -> Result<i64, Status> {
        let request = self.request(tokio_stream::iter(messages));
        Ok(self.bytes().write(request).await?.into_inner().committed_size)
    }

    /// Calls a method about a blob of `size` bytes that is also a directory, an action, and a result's output, and
    /// tells what it reveals. `None` for a method that is not known here.
    pub(crate) async fn call(&self, path: &str, instance: &str, blob: Digest) -> Option<Result<Seen, Status>> {
        let (_, method) = path.rsplit_once('/')?;
        Some(match method {
            "GetCapabilities" => self.capabilities(instance).await.map(|_| Seen::Absent),
            "FindMissingBlobs" => self.find_missing(instance, blob).await,
            "BatchReadBlobs" => self.batch_read(instance, blob).await,
            "BatchUpdateBlobs" => self.claim_with_other_bytes(instance, blob).await,
            "GetTree" => self.get_tree(instance, blob).await,
            "SplitBlob" => self.split(instance, blob).await,
            "GetChunkMapping" => self.get_chunk_mapping(instance, blob).await,
            "SpliceBlob" => self.splice(instance, blob).await,
            "RegisterChunkMapping" => self.register_chunk_mapping(instance, blob).await,
            "Read" => self.read(instance, blob).await,
            "Write" => self.write_a_part(instance, blob).await,
            "QueryWriteStatus" => self.query_write_status(instance, blob).await,
            "GetActionResult" => self.get_result(instance, blob).await,
            "UpdateActionResult" => self.store_result_and_look(instance, blob).await,
            "Execute" => self.execute(instance, blob).await,
            method if OF_OPERATIONS.contains(&method) => self.call_about_operation(method, instance, blob).await,
            "Attach" => self.attach().await,
            _ => return None,
        })
    }

    async fn find_missing(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = FindMissingBlobsRequest {
            instance_name: instance.to_owned(),
            blob_digests: vec![blob.into()],
            digest_function: 0,
        };
        let answer = self.storage().find_missing_blobs(self.request(request)).await?.into_inner();
        Ok(if answer.missing_blob_digests.is_empty() { Seen::Present } else { Seen::Absent })
    }

    async fn batch_read(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = BatchReadBlobsRequest {
            instance_name: instance.to_owned(),
            digests: vec![blob.into()],
            ..BatchReadBlobsRequest::default()
        };
        let answer = self.storage().batch_read_blobs(self.request(request)).await?.into_inner();
        let status = answer.responses.into_iter().next().unwrap().status.unwrap();
        seen(Err::<(), _>(Status::new(Code::from(status.code), status.message)))
    }

    async fn claim_with_other_bytes(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let data = Bytes::from(noise(4711, usize::try_from(blob.size_bytes()).unwrap()));
        let entry = batch_update_blobs_request::Request { digest: Some(blob.into()), data, compressor: 0 };
        match self.batch_update(instance, entry).await {
            Ok(()) => Ok(Seen::Present),
            Err(status) if status.message().contains("announced as") => Ok(Seen::Absent),
            Err(status) => Err(status),
        }
    }

    async fn get_tree(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = GetTreeRequest {
            instance_name: instance.to_owned(),
            root_digest: Some(blob.into()),
            ..GetTreeRequest::default()
        };
        seen(async { self.storage().get_tree(self.request(request)).await?.into_inner().message().await }.await)
    }

    async fn split(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = SplitBlobRequest {
            instance_name: instance.to_owned(),
            blob_digest: Some(blob.into()),
            ..SplitBlobRequest::default()
        };
        seen(self.storage().split_blob(self.request(request)).await)
    }

    async fn get_chunk_mapping(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = GetChunkMappingRequest {
            instance_name: instance.to_owned(),
            blob_digest: Some(blob.into()),
            digest_function: blob.function().number(),
            chunking_function: 0,
        };
        seen(
            async { self.storage().get_chunk_mapping(self.request(request)).await?.into_inner().message().await }.await,
        )
    }

    async fn splice(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = SpliceBlobRequest {
            instance_name: instance.to_owned(),
            blob_digest: Some(blob.into()),
            chunk_digests: vec![blob.into()],
            ..SpliceBlobRequest::default()
        };
        seen(self.storage().splice_blob(self.request(request)).await)
    }

    async fn register_chunk_mapping(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = RegisterChunkMappingRequest {
            instance_name: instance.to_owned(),
            blob_digest: Some(blob.into()),
            chunk_digests: vec![blob.into()],
            digest_function: blob.function().number(),
            chunking_function: 0,
        };
        seen(self.storage().register_chunk_mapping(self.request(tokio_stream::iter(vec![request]))).await)
    }

    async fn read(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = ReadRequest { resource_name: resource_name(instance, "", blob), ..ReadRequest::default() };
        seen(async { self.bytes().read(self.request(request)).await?.into_inner().message().await }.await)
    }

    async fn write_a_part(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let message = WriteRequest {
            resource_name: resource_name(instance, "uploads/5a7c/", blob),
            data: Bytes::from_static(b"{"),
            ..WriteRequest::default()
        };
        let committed = self.write(vec![message]).await?;
        Ok(if u64::try_from(committed) == Ok(blob.size_bytes()) { Seen::Present } else { Seen::Absent })
    }

    async fn query_write_status(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let request = QueryWriteStatusRequest { resource_name: resource_name(instance, "uploads/77/", blob) };
        let answer = self.bytes().query_write_status(self.request(request)).await?.into_inner();
        Ok(if answer.complete { Seen::Present } else { Seen::Absent })
    }

    pub(crate) async fn get_result(&self, instance: &str, action: Digest) -> Result<Seen, Status> {
        let request = GetActionResultRequest {
            instance_name: instance.to_owned(),
            action_digest: Some(action.into()),
            ..GetActionResultRequest::default()
        };
        seen(self.results().get_action_result(self.request(request)).await)
    }

    pub(crate) async fn store_result(&self, instance: &str, action: Digest, output: Digest) -> Result<(), Status> {
        let output = OutputFile { path: "o".to_owned(), digest: Some(output.into()), ..OutputFile::default() };
        let request = UpdateActionResultRequest {
            instance_name: instance.to_owned(),
            action_digest: Some(action.into()),
            action_result: Some(ActionResult { output_files: vec![output], ..ActionResult::default() }),
            ..UpdateActionResultRequest::default()
        };
        self.results().update_action_result(self.request(request)).await.map(|_| ())
    }

    /// A result that names the blob is visible only where the blob is.
    async fn store_result_and_look(&self, instance: &str, blob: Digest) -> Result<Seen, Status> {
        let action = sha256(b"an action of another kind");
        self.store_result(instance, action, blob).await?;
        self.get_result(instance, action).await
    }
}

/// NOT_FOUND is what a caller must not be able to tell from a blob of somebody else.
pub(crate) fn seen<T>(answer: Result<T, Status>) -> Result<Seen, Status> {
    match answer {
        Ok(_) => Ok(Seen::Present),
        Err(status) if status.code() == Code::Ok => Ok(Seen::Present),
        Err(status) if status.code() == Code::NotFound => Ok(Seen::Absent),
        Err(status) => Err(status),
    }
}

pub(crate) fn resource_name(instance: &str, upload: &str, blob: Digest) -> String {
    let slash = if instance.is_empty() { "" } else { "/" };
    format!("{instance}{slash}{upload}blobs/{}/{}", blob.hash_hex(), blob.size_bytes())
}

/// Sends any bytes as the only message of a call.
pub(crate) fn call_with_bytes(channel: Channel, path: &str, bytes: Bytes) -> impl Future<Output = Status> {
    let path = path.parse().unwrap();
    async move {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let answer = client.server_streaming(Request::new(bytes), path, AnyBytes).await;
        match answer {
            Err(status) => status,
            Ok(answer) => match answer.into_inner().message().await {
                Err(status) => status,
                Ok(_) => Status::new(Code::Ok, ""),
            },
        }
    }
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct AnyBytes;

impl tonic::codec::Codec for AnyBytes {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for AnyBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl tonic::codec::Decoder for AnyBytes {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let left = bytes::Buf::remaining(buffer);
        bytes::Buf::advance(buffer, left);
        Ok(Some(()))
    }
}

//! What a case works with: its own random content, and the calls of the protocol in the terms of the cases.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_reapi::bytestream::byte_stream_client::ByteStreamClient;
use gf_reapi::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, WriteRequest, WriteResponse,
};
use gf_reapi::execution::action_cache_client::ActionCacheClient;
use gf_reapi::execution::batch_read_blobs_response::Response as BatchReadEntry;
use gf_reapi::execution::batch_update_blobs_request::Request as BatchUpdateEntry;
use gf_reapi::execution::batch_update_blobs_response::Response as BatchUpdateAnswer;
use gf_reapi::execution::content_addressable_storage_client::ContentAddressableStorageClient;
use gf_reapi::execution::{BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest, compressor};
use gf_reapi::{Compressor, ResourceName, WireDigest};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tonic::{Code, Status, Streaming};

use crate::blob::{Blob, write_requests};
use crate::finding::{Checked, Finding, describe, ensure, require, succeeds};
use crate::session::{Session, Transport};

/// The piece size of ordinary uploads.
const PIECE_BYTES: usize = 512 << 10;

/// No case reads a blob as large as this; a server that sends more is cut off.
const MAX_READ_BYTES: usize = 64 << 20;

/// A session as one case sees it.
pub(crate) struct Probe<'s> {
    pub(crate) session: &'s Session,
    random: StdRng,
}

impl<'s> Probe<'s> {
    pub(crate) fn new(session: &'s Session, case: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (session.config.seed, case).hash(&mut hasher);
        Self { session, random: StdRng::seed_from_u64(hasher.finish()) }
    }

    /// How long an execution may take.
    pub(crate) fn patience(&self) -> Duration {
        self.session.config.patience
    }

    // Content.

    /// Bytes that nothing compresses and no server has seen.
    pub(crate) fn blob(&mut self, size_bytes: usize) -> Blob {
        self.blob_by(DigestFunction::Sha256, size_bytes)
    }

    pub(crate) fn blob_by(&mut self, function: DigestFunction, size_bytes: usize) -> Blob {
        let mut bytes = vec![0; size_bytes];
        self.random.fill_bytes(&mut bytes);
        Blob::of(function, bytes)
    }

    /// Bytes that compress well and that no server has seen.
    pub(crate) fn compressible(&mut self, size_bytes: usize) -> Blob {
        let mut bytes: Vec<u8> = b"all work and no play ".iter().copied().cycle().take(size_bytes).collect();
        for place in bytes.iter_mut().step_by(97) {
            *place = self.random.random();
        }
        Blob::of(DigestFunction::Sha256, bytes)
    }

    pub(crate) fn uuid(&mut self) -> String {
        uuid::Builder::from_random_bytes(self.random.random()).into_uuid().to_string()
    }

    // Names.

    pub(crate) fn instance(&self) -> String {
        self.session.config.instance.clone()
    }

    fn instance_name(&self) -> Checked<InstanceName> {
        InstanceName::new(&self.session.config.instance).map_err(|error| Finding::Fail(error.to_string()))
    }

    pub(crate) fn read_name(&self, digest: Digest, compressor: Compressor) -> Checked<String> {
        Ok(ResourceName::Read { instance: self.instance_name()?, compressor, digest }.to_string())
    }

    /// A name for an upload of its own.
    pub(crate) fn write_name(&mut self, digest: Digest, compressor: Compressor) -> Checked<String> {
        let uuid = self.uuid();
        self.write_name_with(&uuid, digest, compressor)
    }

    pub(crate) fn write_name_with(&self, uuid: &str, digest: Digest, compressor: Compressor) -> Checked<String> {
        let instance = self.instance_name()?;
        Ok(ResourceName::Write { instance, uuid: uuid.into(), compressor, digest }.to_string())
    }

    /// A resource name with the instance in front of `rest`.
    pub(crate) fn name_of(&self, rest: &str) -> String {
        match self.session.config.instance.as_str() {
            "" => rest.to_owned(),
            instance => format!("{instance}/{rest}"),
        }
    }

    // What the server offers.

    pub(crate) fn require_function(&self, function: DigestFunction) -> Checked<()> {
        let offered = self.session.cache()?.digest_functions.contains(&function.number());
        require!(offered, "the server does not list {function} among its digest functions");
        Ok(())
    }

    pub(crate) fn require_zstd(&self) -> Checked<()> {
        let offered = self.session.cache()?.supported_compressors.contains(&(compressor::Value::Zstd as i32));
        require!(offered, "the server does not list ZSTD among its compressors");
        Ok(())
    }

    pub(crate) fn require_batch_zstd(&self) -> Checked<()> {
        let offered = &self.session.cache()?.supported_batch_update_compressors;
        require!(offered.contains(&(compressor::Value::Zstd as i32)), "the server takes no ZSTD in batches");
        Ok(())
    }

    pub(crate) fn require_action_cache_updates(&self) -> Checked<()> {
        let capabilities = self.session.cache()?.action_cache_update_capabilities;
        let offered = capabilities.is_some_and(|capabilities| capabilities.update_enabled);
        require!(offered, "the server does not let this caller store action results");
        Ok(())
    }

    // Clients.

    pub(crate) fn transport(&self) -> Transport {
        self.session.transport.clone()
    }

    pub(crate) fn storage(&self) -> ContentAddressableStorageClient<Transport> {
        ContentAddressableStorageClient::new(self.transport())
    }

    pub(crate) fn bytestream(&self) -> ByteStreamClient<Transport> {
        ByteStreamClient::new(self.transport())
    }

    pub(crate) fn action_cache(&self) -> ActionCacheClient<Transport> {
        ActionCacheClient::new(self.transport())
    }

    // Calls.

    pub(crate) async fn find_missing(
        &self,
        function: DigestFunction,
        digests: Vec<WireDigest>,
    ) -> Result<Vec<WireDigest>, Status> {
        let request = FindMissingBlobsRequest {
            instance_name: self.instance(),
            blob_digests: digests,
            digest_function: function.number(),
        };
        Ok(self.storage().find_missing_blobs(request).await?.into_inner().missing_blob_digests)
    }

    pub(crate) async fn batch_update(
        &self,
        function: DigestFunction,
        requests: Vec<BatchUpdateEntry>,
    ) -> Result<Vec<BatchUpdateAnswer>, Status> {
        let request =
            BatchUpdateBlobsRequest { instance_name: self.instance(), requests, digest_function: function.number() };
        Ok(self.storage().batch_update_blobs(request).await?.into_inner().responses)
    }

    pub(crate) async fn batch_read(
        &self,
        function: DigestFunction,
        digests: Vec<WireDigest>,
        acceptable: &[compressor::Value],
    ) -> Result<Vec<BatchReadEntry>, Status> {
        let request = BatchReadBlobsRequest {
            instance_name: self.instance(),
            digests,
            acceptable_compressors: acceptable.iter().map(|compressor| *compressor as i32).collect(),
            digest_function: function.number(),
        };
        Ok(self.storage().batch_read_blobs(request).await?.into_inner().responses)
    }

    pub(crate) async fn read(&self, name: &str, read_offset: i64, read_limit: i64) -> Result<Vec<u8>, Status> {
        let request = ReadRequest { resource_name: name.to_owned(), read_offset, read_limit };
        let mut stream = self.bytestream().read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(response) = stream.message().await? {
            bytes.extend_from_slice(&response.data);
            if bytes.len() > MAX_READ_BYTES {
                return Err(Status::internal("the suite stopped a read that does not end"));
            }
        }
        Ok(bytes)
    }

    pub(crate) async fn write(&self, requests: Vec<WriteRequest>) -> Result<WriteResponse, Status> {
        Ok(self.bytestream().write(tokio_stream::iter(requests)).await?.into_inner())
    }

    pub(crate) async fn write_status(&self, name: &str) -> Result<QueryWriteStatusResponse, Status> {
        let request = QueryWriteStatusRequest { resource_name: name.to_owned() };
        Ok(self.bytestream().query_write_status(request).await?.into_inner())
    }

    // Steps that many cases share.

    /// Uploads a blob as any client would.
    pub(crate) async fn upload(&mut self, blob: &Blob) -> Checked<()> {
        let name = self.write_name(blob.digest, Compressor::Identity)?;
        let answer = self.write(write_requests(&name, &blob.bytes, PIECE_BYTES)).await;
        succeeds("uploading the blob of the case", answer)?;
        Ok(())
    }

    /// Uploads many small blobs in batches.
    pub(crate) async fn upload_all(&self, blobs: &[Blob]) -> Checked<()> {
        const BATCH_BYTES: usize = 1 << 20;
        let mut begin = 0;
        while begin < blobs.len() {
            let mut bytes = 0;
            let mut end = begin;
            while end < blobs.len() && (end == begin || bytes + blobs[end].bytes.len() <= BATCH_BYTES) {
                bytes += blobs[end].bytes.len();
                end += 1;
            }
            let entries = blobs[begin..end].iter().map(identity_entry).collect();
            let answers = succeeds("uploading blobs", self.batch_update(DigestFunction::Sha256, entries).await)?;
            for answer in answers {
                succeeds("uploading blobs", crate::finding::entry_status(answer.status.as_ref()))?;
            }
            begin = end;
        }
        Ok(())
    }

    /// A blob of random bytes that the server holds.
    pub(crate) async fn stored(&mut self, size_bytes: usize) -> Checked<Blob> {
        let blob = self.blob(size_bytes);
        self.upload(&blob).await?;
        Ok(blob)
    }

    /// Whether the server reports the blob present.
    pub(crate) async fn is_present(&self, digest: Digest) -> Checked<bool> {
        let answer = self.find_missing(digest.function(), vec![digest.into()]).await;
        Ok(succeeds("FindMissingBlobs", answer)?.is_empty())
    }

    /// Fails if the server reports a blob present that it must not have, or serves it.
    pub(crate) async fn ensure_absent(&self, digest: Digest) -> Checked<()> {
        ensure!(!self.is_present(digest).await?, "the blob is reported present afterwards");
        let name = self.read_name(digest, Compressor::Identity)?;
        match self.read(&name, 0, 0).await {
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(Finding::Fail(format!("reading the blob afterwards: {}", describe(&status)))),
            Ok(bytes) => Err(Finding::Fail(format!("the blob can be read afterwards, {} bytes", bytes.len()))),
        }
    }

    /// Fails unless the blob is reported present and reads back as it is.
    pub(crate) async fn ensure_stored(&self, blob: &Blob) -> Checked<()> {
        ensure!(self.is_present(blob.digest).await?, "the blob is not reported present afterwards");
        let name = self.read_name(blob.digest, Compressor::Identity)?;
        let bytes = succeeds("reading the blob back", self.read(&name, 0, 0).await)?;
        ensure!(bytes == blob.bytes, "the blob reads back as {} other bytes", bytes.len());
        Ok(())
    }
}

/// An entry of BatchUpdateBlobs that carries the blob as it is.
pub(crate) fn identity_entry(blob: &Blob) -> BatchUpdateEntry {
    BatchUpdateEntry { digest: Some(blob.wire()), data: blob.bytes.clone(), compressor: 0 }
}

/// An entry of BatchUpdateBlobs with compressed bytes.
pub(crate) fn zstd_entry(digest: WireDigest, data: Bytes) -> BatchUpdateEntry {
    BatchUpdateEntry { digest: Some(digest), data, compressor: compressor::Value::Zstd as i32 }
}

/// All messages of a stream, at most `limit` of them.
pub(crate) async fn collect<M>(mut stream: Streaming<M>, limit: usize) -> Result<Vec<M>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
        if messages.len() > limit {
            return Err(Status::internal(format!("the suite stopped a stream of more than {limit} messages")));
        }
    }
    Ok(messages)
}

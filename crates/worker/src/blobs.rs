//! The blobs of one assignment, read and written over the Remote Execution API with the credential of the assignment.
//!
//! What always holds: what was read has the digest that was asked for; no blob that needs more than one message is ever
//! in memory as a whole. A call that fails hands the assignment back, unless the server only was not available for a
//! moment.

mod patience;

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction, Hasher, InstanceName};
use gf_reapi::bytestream::byte_stream_client::ByteStreamClient;
use gf_reapi::bytestream::{ReadRequest, WriteRequest};
use gf_reapi::execution::content_addressable_storage_client::ContentAddressableStorageClient;
use gf_reapi::execution::{
    BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest, batch_update_blobs_request::Request,
};
use gf_reapi::{Compressor, ResourceName, WireDigest};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::failure::Failure;

use patience::{Trouble, patiently};

/// What an entry of a batch costs beyond its bytes: digest, status, lengths.
const ENTRY_BYTES: u64 = 160;
/// Blobs of one batch.
const MAX_BATCH_COUNT: usize = 1000;
/// Digests of one question.
const MAX_QUESTION_COUNT: usize = 20_000;
/// What a server that names no limit takes.
const USUAL_BATCH_BYTES: u64 = 3 << 20;
/// Room in a message beside a full batch.
const MESSAGE_SLACK_BYTES: usize = 1 << 20;
/// Of one message of a long upload.
const CHUNK_BYTES: usize = 256 << 10;
/// Messages of an upload that wait for the connection.
const CHUNKS_AHEAD: usize = 4;

/// Reads and writes blobs.
#[derive(Clone)]
pub(crate) struct BlobClient {
    cas: ContentAddressableStorageClient<Channel>,
    streams: ByteStreamClient<Channel>,
    instance: InstanceName,
    function: DigestFunction,
    authorization: MetadataValue<Ascii>,
    batch_bytes: u64,
}

/// Where bytes of an output are.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Bytes(Bytes),
    File(std::path::PathBuf),
}

impl BlobClient {
    /// `max_batch_bytes` is what the server said, zero if it said nothing.
    pub(crate) fn new(
        channel: Channel,
        instance: InstanceName,
        function: DigestFunction,
        credential: &str,
        max_batch_bytes: u64,
    ) -> Result<Self, Failure> {
        let authorization = MetadataValue::try_from(format!("Bearer {credential}"))
            .map_err(|_| Failure::Worker("the credential of the assignment is no header".to_owned()))?;
        let batch_bytes = if max_batch_bytes == 0 { USUAL_BATCH_BYTES } else { max_batch_bytes };
        let message_bytes = usize::try_from(batch_bytes).unwrap_or(usize::MAX).saturating_add(MESSAGE_SLACK_BYTES);
        let cas = ContentAddressableStorageClient::new(channel.clone()).max_decoding_message_size(message_bytes);
        let streams = ByteStreamClient::new(channel).max_decoding_message_size(message_bytes);
        Ok(Self { cas, streams, instance, function, authorization, batch_bytes })
    }

    /// The same for blobs that have digests of another function.
    pub(crate) fn of_function(&self, function: DigestFunction) -> Self {
        Self { function, ..self.clone() }
    }

    pub(crate) const fn function(&self) -> DigestFunction {
        self.function
    }

    /// Whether a blob goes by itself, in a stream.
    pub(crate) const fn is_large(&self, digest: &Digest) -> bool {
        digest.size_bytes() + ENTRY_BYTES > self.batch_bytes / 2
    }

    /// Cuts a list of blobs, none of them large, into pieces of which each fits one call.
    pub(crate) fn batches(&self, digests: impl IntoIterator<Item = Digest>) -> Vec<Vec<Digest>> {
        let mut batches: Vec<Vec<Digest>> = Vec::new();
        let mut bytes = u64::MAX;
        for digest in digests {
            let costs = digest.size_bytes() + ENTRY_BYTES;
            let fits = bytes.saturating_add(costs) <= self.batch_bytes;
            match batches.last_mut() {
                Some(batch) if fits && batch.len() < MAX_BATCH_COUNT => {
                    batch.push(digest);
                    bytes += costs;
                }
                _ => {
                    batches.push(vec![digest]);
                    bytes = costs;
                }
            }
        }
        batches
    }

    /// Reads one batch. What is not there is left out.
    pub(crate) async fn read_batch(&self, digests: &[Digest]) -> Result<Vec<(Digest, Bytes)>, Failure> {
        let request = BatchReadBlobsRequest {
            instance_name: self.instance.as_str().to_owned(),
            digests: digests.iter().map(WireDigest::from).collect(),
            digest_function: self.function.number(),
            acceptable_compressors: Vec::new(),
        };
        let answer = patiently("read blobs", || {
            let (mut cas, request) = (self.cas.clone(), self.authorized(request.clone()));
            async move { Ok(cas.batch_read_blobs(request).await?.into_inner()) }
        });
        let answer = answer.await?;
        let mut read = Vec::with_capacity(answer.responses.len());
        for response in answer.responses {
            let status = response.status.unwrap_or_default();
            match Code::from(status.code) {
                Code::Ok => {}
                Code::NotFound => continue,
                code => return Err(failed("read a blob", &Status::new(code, status.message))),
            }
            let named = response.digest.unwrap_or_default().to_digest(self.function);
            let named = named.map_err(|error| Failure::Worker(format!("the server answered no digest: {error}")))?;
            if Digest::of(self.function, &response.data) != named {
                return Err(Failure::Worker(format!("the server sent other bytes than those of {named}")));
            }
            read.push((named, response.data));
        }
        Ok(read)
    }

    /// Reads one blob into a file that is empty. `false` when it is not there.
    pub(crate) async fn read_to_file(&self, digest: Digest, file: &File) -> Result<bool, Failure> {
        patiently("read a blob", || self.try_to_read(digest, file)).await
    }

    async fn try_to_read(&self, digest: Digest, file: &File) -> Result<bool, Trouble> {
        let name = ResourceName::Read { instance: self.instance.clone(), compressor: Compressor::Identity, digest };
        let request = ReadRequest { resource_name: name.to_string(), read_offset: 0, read_limit: 0 };
        let mut stream = match self.streams.clone().read(self.authorized(request)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(false),
            Err(status) => return Err(status.into()),
        };
        let mut sink = Some((emptied(file)?, Hasher::new(self.function)));
        loop {
            let data = match stream.message().await {
                Ok(Some(message)) => message.data,
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => return Ok(false),
                Err(status) => return Err(status.into()),
            };
            let Some((file, hasher)) = sink.take() else { break };
            if hasher.size_bytes() + data.len() as u64 > digest.size_bytes() {
                return Err(Failure::Worker(format!("the server sent more than the bytes of {digest}")).into());
            }
            sink = Some(blocking(move || append(file, hasher, &data)).await?);
        }
        match sink {
            Some((_, hasher)) if hasher.clone().finish() == digest => Ok(true),
            _ => Err(Failure::Worker(format!("the server sent other bytes than those of {digest}")).into()),
        }
    }

    /// Which of these the store does not have.
    pub(crate) async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, Failure> {
        let mut missing = Vec::new();
        for some in digests.chunks(MAX_QUESTION_COUNT) {
            let request = FindMissingBlobsRequest {
                instance_name: self.instance.as_str().to_owned(),
                blob_digests: some.iter().map(WireDigest::from).collect(),
                digest_function: self.function.number(),
            };
            let answer = patiently("ask for missing blobs", || {
                let (mut cas, request) = (self.cas.clone(), self.authorized(request.clone()));
                async move { Ok(cas.find_missing_blobs(request).await?.into_inner()) }
            });
            for digest in answer.await?.missing_blob_digests {
                let digest = digest.to_digest(self.function);
                missing
                    .push(digest.map_err(|error| Failure::Worker(format!("the server answered no digest: {error}")))?);
            }
        }
        Ok(missing)
    }

    /// Writes blobs that fit one call.
    pub(crate) async fn write_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Result<(), Failure> {
        let requests = blobs.into_iter().map(|(digest, data)| Request {
            digest: Some(digest.into()),
            data,
            compressor: gf_reapi::execution::compressor::Value::Identity as i32,
        });
        let request = BatchUpdateBlobsRequest {
            instance_name: self.instance.as_str().to_owned(),
            requests: requests.collect(),
            digest_function: self.function.number(),
        };
        let answer = patiently("write blobs", || {
            let (mut cas, request) = (self.cas.clone(), self.authorized(request.clone()));
            async move { Ok(cas.batch_update_blobs(request).await?.into_inner()) }
        });
        let answer = answer.await?;
        let refused =
            answer.responses.into_iter().filter_map(|response| response.status).find(|status| status.code != 0);
        match refused {
            None => Ok(()),
            Some(status) => Err(failed("write a blob", &Status::new(Code::from(status.code), status.message))),
        }
    }

    /// Writes one blob of any size from a file.
    pub(crate) async fn write_file(&self, digest: Digest, path: &Path) -> Result<(), Failure> {
        let write = || async {
            let file = tokio::fs::File::open(path).await.map_err(|error| Failure::io("open an output", error))?;
            self.write_stream(digest, file).await
        };
        patiently("write a blob", write).await
    }

    /// Writes one blob that is in memory.
    pub(crate) async fn write_bytes(&self, digest: Digest, bytes: Bytes) -> Result<(), Failure> {
        patiently("write a blob", || self.write_stream(digest, std::io::Cursor::new(bytes.clone()))).await
    }

    async fn write_stream(&self, digest: Digest, source: impl AsyncRead + Unpin) -> Result<(), Trouble> {
        let uuid = uuid::Uuid::new_v4().to_string().into();
        let instance = self.instance.clone();
        let name = ResourceName::Write { instance, uuid, compressor: Compressor::Identity, digest }.to_string();
        let (send, receive) = mpsc::channel(CHUNKS_AHEAD);
        let mut streams = self.streams.clone();
        let call = streams.write(self.authorized(ReceiverStream::new(receive)));
        let (sent, answer) = tokio::join!(send_chunks(source, digest.size_bytes(), name, send), call);
        // A server that has the blob already answers early and reads no more.
        let answer = answer?.into_inner();
        let committed = u64::try_from(answer.committed_size).unwrap_or_default();
        if committed == digest.size_bytes() {
            return Ok(());
        }
        sent?;
        Err(Failure::Worker(format!("the server took {committed} bytes of {digest}")).into())
    }

    fn authorized<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }
}

async fn send_chunks(
    mut source: impl AsyncRead + Unpin,
    size_bytes: u64,
    name: String,
    send: mpsc::Sender<WriteRequest>,
) -> Result<(), Failure> {
    let mut offset = 0_u64;
    let mut name = Some(name);
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
        while chunk.len() < CHUNK_BYTES {
            let read = source.read_buf(&mut chunk).await.map_err(|error| Failure::io("read an output", error))?;
            if read == 0 {
                break;
            }
        }
        let end = offset + chunk.len() as u64;
        let is_last = end >= size_bytes || chunk.is_empty();
        let request = WriteRequest {
            resource_name: name.take().unwrap_or_default(),
            write_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            finish_write: is_last,
            data: chunk.freeze(),
        };
        if is_last || send.is_closed() {
            // The server may have answered and hung up.
            let _ = send.send(request).await;
            return Ok(());
        }
        let _ = send.send(request).await;
        offset = end;
    }
}

/// The same file, of which a try before may have written a part.
fn emptied(file: &File) -> Result<File, Failure> {
    let empty = || {
        let mut file = file.try_clone()?;
        file.set_len(0)?;
        file.rewind()?;
        Ok(file)
    };
    empty().map_err(|error: std::io::Error| Failure::io("write an input", error))
}

fn append(mut file: File, mut hasher: Hasher, data: &[u8]) -> Result<(File, Hasher), Failure> {
    file.write_all(data).map_err(|error| Failure::io("write an input", error))?;
    hasher.update(data);
    Ok((file, hasher))
}

/// Work for the disk, away from the threads that talk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Failure::Worker(format!("a thread of the worker failed: {error}"))),
    }
}

fn failed(doing: &str, status: &Status) -> Failure {
    Failure::Worker(format!("cannot {doing}: {:?}: {}", status.code(), status.message()))
}

//! Large blobs as chunks: the two calls of REAPI 2.12 and their streamed successors of 2.13, over one function each.

use std::sync::Arc;

use futures::stream;
use gf_blobstore::StoreError;
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::{
    GetChunkMappingRequest, GetChunkMappingResponse, RegisterChunkMappingRequest, RegisterChunkMappingResponse,
    SpliceBlobRequest, SpliceBlobResponse, SplitBlobRequest, SplitBlobResponse, chunking_function,
};
use gf_tenancy::audit::Amount;
use gf_tenancy::{Authorized, CasRead, CasWrite};
use tonic::Status;

use super::super::status::IntoStatus;
use super::super::{Caller, Edge, grpc};
use super::{all, function, one};
use crate::edges::grpc::Messages;

/// How the store cuts, whatever function the client prefers.
const CHUNKING: i32 = chunking_function::Value::FastCdc2020 as i32;

/// Chunks of one blob: at the smallest chunk that may be advertised, more than the largest blob has.
const MAX_CHUNKS: usize = 1 << 20;

/// Chunks in one message of a streamed list: about 1.5 MB.
const CHUNKS_PER_MESSAGE: usize = 20_000;

/// Chunks in an answer that is one message: about 3.8 MB.
const MAX_CHUNKS_IN_ONE_MESSAGE: usize = 50_000;

pub(in super::super) async fn split(
    edge: Arc<Edge>,
    caller: Caller,
    request: SplitBlobRequest,
) -> Result<SplitBlobResponse, Status> {
    let grant = edge.authorize::<CasRead>(&caller, &request.instance_name)?;
    let blob = one("blob_digest", request.blob_digest.as_ref(), function(request.digest_function)?)?;
    let chunks = chunks_of(&edge, &grant, blob).await?;
    if chunks.len() > MAX_CHUNKS_IN_ONE_MESSAGE {
        return Err(Status::resource_exhausted("the blob has more chunks than a message holds: use GetChunkMapping"));
    }
    Ok(SplitBlobResponse { chunk_digests: chunks, chunking_function: CHUNKING })
}

pub(in super::super) async fn get_chunk_mapping(
    edge: Arc<Edge>,
    caller: Caller,
    request: GetChunkMappingRequest,
) -> Result<grpc::Frames, Status> {
    let grant = edge.authorize::<CasRead>(&caller, &request.instance_name)?;
    let blob = one("blob_digest", request.blob_digest.as_ref(), named_function(request.digest_function)?)?;
    let chunks = chunks_of(&edge, &grant, blob).await?;
    // The function counts in the first message only, and is left out of the others.
    let functions = std::iter::once(CHUNKING).chain(std::iter::repeat(0));
    let pages: Vec<_> = chunks
        .chunks(CHUNKS_PER_MESSAGE)
        .zip(functions)
        .map(|(page, chunking_function)| GetChunkMappingResponse { chunk_digests: page.to_vec(), chunking_function })
        .collect();
    Ok(Box::pin(stream::iter(pages.into_iter().map(|page| Ok(grpc::encode(&page))))))
}

async fn chunks_of(edge: &Edge, grant: &Authorized<CasRead>, blob: Digest) -> Result<Vec<WireDigest>, Status> {
    let chunks = edge.content.split(grant, blob).await.map_err(IntoStatus::into_status)?;
    Ok(chunks.iter().map(WireDigest::from).collect())
}

pub(in super::super) async fn splice(
    edge: Arc<Edge>,
    caller: Caller,
    request: SpliceBlobRequest,
) -> Result<SpliceBlobResponse, Status> {
    let grant = edge.authorize::<CasWrite>(&caller, &request.instance_name)?;
    let function = function(request.digest_function)?;
    let blob = one("blob_digest", request.blob_digest.as_ref(), function)?;
    let chunks = all(&request.chunk_digests, function)?;
    make_blob(&edge, &caller, &grant, blob, &chunks).await?;
    Ok(SpliceBlobResponse { blob_digest: Some(blob.into()) })
}

pub(in super::super) async fn register_chunk_mapping(
    edge: Arc<Edge>,
    caller: Caller,
    mut messages: Messages,
) -> Result<RegisterChunkMappingResponse, Status> {
    let first = next_within(&edge, &mut messages).await?;
    let first = first.ok_or_else(|| Status::invalid_argument("the stream has no message"))?;
    let grant = edge.authorize::<CasWrite>(&caller, &first.instance_name)?;
    let function = named_function(first.digest_function)?;
    let blob = one("blob_digest", first.blob_digest.as_ref(), function)?;
    let mut chunks = all(&first.chunk_digests, function)?;
    while let Some(message) = next_within(&edge, &mut messages).await? {
        chunks.extend(all(&message.chunk_digests, function)?);
        if chunks.len() > MAX_CHUNKS {
            return Err(Status::invalid_argument(format!("a blob has at most {MAX_CHUNKS} chunks")));
        }
    }
    make_blob(&edge, &caller, &grant, blob, &chunks).await?;
    Ok(RegisterChunkMappingResponse { blob_digest: Some(blob.into()) })
}

async fn next_within(edge: &Edge, messages: &mut Messages) -> Result<Option<RegisterChunkMappingRequest>, Status> {
    let idle = edge.state.limits.upload_idle_timeout;
    tokio::time::timeout(idle, messages.next())
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("the stream was idle for too long")))
}

async fn make_blob(
    edge: &Edge,
    caller: &Caller,
    grant: &Authorized<CasWrite>,
    blob: Digest,
    chunks: &[Digest],
) -> Result<(), Status> {
    edge.content.splice(grant, blob, chunks).await.map_err(StoreError::into_status)?;
    edge.count(caller, grant, "cas.write", Amount::once(blob.size_bytes()));
    Ok(())
}

/// The successors must name the digest function.
fn named_function(number: i32) -> Result<DigestFunction, Status> {
    if number == 0 {
        return Err(Status::invalid_argument("digest_function is not set"));
    }
    function(number)
}

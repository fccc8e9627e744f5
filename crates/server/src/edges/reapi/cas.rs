//! Blobs in batches, trees, and chunks.

mod batches;
mod chunks;

use std::sync::Arc;

use futures::stream;
use gf_digest::{Digest, DigestFunction};
use gf_execution::TreeWalk;
use gf_reapi::execution::{FindMissingBlobsRequest, FindMissingBlobsResponse, GetTreeRequest, GetTreeResponse};
use gf_reapi::{WireDigest, digest_function};
use gf_tenancy::CasRead;
use tonic::Status;

use super::status::IntoStatus;
use super::{Caller, Edge, grpc};
pub(super) use batches::{batch_read, batch_update};
pub(super) use chunks::{get_chunk_mapping, register_chunk_mapping, splice, split};

pub(super) async fn find_missing(
    edge: Arc<Edge>,
    caller: Caller,
    request: FindMissingBlobsRequest,
) -> Result<FindMissingBlobsResponse, Status> {
    let grant = edge.authorize::<CasRead>(&caller, &request.instance_name)?;
    let digests = all(&request.blob_digests, function(request.digest_function)?)?;
    let missing = edge.content.find_missing(&grant, &digests).await.map_err(IntoStatus::into_status)?;
    let (asked, absent) = (digests.len() as u64, missing.len() as u64);
    edge.state.metrics.cas_lookup(asked.saturating_sub(absent), absent);
    Ok(FindMissingBlobsResponse { missing_blob_digests: missing.iter().map(WireDigest::from).collect() })
}

/// All pages, from the one that was asked for.
pub(super) async fn get_tree(edge: Arc<Edge>, caller: Caller, request: GetTreeRequest) -> Result<grpc::Frames, Status> {
    let grant = edge.authorize::<CasRead>(&caller, &request.instance_name)?;
    let root = one("root_digest", request.root_digest.as_ref(), function(request.digest_function)?)?;
    let store = Arc::clone(&edge.state.store);
    let mut walk =
        TreeWalk::new(store, &grant, root, request.page_size, &request.page_token).map_err(IntoStatus::into_status)?;
    // The first page is read before the answer begins, so that a missing root is the answer.
    let first = next_page(&mut walk).await?;
    let rest = stream::try_unfold(walk, async |mut walk| Ok(next_page(&mut walk).await?.map(|page| (page, walk))));
    Ok(Box::pin(futures::StreamExt::chain(stream::iter(first.map(Ok)), rest)))
}

async fn next_page(walk: &mut TreeWalk) -> Result<Option<bytes::Bytes>, Status> {
    let page = walk.next_page().await.map_err(IntoStatus::into_status)?;
    Ok(page.map(|page| {
        let next_page_token = page.next_page_token.unwrap_or_default();
        grpc::encode(&GetTreeResponse { directories: page.directories, next_page_token })
    }))
}

fn function(number: i32) -> Result<DigestFunction, Status> {
    digest_function(number).map_err(IntoStatus::into_status)
}

fn one(field: &'static str, digest: Option<&WireDigest>, function: DigestFunction) -> Result<Digest, Status> {
    let digest = digest.ok_or_else(|| Status::invalid_argument(format!("{field} is not set")))?;
    digest.to_digest(function).map_err(IntoStatus::into_status)
}

fn all(digests: &[WireDigest], function: DigestFunction) -> Result<Vec<Digest>, Status> {
    let parse = |digest: &WireDigest| digest.to_digest(function).map_err(IntoStatus::into_status);
    digests.iter().map(parse).collect()
}

//! Blobs in batches, trees, and chunks.

mod batches;
mod chunks;

use std::sync::Arc;

use futures::stream;
use gf_digest::{Digest, DigestFunction};
use gf_execution::{Page, TreeWalk};
use gf_reapi::execution::{FindMissingBlobsRequest, FindMissingBlobsResponse, GetTreeRequest};
use gf_reapi::{WireDigest, digest_function};
use gf_tenancy::CasRead;
use prost::encoding;
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
    Ok(page.map(|page| grpc::frame(&encode_page(&page))))
}

/// An encoded `GetTreeResponse`: the directories go out as they are stored.
fn encode_page(page: &Page) -> Vec<u8> {
    const DIRECTORIES: u32 = 1;
    const NEXT_PAGE_TOKEN: u32 = 2;
    let mut message = Vec::with_capacity(page.directories.iter().map(|bytes| bytes.len() + 6).sum::<usize>() + 128);
    for directory in &page.directories {
        encoding::bytes::encode(DIRECTORIES, directory, &mut message);
    }
    if let Some(token) = &page.next_page_token {
        encoding::string::encode(NEXT_PAGE_TOKEN, token, &mut message);
    }
    message
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

#[cfg(test)]
mod tests {
    use gf_reapi::execution::{Directory, GetTreeResponse, SymlinkNode};
    use prost::Message;

    use super::*;

    #[test]
    fn a_page_is_the_generated_message() {
        let link = SymlinkNode { name: "a".to_owned(), target: "b".repeat(300), node_properties: None };
        let directories = vec![Directory::default(), Directory { symlinks: vec![link], ..Directory::default() }];
        for next_page_token in [None, Some("1.2.3".to_owned())] {
            let encoded = directories.iter().map(|directory| directory.encode_to_vec().into()).collect();
            let page = Page { directories: encoded, next_page_token: next_page_token.clone() };
            let next_page_token = next_page_token.unwrap_or_default();
            let message = GetTreeResponse { directories: directories.clone(), next_page_token };
            assert_eq!(encode_page(&page), message.encode_to_vec());
        }
    }
}

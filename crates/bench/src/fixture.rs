//! What the product holds before the rows begin: small blobs, action results that name them, and large blobs.

use std::sync::Arc;

use anyhow::{Context, ensure};
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;

use crate::connection::{Connection, Connections};
use crate::data::{Blob, Source, digest_of, read_request, write_messages};
use crate::floor::{OUTPUTS, SMALL_BLOB_BYTES};

const SMALL_BLOBS: usize = 20_000;
const ACTIONS: usize = 4_000;
/// Blobs of 16 MiB, one for each reading stream.
const LARGE_BLOBS: usize = 4;
/// Bytes of a large blob.
pub(crate) const LARGE_BLOB_BYTES: usize = 16 << 20;
/// An action digest of a hit states this size.
pub(crate) const HIT_SIZE_BYTES: i64 = 142;

/// A stored action result.
#[derive(Clone)]
pub(crate) struct Action {
    /// Its key.
    pub(crate) digest: rex::Digest,
    /// Its value, without inlined outputs.
    pub(crate) result: rex::ActionResult,
}

/// What is stored.
pub(crate) struct Fixture {
    /// Blobs of 4 KiB.
    pub(crate) small: Arc<[Blob]>,
    /// Action results whose outputs are among the small blobs.
    pub(crate) actions: Arc<[Action]>,
    /// Blobs of 16 MiB.
    pub(crate) large: Arc<[Blob]>,
    /// Blobs of 1 to 8 MiB.
    pub(crate) medium: Arc<[Blob]>,
}

impl Fixture {
    /// Makes it all and uploads it to the product.
    pub(crate) async fn store(product: &Connections) -> anyhow::Result<Self> {
        let fixture = Self::random(SMALL_BLOBS, ACTIONS);
        let connection = product.of_caller(0);
        for blobs in fixture.small.chunks(200) {
            upload_batch(&connection, Arc::new(batch_request(blobs))).await.context("upload small blobs")?;
        }
        for action in fixture.actions.iter() {
            connection.update_action_result(Arc::new(update_request(action))).await.context("store action results")?;
        }
        for blob in fixture.large.iter().chain(fixture.medium.iter()) {
            upload(&connection, blob).await.context("upload large blobs")?;
            check_stored(&connection, &blob.digest).await?;
        }
        Ok(fixture)
    }

    /// Makes it, with so many small blobs and action results.
    pub(crate) fn random(small_blobs: usize, actions: usize) -> Self {
        let mut source = Source::fresh();
        let small: Arc<[Blob]> = (0..small_blobs).map(|_| source.blob(SMALL_BLOB_BYTES)).collect();
        Self {
            actions: (0..actions).map(|_| action(&mut source, &small)).collect(),
            small,
            large: (0..LARGE_BLOBS).map(|_| source.blob(LARGE_BLOB_BYTES)).collect(),
            medium: (1..=8).map(|mebibytes| source.blob(mebibytes << 20)).collect(),
        }
    }
}

/// An action result with outputs among `blobs`.
pub(crate) fn action(source: &mut Source, blobs: &[Blob]) -> Action {
    let output = |number: usize| rex::OutputFile {
        path: format!("bazel-out/k8-fastbuild/bin/package/target/_objs/output_{number}.o"),
        digest: blobs.get(source.below(blobs.len())).map(|blob| blob.digest.clone()),
        ..Default::default()
    };
    let result = rex::ActionResult { output_files: (0..OUTPUTS).map(output).collect(), ..Default::default() };
    Action { digest: source.digest(HIT_SIZE_BYTES), result }
}

/// The request that stores an action result.
pub(crate) fn update_request(action: &Action) -> rex::UpdateActionResultRequest {
    rex::UpdateActionResultRequest {
        action_digest: Some(action.digest.clone()),
        action_result: Some(action.result.clone()),
        ..Default::default()
    }
}

/// The request that asks for an action result.
pub(crate) fn get_request(digest: &rex::Digest) -> Arc<rex::GetActionResultRequest> {
    Arc::new(rex::GetActionResultRequest { action_digest: Some(digest.clone()), ..Default::default() })
}

/// The request that uploads some blobs at once.
pub(crate) fn batch_request(blobs: &[Blob]) -> rex::BatchUpdateBlobsRequest {
    let request = |blob: &Blob| rex::batch_update_blobs_request::Request {
        digest: Some(blob.digest.clone()),
        data: blob.bytes.clone(),
        compressor: 0,
    };
    rex::BatchUpdateBlobsRequest { requests: blobs.iter().map(request).collect(), ..Default::default() }
}

/// Uploads some blobs at once and sees to it that each was taken.
pub(crate) async fn upload_batch(
    connection: &Connection,
    request: Arc<rex::BatchUpdateBlobsRequest>,
) -> anyhow::Result<u64> {
    let expected = request.requests.len();
    let answer = connection.batch_update(request).await?;
    ensure!(answer.responses.len() == expected, "{} answers for {expected} blobs", answer.responses.len());
    for response in &answer.responses {
        let status = response.status.as_ref();
        ensure!(status.is_none_or(|status| status.code == 0), "a blob was refused: {status:?}");
    }
    Ok(u64::try_from(expected)?)
}

/// Uploads one blob and sees to it that all of it was taken.
pub(crate) async fn upload(connection: &Connection, blob: &Blob) -> anyhow::Result<()> {
    let committed = connection.write(write_messages(blob)).await?.committed_size;
    ensure!(committed == blob.digest.size_bytes, "{committed} of {} bytes were committed", blob.digest.size_bytes);
    Ok(())
}

/// Reads a blob whole and compares its digest.
pub(crate) async fn check_stored(connection: &Connection, digest: &rex::Digest) -> anyhow::Result<()> {
    let mut pieces = connection.read(read_request(digest)).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.message().await? {
        bytes.extend_from_slice(&piece.data);
    }
    ensure!(digest_of(&bytes) == *digest, "what was read back is not {}/{}", digest.hash, digest.size_bytes);
    Ok(())
}

/// Sees to it that none of `digests` is missing.
pub(crate) async fn check_present(connection: &Connection, digests: Vec<rex::Digest>) -> anyhow::Result<()> {
    let asked = digests.len();
    let request = rex::FindMissingBlobsRequest { blob_digests: digests, ..Default::default() };
    let missing = connection.find_missing(Arc::new(request)).await?.missing_blob_digests.len();
    ensure!(missing == 0, "{missing} of {asked} stored blobs are missing");
    Ok(())
}

/// Reads small blobs and compares the digest of each.
pub(crate) async fn check_small(connection: &Connection, digests: Vec<rex::Digest>) -> anyhow::Result<()> {
    let asked = digests.len();
    let request = rex::BatchReadBlobsRequest { digests, ..Default::default() };
    let answer = connection.batch_read(Arc::new(request)).await?;
    ensure!(answer.responses.len() == asked, "{} answers for {asked} blobs", answer.responses.len());
    for response in answer.responses {
        ensure!(response.digest == Some(digest_of(&response.data)), "read back {:?} with other bytes", response.digest);
    }
    Ok(())
}

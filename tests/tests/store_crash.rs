//! The program is killed while clients write, and started again: what was acknowledged over gRPC reads back, and every
//! action result that is visible is complete.
//!
//! Twenty rounds; the store itself goes through two hundred in its own crate.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::action_cache_client::ActionCacheClient;
use gf_reapi::execution::batch_update_blobs_request::Request as BlobRequest;
use gf_reapi::execution::content_addressable_storage_client::ContentAddressableStorageClient;
use gf_reapi::execution::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest, GetActionResultRequest,
    OutputFile, UpdateActionResultRequest,
};
use gf_tests::GfServer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tonic::transport::Channel;

const ROUNDS: u64 = 20;

/// What the server acknowledged.
#[derive(Default)]
struct Acknowledged {
    blobs: Vec<(WireDigest, Vec<u8>)>,
    actions: Vec<(WireDigest, ActionResult)>,
}

fn wire(bytes: &[u8]) -> WireDigest {
    let digest = Digest::of(DigestFunction::Sha256, bytes);
    WireDigest::from_text(digest.hash_hex().as_str(), bytes.len() as i64)
}

async fn connect(server: &GfServer) -> Result<Channel> {
    Ok(Channel::from_shared(server.url().to_owned())?.connect().await?)
}

/// Writes blobs, then an action result that names them, until the server is gone.
async fn write(channel: Channel, seed: u64, acknowledged: Arc<Mutex<Acknowledged>>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut storage = ContentAddressableStorageClient::new(channel.clone());
    let mut actions = ActionCacheClient::new(channel);
    loop {
        let contents: Vec<Vec<u8>> = (0..random.random_range(1..6))
            .map(|_| {
                let size = if random.random_bool(0.05) { 1_500_000 } else { random.random_range(1..20_000) };
                let mut bytes = vec![0; size];
                random.fill(&mut bytes[..]);
                bytes
            })
            .collect();
        let request = |bytes: &Vec<u8>| BlobRequest {
            digest: Some(wire(bytes)),
            data: bytes.clone().into(),
            ..BlobRequest::default()
        };
        let requests = contents.iter().map(request).collect();
        let Ok(response) = storage.batch_update_blobs(BatchUpdateBlobsRequest { requests, ..Default::default() }).await
        else {
            return;
        };
        let responses = response.into_inner().responses;
        assert!(responses.iter().all(|response| response.status.as_ref().is_none_or(|status| status.code == 0)));
        let blobs: Vec<(WireDigest, Vec<u8>)> = contents.into_iter().map(|bytes| (wire(&bytes), bytes)).collect();
        let output = |(at, (digest, _)): (usize, &(WireDigest, Vec<u8>))| OutputFile {
            path: format!("out/{at}"),
            digest: Some(digest.clone()),
            ..OutputFile::default()
        };
        let result =
            ActionResult { output_files: blobs.iter().enumerate().map(output).collect(), ..ActionResult::default() };
        let action = wire(&random.random::<[u8; 16]>());
        acknowledged.lock().unwrap().blobs.extend(blobs);
        let request = UpdateActionResultRequest {
            action_digest: Some(action.clone()),
            action_result: Some(result.clone()),
            ..UpdateActionResultRequest::default()
        };
        if actions.update_action_result(request).await.is_err() {
            return;
        }
        acknowledged.lock().unwrap().actions.push((action, result));
    }
}

/// Everything acknowledged is there: asked for, and read.
async fn check(channel: Channel, acknowledged: &Acknowledged) -> Result<()> {
    let mut storage = ContentAddressableStorageClient::new(channel.clone());
    let mut actions = ActionCacheClient::new(channel);
    for part in acknowledged.blobs.chunks(20) {
        let digests: Vec<WireDigest> = part.iter().map(|(digest, _)| digest.clone()).collect();
        let request = FindMissingBlobsRequest { blob_digests: digests, ..Default::default() };
        let missing = storage.find_missing_blobs(request).await?.into_inner().missing_blob_digests;
        assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
        for (digest, bytes) in part {
            let request = BatchReadBlobsRequest { digests: vec![digest.clone()], ..Default::default() };
            let response = storage.batch_read_blobs(request).await?.into_inner().responses;
            assert!(response[0].data == bytes[..], "{digest:?} has other bytes");
        }
    }
    for (action, result) in &acknowledged.actions {
        let request = GetActionResultRequest { action_digest: Some(action.clone()), ..Default::default() };
        let found = actions.get_action_result(request).await?.into_inner();
        assert_eq!(found.output_files, result.output_files);
    }
    Ok(())
}

/// Waits until so many blobs were acknowledged, on a slow machine at most for a while.
async fn wait_for(acknowledged: &Mutex<Acknowledged>, blobs: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while acknowledged.lock().unwrap().blobs.len() < blobs && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn kill_again_and_again(data: &Path, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut known = 0;
    let mut latest = Acknowledged::default();
    for round in 0..ROUNDS {
        let server = GfServer::start(data)?;
        let channel = connect(&server).await?;
        check(channel.clone(), &latest).await?;
        known += latest.blobs.len();
        let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
        let writers: Vec<_> = (0..4)
            .map(|writer| tokio::spawn(write(channel.clone(), seed ^ (round * 4 + writer), Arc::clone(&acknowledged))))
            .collect();
        wait_for(&acknowledged, random.random_range(0..20)).await;
        // Not synchronisation: the moment of the kill is what is varied.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        // Dropping a server kills it.
        drop(server);
        for writer in writers {
            writer.await?;
        }
        latest = std::mem::take(&mut *acknowledged.lock().unwrap());
    }
    assert!(known > 40, "next to nothing was written: {known} blobs");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_acknowledged_is_there() -> Result<()> {
    let seed = std::env::var("GF_SEED").map_or_else(|_| Ok(rand::random()), |seed| seed.parse())?;
    println!("GF_SEED={seed}");
    let data = tempfile::tempdir()?;
    kill_again_and_again(&data.path().join("data"), seed).await
}

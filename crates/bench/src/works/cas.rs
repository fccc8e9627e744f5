use std::sync::Arc;

use anyhow::ensure;
use async_trait::async_trait;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;

use super::{CALLERS, Portion, Work};
use crate::connection::{Connection, Connections, Side};
use crate::data::{Blob, Source};
use crate::fixture::{Fixture, batch_request, check_present, check_small, upload_batch};
use crate::floor::{MISSING, SMALL_BLOB_BYTES};
use crate::load::{Length, Round, drive};

/// Blobs in one batch.
const BATCH: usize = 20;
/// Of the read batches, one in so many is compared byte by byte.
const COMPARED: usize = 16;

/// `FindMissingBlobs` of 100 digests, 10 of them missing. Units are calls.
#[derive(Default)]
pub(crate) struct FindMissing {
    requests: Arc<[Arc<rex::FindMissingBlobsRequest>]>,
    portion: Option<Portion>,
}

#[async_trait]
impl Work for FindMissing {
    fn prepare(&mut self, fixture: &Fixture, portion: Portion) {
        let mut source = Source::fresh();
        // The missing come first: the floor calls the first ten missing, and so both can be checked in one way.
        let mut request = || {
            let mut blob_digests: Vec<_> = (0..MISSING).map(|_| source.digest(4096)).collect();
            let mut one = || fixture.small.get(source.below(fixture.small.len())).map(|blob| blob.digest.clone());
            blob_digests.extend((0..90).filter_map(|_| one()));
            Arc::new(rex::FindMissingBlobsRequest { blob_digests, ..Default::default() })
        };
        self.requests = (0..1000).map(|_| request()).collect();
        self.portion = Some(portion);
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (requests, connections) = (Arc::clone(&self.requests), connections.clone());
        let call = move |caller, number: usize| {
            let request = Arc::clone(&requests[number % requests.len()]);
            let connection = connections.of_caller(caller);
            async move { find_missing(&connection, request).await }
        };
        drive(CALLERS, time(self.portion), call).await
    }

    async fn verify(&self, _: &Connections) -> anyhow::Result<()> {
        Ok(())
    }
}

async fn find_missing(connection: &Connection, request: Arc<rex::FindMissingBlobsRequest>) -> anyhow::Result<u64> {
    let missing = connection.find_missing(Arc::clone(&request)).await?.missing_blob_digests;
    let expected = &request.blob_digests[..MISSING];
    let right = missing == expected
        || missing.len() == expected.len() && expected.iter().all(|digest| missing.contains(digest));
    ensure!(right, "{} digests were called missing, which are not the {MISSING} that are", missing.len());
    Ok(1)
}

/// `BatchUpdateBlobs` of 20 fresh blobs of 4 KiB. Units are blobs.
#[derive(Default)]
pub(crate) struct BatchUpdate {
    requests: Arc<[Arc<rex::BatchUpdateBlobsRequest>]>,
}

#[async_trait]
impl Work for BatchUpdate {
    fn prepare(&mut self, _: &Fixture, portion: Portion) {
        let mut source = Source::fresh();
        let mut request = || {
            let blobs: Vec<Blob> = (0..BATCH).map(|_| source.blob(SMALL_BLOB_BYTES)).collect();
            Arc::new(batch_request(&blobs))
        };
        self.requests = (0..portion.of(8000)).map(|_| request()).collect();
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (requests, connections) = (Arc::clone(&self.requests), connections.clone());
        let length = Length::Calls(requests.len());
        let call = move |caller, number: usize| {
            let request = Arc::clone(&requests[number]);
            let connection = connections.of_caller(caller);
            async move { upload_batch(&connection, request).await }
        };
        drive(CALLERS, length, call).await
    }

    async fn verify(&self, product: &Connections) -> anyhow::Result<()> {
        let digests = |request: &Arc<rex::BatchUpdateBlobsRequest>| -> Vec<rex::Digest> {
            request.requests.iter().filter_map(|request| request.digest.clone()).collect()
        };
        let connection = product.of_caller(0);
        for requests in self.requests.chunks(100) {
            check_present(&connection, requests.iter().flat_map(digests).collect()).await?;
        }
        for request in self.requests.iter().step_by(200) {
            check_small(&connection, digests(request)).await?;
        }
        Ok(())
    }
}

/// `BatchReadBlobs` of 20 blobs of 4 KiB. Units are blobs.
#[derive(Default)]
pub(crate) struct BatchRead {
    blobs: Arc<[Blob]>,
    /// Each names its blobs by their place.
    batches: Arc<[(Arc<rex::BatchReadBlobsRequest>, Vec<usize>)]>,
    portion: Option<Portion>,
}

#[async_trait]
impl Work for BatchRead {
    fn prepare(&mut self, fixture: &Fixture, portion: Portion) {
        let mut source = Source::fresh();
        let mut batch = || {
            let places: Vec<usize> = (0..BATCH).map(|_| source.below(fixture.small.len())).collect();
            let digests = places.iter().map(|place| fixture.small[*place].digest.clone()).collect();
            (Arc::new(rex::BatchReadBlobsRequest { digests, ..Default::default() }), places)
        };
        self.batches = (0..1000).map(|_| batch()).collect();
        self.blobs = Arc::clone(&fixture.small);
        self.portion = Some(portion);
    }

    async fn round(&self, connections: &Connections) -> anyhow::Result<Round> {
        let (batches, blobs) = (Arc::clone(&self.batches), Arc::clone(&self.blobs));
        let connections = connections.clone();
        let call = move |caller, number: usize| {
            let (batches, blobs) = (Arc::clone(&batches), Arc::clone(&blobs));
            let connection = connections.of_caller(caller);
            async move {
                let (request, places) = &batches[number % batches.len()];
                let answer = connection.batch_read(Arc::clone(request)).await?;
                let compared = number.is_multiple_of(COMPARED) && connection.side == Side::Product;
                check_batch(&answer, places, compared.then_some(&blobs))
            }
        };
        drive(CALLERS, time(self.portion), call).await
    }

    async fn verify(&self, _: &Connections) -> anyhow::Result<()> {
        Ok(())
    }
}

fn check_batch(
    answer: &rex::BatchReadBlobsResponse,
    places: &[usize],
    blobs: Option<&Arc<[Blob]>>,
) -> anyhow::Result<u64> {
    let responses = &answer.responses;
    ensure!(responses.len() == places.len(), "{} answers for {} blobs", responses.len(), places.len());
    for response in responses {
        let status = response.status.as_ref();
        ensure!(status.is_none_or(|status| status.code == 0), "a stored blob was not read: {status:?}");
        ensure!(response.data.len() == SMALL_BLOB_BYTES, "a blob came with {} bytes", response.data.len());
    }
    if let Some(blobs) = blobs {
        for place in places {
            let blob = &blobs[*place];
            let same = responses.iter().find(|response| response.digest.as_ref() == Some(&blob.digest));
            ensure!(same.is_some_and(|response| response.data == blob.bytes), "a blob came with other bytes");
        }
    }
    Ok(u64::try_from(responses.len())?)
}

/// A round that lasts for the portion's time.
pub(super) fn time(portion: Option<Portion>) -> Length {
    Length::Time(portion.map(|portion| portion.time).unwrap_or_default())
}

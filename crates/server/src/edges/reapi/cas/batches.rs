//! Small blobs together. What is wrong with one of them is that one's status; the others are served.

use std::sync::Arc;

use bytes::Bytes;
use gf_blobstore::{Accept, Encoding, NewBlob};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::{
    BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest, BatchUpdateBlobsResponse,
    batch_read_blobs_response, batch_update_blobs_request, batch_update_blobs_response, compressor,
};
use gf_tenancy::audit::Amount;
use gf_tenancy::{CasRead, CasWrite};
use tonic::{Code, Status};

use super::super::status::{IntoStatus, to_message};
use super::super::{Caller, Edge, MAX_ANSWER_BYTES, MAX_BATCH_TOTAL_BYTES};
use super::function;
use crate::listen;

pub(in super::super) async fn batch_update(
    edge: Arc<Edge>,
    caller: Caller,
    request: BatchUpdateBlobsRequest,
) -> Result<BatchUpdateBlobsResponse, Status> {
    let grant = edge.authorize::<CasWrite>(&caller, &request.instance_name)?;
    let function = function(request.digest_function)?;
    let mut named = Vec::with_capacity(request.requests.len());
    let mut blobs = Vec::with_capacity(request.requests.len());
    let mut total_bytes: u64 = 0;
    for entry in request.requests {
        edge.state.metrics.bytes_in(entry.data.len() as u64);
        let digest = entry.digest.clone();
        let refused = match new_blob(entry, function) {
            Ok(blob) => {
                total_bytes = total_bytes.saturating_add(counted_bytes(&blob));
                blobs.push(blob);
                None
            }
            Err(status) => Some(status),
        };
        named.push((digest, refused));
    }
    check_total(total_bytes)?;
    let sizes: Vec<u64> = blobs.iter().map(|blob| blob.digest.size_bytes()).collect();
    let stored = edge.content.write_batch(&grant, blobs).await;
    let kept = sizes.iter().zip(&stored).filter(|(_, stored)| stored.is_ok()).map(|(size, _)| *size);
    let amount = kept.fold(Amount::default(), |all, size| Amount { times: all.times + 1, bytes: all.bytes + size });
    edge.count(&caller, &grant, "cas.write", amount);
    let mut stored = stored.into_iter();
    let respond = |(digest, refused): (Option<WireDigest>, Option<Status>)| {
        let status = match refused {
            Some(status) => status,
            None => match stored.next() {
                Some(Ok(())) => Status::new(Code::Ok, ""),
                Some(Err(error)) => error.into_status(),
                None => Status::internal("the store gave no answer for this blob"),
            },
        };
        batch_update_blobs_response::Response { digest, status: Some(to_message(&status)) }
    };
    Ok(BatchUpdateBlobsResponse { responses: named.into_iter().map(respond).collect() })
}

fn new_blob(entry: batch_update_blobs_request::Request, function: DigestFunction) -> Result<NewBlob, Status> {
    let digest = entry.digest.ok_or_else(|| Status::invalid_argument("digest is not set"))?;
    let digest = digest.to_digest(function).map_err(IntoStatus::into_status)?;
    let encoding = match compressor::Value::try_from(entry.compressor) {
        Ok(compressor::Value::Identity) => Encoding::Identity,
        Ok(compressor::Value::Zstd) => Encoding::Zstd,
        _ => {
            let text = format!("compressor {} is not supported; identity (0) and zstd (1) are", entry.compressor);
            return Err(Status::invalid_argument(text));
        }
    };
    Ok(NewBlob { digest, bytes: entry.data, encoding })
}

/// What a blob counts against the limit: what arrived, or what it will grow to. A size that is a lie about raw bytes
/// is that blob's own fault and does not count against the others.
fn counted_bytes(blob: &NewBlob) -> u64 {
    let arrived = blob.bytes.len() as u64;
    match blob.encoding {
        Encoding::Identity => arrived,
        Encoding::Zstd => arrived.max(blob.digest.size_bytes()),
    }
}

fn check_total(total_bytes: u64) -> Result<(), Status> {
    if total_bytes > MAX_BATCH_TOTAL_BYTES {
        return Err(Status::invalid_argument(format!(
            "the blobs have {total_bytes} bytes together; a batch holds {MAX_BATCH_TOTAL_BYTES} (use ByteStream)"
        )));
    }
    Ok(())
}

pub(in super::super) async fn batch_read(
    edge: Arc<Edge>,
    caller: Caller,
    request: BatchReadBlobsRequest,
) -> Result<BatchReadBlobsResponse, Status> {
    let grant = edge.authorize::<CasRead>(&caller, &request.instance_name)?;
    let function = function(request.digest_function)?;
    let parsed: Vec<Result<Digest, Status>> =
        request.digests.iter().map(|digest| digest.to_digest(function).map_err(IntoStatus::into_status)).collect();
    let digests: Vec<Digest> = parsed.iter().filter_map(|digest| digest.as_ref().ok().copied()).collect();
    let total_bytes = digests.iter().map(Digest::size_bytes).fold(0, u64::saturating_add);
    check_total(total_bytes)?;
    let answer_bytes = usize::try_from(total_bytes).unwrap_or(usize::MAX).saturating_add(AROUND_BYTES * digests.len());
    let room = listen::take_for_answer(answer_bytes.min(MAX_ANSWER_BYTES)).await;
    room.map_err(|error| Status::unavailable(error.to_string()))?;

    let accept = match request.acceptable_compressors.contains(&(compressor::Value::Zstd as i32)) {
        true => Accept::Any,
        false => Accept::Identity,
    };
    let mut contents = edge.content.read_batch(&grant, &digests, accept).await.into_iter();
    let (mut found, mut sent_bytes, mut left_bytes) = (0, 0, MAX_ANSWER_BYTES);
    let responses = request.digests.into_iter().zip(parsed).map(|(wire, parsed)| {
        let answer = parsed.and_then(|_| match contents.next() {
            Some(answer) => answer.map_err(IntoStatus::into_status),
            None => Err(Status::internal("the store gave no answer for this blob")),
        });
        let answer = fit(answer, &mut left_bytes);
        if let Ok((bytes, _)) = &answer {
            found += 1;
            sent_bytes += bytes.len() as u64;
        }
        read_response(wire, answer)
    });
    let responses: Vec<_> = responses.collect();
    edge.state.metrics.bytes_out(sent_bytes);
    edge.state.metrics.cas_lookup(found, (responses.len() as u64).saturating_sub(found));
    Ok(BatchReadBlobsResponse { responses })
}

/// Bytes around a blob in an answer: digest, lengths, status.
const AROUND_BYTES: usize = 128;

/// Lets an answer through if it still fits into the message, else asks the caller to ask again.
fn fit(answer: Result<(Bytes, Encoding), Status>, left_bytes: &mut usize) -> Result<(Bytes, Encoding), Status> {
    let takes = AROUND_BYTES + answer.as_ref().map_or_else(|status| status.message().len(), |(bytes, _)| bytes.len());
    match left_bytes.checked_sub(takes) {
        Some(left) => {
            *left_bytes = left;
            answer
        }
        None => Err(Status::resource_exhausted("full")),
    }
}

fn read_response(digest: WireDigest, answer: Result<(Bytes, Encoding), Status>) -> batch_read_blobs_response::Response {
    let (data, compressor, status) = match answer {
        Ok((data, Encoding::Identity)) => (data, compressor::Value::Identity, Status::new(Code::Ok, "")),
        Ok((data, Encoding::Zstd)) => (data, compressor::Value::Zstd, Status::new(Code::Ok, "")),
        Err(status) => (Bytes::new(), compressor::Value::Identity, status),
    };
    batch_read_blobs_response::Response {
        digest: Some(digest),
        data,
        compressor: compressor as i32,
        status: Some(to_message(&status)),
    }
}

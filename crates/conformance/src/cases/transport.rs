//! Cases 64 and 65: headers, message sizes, and clients that go away.

use std::time::Duration;

use futures::future::join_all;
use gf_digest::DigestFunction::Sha256;
use gf_reapi::Compressor;
use gf_reapi::bytestream::WriteRequest;
use gf_reapi::execution::{FindMissingBlobsRequest, RequestMetadata, ToolDetails};
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::blob::write_requests;
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, succeeds};
use crate::probe::Probe;
use crate::upload::Upload;

cases! {
    "64-request-metadata" => request_metadata(),
    "64-request-metadata-garbage" => request_metadata_garbage(),
    "65-message-just-under-4-mib" => message_just_under_limit(),
    "65-message-over-4-mib" => message_over_limit(),
    "65-cancel-and-upload-again" => cancel_and_upload_again(),
    "65-deadline-and-upload-again" => deadline_and_upload_again(),
    "65-read-given-up" => read_given_up(),
    "65-many-calls-at-once" => many_calls_at_once(),
    "65-malformed-message" => malformed_message(),
}

const LIMIT: usize = 4 << 20;

async fn with_metadata(probe: &mut Probe<'_>, value: &[u8]) -> Checked<()> {
    let absent = probe.blob(10);
    let mut request = Request::new(FindMissingBlobsRequest {
        instance_name: probe.instance(),
        blob_digests: vec![absent.wire()],
        digest_function: Sha256.number(),
    });
    let name = "build.bazel.remote.execution.v2.requestmetadata-bin";
    request.metadata_mut().insert_bin(name, MetadataValue::from_bytes(value));
    let answer = probe.storage().find_missing_blobs(request).await;
    let missing = succeeds("a call with request metadata", answer)?.into_inner().missing_blob_digests;
    ensure!(missing.len() == 1, "an absent blob is reported present");
    Ok(())
}

async fn request_metadata(probe: &mut Probe<'_>) -> Checked {
    let metadata = RequestMetadata {
        tool_details: Some(ToolDetails { tool_name: "gf-conformance".into(), tool_version: "0".into() }),
        action_id: "an action".into(),
        tool_invocation_id: probe.uuid(),
        correlated_invocations_id: probe.uuid(),
        action_mnemonic: "CppCompile".into(),
        target_id: "//some:target".into(),
        configuration_id: String::new(),
    };
    with_metadata(probe, &metadata.encode_to_vec()).await?;
    Ok("accepted".into())
}

async fn request_metadata_garbage(probe: &mut Probe<'_>) -> Checked {
    let long = probe.blob(4000).bytes;
    for garbage in [&b"\xff\xff\xff\xff"[..], b"", b"\x0a\xff", &long] {
        with_metadata(probe, garbage).await?;
    }
    Ok("tolerated".into())
}

/// One message that makes up a whole upload and has about `bytes`.
fn one_message(probe: &mut Probe<'_>, bytes: usize) -> Checked<(crate::blob::Blob, Vec<WriteRequest>)> {
    let blob = probe.blob(bytes);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let requests = write_requests(&name, &blob.bytes, bytes);
    Ok((blob, requests))
}

async fn message_just_under_limit(probe: &mut Probe<'_>) -> Checked {
    let overhead = one_message(probe, 1 << 20)?.1.first().map_or(0, |request| request.encoded_len() - (1 << 20));
    let (blob, requests) = one_message(probe, LIMIT - overhead - 8)?;
    let size = requests.first().map_or(0, Message::encoded_len);
    succeeds(&format!("a message of {size} bytes"), probe.write(requests).await)?;
    probe.ensure_stored(&blob).await?;
    Ok(format!("a message of {size} bytes is taken"))
}

async fn message_over_limit(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::OutOfRange, Code::ResourceExhausted, Code::InvalidArgument];
    let (blob, requests) = one_message(probe, LIMIT + (1 << 10))?;
    let size = requests.first().map_or(0, Message::encoded_len);
    let what = format!("a message of {size} bytes");
    let detail = match probe.write(requests).await {
        Ok(_) => {
            probe.ensure_stored(&blob).await?;
            format!("{what} is taken")
        }
        refusal => refused(&what, refusal, ALLOWED)?,
    };
    // Whatever came of it, the connection must go on.
    probe.upload(&blob).await?;
    probe.ensure_stored(&blob).await?;
    Ok(detail)
}

async fn cancel_and_upload_again(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(3 << 20);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    for _ in 0..20 {
        let mut upload = Upload::begin(&probe.transport());
        let first = write_requests(&name, &blob.bytes, 1 << 20).remove(0);
        upload.send(first).await;
        drop(upload);
    }
    probe.ensure_absent(blob.digest).await?;
    let answer = probe.write(write_requests(&name, &blob.bytes, 1 << 20)).await;
    succeeds("the same upload after it was cancelled twenty times", answer)?;
    probe.ensure_stored(&blob).await?;
    Ok("cancelled twenty times, then uploaded under the same name".into())
}

async fn deadline_and_upload_again(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(1 << 20);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let first = write_requests(&name, &blob.bytes, 1 << 19).remove(0);
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    request.set_timeout(Duration::from_millis(300));
    // The stream stays open past the deadline that the call states.
    drop(sender.send(first).await);
    let answer = probe.bytestream().write(request).await;
    drop(sender);
    let allowed = &[Code::DeadlineExceeded, Code::Cancelled];
    let detail = refused("an upload that runs into its deadline", answer, allowed)?;
    probe.upload(&blob).await?;
    probe.ensure_stored(&blob).await?;
    Ok(detail)
}

async fn read_given_up(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(8 << 20).await?;
    let name = probe.read_name(blob.digest, Compressor::Identity)?;
    for _ in 0..20 {
        let request = gf_reapi::bytestream::ReadRequest { resource_name: name.clone(), ..Default::default() };
        let mut stream = succeeds("a read", probe.bytestream().read(request).await)?.into_inner();
        succeeds("the first piece of a read", stream.message().await)?;
    }
    probe.ensure_stored(&blob).await?;
    Ok("twenty reads given up after the first piece".into())
}

async fn many_calls_at_once(probe: &mut Probe<'_>) -> Checked {
    let blobs: Vec<_> = (0..200).map(|_| probe.blob(100)).collect();
    let shared = &*probe;
    let asked = blobs.iter().map(|blob| shared.find_missing(Sha256, vec![blob.wire()]));
    for (blob, answer) in blobs.iter().zip(join_all(asked).await) {
        let missing = succeeds("one of 200 calls at once", answer)?;
        ensure!(missing == [blob.wire()], "one of 200 calls at once got another's answer: {missing:?}");
    }
    Ok("200 calls at once on one connection".into())
}

/// Bytes that are sent as they are, where a message should be.
#[derive(Clone, Default)]
struct RawMessage(Vec<u8>);

#[derive(Clone, Default)]
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = RawMessage;
    type Decode = RawMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = RawMessage;
    type Error = tonic::Status;

    fn encode(&mut self, item: RawMessage, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        bytes::BufMut::put_slice(buffer, &item.0);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = RawMessage;
    type Error = tonic::Status;

    fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<RawMessage>, tonic::Status> {
        let mut bytes = vec![0; bytes::Buf::remaining(buffer)];
        bytes::Buf::copy_to_slice(buffer, &mut bytes);
        Ok(Some(RawMessage(bytes)))
    }
}

async fn malformed_message(probe: &mut Probe<'_>) -> Checked {
    let path = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
    let mut details = Vec::new();
    for bytes in [&b"\x12\xff\xff\xff\xff\x0f"[..], b"\x0a\x02\xff\xff", b"\x07", b"\x12\x02\x0a\x7f"] {
        let mut client = tonic::client::Grpc::new(probe.transport());
        if let Err(error) = client.ready().await {
            return Err(Finding::Fail(format!("the connection is gone: {error}")));
        }
        let request = Request::new(RawMessage(bytes.to_vec()));
        let answer = client.unary(request, http_path(path)?, RawCodec).await;
        match answer {
            Ok(_) => return Err(Finding::Fail(format!("the bytes {bytes:?}, which are no message, are accepted"))),
            // Every library has its own code for this, and none is wrong; what counts is that it goes on.
            Err(status) => details.push(describe(&status)),
        }
    }
    let stored = probe.stored(10).await?;
    probe.ensure_stored(&stored).await?;
    details.dedup();
    Ok(details.join("; "))
}

fn http_path(path: &'static str) -> Checked<tonic::codegen::http::uri::PathAndQuery> {
    tonic::codegen::http::uri::PathAndQuery::from_maybe_shared(path).map_err(|error| Finding::Fail(error.to_string()))
}

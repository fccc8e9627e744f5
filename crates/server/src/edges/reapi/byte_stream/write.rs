//! Writing: new uploads, uploads that go on, and those that turn out not to be needed.

use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::{NewBlob, StoreError, Upload};
use gf_reapi::Compressor;
use gf_reapi::bytestream::{WriteRequest, WriteResponse};
use tokio::time::timeout;
use tonic::Status;

use super::super::status::IntoStatus;
use super::super::uploads::Running;
use super::super::{Caller, Edge};
use super::{Target, wire_size};
use crate::edges::grpc::Messages;

/// How long to wait for the end of the stream after `finish_write`. Clients close at once; one that does not is
/// answered all the same.
const WAIT_FOR_END: Duration = Duration::from_millis(250);

/// Up to this size, what comes in one message is kept in memory and stored at once. A larger blob can come in one message,
/// too, when it is compressed.
const WHOLE_BYTES: u64 = 1 << 20;

pub(in super::super) async fn write(
    edge: Arc<Edge>,
    caller: Caller,
    messages: Messages,
) -> Result<WriteResponse, Status> {
    let mut incoming = Incoming { messages, idle_timeout: edge.state.limits.upload_idle_timeout };
    let first = incoming.next().await?.ok_or_else(|| Status::invalid_argument("the stream has no message"))?;
    let target = Target::of(&edge, &caller, &first.resource_name)?;
    let Ok(begin) = u64::try_from(first.write_offset) else {
        return Err(Status::invalid_argument(format!("write_offset {} is negative", first.write_offset)));
    };
    if target.is_present(&edge).await? {
        return Ok(not_needed(&target));
    }
    if first.finish_write && begin == 0 && target.digest.size_bytes() <= WHOLE_BYTES {
        return write_whole(&edge, &target, first, incoming).await;
    }
    match target.key() {
        Some(key) => {
            let upload = resume_or_begin(&edge, &target, begin).await?;
            let running = edge.uploads.follow(key, upload);
            transfer(&edge, &target, Sink::Resumable(running), first, incoming).await
        }
        None if begin == 0 => {
            let upload = begin_upload(&edge, &target).await?;
            transfer(&edge, &target, Sink::Compressed(upload), first, incoming).await
        }
        None => Err(Status::invalid_argument("a compressed upload that was cut off begins anew at write_offset 0")),
    }
}

/// What a client hears when the blob is there already.
fn not_needed(target: &Target<'_>) -> WriteResponse {
    let committed_size = match target.compressor {
        Compressor::Identity => wire_size(target.digest.size_bytes()),
        Compressor::Zstd => -1,
    };
    WriteResponse { committed_size }
}

/// A small upload in one message needs no state.
async fn write_whole(
    edge: &Edge,
    target: &Target<'_>,
    message: WriteRequest,
    mut incoming: Incoming,
) -> Result<WriteResponse, Status> {
    incoming.expect_end().await?;
    let sent_bytes = message.data.len() as u64;
    edge.state.metrics.bytes_in(sent_bytes);
    let blob = NewBlob { digest: target.digest, bytes: message.data, encoding: target.encoding() };
    match edge.content.write_batch(&target.grant, vec![blob]).await.pop() {
        Some(Ok(())) => {
            target.stored(edge);
            Ok(WriteResponse { committed_size: wire_size(sent_bytes) })
        }
        Some(Err(error)) => Err(error.into_status()),
        None => Err(Status::internal("the store gave no answer for this blob")),
    }
}

async fn resume_or_begin(edge: &Edge, target: &Target<'_>, begin: u64) -> Result<Box<dyn Upload>, Status> {
    if begin == 0 {
        return begin_upload(edge, target).await;
    }
    let parked = match target.key() {
        Some(key) => edge.uploads.take(&key).await,
        None => None,
    };
    let received = parked.as_ref().map_or(0, |upload| upload.received_bytes());
    match parked {
        Some(upload) if received == begin => Ok(upload),
        parked => {
            // It may still be gone on with, at the right place.
            if let (Some(upload), Some(key)) = (parked, target.key()) {
                drop(edge.uploads.follow(key, upload));
            }
            let text = format!("write_offset is {begin}, but {received} bytes of this upload are here");
            Err(Status::invalid_argument(text))
        }
    }
}

/// Begins an upload. When the disk is full, uploads that only wait give their space, as many as are needed: none when that
/// would not do, nor when one tenant has used its share, which is no concern of the others.
async fn begin_upload(edge: &Edge, target: &Target<'_>) -> Result<Box<dyn Upload>, Status> {
    let begin = || edge.content.upload(&target.grant, target.digest, target.encoding());
    let begun = begin().await;
    let begun = match begun {
        Err(StoreError::NoSpace { short_bytes, .. }) => {
            let short_bytes = if short_bytes == 0 { target.digest.size_bytes() } else { short_bytes };
            let given_up = edge.uploads.give_up_parked(target.grant.tenant().id(), short_bytes);
            if given_up == 0 {
                return begun.map_err(IntoStatus::into_status);
            }
            begin().await
        }
        begun => begun,
    };
    begun.map_err(IntoStatus::into_status)
}

/// Where the bytes go.
enum Sink {
    Resumable(Running),
    Compressed(Box<dyn Upload>),
}

impl Sink {
    async fn write(&mut self, message: bytes::Bytes) -> Result<(), StoreError> {
        match self {
            Self::Resumable(running) => running.write(message).await,
            Self::Compressed(upload) => upload.write(message).await,
        }
    }

    fn already_present(&self) -> bool {
        match self {
            Self::Resumable(running) => running.already_present(),
            Self::Compressed(upload) => upload.already_present(),
        }
    }

    /// The next message, unless another call goes on with this upload.
    async fn next(&mut self, incoming: &mut Incoming) -> Result<Option<WriteRequest>, Status> {
        let Self::Resumable(running) = self else { return incoming.next().await };
        let asked_to_give_way = running.asked_to_give_way();
        tokio::select! {
            biased;
            next = incoming.next() => next,
            () = asked_to_give_way => Err(Status::aborted("another call goes on with this upload")),
        }
    }

    fn discard(self) {
        match self {
            Self::Resumable(running) => running.discard(),
            Self::Compressed(upload) => drop(upload),
        }
    }

    async fn finish(self) -> Result<(), StoreError> {
        match self {
            Self::Resumable(running) => running.finish().await,
            Self::Compressed(upload) => upload.finish().await,
        }
    }
}

async fn transfer(
    edge: &Edge,
    target: &Target<'_>,
    mut sink: Sink,
    first: WriteRequest,
    mut incoming: Incoming,
) -> Result<WriteResponse, Status> {
    let name = first.resource_name.clone();
    let mut offset = first.write_offset;
    let mut message = first;
    loop {
        check(&message, &name, offset)?;
        let sent_bytes = message.data.len() as u64;
        offset = offset.saturating_add(wire_size(sent_bytes));
        edge.state.metrics.bytes_in(sent_bytes);
        sink.write(message.data).await.map_err(IntoStatus::into_status)?;
        if sink.already_present() {
            sink.discard();
            return Ok(not_needed(target));
        }
        if message.finish_write {
            incoming.expect_end().await?;
            sink.finish().await.map_err(IntoStatus::into_status)?;
            target.stored(edge);
            return Ok(WriteResponse { committed_size: offset });
        }
        message = match sink.next(&mut incoming).await? {
            Some(message) => message,
            // Closed without finish_write: nothing is committed, and what came waits, unless it was compressed.
            None => {
                let committed_size = if matches!(sink, Sink::Resumable(_)) { offset } else { 0 };
                return Ok(WriteResponse { committed_size });
            }
        };
    }
}

fn check(message: &WriteRequest, name: &str, offset: i64) -> Result<(), Status> {
    if !message.resource_name.is_empty() && message.resource_name != name {
        return Err(Status::invalid_argument("resource_name changed within the stream"));
    }
    if message.write_offset != offset {
        let text = format!("write_offset is {}; {offset} comes next", message.write_offset);
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

/// The messages of a call, none of which is waited for too long.
struct Incoming {
    messages: Messages,
    idle_timeout: Duration,
}

impl Incoming {
    async fn next(&mut self) -> Result<Option<WriteRequest>, Status> {
        timeout(self.idle_timeout, self.messages.next())
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the upload was idle for too long; it may be resumed")))
    }

    /// Makes sure that nothing follows `finish_write`.
    async fn expect_end(&mut self) -> Result<(), Status> {
        match timeout(WAIT_FOR_END, self.messages.next::<WriteRequest>()).await {
            Ok(Ok(Some(_))) => Err(Status::invalid_argument("a message follows finish_write")),
            Ok(Ok(None)) | Err(_) => Ok(()),
            Ok(Err(status)) => Err(status),
        }
    }
}

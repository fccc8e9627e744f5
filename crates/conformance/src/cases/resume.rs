//! Cases 11 and 12: how far an upload got, and going on with it after it broke.

use std::time::Duration;

use gf_reapi::Compressor;
use gf_reapi::bytestream::WriteRequest;
use tonic::Code;

use crate::blob::{Blob, write_requests};
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, require, succeeds};
use crate::probe::Probe;
use crate::upload::Upload;

cases! {
    "11-status-of-unknown-upload" => status_of_unknown_upload(),
    "11-status-during-upload" => status_during_upload(),
    "11-status-of-finished-upload" => status_of_finished_upload(Compressor::Identity),
    "11-status-of-finished-upload-zstd" => status_of_finished_upload(Compressor::Zstd),
    "11-status-of-malformed-name" => status_of_malformed_name(),
    "12-resume-after-close" => resume(Break::Close),
    "12-resume-after-reset" => resume(Break::Reset),
    "12-restart-from-zero" => restart_from_zero(),
    "12-restart-from-zero-zstd" => restart_from_zero_zstd(),
}

const SIZE_BYTES: usize = 1 << 20;
const HALF: usize = SIZE_BYTES / 2;

/// What QueryWriteStatus tells of an upload that is not complete; nothing known counts as no bytes. A server without
/// that call fails the cases about it, and keeps nothing as far as the others are concerned.
async fn committed(probe: &Probe<'_>, name: &str) -> Checked<i64> {
    match probe.write_status(name).await {
        Ok(status) => {
            ensure!(!status.complete, "QueryWriteStatus calls an unfinished upload complete");
            Ok(status.committed_size)
        }
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(0),
        Err(status) => Err(Finding::Fail(format!("QueryWriteStatus: {}", describe(&status)))),
    }
}

/// Asks until some bytes are committed; 0 if none are within the patience.
async fn committed_soon(probe: &Probe<'_>, name: &str) -> Checked<i64> {
    // It may take a server a while to notice what happened on another stream.
    let deadline = tokio::time::Instant::now() + probe.patience() / 5;
    loop {
        let size = committed(probe, name).await?;
        if size > 0 || tokio::time::Instant::now() > deadline {
            return Ok(size);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn first_half(blob: &Blob, name: &str) -> WriteRequest {
    WriteRequest {
        resource_name: name.to_owned(),
        write_offset: 0,
        finish_write: false,
        data: blob.bytes.slice(..HALF),
    }
}

async fn status_of_unknown_upload(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(100);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    match probe.write_status(&name).await {
        Ok(status) => {
            ensure!(
                status.committed_size == 0 && !status.complete,
                "an unknown upload has committed_size {} and complete {}",
                status.committed_size,
                status.complete
            );
            Ok("committed_size 0".into())
        }
        Err(status) if status.code() == Code::NotFound => Ok("NOT_FOUND".into()),
        Err(status) => Err(Finding::Fail(describe(&status))),
    }
}

async fn status_during_upload(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(SIZE_BYTES);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let mut upload = Upload::begin(&probe.transport());
    upload.send(first_half(&blob, &name)).await;
    if let Err(status) = probe.write_status(&name).await {
        ensure!(status.code() == Code::NotFound, "QueryWriteStatus: {}", describe(&status));
    }
    let during = committed_soon(probe, &name).await?;
    ensure!(during <= as_i64(HALF), "committed_size is {during} after {HALF} bytes were sent");
    upload.send(rest(&blob, HALF)).await;
    succeeds("the upload that was asked about", upload.close().await)?;
    probe.ensure_stored(&blob).await?;
    Ok(format!("committed_size {during} after {HALF} bytes"))
}

async fn status_of_finished_upload(probe: &mut Probe<'_>, compressor: Compressor) -> Checked {
    if compressor == Compressor::Zstd {
        probe.require_zstd()?;
    }
    let blob = probe.compressible(SIZE_BYTES);
    let name = probe.write_name(blob.digest, compressor)?;
    let encoded = if compressor == Compressor::Zstd { blob.zstd()? } else { blob.bytes.clone() };
    succeeds("the upload", probe.write(write_requests(&name, &encoded, HALF)).await)?;
    let status = succeeds("QueryWriteStatus of a finished upload", probe.write_status(&name).await)?;
    ensure!(status.complete, "a finished upload is not complete; committed_size {}", status.committed_size);
    let size = status.committed_size;
    if compressor == Compressor::Identity {
        ensure!(size == blob.size_bytes(), "committed_size of a finished upload is {size}");
    }
    probe.ensure_stored(&blob).await?;
    Ok(format!("complete, committed_size {size}"))
}

async fn status_of_malformed_name(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::InvalidArgument, Code::NotFound];
    let name = probe.name_of("uploads/nothing-that-was-ever-uploaded");
    crate::finding::refused("QueryWriteStatus of a malformed name", probe.write_status(&name).await, ALLOWED)
}

/// How an upload ends half-way.
#[derive(Clone, Copy)]
enum Break {
    /// The client closes the stream in good order.
    Close,
    /// The stream is reset, as when a client vanishes.
    Reset,
}

async fn resume(probe: &mut Probe<'_>, how: Break) -> Checked {
    let blob = probe.blob(SIZE_BYTES);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let mut upload = Upload::begin(&probe.transport());
    upload.send(first_half(&blob, &name)).await;
    let before = committed_soon(probe, &name).await?;
    match how {
        Break::Close => drop(upload.close().await),
        Break::Reset => drop(upload),
    }
    let kept = committed_soon(probe, &name).await?;
    require!(kept > 0, "the server keeps nothing of a broken upload (it had {before} bytes before)");
    ensure!(kept <= as_i64(HALF), "committed_size is {kept} after {HALF} bytes were sent");
    let from = usize::try_from(kept).unwrap_or_default();
    let mut request = rest(&blob, from);
    request.resource_name = name.clone();
    let response = succeeds(&format!("going on at committed_size {kept}"), probe.write(vec![request]).await)?;
    ensure!(
        response.committed_size == blob.size_bytes(),
        "after the resume committed_size is {}",
        response.committed_size
    );
    probe.ensure_stored(&blob).await?;
    Ok(format!("went on at {kept} of {SIZE_BYTES} bytes"))
}

async fn restart_from_zero(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(SIZE_BYTES);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let mut upload = Upload::begin(&probe.transport());
    upload.send(first_half(&blob, &name)).await;
    let before = committed_soon(probe, &name).await?;
    drop(upload);
    // A client that does not ask how far it got starts over under the same name.
    let answer = probe.write(write_requests(&name, &blob.bytes, HALF)).await;
    succeeds("starting over under the same name", answer)?;
    probe.ensure_stored(&blob).await?;
    Ok(format!("started over after {before} bytes"))
}

async fn restart_from_zero_zstd(probe: &mut Probe<'_>) -> Checked {
    probe.require_zstd()?;
    let blob = probe.blob(SIZE_BYTES);
    let name = probe.write_name(blob.digest, Compressor::Zstd)?;
    let encoded = blob.zstd()?;
    let mut upload = Upload::begin(&probe.transport());
    let mut first = first_half(&blob, &name);
    first.data = encoded.slice(..HALF);
    upload.send(first).await;
    let before = committed_soon(probe, &name).await?;
    drop(upload);
    let answer = probe.write(write_requests(&name, &encoded, HALF)).await;
    succeeds("starting a compressed upload over under the same name", answer)?;
    probe.ensure_stored(&blob).await?;
    Ok(format!("started over; {before} bytes were committed before"))
}

/// All bytes from `offset` on, as the last message.
fn rest(blob: &Blob, offset: usize) -> WriteRequest {
    WriteRequest {
        resource_name: String::new(),
        write_offset: as_i64(offset),
        finish_write: true,
        data: blob.bytes.slice(offset..),
    }
}

fn as_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

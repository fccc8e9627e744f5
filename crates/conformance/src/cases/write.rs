//! Cases 6 to 10 and 13: uploads that meet a blob that is there already, uploads side by side, names and offsets of
//! the later messages, and how an upload ends.

use std::time::Duration;

use bytes::Bytes;
use gf_reapi::Compressor;
use gf_reapi::bytestream::WriteRequest;
use tonic::Code;

use crate::blob::{Blob, write_requests};
use crate::cases::cases;
use crate::finding::{CALLER_AT_FAULT, Checked, Finding, describe, ensure, refused, succeeds};
use crate::probe::Probe;
use crate::upload::Upload;

cases! {
    "06-write-existing-identity" => write_existing(Compressor::Identity),
    "06-write-existing-zstd" => write_existing(Compressor::Zstd),
    "06-write-existing-whole" => write_existing_whole(),
    "07-concurrent-writers" => concurrent_writers(),
    "07-concurrent-writer-is-released" => concurrent_writer_is_released(),
    "08-uuid-reused-in-turn" => uuid_reused_in_turn(),
    "08-uuid-reused-at-once" => uuid_reused_at_once(),
    "09-name-only-in-first-message" => name_in_later_messages(LaterName::Absent),
    "09-name-repeated" => name_in_later_messages(LaterName::Same),
    "09-name-changed" => name_in_later_messages(LaterName::OfAnotherBlob),
    "09-name-missing" => name_missing(),
    "10-offset-negative" => first_offset(-1),
    "10-offset-beyond-nothing" => first_offset(500),
    "10-offset-gap" => second_offset(600),
    "10-offset-overlap" => second_offset(400),
    "10-offset-compressed" => compressed_offsets(Count::CompressedBytes),
    "10-offset-compressed-wrong" => compressed_offsets(Count::UncompressedBytes),
    "13-data-after-finish" => data_after_finish(),
    "13-closed-without-finish" => closed_without_finish(),
    "13-nothing-sent" => nothing_sent(),
}

/// How long a server that need not answer a client before it has finished is waited for.
const EARLY: Duration = Duration::from_secs(5);

fn request(name: &str, offset: usize, data: Bytes, finish_write: bool) -> WriteRequest {
    let write_offset = i64::try_from(offset).unwrap_or(i64::MAX);
    WriteRequest { resource_name: name.to_owned(), write_offset, finish_write, data }
}

async fn write_existing(probe: &mut Probe<'_>, compressor: Compressor) -> Checked {
    if compressor == Compressor::Zstd {
        probe.require_zstd()?;
    }
    let blob = probe.stored(3 << 20).await?;
    let name = probe.write_name(blob.digest, compressor)?;
    let (encoded, expected) = match compressor {
        Compressor::Identity => (blob.bytes.clone(), blob.size_bytes()),
        Compressor::Zstd => (blob.zstd()?, -1),
    };
    let mut upload = Upload::begin(&probe.transport());
    upload.send(request(&name, 0, encoded.slice(..64 << 10), false)).await;
    let patience = probe.patience() / 3;
    let answer = upload.answer_within(patience).await?.ok_or_else(|| {
        Finding::Fail(format!("no answer within {patience:?} after the first message for a blob that is present"))
    })?;
    let response = succeeds("the first message for a blob that is present", answer)?;
    ensure!(
        response.committed_size == expected,
        "committed_size is {}; expected {expected} for a blob that is present",
        response.committed_size
    );
    Ok(format!("answered after the first message with committed_size {expected}"))
}

async fn write_existing_whole(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1 << 20).await?;
    for piece_bytes in [1 << 20, 100_000] {
        let name = probe.write_name(blob.digest, Compressor::Identity)?;
        let answer = probe.write(write_requests(&name, &blob.bytes, piece_bytes)).await;
        let response = succeeds("writing a present blob again", answer)?;
        ensure!(response.committed_size == blob.size_bytes(), "committed_size is {}", response.committed_size);
    }
    Ok("OK with the full size".into())
}

/// A blob in three pieces, for uploads that meet each other half-way.
struct InPieces {
    blob: Blob,
    piece_bytes: usize,
}

impl InPieces {
    fn new(probe: &mut Probe<'_>) -> Self {
        let piece_bytes = 200 << 10;
        Self { blob: probe.blob(3 * piece_bytes), piece_bytes }
    }

    fn request(&self, name: &str, piece: usize) -> WriteRequest {
        let offset = piece * self.piece_bytes;
        request(name, offset, self.blob.bytes.slice(offset..offset + self.piece_bytes), piece == 2)
    }
}

async fn concurrent_writers(probe: &mut Probe<'_>) -> Checked {
    let pieces = InPieces::new(probe);
    let mut uploads = Vec::new();
    for _ in 0..4 {
        let name = probe.write_name(pieces.blob.digest, Compressor::Identity)?;
        uploads.push((Upload::begin(&probe.transport()), name));
    }
    for piece in 0..3 {
        for (upload, name) in &mut uploads {
            upload.send(pieces.request(name, piece)).await;
        }
    }
    for (upload, _) in uploads {
        let response = succeeds("one of four writers of the same blob", upload.close().await)?;
        ensure!(
            response.committed_size == pieces.blob.size_bytes(),
            "one of four writers got committed_size {}",
            response.committed_size
        );
    }
    probe.ensure_stored(&pieces.blob).await?;
    Ok("four writers at once, each OK with the full size".into())
}

async fn concurrent_writer_is_released(probe: &mut Probe<'_>) -> Checked {
    let pieces = InPieces::new(probe);
    let name = probe.write_name(pieces.blob.digest, Compressor::Identity)?;
    let mut slow = Upload::begin(&probe.transport());
    slow.send(pieces.request(&name, 0)).await;
    // The slow writer must be known to the server before the fast one ends; a query is answered after it.
    let _known: Result<_, _> = probe.write_status(&name).await;
    probe.upload(&pieces.blob).await?;
    slow.send(pieces.request(&name, 1)).await;
    let early = slow.answer_within(EARLY).await?;
    let (answer, when) = match early {
        Some(answer) => (answer, "before it finished"),
        None => {
            slow.send(pieces.request(&name, 2)).await;
            (slow.close().await, "only after it finished")
        }
    };
    let response = succeeds("the writer that was overtaken", answer)?;
    ensure!(
        response.committed_size == pieces.blob.size_bytes(),
        "the writer that was overtaken got committed_size {}",
        response.committed_size
    );
    Ok(format!("the writer that was overtaken got OK and the full size {when}"))
}

async fn uuid_reused_in_turn(probe: &mut Probe<'_>) -> Checked {
    let uuid = probe.uuid();
    for _ in 0..3 {
        let blob = probe.blob(5000);
        let name = probe.write_name_with(&uuid, blob.digest, Compressor::Identity)?;
        succeeds("a further blob under the same uuid", probe.write(write_requests(&name, &blob.bytes, 2000)).await)?;
        probe.ensure_stored(&blob).await?;
    }
    Ok("three blobs in turn".into())
}

async fn uuid_reused_at_once(probe: &mut Probe<'_>) -> Checked {
    let uuid = probe.uuid();
    let (one, two) = (InPieces::new(probe), InPieces::new(probe));
    let name_one = probe.write_name_with(&uuid, one.blob.digest, Compressor::Identity)?;
    let name_two = probe.write_name_with(&uuid, two.blob.digest, Compressor::Identity)?;
    let (mut upload_one, mut upload_two) = (Upload::begin(&probe.transport()), Upload::begin(&probe.transport()));
    for piece in 0..3 {
        upload_one.send(one.request(&name_one, piece)).await;
        upload_two.send(two.request(&name_two, piece)).await;
    }
    succeeds("the first of two blobs under one uuid", upload_one.close().await)?;
    succeeds("the second of two blobs under one uuid", upload_two.close().await)?;
    probe.ensure_stored(&one.blob).await?;
    probe.ensure_stored(&two.blob).await?;
    Ok("two blobs at once".into())
}

/// What the second message of an upload says about the name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LaterName {
    Absent,
    Same,
    OfAnotherBlob,
}

async fn name_in_later_messages(probe: &mut Probe<'_>, later: LaterName) -> Checked {
    let (blob, other) = (probe.blob(1000), probe.blob(1000));
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let second = match later {
        LaterName::Absent => String::new(),
        LaterName::Same => name.clone(),
        LaterName::OfAnotherBlob => probe.write_name(other.digest, Compressor::Identity)?,
    };
    let requests =
        vec![request(&name, 0, blob.bytes.slice(..500), false), request(&second, 500, blob.bytes.slice(500..), true)];
    let answer = probe.write(requests).await;
    if later == LaterName::OfAnotherBlob {
        let detail = refused("a message with another name", answer, &[Code::InvalidArgument])?;
        probe.ensure_absent(other.digest).await?;
        return Ok(detail);
    }
    succeeds("the upload", answer)?;
    probe.ensure_stored(&blob).await?;
    Ok("accepted".into())
}

async fn name_missing(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(100);
    let answer = probe.write(vec![request("", 0, blob.bytes, true)]).await;
    refused("an upload without a name", answer, &[Code::InvalidArgument])
}

async fn first_offset(probe: &mut Probe<'_>, offset: i64) -> Checked {
    let blob = probe.blob(1000);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let mut requests = write_requests(&name, &blob.bytes, 1000);
    for request in &mut requests {
        request.write_offset = offset;
    }
    let answer = probe.write(requests).await;
    let detail = refused(&format!("a new upload at offset {offset}"), answer, CALLER_AT_FAULT)?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

async fn second_offset(probe: &mut Probe<'_>, offset: usize) -> Checked {
    let blob = probe.blob(1000);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    // The bytes are those that belong to the offset that is claimed, so that only the offset is wrong.
    let requests = vec![
        request(&name, 0, blob.bytes.slice(..500), false),
        request(&name, offset, blob.bytes.slice(offset..), true),
    ];
    let answer = probe.write(requests).await;
    let detail = refused(&format!("offset {offset} after 500 bytes"), answer, CALLER_AT_FAULT)?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

/// What the later offsets of a compressed upload count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Count {
    CompressedBytes,
    UncompressedBytes,
}

async fn compressed_offsets(probe: &mut Probe<'_>, count: Count) -> Checked {
    probe.require_zstd()?;
    let blob = probe.compressible(2 << 20);
    let encoded = blob.zstd()?;
    let name = probe.write_name(blob.digest, Compressor::Zstd)?;
    let mut requests = write_requests(&name, &encoded, encoded.len() / 4);
    if count == Count::UncompressedBytes {
        let ratio = i64::try_from(blob.bytes.len() / encoded.len()).unwrap_or(1);
        for request in &mut requests {
            request.write_offset *= ratio;
        }
        let answer = probe.write(requests).await;
        let detail = refused("later offsets that count uncompressed bytes", answer, CALLER_AT_FAULT)?;
        probe.ensure_absent(blob.digest).await?;
        return Ok(detail);
    }
    succeeds("later offsets that count compressed bytes", probe.write(requests).await)?;
    probe.ensure_stored(&blob).await?;
    Ok("later offsets count compressed bytes".into())
}

async fn data_after_finish(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(1000);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let requests =
        vec![request(&name, 0, blob.bytes.clone(), true), request("", 1000, Bytes::from_static(b"and more"), true)];
    match probe.write(requests).await {
        Err(status) if CALLER_AT_FAULT.contains(&status.code()) => Ok(describe(&status)),
        Err(status) => Err(Finding::Fail(format!("data after finish_write: {}", describe(&status)))),
        // The answer may have been on its way before the later message came; then the blob must be the right one.
        Ok(response) => {
            ensure!(response.committed_size == 1000, "data after finish_write: committed {}", response.committed_size);
            probe.ensure_stored(&blob).await?;
            Ok("answered at finish_write, and took nothing that came later".into())
        }
    }
}

async fn closed_without_finish(probe: &mut Probe<'_>) -> Checked {
    let mut details = Vec::new();
    for sent in [500, 1000] {
        let blob = probe.blob(1000);
        let name = probe.write_name(blob.digest, Compressor::Identity)?;
        let answer = probe.write(vec![request(&name, 0, blob.bytes.slice(..sent), false)]).await;
        probe.ensure_absent(blob.digest).await?;
        let said = match answer {
            Ok(response) => format!("committed_size {}", response.committed_size),
            Err(status) => describe(&status),
        };
        details.push(format!("{sent} of 1000 bytes without finish_write: {said}, not stored"));
    }
    Ok(details.join("; "))
}

async fn nothing_sent(probe: &mut Probe<'_>) -> Checked {
    let answer = probe.write(Vec::new()).await;
    refused("an upload without any message", answer, CALLER_AT_FAULT)
}

//! Cases 1 to 5: the empty blob, digests that are wrong, and content that is not what its digest says.

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction};
use gf_reapi::bytestream::WriteRequest;
use gf_reapi::execution::GetTreeRequest;
use gf_reapi::{Compressor, WireDigest};
use tonic::{Code, Status};

use crate::blob::{Blob, write_requests, zstd_frame};
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, entry_status, refused, succeeds};
use crate::probe::{Probe, collect, identity_entry, zstd_entry};

use DigestFunction::{Blake3, Sha256};

cases! {
    "01-empty-blob-sha256" => empty_blob(Sha256),
    "01-empty-blob-blake3" => empty_blob(Blake3),
    "01-empty-blob-compressed" => empty_blob_compressed(),
    "01-empty-directory-tree" => empty_directory_tree(),
    "02-wrong-size-read" => wrong_size_read(),
    "02-wrong-size-batch-read" => wrong_size_batch_read(),
    "02-wrong-size-find-missing" => wrong_size_find_missing(),
    "02-wrong-size-write" => wrong_size_write(),
    "02-wrong-size-batch-update" => wrong_size_batch_update(),
    "03-malformed-read" => malformed_read(),
    "03-malformed-write" => malformed_write(),
    "03-malformed-find-missing" => malformed_find_missing(),
    "03-malformed-batch-read" => malformed_batch_read(),
    "03-malformed-batch-update" => malformed_batch_update(),
    "04-write-wrong-content-identity" => write_wrong_content(Compressor::Identity),
    "04-write-wrong-content-zstd" => write_wrong_content(Compressor::Zstd),
    "04-batch-update-wrong-content" => batch_update_wrong_content(),
    "05-write-shorter-identity" => write_shorter(Compressor::Identity),
    "05-write-shorter-zstd" => write_shorter(Compressor::Zstd),
    "05-write-longer-identity" => write_longer(Compressor::Identity),
    "05-write-longer-zstd" => write_longer(Compressor::Zstd),
}

/// Answers to a read under a digest that names nothing.
const NAMES_NOTHING: &[Code] = &[Code::NotFound, Code::InvalidArgument];
const INVALID: &[Code] = &[Code::InvalidArgument];

async fn empty_blob(probe: &mut Probe<'_>, function: DigestFunction) -> Checked {
    probe.require_function(function)?;
    let empty = Digest::empty(function);
    ensure!(probe.is_present(empty).await?, "FindMissingBlobs lists the empty blob as missing");
    let entries = succeeds("BatchReadBlobs", probe.batch_read(function, vec![empty.into()], &[]).await)?;
    ensure!(entries.len() == 1, "BatchReadBlobs gave {} answers for one digest", entries.len());
    succeeds("BatchReadBlobs of the empty blob", entry_status(entries[0].status.as_ref()))?;
    ensure!(entries[0].data.is_empty(), "BatchReadBlobs gave {} bytes for the empty blob", entries[0].data.len());
    let name = probe.read_name(empty, Compressor::Identity)?;
    let bytes = succeeds("Read of the empty blob", probe.read(&name, 0, 0).await)?;
    ensure!(bytes.is_empty(), "Read gave {} bytes for the empty blob", bytes.len());
    Ok("found, read and batch-read without an upload".into())
}

async fn empty_blob_compressed(probe: &mut Probe<'_>) -> Checked {
    probe.require_zstd()?;
    let name = probe.read_name(Digest::empty(Sha256), Compressor::Zstd)?;
    let bytes = succeeds("Read of the empty blob as zstd", probe.read(&name, 0, 0).await)?;
    let content = crate::blob::unzstd(&bytes, 0)?;
    ensure!(content.is_empty(), "the empty blob has content when read as zstd");
    Ok(format!("{} bytes that decompress to none", bytes.len()))
}

async fn empty_directory_tree(probe: &mut Probe<'_>) -> Checked {
    let request = GetTreeRequest {
        instance_name: probe.instance(),
        root_digest: Some(Digest::empty(Sha256).into()),
        page_size: 0,
        page_token: String::new(),
        digest_function: Sha256.number(),
    };
    let stream = succeeds("GetTree of the empty directory", probe.storage().get_tree(request).await)?;
    let pages = succeeds("GetTree of the empty directory", collect(stream.into_inner(), 10).await)?;
    let directories: usize = pages.iter().map(|page| page.directories.len()).sum();
    ensure!(directories <= 1, "GetTree of the empty directory gave {directories} directories");
    Ok(format!("OK with {directories} directories"))
}

async fn wrong_size_read(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let mut details = Vec::new();
    for size in [999, 1001, 0] {
        let name = probe.name_of(&format!("blobs/{}/{size}", blob.digest.hash_hex()));
        let what = format!("reading a blob of 1000 bytes as {size}");
        details.push(refused(&what, probe.read(&name, 0, 0).await, NAMES_NOTHING)?);
    }
    Ok(details.join("; "))
}

async fn wrong_size_batch_read(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let digests = vec![blob.wire_with_size(999), blob.wire()];
    let entries = succeeds("BatchReadBlobs", probe.batch_read(Sha256, digests, &[]).await)?;
    let status_of = |size: i64| {
        let entry = entries.iter().find(|e| e.digest.as_ref().is_some_and(|d| d.size_bytes == size));
        entry
            .map(|entry| entry_status(entry.status.as_ref()))
            .ok_or_else(|| Finding::Fail(format!("no answer for the digest with size {size}")))
    };
    succeeds("the entry with the right size", status_of(1000)?)?;
    refused("the entry with the wrong size", status_of(999)?, NAMES_NOTHING)
}

async fn wrong_size_find_missing(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    match probe.find_missing(Sha256, vec![blob.wire_with_size(1001)]).await {
        Ok(missing) if missing.is_empty() => {
            Err(Finding::Fail("a blob of 1000 bytes is reported present under a size of 1001".into()))
        }
        Ok(_) => Ok("reported missing".into()),
        refusal => refused("FindMissingBlobs with a wrong size", refusal, NAMES_NOTHING),
    }
}

async fn wrong_size_write(probe: &mut Probe<'_>) -> Checked {
    // Once with the blob present, which tempts a server that looks at the hash alone, and once without.
    let present = probe.stored(1000).await?;
    let absent = probe.blob(1000);
    let mut details = Vec::new();
    for (blob, what) in [(&present, "of a present blob"), (&absent, "of an absent blob")] {
        for size in [900, 1100] {
            let uuid = probe.uuid();
            let name = probe.name_of(&format!("uploads/{uuid}/blobs/{}/{size}", blob.digest.hash_hex()));
            let answer = probe.write(write_requests(&name, &blob.bytes, 1000)).await;
            details.push(refused(&format!("writing 1000 bytes as {size} {what}"), answer, INVALID)?);
        }
    }
    probe.ensure_absent(absent.digest).await?;
    Ok(details.join("; "))
}

async fn wrong_size_batch_update(probe: &mut Probe<'_>) -> Checked {
    let (blob, good) = (probe.blob(1000), probe.blob(1000));
    let mut entry = identity_entry(&blob);
    entry.digest = Some(blob.wire_with_size(1001));
    let detail = one_bad_entry(probe, entry, &good, INVALID).await?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

/// A batch with one bad and one good entry, of which only the bad one must fail.
pub(super) async fn one_bad_entry(
    probe: &Probe<'_>,
    bad: gf_reapi::execution::batch_update_blobs_request::Request,
    good: &Blob,
    allowed: &[Code],
) -> Checked {
    let answers = succeeds("BatchUpdateBlobs", probe.batch_update(Sha256, vec![bad, identity_entry(good)]).await)?;
    ensure!(answers.len() == 2, "BatchUpdateBlobs gave {} answers for two entries", answers.len());
    let good_wire = good.wire();
    let (good_answers, bad_answers): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.digest.as_ref() == Some(&good_wire));
    ensure!(good_answers.len() == 1, "{} of the two answers are for the good entry", good_answers.len());
    succeeds("the good entry", entry_status(good_answers[0].status.as_ref()))?;
    probe.ensure_stored(good).await?;
    refused("the bad entry", entry_status(bad_answers[0].status.as_ref()), allowed)
}

/// Digests that are none, from a good one.
fn malformed(blob: &Blob) -> Vec<(&'static str, WireDigest)> {
    let hash = blob.digest.hash_hex().to_string();
    let size = blob.size_bytes();
    vec![
        ("an upper-case hash", WireDigest::from_text(&hash.to_uppercase(), size)),
        ("a short hash", WireDigest::from_text(&hash[..62], size)),
        ("a long hash", WireDigest::from_text(&format!("{hash}00"), size)),
        ("a hash that is not hexadecimal", WireDigest::from_text(&format!("zz{}", &hash[2..]), size)),
        ("an empty hash", WireDigest::from_text("", size)),
        ("a hash that climbs out", WireDigest::from_text("../../../../etc/passwd", size)),
        ("a negative size", WireDigest::from_text(&hash, -1)),
    ]
}

async fn malformed_read(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(100).await?;
    let mut last = String::new();
    for (what, digest) in malformed(&blob) {
        let name = probe.name_of(&format!("blobs/{}/{}", digest.hash(), digest.size_bytes));
        last = refused(&format!("Read with {what}"), probe.read(&name, 0, 0).await, NAMES_NOTHING)?;
    }
    Ok(last)
}

async fn malformed_write(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(100);
    let mut last = String::new();
    for (what, digest) in malformed(&blob) {
        let uuid = probe.uuid();
        let name = probe.name_of(&format!("uploads/{uuid}/blobs/{}/{}", digest.hash(), digest.size_bytes));
        let answer = probe.write(write_requests(&name, &blob.bytes, 100)).await;
        last = refused(&format!("Write with {what}"), answer, INVALID)?;
    }
    Ok(last)
}

async fn malformed_find_missing(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(100).await?;
    let mut last = String::new();
    for (what, digest) in malformed(&blob) {
        last = match probe.find_missing(Sha256, vec![digest]).await {
            Ok(missing) if missing.is_empty() => {
                return Err(Finding::Fail(format!("a digest with {what} is reported present")));
            }
            Ok(_) => format!("{what}: reported missing"),
            refusal => refused(&format!("FindMissingBlobs with {what}"), refusal, INVALID)?,
        };
    }
    Ok(last)
}

async fn malformed_batch_read(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(100).await?;
    let mut last = String::new();
    for (what, digest) in malformed(&blob) {
        let answer = probe.batch_read(Sha256, vec![digest, blob.wire()], &[]).await;
        let entries = succeeds(&format!("BatchReadBlobs with {what} in one of two entries"), answer)?;
        let (good, bad): (Vec<_>, Vec<_>) = entries.iter().partition(|e| e.digest.as_ref() == Some(&blob.wire()));
        ensure!(good.len() == 1 && bad.len() == 1, "{what}: {} answers for two digests", entries.len());
        succeeds("the good entry", entry_status(good[0].status.as_ref()))?;
        last = refused(&format!("the entry with {what}"), entry_status(bad[0].status.as_ref()), NAMES_NOTHING)?;
    }
    Ok(last)
}

async fn malformed_batch_update(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(100);
    let mut last = String::new();
    for (what, digest) in malformed(&blob) {
        let good = probe.blob(100);
        let mut bad = identity_entry(&blob);
        bad.digest = Some(digest);
        last = match one_bad_entry(probe, bad, &good, INVALID).await {
            Err(Finding::Fail(why)) => return Err(Finding::Fail(format!("{what}: {why}"))),
            other => format!("{what}: {}", other?),
        };
    }
    Ok(last)
}

async fn write_wrong_content(probe: &mut Probe<'_>, compressor: Compressor) -> Checked {
    if compressor == Compressor::Zstd {
        probe.require_zstd()?;
    }
    let mut details = Vec::new();
    for size in [1000, 3 << 20] {
        let announced = probe.blob(size);
        // One bit differs, at the very end.
        let mut wrong = announced.bytes.to_vec();
        if let Some(last) = wrong.last_mut() {
            *last ^= 1;
        }
        let what = format!("{size} bytes of which one is wrong");
        details.push(refused(&what, upload_as(probe, announced.digest, compressor, wrong.into()).await?, INVALID)?);
        probe.ensure_absent(announced.digest).await?;
    }
    Ok(details.join("; "))
}

/// Writes `content` under a digest that may not be its own.
async fn upload_as(
    probe: &mut Probe<'_>,
    digest: Digest,
    compressor: Compressor,
    content: Bytes,
) -> Checked<Result<i64, Status>> {
    let name = probe.write_name(digest, compressor)?;
    let encoded = match compressor {
        Compressor::Identity => content,
        Compressor::Zstd => zstd_frame(&content)?,
    };
    Ok(probe.write(write_requests(&name, &encoded, 1 << 20)).await.map(|response| response.committed_size))
}

async fn batch_update_wrong_content(probe: &mut Probe<'_>) -> Checked {
    let (announced, other, good) = (probe.blob(1000), probe.blob(1000), probe.blob(1000));
    let mut bad = identity_entry(&other);
    bad.digest = Some(announced.wire());
    let mut detail = one_bad_entry(probe, bad, &good, INVALID).await?;
    probe.ensure_absent(announced.digest).await?;
    if probe.require_batch_zstd().is_ok() {
        let good = probe.blob(1000);
        let bad = zstd_entry(announced.wire(), other.zstd()?);
        detail = format!("{detail}; as zstd: {}", one_bad_entry(probe, bad, &good, INVALID).await?);
        probe.ensure_absent(announced.digest).await?;
    }
    Ok(detail)
}

async fn write_shorter(probe: &mut Probe<'_>, compressor: Compressor) -> Checked {
    if compressor == Compressor::Zstd {
        probe.require_zstd()?;
    }
    let mut details = Vec::new();
    for (size, sent) in [(1000, 999), (3 << 20, 1 << 20), (1000, 0)] {
        let blob = probe.blob(size);
        let what = format!("finishing after {sent} of {size} bytes");
        let answer = upload_as(probe, blob.digest, compressor, blob.bytes.slice(..sent)).await?;
        details.push(refused(&what, answer, INVALID)?);
        probe.ensure_absent(blob.digest).await?;
    }
    Ok(details.join("; "))
}

async fn write_longer(probe: &mut Probe<'_>, compressor: Compressor) -> Checked {
    if compressor == Compressor::Zstd {
        probe.require_zstd()?;
    }
    let mut details = Vec::new();
    for (size, more) in [(1000, 1), (1000, 3 << 20), (2 << 20, 2 << 20)] {
        let blob = probe.blob(size);
        let content = [&blob.bytes[..], &vec![7; more]].concat();
        let what = format!("{} bytes for a blob of {size}", content.len());
        details.push(refused(&what, upload_as(probe, blob.digest, compressor, content.into()).await?, INVALID)?);
    }
    // The same in one message and in several must come to the same; the several are the first message's own size.
    let blob = probe.blob(1000);
    let name = probe.write_name(blob.digest, Compressor::Identity)?;
    let first = WriteRequest { resource_name: name, write_offset: 0, finish_write: false, data: blob.bytes.clone() };
    let then = WriteRequest {
        resource_name: String::new(),
        write_offset: 1000,
        finish_write: true,
        data: Bytes::from_static(b"more"),
    };
    match probe.write(vec![first, then]).await {
        Ok(response) => Err(Finding::Fail(format!("a message beyond the size: OK {}", response.committed_size))),
        Err(status) if status.code() == Code::InvalidArgument => Ok(details.join("; ")),
        Err(status) => Err(Finding::Fail(format!("a message beyond the size: {}", describe(&status)))),
    }
}

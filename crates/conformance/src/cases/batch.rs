//! Cases 22 to 25: questions and transfers that carry many blobs, and the limits on them.

use std::time::Duration;

use gf_digest::{Digest, DigestFunction::Sha256};
use gf_reapi::WireDigest;
use gf_reapi::bytestream::WriteRequest;
use gf_reapi::execution::batch_update_blobs_request::Request;
use gf_reapi::execution::compressor;
use tonic::Code;

use crate::blob::Blob;
use crate::cases::cases;
use crate::cases::compression::batch_content;
use crate::cases::identity::one_bad_entry;
use crate::finding::{Checked, Finding, describe, ensure, entry_status, refused, require, succeeds};
use crate::probe::{Probe, identity_entry, zstd_entry};
use crate::upload::Upload;

cases! {
    "22-find-missing-duplicates" => find_missing_duplicates(),
    "22-find-missing-none" => find_missing_none(),
    "22-find-missing-many" => find_missing_many(),
    "22-find-missing-mixed" => find_missing_mixed(),
    "23-batch-update-status-per-entry" => batch_update_status_per_entry(),
    "23-batch-update-at-limit" => batch_update_at_limit(),
    "23-batch-update-over-limit" => batch_update_over_limit(),
    "23-batch-update-zstd" => batch_update_zstd(),
    "23-batch-update-unknown-compressor" => batch_update_unknown_compressor(),
    "23-batch-update-duplicates" => batch_update_duplicates(),
    "23-batch-update-nothing" => batch_update_nothing(),
    "24-batch-read-missing-entry" => batch_read_missing_entry(),
    "24-batch-read-acceptable-compressors" => batch_read_acceptable_compressors(),
    "24-batch-read-over-limit" => batch_read_over_limit(),
    "24-batch-read-duplicates" => batch_read_duplicates(),
    "25-blob-over-size-limit-write" => blob_over_size_limit_write(),
    "25-blob-over-size-limit-batch-update" => blob_over_size_limit_batch_update(),
}

/// The message size that every gRPC implementation takes by default, less what a request needs besides blobs.
const SAFE_MESSAGE_BYTES: usize = (4 << 20) - (64 << 10);

async fn find_missing_duplicates(probe: &mut Probe<'_>) -> Checked {
    let (absent, present) = (probe.blob(100), probe.stored(100).await?);
    let asked = vec![absent.wire(), present.wire(), absent.wire(), present.wire(), absent.wire()];
    let missing = succeeds("FindMissingBlobs", probe.find_missing(Sha256, asked).await)?;
    ensure!(missing == [absent.wire()], "three times asked for one absent blob, the answer lists {missing:?}");
    Ok("listed once".into())
}

async fn find_missing_none(probe: &mut Probe<'_>) -> Checked {
    let missing = succeeds("FindMissingBlobs without digests", probe.find_missing(Sha256, Vec::new()).await)?;
    ensure!(missing.is_empty(), "without digests, {} are reported missing", missing.len());
    Ok("OK".into())
}

async fn find_missing_many(probe: &mut Probe<'_>) -> Checked {
    // Together just under 4 MiB, as question and as answer.
    const COUNT: usize = 55_000;
    let present = probe.stored(1000).await?;
    let first = probe.blob(16);
    let mut asked: Vec<WireDigest> =
        (0..COUNT as u64).map(|n| Digest::of(Sha256, &[&first.bytes[..], &n.to_le_bytes()].concat()).into()).collect();
    asked.push(present.wire());
    let missing = succeeds(&format!("{COUNT} digests"), probe.find_missing(Sha256, asked).await)?;
    ensure!(missing.len() == COUNT, "of {COUNT} absent blobs and a present one, {} are listed", missing.len());
    ensure!(!missing.contains(&present.wire()), "the present blob is among the missing");
    Ok(format!("{COUNT} digests in one call"))
}

async fn find_missing_mixed(probe: &mut Probe<'_>) -> Checked {
    let blobs: Vec<Blob> = (0..200).map(|_| probe.blob(50)).collect();
    let (uploaded, absent) = blobs.split_at(100);
    probe.upload_all(uploaded).await?;
    let asked = uploaded.iter().zip(absent).flat_map(|(one, other)| [one.wire(), other.wire()]).collect();
    let missing = succeeds("FindMissingBlobs", probe.find_missing(Sha256, asked).await)?;
    ensure!(missing.len() == absent.len(), "of 100 absent blobs {} are listed", missing.len());
    ensure!(absent.iter().all(|blob| missing.contains(&blob.wire())), "an absent blob is not listed");
    Ok("exactly the absent ones".into())
}

async fn batch_update_status_per_entry(probe: &mut Probe<'_>) -> Checked {
    let (good, other, announced) = (probe.blob(1000), probe.blob(1000), probe.blob(1000));
    let bad = Request { digest: Some(announced.wire()), data: other.bytes.clone(), compressor: 0 };
    let detail = one_bad_entry(probe, bad, &good, &[Code::InvalidArgument]).await?;
    let bad = Request { digest: None, data: other.bytes, compressor: 0 };
    let good = probe.blob(1000);
    match one_bad_entry(probe, bad, &good, &[Code::InvalidArgument]).await {
        Ok(without) => Ok(format!("{detail}; without a digest: {without}")),
        Err(Finding::Fail(why)) => Err(Finding::Fail(format!("an entry without a digest: {why}"))),
        Err(skip) => Err(skip),
    }
}

/// The advertised limit on batches.
fn batch_limit(probe: &Probe<'_>) -> Checked<usize> {
    let limit = usize::try_from(probe.session.cache()?.max_batch_total_size_bytes).unwrap_or_default();
    require!(limit > 0, "the server states no limit on batches");
    Ok(limit)
}

async fn batch_update_at_limit(probe: &mut Probe<'_>) -> Checked {
    let total = batch_limit(probe)?.min(SAFE_MESSAGE_BYTES);
    let blobs = [probe.blob(total / 2), probe.blob(total - total / 2)];
    let entries = blobs.iter().map(identity_entry).collect();
    let answers = succeeds(&format!("{total} bytes in a batch"), probe.batch_update(Sha256, entries).await)?;
    for answer in &answers {
        succeeds(&format!("{total} bytes in a batch"), entry_status(answer.status.as_ref()))?;
    }
    for blob in &blobs {
        probe.ensure_stored(blob).await?;
    }
    let digests = blobs.iter().map(Blob::wire).collect();
    let entries = succeeds(&format!("reading {total} bytes"), probe.batch_read(Sha256, digests, &[]).await)?;
    for entry in &entries {
        succeeds(&format!("reading {total} bytes"), entry_status(entry.status.as_ref()))?;
    }
    Ok(format!("{total} bytes written and read in a batch"))
}

async fn batch_update_over_limit(probe: &mut Probe<'_>) -> Checked {
    let limit = batch_limit(probe)?;
    require!(limit <= 64 << 20, "the limit of {limit} bytes is more than this case sends");
    let blobs = [probe.blob(limit / 2 + 1), probe.blob(limit / 2 + 1)];
    let answer = probe.batch_update(Sha256, blobs.iter().map(identity_entry).collect()).await;
    // Where the limit is as large as a message may be, the transport refuses before the service sees anything.
    let transport_refuses = limit > SAFE_MESSAGE_BYTES;
    let what = format!("{} bytes in a batch with a limit of {limit}", limit / 2 * 2 + 2);
    let detail = match answer {
        Err(status) if transport_refuses && matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) => {
            format!("{what}: refused by the transport: {}", describe(&status))
        }
        answer => refused(&what, answer, &[Code::InvalidArgument])?,
    };
    for blob in &blobs {
        ensure!(!probe.is_present(blob.digest).await?, "a blob of the refused batch is present");
    }
    Ok(detail)
}

async fn batch_update_zstd(probe: &mut Probe<'_>) -> Checked {
    probe.require_batch_zstd()?;
    let (compressed, plain) = (probe.compressible(100_000), probe.blob(1000));
    let entries = vec![zstd_entry(compressed.wire(), compressed.zstd()?), identity_entry(&plain)];
    let answers = succeeds("BatchUpdateBlobs", probe.batch_update(Sha256, entries).await)?;
    for answer in &answers {
        succeeds("an entry", entry_status(answer.status.as_ref()))?;
    }
    probe.ensure_stored(&compressed).await?;
    probe.ensure_stored(&plain).await?;
    Ok("compressed and plain entries in one batch".into())
}

async fn batch_update_unknown_compressor(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::InvalidArgument, Code::Unimplemented];
    let listed = probe.session.cache()?.supported_batch_update_compressors.clone();
    let mut details = Vec::new();
    for number in [1, 2, 3, 77].into_iter().filter(|number| !listed.contains(number)) {
        let (blob, good) = (probe.blob(1000), probe.blob(1000));
        let bad = Request { digest: Some(blob.wire()), data: blob.bytes.clone(), compressor: number };
        let detail = one_bad_entry(probe, bad, &good, ALLOWED).await;
        details.push(match detail {
            Err(Finding::Fail(why)) => return Err(Finding::Fail(format!("compressor {number}: {why}"))),
            other => format!("compressor {number}: {}", other?),
        });
        probe.ensure_absent(blob.digest).await?;
    }
    Ok(details.join("; "))
}

async fn batch_update_duplicates(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(1000);
    let entries = vec![identity_entry(&blob), identity_entry(&blob), identity_entry(&blob)];
    let answers = succeeds("a blob three times in a batch", probe.batch_update(Sha256, entries).await)?;
    ensure!(!answers.is_empty(), "no answer for a blob that is three times in a batch");
    for answer in &answers {
        succeeds("a blob three times in a batch", entry_status(answer.status.as_ref()))?;
    }
    probe.ensure_stored(&blob).await?;
    Ok(format!("{} answers, all OK", answers.len()))
}

async fn batch_update_nothing(probe: &mut Probe<'_>) -> Checked {
    let answers = succeeds("an empty batch", probe.batch_update(Sha256, Vec::new()).await)?;
    ensure!(answers.is_empty(), "an empty batch has {} answers", answers.len());
    let entries = succeeds("an empty batch", probe.batch_read(Sha256, Vec::new(), &[]).await)?;
    ensure!(entries.is_empty(), "an empty batch to be read has {} answers", entries.len());
    Ok("OK".into())
}

async fn batch_read_missing_entry(probe: &mut Probe<'_>) -> Checked {
    let (present, absent) = (probe.stored(1000).await?, probe.blob(1000));
    let answer = probe.batch_read(Sha256, vec![absent.wire(), present.wire()], &[]).await;
    let entries = succeeds("BatchReadBlobs", answer)?;
    ensure!(entries.len() == 2, "{} answers for two digests", entries.len());
    let (found, other): (Vec<_>, Vec<_>) = entries.iter().partition(|e| e.digest.as_ref() == Some(&present.wire()));
    ensure!(found.len() == 1, "{} of the two answers are for the present blob", found.len());
    ensure!(batch_content(found[0], &[], 1000)? == present.bytes, "the present blob is other bytes");
    ensure!(other[0].digest.as_ref() == Some(&absent.wire()), "the other answer is for {:?}", other[0].digest);
    refused("the absent blob", entry_status(other[0].status.as_ref()), &[Code::NotFound])
}

async fn batch_read_acceptable_compressors(probe: &mut Probe<'_>) -> Checked {
    use compressor::Value::{Brotli, Deflate, Identity, Zstd};
    let blob = probe.compressible(50_000);
    probe.upload(&blob).await?;
    let mut used = Vec::new();
    for acceptable in [&[][..], &[Identity], &[Zstd], &[Identity, Zstd], &[Deflate, Brotli]] {
        let answer = probe.batch_read(Sha256, vec![blob.wire()], acceptable).await;
        let entries = succeeds(&format!("accepting {acceptable:?}"), answer)?;
        ensure!(entries.len() == 1, "{} answers for one digest", entries.len());
        ensure!(batch_content(&entries[0], acceptable, 50_000)? == blob.bytes, "other bytes, accepting {acceptable:?}");
        used.push(format!("{:?} of {acceptable:?}", entries[0].compressor()));
    }
    Ok(used.join(", "))
}

async fn batch_read_over_limit(probe: &mut Probe<'_>) -> Checked {
    let limit = batch_limit(probe)?;
    require!(limit <= 32 << 20, "the limit of {limit} bytes is more than this case uploads");
    let blobs = [probe.stored(limit / 2 + 1).await?, probe.stored(limit / 2 + 1).await?];
    let answer = probe.batch_read(Sha256, blobs.iter().map(Blob::wire).collect(), &[]).await;
    let what = format!("reading {} bytes in a batch with a limit of {limit}", limit / 2 * 2 + 2);
    refused(&what, answer, &[Code::InvalidArgument])
}

async fn batch_read_duplicates(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let answer = probe.batch_read(Sha256, vec![blob.wire(), blob.wire()], &[]).await;
    let entries = succeeds("a digest twice in a batch", answer)?;
    ensure!(!entries.is_empty(), "no answer for a digest that is twice in a batch");
    for entry in &entries {
        ensure!(batch_content(entry, &[], 1000)? == blob.bytes, "other bytes");
    }
    Ok(format!("{} answers", entries.len()))
}

/// A digest that is one byte over the advertised limit on blobs.
fn too_large(probe: &mut Probe<'_>) -> Checked<WireDigest> {
    let limit = probe.session.cache()?.max_cas_blob_size_bytes;
    require!(limit > 0, "the server states no limit on the size of a blob");
    Ok(probe.blob(100).wire_with_size(limit + 1))
}

async fn blob_over_size_limit_write(probe: &mut Probe<'_>) -> Checked {
    let digest = too_large(probe)?;
    let uuid = probe.uuid();
    let name = probe.name_of(&format!("uploads/{uuid}/blobs/{}/{}", digest.hash(), digest.size_bytes));
    let mut upload = Upload::begin(&probe.transport());
    let first =
        WriteRequest { resource_name: name, write_offset: 0, finish_write: false, data: probe.blob(1000).bytes };
    upload.send(first).await;
    let (answer, when) = match upload.answer_within(Duration::from_secs(5)).await? {
        Some(answer) => (answer, "at the first message"),
        None => {
            let last = WriteRequest { write_offset: 1000, finish_write: true, ..WriteRequest::default() };
            upload.send(last).await;
            (upload.close().await, "only when it was finished")
        }
    };
    let what = format!("a blob of {} bytes, {when}", digest.size_bytes);
    refused(&what, answer, &[Code::InvalidArgument])
}

async fn blob_over_size_limit_batch_update(probe: &mut Probe<'_>) -> Checked {
    let digest = too_large(probe)?;
    let good = probe.blob(100);
    let bad = Request { digest: Some(digest), data: probe.blob(1000).bytes, compressor: 0 };
    match probe.batch_update(Sha256, vec![bad.clone()]).await {
        Err(status) if status.code() == Code::InvalidArgument => {
            Ok(format!("the whole call, since the sizes are over the limit of a batch: {}", describe(&status)))
        }
        _ => one_bad_entry(probe, bad, &good, &[Code::InvalidArgument]).await,
    }
}

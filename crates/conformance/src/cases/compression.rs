//! Cases 15 to 18: blobs that are written or read as zstd.

use bytes::Bytes;
use gf_digest::DigestFunction::Sha256;
use gf_reapi::Compressor;
use gf_reapi::execution::compressor;
use tonic::Code;

use crate::blob::{Blob, skippable_frame, unzstd, write_requests, zstd_bomb, zstd_frame, zstd_frame_of_unknown_size};
use crate::cases::cases;
use crate::cases::identity::one_bad_entry;
use crate::finding::{Checked, Finding, ensure, entry_status, refused, succeeds};
use crate::probe::{Probe, identity_entry, zstd_entry};

cases! {
    "15-compressed-read-offset" => compressed_read_offset(),
    "15-compressed-read-offset-past-end" => compressed_read_offset_past_end(),
    "15-compressed-read-limit" => compressed_read_limit(),
    "16-every-form-from-identity" => every_form(Upload::Identity),
    "16-every-form-from-zstd" => every_form(Upload::Zstd),
    "16-every-form-from-batch" => every_form(Upload::Batch),
    "16-every-form-from-batch-zstd" => every_form(Upload::BatchZstd),
    "17-unknown-compressor-read" => unknown_compressor_read(),
    "17-unknown-compressor-write" => unknown_compressor_write(),
    "17-bomb-write" => bomb_write(),
    "17-bomb-batch-update" => bomb_batch_update(),
    "18-zstd-many-frames" => zstd_shape(Shape::ManyFrames),
    "18-zstd-skippable-frames" => zstd_shape(Shape::SkippableFrames),
    "18-zstd-unknown-content-size" => zstd_shape(Shape::UnknownContentSize),
    "18-zstd-trailing-garbage" => zstd_broken(Broken::TrailingGarbage),
    "18-zstd-truncated" => zstd_broken(Broken::Truncated),
    "18-zstd-not-zstd" => zstd_broken(Broken::NotZstd),
}

const INVALID: &[Code] = &[Code::InvalidArgument];

async fn compressed_read_offset(probe: &mut Probe<'_>) -> Checked {
    probe.require_zstd()?;
    for blob in [probe.compressible(1000), probe.compressible(5 << 20), probe.blob(5 << 20)] {
        probe.upload(&blob).await?;
        let name = probe.read_name(blob.digest, Compressor::Zstd)?;
        let size = blob.bytes.len();
        for offset in [0, 1, size / 2, size - 1, size] {
            let what = format!("reading {size} bytes as zstd from uncompressed offset {offset}");
            let read = probe.read(&name, i64::try_from(offset).unwrap_or_default(), 0).await;
            let content = unzstd(&succeeds(&what, read)?, size)?;
            ensure!(content == blob.bytes[offset..], "{what} gave {} bytes, not the right ones", content.len());
        }
    }
    Ok("the offset counts uncompressed bytes".into())
}

async fn compressed_read_offset_past_end(probe: &mut Probe<'_>) -> Checked {
    probe.require_zstd()?;
    let blob = probe.stored(1000).await?;
    let name = probe.read_name(blob.digest, Compressor::Zstd)?;
    refused("offset 1001 of 1000 bytes", probe.read(&name, 1001, 0).await, &[Code::OutOfRange])
}

async fn compressed_read_limit(probe: &mut Probe<'_>) -> Checked {
    probe.require_zstd()?;
    let blob = probe.stored(1000).await?;
    let name = probe.read_name(blob.digest, Compressor::Zstd)?;
    refused("a limit on a compressed read", probe.read(&name, 0, 100).await, INVALID)
}

/// The ways for a blob to come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upload {
    Identity,
    Zstd,
    Batch,
    BatchZstd,
}

async fn every_form(probe: &mut Probe<'_>, upload: Upload) -> Checked {
    match upload {
        Upload::Zstd => probe.require_zstd()?,
        Upload::BatchZstd => probe.require_batch_zstd()?,
        Upload::Identity | Upload::Batch => {}
    }
    let mut blobs = vec![probe.blob(1), probe.blob(3000), probe.compressible(3000), probe.compressible(800_000)];
    if matches!(upload, Upload::Identity | Upload::Zstd) {
        blobs.extend([probe.blob(5 << 20), probe.compressible(5 << 20)]);
    }
    for blob in &blobs {
        bring_in(probe, upload, blob).await?;
        read_in_every_form(probe, blob).await?;
    }
    Ok(format!("{} blobs written as {upload:?} read back in every form", blobs.len()))
}

async fn bring_in(probe: &mut Probe<'_>, upload: Upload, blob: &Blob) -> Checked<()> {
    let entry = match upload {
        Upload::Identity => return probe.upload(blob).await,
        Upload::Zstd => {
            let name = probe.write_name(blob.digest, Compressor::Zstd)?;
            let answer = probe.write(write_requests(&name, &blob.zstd()?, 1 << 20)).await;
            succeeds("a compressed upload", answer)?;
            return Ok(());
        }
        Upload::Batch => identity_entry(blob),
        Upload::BatchZstd => zstd_entry(blob.wire(), blob.zstd()?),
    };
    let answers = succeeds("BatchUpdateBlobs", probe.batch_update(Sha256, vec![entry]).await)?;
    ensure!(answers.len() == 1, "BatchUpdateBlobs gave {} answers for one entry", answers.len());
    succeeds("BatchUpdateBlobs", entry_status(answers[0].status.as_ref()))
}

async fn read_in_every_form(probe: &Probe<'_>, blob: &Blob) -> Checked<()> {
    probe.ensure_stored(blob).await?;
    let size = blob.bytes.len();
    if probe.require_zstd().is_ok() {
        let name = probe.read_name(blob.digest, Compressor::Zstd)?;
        let bytes = succeeds(&format!("reading {size} bytes as zstd"), probe.read(&name, 0, 0).await)?;
        ensure!(unzstd(&bytes, size)? == blob.bytes, "{size} bytes read as zstd are other bytes");
    }
    if size < 1 << 20 {
        for acceptable in [&[][..], &[compressor::Value::Zstd]] {
            let answer = probe.batch_read(Sha256, vec![blob.wire()], acceptable).await;
            let entries = succeeds("BatchReadBlobs", answer)?;
            ensure!(entries.len() == 1, "BatchReadBlobs gave {} answers for one digest", entries.len());
            let content = batch_content(&entries[0], acceptable, size)?;
            ensure!(content == blob.bytes, "{size} bytes read in a batch are other bytes");
        }
    }
    Ok(())
}

/// The uncompressed content of a batch entry, which may only use a compressor that was asked for.
pub(super) fn batch_content(
    entry: &gf_reapi::execution::batch_read_blobs_response::Response,
    acceptable: &[compressor::Value],
    at_most: usize,
) -> Checked<Bytes> {
    succeeds("BatchReadBlobs", entry_status(entry.status.as_ref()))?;
    match entry.compressor() {
        compressor::Value::Identity => Ok(entry.data.clone()),
        compressor::Value::Zstd if acceptable.contains(&compressor::Value::Zstd) => {
            Ok(unzstd(&entry.data, at_most)?.into())
        }
        other => Err(Finding::Fail(format!("BatchReadBlobs answers as {other:?}, which was not acceptable"))),
    }
}

async fn unknown_compressor_read(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::InvalidArgument, Code::Unimplemented];
    let blob = probe.stored(1000).await?;
    let mut details = Vec::new();
    for compressor in unsupported(probe)? {
        let name = probe.name_of(&format!("compressed-blobs/{compressor}/{}/1000", blob.digest.hash_hex()));
        details.push(refused(&format!("reading as {compressor}"), probe.read(&name, 0, 0).await, ALLOWED)?);
    }
    Ok(details.join("; "))
}

async fn unknown_compressor_write(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::InvalidArgument, Code::Unimplemented];
    let blob = probe.blob(1000);
    let mut details = Vec::new();
    for compressor in unsupported(probe)? {
        let uuid = probe.uuid();
        let hash = blob.digest.hash_hex();
        let name = probe.name_of(&format!("uploads/{uuid}/compressed-blobs/{compressor}/{hash}/1000"));
        let answer = probe.write(write_requests(&name, &blob.bytes, 1000)).await;
        details.push(refused(&format!("writing as {compressor}"), answer, ALLOWED)?);
    }
    probe.ensure_absent(blob.digest).await?;
    Ok(details.join("; "))
}

/// Compressors that the server does not list, and one that nobody has.
fn unsupported(probe: &Probe<'_>) -> Checked<Vec<&'static str>> {
    let listed = &probe.session.cache()?.supported_compressors;
    let known = [("zstd", 1), ("deflate", 2), ("brotli", 3)];
    let unlisted = known.iter().filter(|(_, number)| !listed.contains(number)).map(|(name, _)| *name);
    Ok(unlisted.chain(["squeeze"]).collect())
}

/// What a bomb becomes: far more than the server may write, little enough for the suite to make.
const BOMB_BYTES: usize = 512 << 20;

async fn bomb_write(probe: &mut Probe<'_>) -> Checked {
    probe.require_zstd()?;
    let blob = probe.blob(1000);
    let bomb = zstd_bomb(BOMB_BYTES)?;
    let name = probe.write_name(blob.digest, Compressor::Zstd)?;
    let what = format!("{} bytes of zstd that become {BOMB_BYTES} for a blob of 1000", bomb.len());
    let detail = refused(&what, probe.write(write_requests(&name, &bomb, 1 << 20)).await, INVALID)?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

async fn bomb_batch_update(probe: &mut Probe<'_>) -> Checked {
    probe.require_batch_zstd()?;
    let (blob, good) = (probe.blob(1000), probe.blob(1000));
    let bad = zstd_entry(blob.wire(), zstd_bomb(BOMB_BYTES)?);
    let detail = one_bad_entry(probe, bad, &good, INVALID).await?;
    probe.ensure_absent(blob.digest).await?;
    Ok(detail)
}

/// Shapes of valid zstd that a one-shot decoder stumbles over.
#[derive(Clone, Copy, Debug)]
enum Shape {
    ManyFrames,
    SkippableFrames,
    UnknownContentSize,
}

async fn zstd_shape(probe: &mut Probe<'_>, shape: Shape) -> Checked {
    probe.require_zstd()?;
    // Pieces so small that every boundary falls into the middle of one, and a single message.
    for (size, piece_bytes) in [(1000, 7), (1000, 1 << 20), (1 << 20, 700), (1 << 20, 4 << 20)] {
        let blob = probe.compressible(size);
        let name = probe.write_name(blob.digest, Compressor::Zstd)?;
        let answer = probe.write(write_requests(&name, &shape.encode(&blob)?, piece_bytes)).await;
        succeeds(&format!("{shape:?} of {size} bytes in pieces of {piece_bytes}"), answer)?;
        read_in_every_form(probe, &blob).await?;
    }
    if probe.require_batch_zstd().is_ok() {
        let blob = probe.compressible(1000);
        let answer = probe.batch_update(Sha256, vec![zstd_entry(blob.wire(), shape.encode(&blob)?)]).await;
        let answers = succeeds("BatchUpdateBlobs", answer)?;
        succeeds(&format!("{shape:?} in a batch"), entry_status(answers.first().and_then(|a| a.status.as_ref())))?;
        read_in_every_form(probe, &blob).await?;
    }
    Ok("accepted, in one message and in many".into())
}

impl Shape {
    fn encode(self, blob: &Blob) -> Checked<Bytes> {
        let (head, tail) = blob.bytes.split_at(blob.bytes.len() / 3);
        let skipped = Bytes::from(skippable_frame(b"not content"));
        Ok(match self {
            Self::ManyFrames => [zstd_frame(head)?, zstd_frame(tail)?].concat().into(),
            Self::SkippableFrames => {
                [skipped.clone(), zstd_frame(head)?, skipped.clone(), zstd_frame(tail)?, skipped].concat().into()
            }
            Self::UnknownContentSize => zstd_frame_of_unknown_size(&blob.bytes)?,
        })
    }
}

/// Bytes that are no valid zstd, though they may begin as such.
#[derive(Clone, Copy, Debug)]
enum Broken {
    TrailingGarbage,
    Truncated,
    NotZstd,
}

async fn zstd_broken(probe: &mut Probe<'_>, broken: Broken) -> Checked {
    probe.require_zstd()?;
    let mut details = Vec::new();
    for size in [1000, 1 << 20] {
        let blob = probe.compressible(size);
        let good = blob.zstd()?;
        let encoded = match broken {
            Broken::TrailingGarbage => Bytes::from([&good[..], b"garbage at the end"].concat()),
            Broken::Truncated => good.slice(..good.len() - 5),
            Broken::NotZstd => blob.bytes.clone(),
        };
        let name = probe.write_name(blob.digest, Compressor::Zstd)?;
        let answer = probe.write(write_requests(&name, &encoded, 700)).await;
        if answer.is_ok() && matches!(broken, Broken::TrailingGarbage) {
            // The blob was complete before the garbage came.
            probe.ensure_stored(&blob).await?;
            details.push(format!("{broken:?} of {size} bytes: ignored"));
            continue;
        }
        details.push(refused(&format!("{broken:?} of {size} bytes"), answer, INVALID)?);
        probe.ensure_absent(blob.digest).await?;
    }
    Ok(details.join("; "))
}

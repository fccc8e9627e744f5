//! Case 14: reading parts of a blob.

use gf_reapi::Compressor;
use tonic::Code;

use crate::cases::cases;
use crate::finding::{Checked, ensure, refused, succeeds};
use crate::probe::Probe;

cases! {
    "14-read-negative-offset" => read_negative_offset(),
    "14-read-offset-at-end" => read_offset_at_end(),
    "14-read-offset-past-end" => read_offset_past_end(),
    "14-read-negative-limit" => read_negative_limit(),
    "14-read-part" => read_part(),
    "14-read-absent" => read_absent(),
}

/// A blob that a server may keep among others, and one that it keeps apart.
const SIZES: [usize; 2] = [1000, 5 << 20];

async fn read_negative_offset(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let name = probe.read_name(blob.digest, Compressor::Identity)?;
    refused("offset -1", probe.read(&name, -1, 0).await, &[Code::OutOfRange, Code::InvalidArgument])
}

async fn read_offset_at_end(probe: &mut Probe<'_>) -> Checked {
    for size in SIZES {
        let blob = probe.stored(size).await?;
        let name = probe.read_name(blob.digest, Compressor::Identity)?;
        let what = format!("reading at the end of {size} bytes");
        let bytes = succeeds(&what, probe.read(&name, blob.size_bytes(), 0).await)?;
        ensure!(bytes.is_empty(), "{what} gave {} bytes", bytes.len());
    }
    Ok("OK without bytes".into())
}

async fn read_offset_past_end(probe: &mut Probe<'_>) -> Checked {
    let mut detail = String::new();
    for size in SIZES {
        let blob = probe.stored(size).await?;
        let name = probe.read_name(blob.digest, Compressor::Identity)?;
        for offset in [blob.size_bytes() + 1, i64::MAX] {
            let what = format!("offset {offset} of {size} bytes");
            detail = refused(&what, probe.read(&name, offset, 0).await, &[Code::OutOfRange])?;
        }
    }
    Ok(detail)
}

async fn read_negative_limit(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let name = probe.read_name(blob.digest, Compressor::Identity)?;
    refused("limit -1", probe.read(&name, 0, -1).await, &[Code::InvalidArgument, Code::OutOfRange])
}

async fn read_part(probe: &mut Probe<'_>) -> Checked {
    for size in SIZES {
        let blob = probe.stored(size).await?;
        let name = probe.read_name(blob.digest, Compressor::Identity)?;
        let third = size / 3;
        let ranges = [
            (0, 1),
            (0, size),
            (0, size + 1),
            (1, 0),
            (third, third),
            (third, 0),
            (size - 1, 1),
            (size - 1, 100),
            (size / 2, usize::MAX >> 1),
        ];
        for (offset, limit) in ranges {
            let what = format!("offset {offset} and limit {limit} of {size} bytes");
            let read = probe.read(&name, as_i64(offset), as_i64(limit)).await;
            let bytes = succeeds(&what, read)?;
            let end = if limit == 0 { size } else { size.min(offset.saturating_add(limit)) };
            ensure!(
                bytes == blob.bytes[offset..end],
                "{what} gave {} bytes, not the right {}",
                bytes.len(),
                end - offset
            );
        }
    }
    Ok("offset and limit select the right bytes".into())
}

async fn read_absent(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob(1000);
    let name = probe.read_name(blob.digest, Compressor::Identity)?;
    refused("a blob that nobody uploaded", probe.read(&name, 0, 0).await, &[Code::NotFound])
}

fn as_i64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

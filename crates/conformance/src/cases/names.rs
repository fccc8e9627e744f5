//! Cases 19 and 21: resource names, and the header that repeats them.

use gf_reapi::Compressor;
use gf_reapi::bytestream::ReadRequest;
use gf_reapi::bytestream::byte_stream_client::ByteStreamClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::blob::write_requests;
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, succeeds};
use crate::probe::Probe;

cases! {
    "19-metadata-after-size" => metadata_after_size(),
    "19-instance-with-keyword-read" => instance_with_keyword_read(),
    "19-instance-with-keyword-write" => instance_with_keyword_write(),
    "19-incomplete-names" => incomplete_names(),
    "19-very-long-name" => very_long_name(),
    "19-instance-with-slashes" => instance_with_slashes(),
    "21-name-header-equal" => name_header_equal(),
    "21-name-header-different" => name_header_different(),
}

/// What a name that means nothing may be answered with.
pub(super) const REJECTED: &[Code] = &[Code::InvalidArgument, Code::NotFound, Code::PermissionDenied];

async fn metadata_after_size(probe: &mut Probe<'_>) -> Checked {
    for metadata in ["name.txt", "some/dir/name.txt", "blobs/1/2", "a//b", ""] {
        let blob = probe.blob(1000);
        let name = probe.write_name(blob.digest, Compressor::Identity)?;
        let name = format!("{name}/{metadata}");
        let answer = probe.write(write_requests(&name, &blob.bytes, 1000)).await;
        succeeds(&format!("metadata `{metadata}` after the size"), answer)?;
        probe.ensure_stored(&blob).await?;
    }
    Ok("ignored".into())
}

const KEYWORDS: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

async fn instance_with_keyword_read(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let mut details = Vec::new();
    for keyword in KEYWORDS {
        let name = probe.name_of(&format!("{keyword}/x/blobs/{}/1000", blob.digest.hash_hex()));
        let what = format!("an instance with the segment `{keyword}`");
        match probe.read(&name, 0, 0).await {
            Ok(_) => return Err(Finding::Fail(format!("{what}: the blob is served"))),
            refusal => details.push(refused(&what, refusal, REJECTED)?),
        }
    }
    Ok(details.join("; "))
}

async fn instance_with_keyword_write(probe: &mut Probe<'_>) -> Checked {
    let mut details = Vec::new();
    for keyword in KEYWORDS {
        let blob = probe.blob(1000);
        let uuid = probe.uuid();
        let name = probe.name_of(&format!("{keyword}/x/uploads/{uuid}/blobs/{}/1000", blob.digest.hash_hex()));
        let answer = probe.write(write_requests(&name, &blob.bytes, 1000)).await;
        details.push(refused(&format!("an instance with the segment `{keyword}`"), answer, REJECTED)?);
        ensure!(!probe.is_present(blob.digest).await?, "stored in spite of the segment `{keyword}`");
    }
    Ok(details.join("; "))
}

async fn incomplete_names(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let hash = blob.digest.hash_hex();
    let mut last = String::new();
    for rest in ["", "blobs", "blobs/", "compressed-blobs/zstd", "nonsense"] {
        last = refused(&format!("reading `{rest}`"), probe.read(&probe.name_of(rest), 0, 0).await, REJECTED)?;
    }
    for rest in [format!("blobs/{hash}"), format!("blobs/{hash}/"), format!("blobs/{hash}/1000x")] {
        last = refused(&format!("reading `{rest}`"), probe.read(&probe.name_of(&rest), 0, 0).await, REJECTED)?;
    }
    let uuid = probe.uuid();
    for rest in ["uploads".into(), format!("uploads/{uuid}"), format!("uploads/{uuid}/blobs/{hash}")] {
        let answer = probe.write(write_requests(&probe.name_of(&rest), &blob.bytes, 1000)).await;
        last = refused(&format!("writing `{rest}`"), answer, REJECTED)?;
    }
    Ok(last)
}

async fn very_long_name(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::InvalidArgument, Code::NotFound, Code::OutOfRange, Code::ResourceExhausted];
    let blob = probe.stored(1000).await?;
    let name = format!("{}/blobs/{}/1000", "x".repeat(1 << 20), blob.digest.hash_hex());
    let detail = refused("a name of 1 MiB", probe.read(&name, 0, 0).await, ALLOWED)?;
    probe.ensure_stored(&blob).await?;
    Ok(detail)
}

async fn instance_with_slashes(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let name = format!("a/b/c/blobs/{}/1000", blob.digest.hash_hex());
    match probe.read(&name, 0, 0).await {
        Ok(bytes) => {
            ensure!(bytes == blob.bytes, "the instance `a/b/c` serves {} other bytes", bytes.len());
            Ok("the instance `a/b/c` exists and serves the blob".into())
        }
        Err(status) if REJECTED.contains(&status.code()) => Ok(describe(&status)),
        Err(status) => Err(Finding::Fail(format!("the instance `a/b/c`: {}", describe(&status)))),
    }
}

/// Reads `name` with a header that says `header`.
async fn read_with_header(probe: &Probe<'_>, name: &str, header: &str) -> Checked<Result<Vec<u8>, Status>> {
    let value: MetadataValue<Ascii> =
        header.parse().map_err(|_| Finding::Fail(format!("`{header}` cannot be a header")))?;
    let message = ReadRequest { resource_name: name.to_owned(), read_offset: 0, read_limit: 0 };
    let mut request = Request::new(message);
    request.metadata_mut().insert("build.bazel.remote.execution.v2.resource-name", value);
    let mut client = ByteStreamClient::new(probe.transport());
    let stream = match client.read(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    Ok(crate::probe::collect(stream, 1000)
        .await
        .map(|parts| parts.iter().flat_map(|part| part.data.to_vec()).collect()))
}

async fn name_header_equal(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let name = probe.read_name(blob.digest, Compressor::Identity)?;
    let bytes = succeeds("a header equal to the name", read_with_header(probe, &name, &name).await?)?;
    ensure!(bytes == blob.bytes, "a header equal to the name: {} other bytes", bytes.len());
    Ok("accepted".into())
}

async fn name_header_different(probe: &mut Probe<'_>) -> Checked {
    let (blob, other) = (probe.stored(1000).await?, probe.stored(1000).await?);
    let name = probe.read_name(blob.digest, Compressor::Identity)?;
    let header = probe.read_name(other.digest, Compressor::Identity)?;
    match read_with_header(probe, &name, &header).await? {
        Ok(bytes) => {
            ensure!(bytes == blob.bytes, "served other bytes than those of the name in the message");
            Ok("ignored: the name in the message counts".into())
        }
        refusal => refused("a header that differs from the name", refusal, &[Code::InvalidArgument]),
    }
}

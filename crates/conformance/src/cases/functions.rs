//! Case 20: which digest function is meant, in resource names and in messages.

use gf_digest::DigestFunction::{Blake3, Sha256};
use gf_reapi::Compressor;
use gf_reapi::execution::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest, GetActionResultRequest,
    UpdateActionResultRequest,
};
use tonic::Code;

use crate::blob::write_requests;
use crate::cases::action_cache::{get_request, new_action, output_file};
use crate::cases::cases;
use crate::cases::names::REJECTED;
use crate::finding::{Checked, Finding, describe, ensure, entry_status, refused, succeeds};
use crate::probe::{Probe, identity_entry};

cases! {
    "20-blake3-segment" => blake3_segment(),
    "20-blake3-hash-without-segment" => blake3_hash_without_segment(),
    "20-blake3-batch" => blake3_batch(),
    "20-blake3-action-result" => blake3_action_result(),
    "20-sha256-segment" => sha256_segment(),
    "20-function-unset" => function_unset(),
    "20-function-unset-action-result" => function_unset_action_result(),
    "20-function-not-listed" => function_not_listed(),
}

async fn blake3_segment(probe: &mut Probe<'_>) -> Checked {
    probe.require_function(Blake3)?;
    for size in [1000, 2 << 20] {
        let blob = probe.blob_by(Blake3, size);
        probe.upload(&blob).await?;
        probe.ensure_stored(&blob).await?;
        if probe.require_zstd().is_ok() {
            let name = probe.read_name(blob.digest, Compressor::Zstd)?;
            let bytes = succeeds("reading as zstd", probe.read(&name, 0, 0).await)?;
            ensure!(crate::blob::unzstd(&bytes, size)? == blob.bytes, "read as zstd, it is other bytes");
        }
        // The same hash means another blob under SHA-256, which nobody uploaded.
        let missing = succeeds("FindMissingBlobs", probe.find_missing(Sha256, vec![blob.wire()]).await)?;
        ensure!(missing.len() == 1, "a BLAKE3 blob is reported present as one of SHA-256");
    }
    Ok("written and read with `blake3/` in the name".into())
}

async fn blake3_hash_without_segment(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.blob_by(Blake3, 1000);
    let hash = blob.digest.hash_hex();
    let uuid = probe.uuid();
    let name = probe.name_of(&format!("uploads/{uuid}/blobs/{hash}/1000"));
    let answer = probe.write(write_requests(&name, &blob.bytes, 1000)).await;
    let detail = refused("a BLAKE3 hash where SHA-256 is meant", answer, &[Code::InvalidArgument])?;
    if probe.require_function(Blake3).is_ok() {
        probe.upload(&blob).await?;
        let name = probe.name_of(&format!("blobs/{hash}/1000"));
        refused("reading a BLAKE3 blob without the segment", probe.read(&name, 0, 0).await, &[Code::NotFound])?;
    }
    Ok(detail)
}

async fn sha256_segment(probe: &mut Probe<'_>) -> Checked {
    let blob = probe.stored(1000).await?;
    let name = probe.name_of(&format!("blobs/sha256/{}/1000", blob.digest.hash_hex()));
    match probe.read(&name, 0, 0).await {
        Ok(bytes) => {
            ensure!(bytes == blob.bytes, "`blobs/sha256/…` serves {} other bytes", bytes.len());
            Ok("a client must leave `sha256/` out; the server does not mind".into())
        }
        Err(status) if REJECTED.contains(&status.code()) => Ok(describe(&status)),
        Err(status) => Err(Finding::Fail(describe(&status))),
    }
}

async fn blake3_batch(probe: &mut Probe<'_>) -> Checked {
    probe.require_function(Blake3)?;
    let blobs = [probe.blob_by(Blake3, 1000), probe.blob_by(Blake3, 100_000)];
    let answer = probe.batch_update(Blake3, blobs.iter().map(identity_entry).collect()).await;
    for answer in succeeds("BatchUpdateBlobs", answer)? {
        succeeds("an entry", entry_status(answer.status.as_ref()))?;
    }
    let digests: Vec<_> = blobs.iter().map(crate::blob::Blob::wire).collect();
    let entries = succeeds("BatchReadBlobs", probe.batch_read(Blake3, digests.clone(), &[]).await)?;
    for blob in &blobs {
        let entry = entries.iter().find(|entry| entry.digest.as_ref() == Some(&blob.wire()));
        ensure!(entry.is_some_and(|entry| entry.data == blob.bytes), "a blob of the batch is other bytes");
    }
    let entries = succeeds("BatchReadBlobs by SHA-256", probe.batch_read(Sha256, digests, &[]).await)?;
    for entry in &entries {
        refused("the same hash as one of SHA-256", entry_status(entry.status.as_ref()), &[Code::NotFound])?;
    }
    Ok("written and read; the same hashes mean nothing as SHA-256".into())
}

async fn blake3_action_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_function(Blake3)?;
    probe.require_action_cache_updates()?;
    // Everything that an action names is of the action's own function.
    let (action, output, absent) =
        (probe.blob_by(Blake3, 200), probe.blob_by(Blake3, 1000), probe.blob_by(Blake3, 1000));
    probe.upload(&action).await?;
    probe.upload(&output).await?;
    for (file, complete) in [(&output, true), (&absent, false)] {
        let result = ActionResult { output_files: vec![output_file("f", file.digest)], ..ActionResult::default() };
        let stored = crate::cases::action_cache::update(probe, &action, result).await;
        let got = probe.action_cache().get_action_result(get_request(probe, &action)).await;
        if complete {
            succeeds("storing a result", stored)?;
            let result = succeeds("looking it up", got)?.into_inner();
            ensure!(result.output_files.len() == 1, "the result has {} output files", result.output_files.len());
        } else if stored.is_ok() {
            refused("looking up a result whose output is absent", got, &[Code::NotFound])?;
        }
    }
    Ok("complete where its BLAKE3 outputs are present".into())
}

async fn function_unset(probe: &mut Probe<'_>) -> Checked {
    // As clients of the first versions do: the length of the hash tells.
    probe.require_function(Sha256)?;
    let (blob, absent) = (probe.blob(1000), probe.blob(1000));
    let request = BatchUpdateBlobsRequest {
        instance_name: probe.instance(),
        requests: vec![identity_entry(&blob)],
        digest_function: 0,
    };
    let answers = succeeds("BatchUpdateBlobs", probe.storage().batch_update_blobs(request).await)?.into_inner();
    for answer in &answers.responses {
        succeeds("the entry", entry_status(answer.status.as_ref()))?;
    }
    let request = FindMissingBlobsRequest {
        instance_name: probe.instance(),
        blob_digests: vec![blob.wire(), absent.wire()],
        digest_function: 0,
    };
    let missing = succeeds("FindMissingBlobs", probe.storage().find_missing_blobs(request).await)?.into_inner();
    ensure!(missing.missing_blob_digests == [absent.wire()], "missing are {:?}", missing.missing_blob_digests);
    let request = BatchReadBlobsRequest {
        instance_name: probe.instance(),
        digests: vec![blob.wire()],
        acceptable_compressors: Vec::new(),
        digest_function: 0,
    };
    let read = succeeds("BatchReadBlobs", probe.storage().batch_read_blobs(request).await)?.into_inner();
    ensure!(read.responses.iter().all(|entry| entry.data == blob.bytes), "the blob is other bytes");
    probe.ensure_stored(&blob).await?;
    Ok("SHA-256, by the length of the hash".into())
}

async fn function_unset_action_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_function(Sha256)?;
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let request = UpdateActionResultRequest {
        instance_name: probe.instance(),
        action_digest: Some(action.wire()),
        action_result: Some(ActionResult { exit_code: 5, ..ActionResult::default() }),
        ..UpdateActionResultRequest::default()
    };
    succeeds("UpdateActionResult", probe.action_cache().update_action_result(request).await)?;
    for digest_function in [0, Sha256.number()] {
        let request = GetActionResultRequest { digest_function, ..get_request(probe, &action) };
        let answer = probe.action_cache().get_action_result(request).await;
        let result = succeeds(&format!("looking it up with function {digest_function}"), answer)?.into_inner();
        ensure!(result.exit_code == 5, "exit code {}, not 5", result.exit_code);
    }
    Ok("stored unset, found unset and as SHA-256".into())
}

async fn function_not_listed(probe: &mut Probe<'_>) -> Checked {
    const ALLOWED: &[Code] = &[Code::InvalidArgument, Code::Unimplemented, Code::FailedPrecondition];
    let listed = probe.session.cache()?.digest_functions.clone();
    let blob = probe.stored(1000).await?;
    let mut details = Vec::new();
    for number in (2..=10).chain([99]).filter(|number| !listed.contains(number)) {
        let request = FindMissingBlobsRequest {
            instance_name: probe.instance(),
            blob_digests: vec![blob.wire()],
            digest_function: number,
        };
        match probe.storage().find_missing_blobs(request).await {
            Ok(answer) => {
                let missing = answer.into_inner().missing_blob_digests;
                ensure!(!missing.is_empty(), "a blob of SHA-256 is reported present as one of function {number}");
                details.push(format!("function {number}: reported missing"));
            }
            refusal => {
                refused(&format!("function {number}"), refusal, ALLOWED)?;
            }
        }
    }
    details.push("the others are refused".into());
    Ok(details.join(", "))
}

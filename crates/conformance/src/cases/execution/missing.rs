//! Cases 35 and 63: actions of which something is not in the store.

use std::collections::HashSet;

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::{Directory, DirectoryNode};
use tonic::Code;

use crate::blob::Blob;
use crate::cases::cases;
use crate::execution::Ended;
use crate::finding::{Checked, ensure, require};
use crate::job::{Folder, Job, file_node};
use crate::probe::Probe;

use DigestFunction::{Blake3, Sha256};

cases! {
    "35-missing-action" => missing_action(),
    "35-missing-command" => missing_command(),
    "35-missing-input-root" => missing_input_root(),
    "35-missing-input-file" => missing_input_file(),
    "35-missing-several-at-all-depths" => missing_several(),
    "35-missing-by-blake3" => missing_by_blake3(),
    "35-empty-blobs-are-never-missing" => empty_blobs(),
    "63-missing-uploaded-and-executed" => uploaded_and_executed(),
    "63-input-lost-while-executing" => input_lost(),
}

/// How a violation names a blob: without the instance, and with the digest function where it has to be told.
fn subject(digest: Digest) -> String {
    let function = if digest.function() == Blake3 { "blake3/" } else { "" };
    format!("blobs/{function}{}/{}", digest.hash_hex().as_str(), digest.size_bytes())
}

/// Uploads all of a job but some blobs, and executes it.
async fn run_without(probe: &Probe<'_>, job: &Job, lacking: &[Digest]) -> Checked<Ended> {
    let mut blobs = job.blobs();
    blobs.retain(|blob| !lacking.contains(&blob.digest));
    probe.upload_by(job.function, &blobs).await?;
    probe.execute(job).await
}

/// Fails unless the server names exactly the blobs that it lacks.
async fn expect_missing(probe: &Probe<'_>, job: &Job, lacking: &[Digest]) -> Checked {
    let ended = run_without(probe, job, lacking).await?;
    let detail = ended.expect_refused("an action that is not all there", &[Code::FailedPrecondition])?;
    let missing = ended.missing()?;
    let mut expected: Vec<_> = lacking.iter().map(|digest| subject(*digest)).collect();
    expected.sort();
    ensure!(missing == expected, "{detail}; the violations MISSING name {missing:?}, not {expected:?}");
    Ok(format!("{} named; {detail}", expected.len()))
}

/// Two files on the top, and one three directories down, none of which anybody has seen.
fn deep_job(probe: &mut Probe<'_>, function: DigestFunction) -> Checked<Job> {
    let folder = Folder::default().file("a", probe.uuid()).file("b", probe.uuid()).file("c/d/e/f", probe.uuid());
    Ok(probe.job("cat a b c/d/e/f")?.by(function).inputs(&folder))
}

async fn missing_action(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo never")?;
    expect_missing(probe, &job, &[job.action_blob().digest]).await
}

async fn missing_command(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo never")?;
    expect_missing(probe, &job, &[job.command_blob().digest]).await
}

async fn missing_input_root(probe: &mut Probe<'_>) -> Checked {
    let job = deep_job(probe, Sha256)?;
    expect_missing(probe, &job, &[job.input_root.digest]).await
}

async fn missing_input_file(probe: &mut Probe<'_>) -> Checked {
    let job = deep_job(probe, Sha256)?;
    expect_missing(probe, &job, &[job.inputs[0].digest]).await
}

async fn missing_several(probe: &mut Probe<'_>) -> Checked {
    // The command, a file on the top, a whole directory, and a file below directories that are there.
    let absent = Directory { files: vec![file_node(&probe.uuid(), Digest::empty(Sha256), false)], ..<_>::default() };
    let absent = Blob::message(&absent);
    let file = probe.blob(100);
    let deep = probe.blob(100);
    let below = Blob::message(&Directory { files: vec![file_node("f", deep.digest, false)], ..<_>::default() });
    let node = |name: &str, blob: &Blob| DirectoryNode { name: name.into(), digest: Some(blob.wire()) };
    let middle = Blob::message(&Directory { directories: vec![node("d", &below)], ..<_>::default() });
    let root = Directory {
        files: vec![file_node("a", file.digest, false)],
        directories: vec![node("b", &absent), node("c", &middle)],
        ..<_>::default()
    };
    let job = probe.job("echo never")?.input_root(&root, vec![below, middle]);
    expect_missing(probe, &job, &[job.command_blob().digest, absent.digest, file.digest, deep.digest]).await
}

async fn missing_by_blake3(probe: &mut Probe<'_>) -> Checked {
    probe.require_function_of_execution(Blake3)?;
    let job = deep_job(probe, Blake3)?;
    expect_missing(probe, &job, &[job.inputs[0].digest, job.command_blob().digest]).await
}

async fn empty_blobs(probe: &mut Probe<'_>) -> Checked {
    let folder = Folder::default().file("empty", "").folder("bare");
    let job = probe.job("[ -f empty ] && [ ! -s empty ] && [ -d bare ] && echo both")?.inputs(&folder);
    let empty = Digest::empty(Sha256);
    let ended = run_without(probe, &job, &[empty]).await?;
    let said = probe.stdout(&job, ended.result()?).await?;
    ensure!(said == "both", "the action printed `{said}`");
    Ok("an empty file and an empty directory, neither uploaded".into())
}

async fn uploaded_and_executed(probe: &mut Probe<'_>) -> Checked {
    let job = deep_job(probe, Sha256)?;
    let lacking: HashSet<_> = job.inputs.iter().map(|blob| blob.digest).collect();
    let ended = run_without(probe, &job, &Vec::from_iter(lacking)).await?;
    ended.expect_refused("an action without its inputs", &[Code::FailedPrecondition])?;
    // As a client does: upload what is named, ask again. What lies below a directory is seen only once that is there,
    // and there are five of them below one another.
    for attempt in 1..=7 {
        let named = probe.execute(&job).await?;
        if named.status.code() == Code::Ok {
            let said = probe.stdout(&job, named.result()?).await?;
            ensure!(said.len() == 3 * 36, "the action printed `{said}`");
            return Ok(format!("executed by request {attempt}"));
        }
        let missing = named.missing()?;
        let mut blobs = job.blobs();
        blobs.retain(|blob| missing.contains(&subject(blob.digest)));
        ensure!(!blobs.is_empty(), "after the upload of what was named: {missing:?} of other blobs are missing");
        probe.upload_by(Sha256, &blobs).await?;
    }
    Err(crate::finding::Finding::Fail("not executed after all that was named was uploaded".into()))
}

async fn input_lost(probe: &mut Probe<'_>) -> Checked {
    probe.require_execution()?;
    require!(false, "no client can make a server lose a blob between the request and the fetch");
    Ok(String::new())
}

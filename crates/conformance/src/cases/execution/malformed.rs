//! Case 51: directories that are not in canonical form. A name that is none must be refused: it leads somewhere else
//! than it says. Disorder and names that come twice should be, for one tree then has two digests, or one digest two
//! trees; but the protocol leaves that to the server, so one that executes such an action is not asked further.

use gf_digest::{Digest, DigestFunction::Sha256};
use gf_reapi::execution::{Directory, DirectoryNode};
use tonic::Code;

use crate::blob::Blob;
use crate::cases::cases;
use crate::execution::Ended;
use crate::finding::{Checked, Finding, ensure};
use crate::job::{Job, file_node, symlink_node};
use crate::probe::Probe;

cases! {
    "51-files-unsorted" => disorderly(files(&["b", "a"])),
    "51-directories-unsorted" => disorderly(folders(&["b", "a"])),
    "51-symlinks-unsorted" => disorderly(links(&["b", "a"])),
    "51-file-twice" => disorderly(files(&["a", "a"])),
    "51-directory-twice" => disorderly(folders(&["a", "a"])),
    "51-file-and-directory" => disorderly(both(files(&["a"]), folders(&["a"]))),
    "51-file-and-symlink" => disorderly(both(files(&["a"]), links(&["a"]))),
    "51-directory-and-symlink" => disorderly(both(folders(&["a"]), links(&["a"]))),
    "51-file-without-a-name" => malformed(files(&[""])),
    "51-file-dot" => malformed(files(&["."])),
    "51-file-dot-dot" => malformed(files(&[".."])),
    "51-file-with-slash" => malformed(files(&["a/b"])),
    "51-file-above-the-root" => malformed(files(&["../gf-conformance"])),
    "51-file-absolute" => malformed(files(&["/tmp/gf-conformance"])),
    "51-file-with-nul" => malformed(files(&["a\0b"])),
    "51-directory-without-a-name" => malformed(folders(&[""])),
    "51-directory-dot" => malformed(folders(&["."])),
    "51-directory-dot-dot" => malformed(folders(&[".."])),
    "51-directory-with-slash" => malformed(folders(&["a/b"])),
    "51-symlink-dot-dot" => malformed(links(&[".."])),
    "51-symlink-with-slash" => malformed(links(&["a/b"])),
    "51-file-dot-dot-further-down" => malformed_further_down(files(&[".."])),
    "51-file-twice-further-down" => disorderly_further_down(files(&["a", "a"])),
    "51-no-directory-at-all" => no_directory(),
}

fn files(names: &[&str]) -> Directory {
    let files = names.iter().map(|name| file_node(name, Digest::empty(Sha256), false)).collect();
    Directory { files, ..Directory::default() }
}

fn folders(names: &[&str]) -> Directory {
    let digest = Some(Digest::empty(Sha256).into());
    let node = |name: &&str| DirectoryNode { name: (*name).into(), digest: digest.clone() };
    Directory { directories: names.iter().map(node).collect(), ..Directory::default() }
}

fn links(names: &[&str]) -> Directory {
    Directory { symlinks: names.iter().map(|name| symlink_node(name, "target")).collect(), ..Directory::default() }
}

fn both(mut one: Directory, other: Directory) -> Directory {
    one.directories.extend(other.directories);
    one.symlinks.extend(other.symlinks);
    one
}

async fn malformed(probe: &mut Probe<'_>, root: Directory) -> Checked {
    let job = job(probe, &root, Vec::new())?;
    expect_refused(&run(probe, &job).await?)
}

async fn malformed_further_down(probe: &mut Probe<'_>, directory: Directory) -> Checked {
    let (root, below) = two_levels_above(&directory);
    let job = job(probe, &root, below)?;
    expect_refused(&run(probe, &job).await?)
}

async fn disorderly(probe: &mut Probe<'_>, root: Directory) -> Checked {
    let job = job(probe, &root, Vec::new())?;
    expect_refused_or_executed(probe, &job).await
}

async fn disorderly_further_down(probe: &mut Probe<'_>, directory: Directory) -> Checked {
    let (root, below) = two_levels_above(&directory);
    let job = job(probe, &root, below)?;
    expect_refused_or_executed(probe, &job).await
}

/// A root with the directory two levels below it, and the blobs of both levels.
fn two_levels_above(directory: &Directory) -> (Directory, Vec<Blob>) {
    let child = Blob::message(directory);
    let node = |blob: &Blob| vec![DirectoryNode { name: "d".into(), digest: Some(blob.wire()) }];
    let middle = Blob::message(&Directory { directories: node(&child), ..Directory::default() });
    (Directory { directories: node(&middle), ..Directory::default() }, vec![child, middle])
}

/// The protocol names INVALID_ARGUMENT for it; a server that finds out on the worker may say FAILED_PRECONDITION.
const NOT_CANONICAL: &[Code] = &[Code::InvalidArgument, Code::FailedPrecondition];

fn job(probe: &mut Probe<'_>, root: &Directory, mut below: Vec<Blob>) -> Checked<Job> {
    // The content of every file, and of every directory whose name is the point.
    below.push(Blob::of(Sha256, Vec::new()));
    Ok(probe.job("echo executed")?.input_root(root, below))
}

/// How the upload ended, where the server looks at directories that early, or else the execution.
async fn run(probe: &Probe<'_>, job: &Job) -> Checked<Result<Ended, String>> {
    match probe.upload_job(job).await {
        Ok(()) => probe.execute(job).await.map(Ok),
        Err(Finding::Fail(detail)) => Ok(Err(format!("refused when it was uploaded: {detail}"))),
        Err(skipped) => Err(skipped),
    }
}

fn expect_refused(ended: &Result<Ended, String>) -> Checked {
    match ended {
        Ok(ended) => ended.expect_refused("an input root that is not canonical", NOT_CANONICAL),
        Err(detail) => Ok(detail.clone()),
    }
}

async fn expect_refused_or_executed(probe: &Probe<'_>, job: &Job) -> Checked {
    let ended = run(probe, job).await?;
    if let Ok(ended) = &ended
        && ended.status.code() == Code::Ok
    {
        let said = probe.stdout(job, ended.result()?).await?;
        ensure!(said == "executed", "the action printed `{said}`");
        return Err(Finding::Skip("executed: the server does not look, as it may".into()));
    }
    expect_refused(&ended)
}

async fn no_directory(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo executed")?;
    job.input_root = Blob::of(Sha256, [&b"\xff\xff\xff this is no directory "[..], probe.uuid().as_bytes()].concat());
    expect_refused(&run(probe, &job).await?)
}

//! Cases 30, 32 and 33: results that are there, incomplete, malformed, forbidden, or another instance's.

use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::execution::action_cache_client::ActionCacheClient;
use gf_reapi::execution::capabilities_client::CapabilitiesClient;
use gf_reapi::execution::{
    Action, ActionResult, Command, Directory, DirectoryNode, FileNode, GetActionResultRequest, GetCapabilitiesRequest,
    OutputDirectory, OutputFile, Tree, UpdateActionResultRequest,
};
use tonic::{Code, Status};

use crate::blob::Blob;
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, require, succeeds};
use crate::probe::Probe;

use DigestFunction::{Blake3, Sha256};

cases! {
    "01-empty-blob-in-action-result" => empty_blob_in_action_result(),
    "30-result-absent" => result_absent(),
    "30-result-complete" => result_complete(),
    "30-incomplete-output-file" => incomplete(Lacking::OutputFile),
    "30-incomplete-stdout" => incomplete(Lacking::Stdout),
    "30-incomplete-stderr" => incomplete(Lacking::Stderr),
    "30-incomplete-tree" => incomplete(Lacking::Tree),
    "30-incomplete-file-in-tree" => incomplete(Lacking::FileInTree),
    "30-incomplete-file-in-tree-child" => incomplete(Lacking::FileInTreeChild),
    "30-incomplete-root-directory" => incomplete(Lacking::RootDirectory),
    "30-incomplete-file-below-root-directory" => incomplete(Lacking::FileBelowRootDirectory),
    "32-update-returns-result" => update_returns_result(),
    "32-update-replaces-result" => update_replaces_result(),
    "32-update-malformed-result" => update_malformed_result(),
    "32-update-malformed-action-digest" => update_malformed_action_digest(),
    "32-update-without-result" => update_without_result(),
    "32-update-without-action" => update_without_action(),
    "32-read-only-caller" => read_only_caller(),
    "33-instances-apart" => instances_apart(),
    "33-digest-functions-apart" => digest_functions_apart(),
}

/// An action that nobody ran, with action and command in the store.
pub(super) async fn new_action(probe: &mut Probe<'_>) -> Checked<Blob> {
    let command = Blob::message(&Command { arguments: vec!["true".into(), probe.uuid()], ..Command::default() });
    let input_root = Blob::message(&Directory::default());
    let action = Action {
        command_digest: Some(command.wire()),
        input_root_digest: Some(input_root.wire()),
        ..Action::default()
    };
    let action = Blob::message(&action);
    probe.upload_all(&[command, action.clone()]).await?;
    Ok(action)
}

pub(super) fn get_request(probe: &Probe<'_>, action: &Blob) -> GetActionResultRequest {
    GetActionResultRequest {
        instance_name: probe.instance(),
        action_digest: Some(action.wire()),
        digest_function: action.digest.function().number(),
        ..GetActionResultRequest::default()
    }
}

pub(super) async fn get(probe: &Probe<'_>, action: &Blob) -> Result<ActionResult, Status> {
    Ok(probe.action_cache().get_action_result(get_request(probe, action)).await?.into_inner())
}

fn update_request(probe: &Probe<'_>, action: &Blob, result: Option<ActionResult>) -> UpdateActionResultRequest {
    UpdateActionResultRequest {
        instance_name: probe.instance(),
        action_digest: Some(action.wire()),
        action_result: result,
        results_cache_policy: None,
        digest_function: action.digest.function().number(),
    }
}

pub(super) async fn update(probe: &Probe<'_>, action: &Blob, result: ActionResult) -> Result<ActionResult, Status> {
    let request = update_request(probe, action, Some(result));
    Ok(probe.action_cache().update_action_result(request).await?.into_inner())
}

pub(super) fn output_file(path: &str, digest: Digest) -> OutputFile {
    OutputFile { path: path.into(), digest: Some(digest.into()), ..OutputFile::default() }
}

async fn empty_blob_in_action_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let empty = Digest::empty(Sha256);
    let result = ActionResult {
        output_files: vec![output_file("empty", empty)],
        stdout_digest: Some(empty.into()),
        ..ActionResult::default()
    };
    succeeds("storing a result that names the empty blob", update(probe, &action, result).await)?;
    let result = succeeds("looking it up", get(probe, &action).await)?;
    ensure!(result.output_files.len() == 1, "the result has {} output files", result.output_files.len());
    Ok("complete without an upload".into())
}

async fn result_absent(probe: &mut Probe<'_>) -> Checked {
    let action = new_action(probe).await?;
    refused("a result that nobody stored", get(probe, &action).await, &[Code::NotFound])
}

/// A result with one of everything, and the blobs that it names.
struct Outputs {
    result: ActionResult,
    file: Blob,
    stdout: Blob,
    stderr: Blob,
    tree: Blob,
    tree_file: Blob,
    child_file: Blob,
    child: Blob,
    root: Blob,
}

impl Outputs {
    fn new(probe: &mut Probe<'_>) -> Self {
        let blobs: [Blob; 5] = std::array::from_fn(|_| probe.blob(2000));
        let [file, stdout, stderr, tree_file, child_file] = blobs;
        let node = |name: &str, blob: &Blob| FileNode {
            name: name.into(),
            digest: Some(blob.wire()),
            is_executable: false,
            node_properties: None,
        };
        let child = Directory { files: vec![node("deep", &child_file)], ..Directory::default() };
        let child_blob = Blob::message(&child);
        let root = Directory {
            files: vec![node("flat", &tree_file)],
            directories: vec![DirectoryNode { name: "sub".into(), digest: Some(child_blob.wire()) }],
            ..Directory::default()
        };
        let root_blob = Blob::message(&root);
        let tree = Blob::message(&Tree { root: Some(root), children: vec![child] });
        let result = ActionResult {
            output_files: vec![output_file("out/file", file.digest)],
            output_directories: vec![OutputDirectory {
                path: "out/dir".into(),
                tree_digest: Some(tree.wire()),
                ..OutputDirectory::default()
            }],
            exit_code: 0,
            stdout_digest: Some(stdout.wire()),
            stderr_digest: Some(stderr.wire()),
            ..ActionResult::default()
        };
        Self { result, file, stdout, stderr, tree, tree_file, child_file, child: child_blob, root: root_blob }
    }

    /// The output directory by its root directory, as 2.3 and later allow, and no longer by a tree.
    fn by_root_directory(mut self) -> Self {
        for directory in &mut self.result.output_directories {
            directory.tree_digest = None;
            directory.root_directory_digest = Some(self.root.wire());
        }
        self
    }

    fn blobs(&self) -> [&Blob; 8] {
        let Self { file, stdout, stderr, tree, tree_file, child_file, child, root, .. } = self;
        [file, stdout, stderr, tree, tree_file, child_file, child, root]
    }

    /// Uploads all blobs but one.
    async fn upload_without(&self, probe: &Probe<'_>, lacking: Option<Digest>) -> Checked<()> {
        let uploaded = self.blobs().into_iter().filter(|blob| Some(blob.digest) != lacking).cloned();
        probe.upload_all(&uploaded.collect::<Vec<_>>()).await
    }
}

async fn result_complete(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    for outputs in [Outputs::new(probe), Outputs::new(probe).by_root_directory()] {
        let action = new_action(probe).await?;
        outputs.upload_without(probe, None).await?;
        succeeds("storing a complete result", update(probe, &action, outputs.result.clone()).await)?;
        let result = succeeds("looking up a complete result", get(probe, &action).await)?;
        ensure!(result.output_files == outputs.result.output_files, "other output files: {:?}", result.output_files);
        let directories = &result.output_directories;
        ensure!(directories.len() == 1 && directories[0].path == "out/dir", "other directories: {directories:?}");
        ensure!(result.stdout_digest == outputs.result.stdout_digest, "another stdout: {:?}", result.stdout_digest);
        ensure!(result.stderr_digest == outputs.result.stderr_digest, "another stderr: {:?}", result.stderr_digest);
    }
    Ok("by tree and by root directory".into())
}

/// What a result names and the store lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lacking {
    OutputFile,
    Stdout,
    Stderr,
    Tree,
    FileInTree,
    FileInTreeChild,
    RootDirectory,
    FileBelowRootDirectory,
}

async fn incomplete(probe: &mut Probe<'_>, lacking: Lacking) -> Checked {
    probe.require_action_cache_updates()?;
    let mut outputs = Outputs::new(probe);
    if matches!(lacking, Lacking::RootDirectory | Lacking::FileBelowRootDirectory) {
        outputs = outputs.by_root_directory();
    }
    let absent = match lacking {
        Lacking::OutputFile => &outputs.file,
        Lacking::Stdout => &outputs.stdout,
        Lacking::Stderr => &outputs.stderr,
        Lacking::Tree => &outputs.tree,
        Lacking::FileInTree => &outputs.tree_file,
        Lacking::FileInTreeChild | Lacking::FileBelowRootDirectory => &outputs.child_file,
        Lacking::RootDirectory => &outputs.root,
    };
    let action = new_action(probe).await?;
    outputs.upload_without(probe, Some(absent.digest)).await?;
    let stored = match update(probe, &action, outputs.result.clone()).await {
        Ok(_) => "taken, but ",
        // A server may look before it stores.
        Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument | Code::NotFound) => {
            "refused when stored, and "
        }
        Err(status) => return Err(Finding::Fail(format!("storing an incomplete result: {}", describe(&status)))),
    };
    let detail = refused("looking up a result that is not complete", get(probe, &action).await, &[Code::NotFound])?;
    // With the blob it is complete, whether it has to be stored again or not.
    probe.upload_all(std::slice::from_ref(absent)).await?;
    if get(probe, &action).await.is_err() {
        succeeds("storing it when complete", update(probe, &action, outputs.result.clone()).await)?;
        succeeds("looking it up when complete", get(probe, &action).await)?;
    }
    Ok(format!("{stored}{detail}"))
}

async fn update_returns_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let outputs = Outputs::new(probe);
    outputs.upload_without(probe, None).await?;
    let returned = succeeds("UpdateActionResult", update(probe, &action, outputs.result.clone()).await)?;
    if returned == outputs.result {
        return Ok("the same".into());
    }
    ensure!(returned.output_files.len() == 1, "returned {} output files", returned.output_files.len());
    ensure!(returned.output_directories.len() == 1, "returned {} directories", returned.output_directories.len());
    Ok("an equivalent one".into())
}

async fn update_replaces_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    for path in ["first", "second"] {
        let file = probe.stored(100).await?;
        let result = ActionResult { output_files: vec![output_file(path, file.digest)], ..ActionResult::default() };
        succeeds("storing a result", update(probe, &action, result).await)?;
        let result = succeeds("looking it up", get(probe, &action).await)?;
        let paths: Vec<_> = result.output_files.iter().map(|file| file.path.as_str()).collect();
        ensure!(paths == [path], "after storing {path}, the result has {paths:?}");
    }
    Ok("the later one counts".into())
}

async fn update_malformed_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let bad = WireDigest::from_text("not a hash", 5);
    let bad_size = probe.stored(100).await?.wire_with_size(-1);
    let file = |digest| ActionResult {
        output_files: vec![OutputFile { path: "f".into(), digest, ..OutputFile::default() }],
        ..ActionResult::default()
    };
    let tree = OutputDirectory { path: "d".into(), tree_digest: Some(bad.clone()), ..OutputDirectory::default() };
    let results = [
        ("an output file with a malformed hash", file(Some(bad.clone()))),
        ("an output file with a negative size", file(Some(bad_size))),
        ("a malformed stdout digest", ActionResult { stdout_digest: Some(bad), ..ActionResult::default() }),
        ("a malformed tree digest", ActionResult { output_directories: vec![tree], ..ActionResult::default() }),
    ];
    let mut last = String::new();
    for (what, result) in results {
        let action = new_action(probe).await?;
        last = refused(what, update(probe, &action, result).await, &[Code::InvalidArgument])?;
        refused("looking it up", get(probe, &action).await, &[Code::NotFound])?;
    }
    Ok(last)
}

async fn update_malformed_action_digest(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let mut last = String::new();
    for digest in [None, Some(WireDigest::from_text("1234", 5)), Some(action.wire_with_size(-1))] {
        let what = format!("the action digest {digest:?}");
        let mut request = update_request(probe, &action, Some(ActionResult::default()));
        request.action_digest = digest.clone();
        last = refused(&what, probe.action_cache().update_action_result(request).await, &[Code::InvalidArgument])?;
        let mut request = get_request(probe, &action);
        request.action_digest = digest;
        let allowed = &[Code::InvalidArgument, Code::NotFound];
        refused(&what, probe.action_cache().get_action_result(request).await, allowed)?;
    }
    Ok(last)
}

async fn update_without_result(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let action = new_action(probe).await?;
    let request = update_request(probe, &action, None);
    match probe.action_cache().update_action_result(request).await {
        Ok(_) => Ok("taken as an empty result".into()),
        answer => refused("an update without a result", answer, &[Code::InvalidArgument]),
    }
}

async fn update_without_action(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let never_uploaded = probe.blob(100);
    let result = ActionResult { exit_code: 3, ..ActionResult::default() };
    match update(probe, &never_uploaded, result).await {
        Ok(_) => {
            let result = succeeds("looking up what was stored", get(probe, &never_uploaded).await)?;
            ensure!(result.exit_code == 3, "looking up what was stored: exit code {}, not 3", result.exit_code);
            Ok("accepted".into())
        }
        Err(status) if status.code() == Code::FailedPrecondition => Ok(describe(&status)),
        Err(status) => Err(Finding::Fail(format!("the action is not in the store: {}", describe(&status)))),
    }
}

async fn read_only_caller(probe: &mut Probe<'_>) -> Checked {
    let Some(transport) = probe.session.read_only_transport.clone() else {
        return Err(Finding::Skip("no --read-only-token was given".into()));
    };
    let request = GetCapabilitiesRequest { instance_name: probe.instance() };
    let answer = CapabilitiesClient::new(transport.clone()).get_capabilities(request).await;
    let capabilities = succeeds("GetCapabilities with the read-only token", answer)?.into_inner();
    let update_enabled = capabilities.cache_capabilities.and_then(|cache| cache.action_cache_update_capabilities);
    ensure!(!update_enabled.unwrap_or_default().update_enabled, "update_enabled is true for a read-only caller");
    let action = new_action(probe).await?;
    let request = update_request(probe, &action, Some(ActionResult::default()));
    let answer = ActionCacheClient::new(transport).update_action_result(request).await;
    // A caller without a token may be told to bring one.
    let anonymous = probe.session.config.read_only_token.as_deref() == Some("");
    let allowed: &[Code] =
        if anonymous { &[Code::PermissionDenied, Code::Unauthenticated] } else { &[Code::PermissionDenied] };
    let detail = refused("UpdateActionResult", answer, allowed)?;
    refused("looking it up", get(probe, &action).await, &[Code::NotFound])?;
    Ok(detail)
}

async fn instances_apart(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    let other = match &probe.session.config.other_instance {
        Some(other) => other.clone(),
        None if probe.session.config.instance.is_empty() => "default".to_owned(),
        None => String::new(),
    };
    require!(other != probe.session.config.instance, "only one instance was given");
    let request = GetCapabilitiesRequest { instance_name: other.clone() };
    if let Err(status) = CapabilitiesClient::new(probe.transport()).get_capabilities(request).await {
        return Err(Finding::Skip(format!("the instance `{other}` is not served: {}", describe(&status))));
    }
    let action = new_action(probe).await?;
    let result = ActionResult { exit_code: 7, ..ActionResult::default() };
    succeeds("storing a result", update(probe, &action, result).await)?;
    succeeds("looking it up", get(probe, &action).await)?;
    let request = GetActionResultRequest { instance_name: other.clone(), ..get_request(probe, &action) };
    let answer = probe.action_cache().get_action_result(request).await;
    refused(&format!("looking it up under `{other}`"), answer, &[Code::NotFound])
}

async fn digest_functions_apart(probe: &mut Probe<'_>) -> Checked {
    probe.require_action_cache_updates()?;
    probe.require_function(Blake3)?;
    let action = new_action(probe).await?;
    let result = ActionResult { exit_code: 7, ..ActionResult::default() };
    succeeds("storing a result", update(probe, &action, result).await)?;
    let request = GetActionResultRequest { digest_function: Blake3.number(), ..get_request(probe, &action) };
    let answer = probe.action_cache().get_action_result(request).await;
    refused("the same hash as one of BLAKE3", answer, &[Code::NotFound])
}

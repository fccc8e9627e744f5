//! Executions as a client sees them: the stream of an operation followed to its end, and what came of it.
//!
//! What always holds: nothing is waited for without an end. An execution has the patience of the run for all of its
//! messages, however often the server sends one.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use gf_digest::DigestFunction;
use gf_reapi::execution::execution_client::ExecutionClient;
use gf_reapi::execution::{
    ActionResult, ExecuteOperationMetadata, ExecuteRequest, ExecuteResponse, ExecutionPolicy, OutputDirectory, Tree,
    WaitExecutionRequest, execution_stage,
};
use gf_reapi::longrunning::operations_client::OperationsClient;
use gf_reapi::longrunning::{Operation, operation};
use gf_reapi::rpc::PreconditionFailure;
use gf_reapi::{Compressor, WireDigest};
use prost::Message;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, Streaming};

use crate::blob::Blob;
use crate::finding::{Checked, Finding, describe, ensure, refused, require, succeeds};
use crate::job::Job;
use crate::probe::{Probe, identity_entry};
use crate::session::Transport;

pub(crate) use execution_stage::Value as Stage;

/// No execution has as many messages; a server that sends more is cut off.
const MAX_MESSAGES: usize = 1000;

/// A stream of operations, from `Execute` or `WaitExecution`. Dropping it cuts the stream.
pub(crate) struct Watch {
    stream: Streaming<Operation>,
    seen: Vec<Operation>,
    patience: Duration,
    until: Instant,
}

impl Watch {
    fn new(stream: Streaming<Operation>, patience: Duration) -> Self {
        Self { stream, seen: Vec::new(), patience, until: Instant::now() + patience }
    }

    /// The next message, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Checked<Result<Option<Operation>, Status>> {
        ensure!(self.seen.len() < MAX_MESSAGES, "the stream does not end after {MAX_MESSAGES} messages");
        let Ok(message) = timeout_at(self.until, self.stream.message()).await else {
            let stage = self.seen.last().map_or("no message".into(), |last| format!("{:?} was last", stage(last)));
            return Err(Finding::Fail(format!("the stream does not end within {:?}; {stage}", self.patience)));
        };
        if let Ok(Some(operation)) = &message {
            self.seen.push(operation.clone());
        }
        Ok(message)
    }

    /// The name of the operation, as its first message tells.
    pub(crate) async fn name(&mut self) -> Checked<String> {
        if self.seen.is_empty() {
            succeeds("the first message", self.next().await?)?;
        }
        let name = self.seen.first().map(|first| first.name.clone()).unwrap_or_default();
        ensure!(!name.is_empty(), "the operation has no name");
        Ok(name)
    }

    /// Waits until the action runs. False if it ended first, or if the server never tells that one runs.
    pub(crate) async fn executing(&mut self, patience: Duration) -> Checked<bool> {
        let until = Instant::now() + patience;
        while self.seen.last().is_none_or(|last| stage(last) != Stage::Executing) {
            let Ok(message) = timeout_at(until, self.next()).await else { return Ok(false) };
            match message? {
                Ok(Some(operation)) if !operation.done => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Everything to the end of the stream.
    pub(crate) async fn end(mut self) -> Checked<Ended> {
        loop {
            match self.next().await? {
                Ok(Some(_)) => {}
                Ok(None) => return Ended::of(self.seen),
                Err(status) => {
                    return Ok(Ended { operations: self.seen, status, response: ExecuteResponse::default() });
                }
            }
        }
    }
}

/// The stage that an operation tells; UNKNOWN where it tells none.
pub(crate) fn stage(operation: &Operation) -> Stage {
    metadata(operation).map_or(Stage::Unknown, |metadata| metadata.stage())
}

/// What an operation tells of itself.
pub(crate) fn metadata(operation: &Operation) -> Option<ExecuteOperationMetadata> {
    ExecuteOperationMetadata::decode(operation.metadata.as_ref()?.value.as_slice()).ok()
}

/// What came of an execution.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Every message of the stream.
    pub(crate) operations: Vec<Operation>,
    /// How it ended, whichever way the server chose to tell: the call, the response, or the operation. Its details
    /// are a `google.rpc.Status`.
    pub(crate) status: Status,
    /// The response; an empty one where the server sent none.
    pub(crate) response: ExecuteResponse,
}

impl Ended {
    fn refused(status: Status) -> Self {
        Self { operations: Vec::new(), status, response: ExecuteResponse::default() }
    }

    fn of(operations: Vec<Operation>) -> Checked<Self> {
        let last = operations.last().ok_or_else(|| Finding::Fail("the stream has no message".into()))?;
        ensure!(last.done, "the stream ends before the operation is done");
        let (status, response) = match &last.result {
            Some(operation::Result::Response(any)) => {
                let response = ExecuteResponse::decode(any.value.as_slice())
                    .map_err(|error| Finding::Fail(format!("the response is no ExecuteResponse: {error}")))?;
                (response.status.clone().unwrap_or_default(), response)
            }
            Some(operation::Result::Error(status)) => (status.clone(), ExecuteResponse::default()),
            None => return Err(Finding::Fail("the operation is done without a response".into())),
        };
        let details = Bytes::from(status.encode_to_vec());
        let status = Status::with_details(Code::from_i32(status.code), status.message, details);
        Ok(Self { operations, status, response })
    }

    /// The result of an action that was executed.
    pub(crate) fn result(&self) -> Checked<&ActionResult> {
        ensure!(self.status.code() == Code::Ok, "the execution failed: {}", describe(&self.status));
        self.response.result.as_ref().ok_or_else(|| Finding::Fail("the status is OK, but there is no result".into()))
    }

    /// What the server said, where it must refuse with one of `allowed`.
    pub(crate) fn expect_refused(&self, what: &str, allowed: &[Code]) -> Checked {
        let answer = if self.status.code() == Code::Ok { Ok(()) } else { Err(self.status.clone()) };
        refused(what, answer, allowed)
    }

    /// The subjects of the violations of type MISSING, sorted.
    pub(crate) fn missing(&self) -> Checked<Vec<String>> {
        let mut missing = Vec::new();
        let status = gf_reapi::rpc::Status::decode(self.status.details()).unwrap_or_default();
        for detail in status.details.iter().filter(|any| any.type_url.ends_with("/google.rpc.PreconditionFailure")) {
            let failure = PreconditionFailure::decode(detail.value.as_slice())
                .map_err(|error| Finding::Fail(format!("the detail is no PreconditionFailure: {error}")))?;
            let violations = failure.violations.into_iter().filter(|violation| violation.r#type == "MISSING");
            missing.extend(violations.map(|violation| violation.subject));
        }
        missing.sort();
        Ok(missing)
    }
}

/// The calls of executions.
impl Probe<'_> {
    /// Skips the check where the server executes nothing.
    pub(crate) fn require_execution(&self) -> Checked<()> {
        let capabilities = self.session.capabilities()?.execution_capabilities.as_ref();
        require!(capabilities.is_some_and(|execution| execution.exec_enabled), "the server executes no actions");
        Ok(())
    }

    pub(crate) fn require_function_of_execution(&self, function: DigestFunction) -> Checked<()> {
        self.require_execution()?;
        let execution = self.session.capabilities()?.execution_capabilities.as_ref();
        // Before 2.3 a server had one function for executions.
        let offered = execution.is_some_and(|execution| {
            execution.digest_functions.contains(&function.number()) || execution.digest_function == function.number()
        });
        require!(offered, "the server executes nothing by {function}");
        Ok(())
    }

    pub(crate) fn execution(&self) -> ExecutionClient<Transport> {
        ExecutionClient::new(self.transport())
    }

    pub(crate) fn operations(&self) -> OperationsClient<Transport> {
        OperationsClient::new(self.transport())
    }

    /// A job for a shell script, where the server executes anything.
    pub(crate) fn job(&mut self, script: &str) -> Checked<Job> {
        self.require_execution()?;
        Ok(Job::script(self, script))
    }

    /// Puts into the store what the job needs.
    pub(crate) async fn upload_job(&self, job: &Job) -> Checked<()> {
        self.upload_by(job.function, &job.blobs()).await
    }

    /// Uploads small blobs of any digest function, all in one batch.
    pub(crate) async fn upload_by(&self, function: DigestFunction, blobs: &[Blob]) -> Checked<()> {
        let distinct: BTreeMap<_, _> = blobs.iter().map(|blob| (blob.digest.hash(), blob)).collect();
        let entries = distinct.into_values().map(identity_entry).collect();
        for answer in succeeds("uploading the action", self.batch_update(function, entries).await)? {
            succeeds("uploading the action", crate::finding::entry_status(answer.status.as_ref()))?;
        }
        Ok(())
    }

    fn execute_request(&self, action: &Blob) -> ExecuteRequest {
        ExecuteRequest {
            instance_name: self.instance(),
            action_digest: Some(action.wire()),
            digest_function: action.digest.function().number(),
            ..ExecuteRequest::default()
        }
    }

    /// Asks for a job whose blobs are in the store.
    pub(crate) async fn start(&self, job: &Job) -> Result<Watch, Status> {
        let request = ExecuteRequest {
            skip_cache_lookup: job.skip_cache_lookup,
            execution_policy: (job.priority != 0).then_some(ExecutionPolicy { priority: job.priority }),
            ..self.execute_request(&job.action_blob())
        };
        Ok(Watch::new(self.answered(self.execution().execute(request)).await?.into_inner(), self.patience()))
    }

    /// The first of an answer: a server that is silent altogether is taken for one that is not there.
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let patience = self.patience();
        let silent = |_| Status::unavailable(format!("the suite gave up after {patience:?} without an answer"));
        tokio::time::timeout(patience, answer).await.map_err(silent)?
    }

    pub(crate) async fn wait(&self, name: &str) -> Result<Watch, Status> {
        let request = WaitExecutionRequest { name: name.to_owned() };
        Ok(Watch::new(self.answered(self.execution().wait_execution(request)).await?.into_inner(), self.patience()))
    }

    /// Executes a job whose blobs, or some of them, are in the store.
    pub(crate) async fn execute(&self, job: &Job) -> Checked<Ended> {
        match self.start(job).await {
            Ok(watch) => watch.end().await,
            Err(status) => Ok(Ended::refused(status)),
        }
    }

    /// Executes an action of no job.
    pub(crate) async fn execute_action(&self, action: &Blob) -> Checked<Ended> {
        match self.answered(self.execution().execute(self.execute_request(action))).await {
            Ok(answer) => Watch::new(answer.into_inner(), self.patience()).end().await,
            Err(status) => Ok(Ended::refused(status)),
        }
    }

    /// Uploads and executes a job.
    pub(crate) async fn run(&self, job: &Job) -> Checked<Ended> {
        self.upload_job(job).await?;
        self.execute(job).await
    }

    /// The result of a job that must end well.
    pub(crate) async fn succeed(&self, job: &Job) -> Checked<ActionResult> {
        let result = self.run(job).await?.result()?.clone();
        if result.exit_code != 0 {
            let stderr = self.stream(job.function, &result.stderr_raw, result.stderr_digest.as_ref()).await?;
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(Finding::Fail(format!("the action ended with {}: {stderr}", result.exit_code)));
        }
        Ok(result)
    }

    /// What a job that must end well printed, without the white space around it.
    pub(crate) async fn says(&self, job: &Job) -> Checked<String> {
        let result = self.succeed(job).await?;
        self.stdout(job, &result).await
    }

    /// Fails unless the job ends well and prints just that.
    pub(crate) async fn expect_says(&self, job: &Job, expected: &str) -> Checked<()> {
        let said = self.says(job).await?;
        ensure!(said == expected, "the action printed `{said}`, not `{expected}`");
        Ok(())
    }

    pub(crate) async fn stdout(&self, job: &Job, result: &ActionResult) -> Checked<String> {
        let bytes = self.stream(job.function, &result.stdout_raw, result.stdout_digest.as_ref()).await?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Standard output or standard error, wherever the result keeps it.
    pub(crate) async fn stream(
        &self,
        function: DigestFunction,
        raw: &Bytes,
        digest: Option<&WireDigest>,
    ) -> Checked<Vec<u8>> {
        match digest {
            Some(digest) if raw.is_empty() => self.content(function, digest).await,
            _ => Ok(raw.to_vec()),
        }
    }

    /// A blob that a result names.
    pub(crate) async fn content(&self, function: DigestFunction, digest: &WireDigest) -> Checked<Vec<u8>> {
        let parsed = digest
            .to_digest(function)
            .map_err(|error| Finding::Fail(format!("a digest of the result is not one of {function}: {error}")))?;
        if parsed.is_empty() {
            return Ok(Vec::new());
        }
        let name = self.read_name(parsed, Compressor::Identity)?;
        let bytes = succeeds("reading what the result names", self.read(&name, 0, 0).await)?;
        ensure!(Blob::of(function, bytes.clone()).digest == parsed, "{name} is the name of other bytes");
        Ok(bytes)
    }

    /// The content of an output file.
    pub(crate) async fn output(&self, job: &Job, result: &ActionResult, path: &str) -> Checked<Vec<u8>> {
        let file = result.output_files.iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| Finding::Fail(format!("the result has no output file `{path}`")))?;
        match &file.digest {
            Some(digest) => self.content(job.function, digest).await,
            None => Err(Finding::Fail(format!("the output file `{path}` has no digest"))),
        }
    }

    /// The output directory at a path, and its tree as it is encoded.
    pub(crate) async fn output_tree<'r>(
        &self,
        job: &Job,
        result: &'r ActionResult,
        path: &str,
    ) -> Checked<(&'r OutputDirectory, Tree)> {
        let directory = output_directory(result, path)?;
        let digest = directory.tree_digest.as_ref();
        let digest = digest.ok_or_else(|| Finding::Fail(format!("the output directory `{path}` has no tree")))?;
        let tree = Tree::decode(self.content(job.function, digest).await?.as_slice())
            .map_err(|error| Finding::Fail(format!("the tree of `{path}` is no Tree: {error}")))?;
        Ok((directory, tree))
    }
}

pub(crate) fn output_directory<'r>(result: &'r ActionResult, path: &str) -> Checked<&'r OutputDirectory> {
    let directory = result.output_directories.iter().find(|directory| directory.path == path);
    directory.ok_or_else(|| Finding::Fail(format!("the result has no output directory `{path}`")))
}

/// All paths of a tree in order: `d/` a directory, `f` a file, `x*` an executable one, `l -> t` a symlink.
pub(crate) fn listing(tree: &Tree, function: DigestFunction) -> Checked<Vec<String>> {
    let child = |wanted: Option<&WireDigest>| {
        tree.children.iter().find(|child| Some(&Blob::of(function, child.encode_to_vec()).wire()) == wanted)
    };
    let root = tree.root.as_ref().ok_or_else(|| Finding::Fail("the tree has no root".into()))?;
    let mut paths = Vec::new();
    let mut open = vec![(String::new(), root)];
    while let Some((prefix, directory)) = open.pop() {
        for file in &directory.files {
            paths.push(format!("{prefix}{}{}", file.name, if file.is_executable { "*" } else { "" }));
        }
        for link in &directory.symlinks {
            paths.push(format!("{prefix}{} -> {}", link.name, link.target));
        }
        for node in &directory.directories {
            let path = format!("{prefix}{}/", node.name);
            let below = child(node.digest.as_ref());
            open.push((path.clone(), below.ok_or_else(|| Finding::Fail(format!("the tree lacks `{path}`")))?));
            paths.push(path);
            ensure!(paths.len() < MAX_MESSAGES, "the tree has more paths than the action made");
        }
    }
    paths.sort();
    Ok(paths)
}

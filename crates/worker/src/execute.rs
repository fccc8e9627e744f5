//! One assignment from its arrival to its answer: fetch, run, store.
//!
//! What always holds: every assignment is answered once; when it is, nothing of it runs. What it left on the disk goes
//! afterwards, and of so few at a time that no disk fills with it. A cancelled one stops at whatever stage it is.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use gf_reapi::execution::{ActionResult, ExecutedActionMetadata};
use gf_reapi::rpc;
use gf_reapi::worker::finished::Verdict;
use gf_reapi::worker::progress::Stage;
use gf_reapi::worker::{Assignment, Finished, ResourceUsage};
use prost::{Message, Name};
use prost_types::Any;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use crate::assignment::{Memory, Order};
use crate::blobs::{BlobClient, blocking};
use crate::config::{Bounds, NetworkPolicy, PersistentPolicy};
use crate::failure::{Failure, status};
use crate::input_root::{InputRoot, InputRoots};
use crate::outputs::{self, Asked, Collected, View};
use crate::persistent::{self, Asked as Answered, Job, PersistentProcesses};
use crate::run_folders::{RunFolder, RunFolders};
use crate::sandbox::{Launcher, Limit, Limits, Network, Ran, Root, Run, SandboxError, StoreView, Usage};
use crate::store_paths::{Shown, StorePaths};
use crate::tidying::Tidying;
use crate::times::{Clock, timestamp, wire_duration};

/// Logs up to this size are also in the answer itself.
const MAX_RAW_LOG_BYTES: u64 = 16 << 10;

/// What all assignments of a worker share.
pub(crate) struct Workshop {
    pub(crate) name: String,
    pub(crate) launcher: Launcher,
    pub(crate) roots: InputRoots,
    pub(crate) store_paths: StorePaths,
    pub(crate) run_folders: Arc<RunFolders>,
    pub(crate) tidying: Tidying,
    pub(crate) bounds: Bounds,
    /// What all actions together may have.
    pub(crate) memory_bytes: u64,
    pub(crate) network: NetworkPolicy,
    /// Whether the kernel can take the network away from an action.
    pub(crate) own_network: bool,
    pub(crate) persistent: PersistentProcesses,
    pub(crate) persistent_policy: PersistentPolicy,
}

/// Where one assignment says how far it is, and hears that nobody wants it.
pub(crate) struct Surroundings {
    pub(crate) channel: Channel,
    pub(crate) max_batch_bytes: u64,
    pub(crate) cancel: CancellationToken,
    pub(crate) progress: Box<dyn Fn(Stage) + Send + Sync>,
}

/// An order on its way.
struct Scene<'a> {
    order: &'a Order,
    blobs: &'a BlobClient,
    around: &'a Surroundings,
    folder: &'a RunFolder,
    clock: &'a Clock,
}

/// The answer under construction.
#[derive(Default)]
struct Answer {
    result: ActionResult,
    metadata: ExecutedActionMetadata,
    /// The limit that ended it.
    ended: Option<rpc::Status>,
    /// Whether nobody but this worker, and what has ended, ever had anything of its folder.
    was_alone: bool,
}

impl Workshop {
    /// Does what the assignment says.
    pub(crate) async fn execute(self: &Arc<Self>, assignment: Assignment, around: &Surroundings) -> Finished {
        let clock = Clock::start();
        let mut answer = Answer::default();
        answer.metadata.worker.clone_from(&self.name);
        answer.metadata.queued_timestamp = assignment.queued_timestamp;
        answer.metadata.worker_start_timestamp = Some(timestamp(clock.now()));
        let done = match self.folder(&around.cancel).await {
            Ok(folder) => {
                let done = self.stages(&assignment, around, &folder, &clock, &mut answer).await;
                // After anything else, something of it may still be under way in there.
                let is_over = done.is_ok() && answer.was_alone;
                self.tidying.begin(self.tidy(folder, is_over));
                done
            }
            Err(error) => Err(error),
        };
        answer.metadata.worker_completed_timestamp = Some(timestamp(clock.now()));
        answer.finish(assignment.assignment_id, done)
    }

    async fn folder(&self, cancel: &CancellationToken) -> Result<RunFolder, Failure> {
        cancel.run_until_cancelled(self.tidying.room()).await.ok_or(Failure::Cancelled)?;
        if let Some(folder) = self.run_folders.take_kept() {
            return Ok(folder);
        }
        let folders = Arc::clone(&self.run_folders);
        blocking(move || folders.make().map_err(|error| Failure::io("create the folder of a run", error))).await
    }

    /// Another worker may do better: nothing is wrong with the action.
    fn check_network(&self, wanted: Network) -> Result<(), Failure> {
        if self.own_network || wanted == Network::Host {
            return Ok(());
        }
        let reason = "its kernel makes no network namespaces, and so it runs only actions that ask for the network; \
                      raise user.max_net_namespaces";
        Err(Failure::Worker(reason.to_owned()))
    }

    async fn stages(
        &self,
        assignment: &Assignment,
        around: &Surroundings,
        folder: &RunFolder,
        clock: &Clock,
        answer: &mut Answer,
    ) -> Result<(), Failure> {
        let order = Order::read(assignment, self.network, self.memory_bytes)?;
        self.check_network(order.network)?;
        let credential = order.credential.expose();
        let (channel, function) = (around.channel.clone(), order.function);
        let blobs = BlobClient::new(channel, order.instance.clone(), function, credential, around.max_batch_bytes)?;
        let scene = Scene { order: &order, blobs: &blobs, around, folder, clock };
        (around.progress)(Stage::Fetching);
        answer.metadata.input_fetch_start_timestamp = Some(timestamp(clock.now()));
        let (run, surroundings) = match self.job(&scene).await? {
            Some(job) => (self.ask(&scene, &job, answer).await?, None),
            None => {
                let (run, surroundings) = self.run_alone(&scene, answer).await?;
                (run, Some(surroundings))
            }
        };

        (around.progress)(Stage::Uploading);
        answer.metadata.output_upload_start_timestamp = Some(timestamp(clock.now()));
        let kept = unless_cancelled(&around.cancel, keep(&blobs, &order.outputs, run, answer)).await;
        answer.metadata.output_upload_completed_timestamp = Some(timestamp(clock.now()));
        drop(surroundings);
        kept
    }

    async fn run_alone(&self, scene: &Scene<'_>, answer: &mut Answer) -> Result<(Run, (InputRoot, Shown)), Failure> {
        let Scene { order, blobs, around, folder, clock } = scene;
        let fetched = async {
            let inputs = self.roots.make(blobs, &order.inputs, folder.path());
            tokio::try_join!(inputs, self.store_paths.show(blobs, &order.store_paths))
        };
        let (inputs, shown) = unless_cancelled(&around.cancel, fetched).await?;
        answer.metadata.input_fetch_completed_timestamp = Some(timestamp(clock.now()));

        (around.progress)(Stage::Running);
        let run = Run { store: shown.view.clone(), ..self.run_of(order, inputs.root.clone(), folder) };
        let before = clock.now();
        let ran = self.launcher.run(run.clone(), around.cancel.clone()).await.map_err(not_run)?;
        if ran.ended_by == Some(Limit::Cancelled) {
            return Err(Failure::Cancelled);
        }
        answer.was_alone = order.network == Network::Loopback;
        answer.ran(&ran, before, clock.now());
        answer.ended = ran.ended_by.map(|limit| ended(limit, &run.limits, order.memory));
        Ok((run, (inputs, shown)))
    }

    /// The request that the order is, if it is one. What sees store paths runs alone.
    async fn job(&self, scene: &Scene<'_>) -> Result<Option<Arc<Job>>, Failure> {
        match self.persistent_policy {
            PersistentPolicy::OnRequest if scene.order.store_paths.is_empty() => {
                unless_cancelled(&scene.around.cancel, self.persistent.job(scene.blobs, scene.order)).await
            }
            PersistentPolicy::OnRequest | PersistentPolicy::Refused => Ok(None),
        }
    }

    /// Has a process do it that stays; the answer looks like a run over a folder that holds nothing but outputs.
    async fn ask(&self, scene: &Scene<'_>, job: &Arc<Job>, answer: &mut Answer) -> Result<Run, Failure> {
        let Scene { order, around, folder, clock, .. } = scene;
        answer.metadata.input_fetch_completed_timestamp = Some(timestamp(clock.now()));
        (around.progress)(Stage::Running);
        let outputs = folder.path().join("outputs");
        let run = self.run_of(order, Root::Private(outputs.clone()), folder);
        let before = clock.now();
        let whereabouts = persistent::Around { launcher: &self.launcher, cancel: &around.cancel, outputs: &outputs };
        let asked = self.persistent.ask(job, whereabouts).await?;
        answer.was_alone = true;
        answer.took_place(before, clock.now());
        let (output, used) = match asked {
            Answered::Answered { exit_code, output, used } => {
                answer.result.exit_code = exit_code;
                (output, used)
            }
            Answered::Ended { limit, words, used } => {
                answer.ended = Some(ended(limit, &run.limits, order.memory));
                (words.into_bytes(), used)
            }
        };
        answer.used(&used);
        let stderr = run.stderr.clone();
        blocking(move || fs::write(stderr, output).map_err(|error| Failure::io("write a log", error))).await?;
        Ok(run)
    }

    fn run_of(&self, order: &Order, root: Root, folder: &RunFolder) -> Run {
        Run {
            arguments: order.arguments.clone(),
            environment: order.environment.clone(),
            working_directory: order.inputs.working_directory.to_path(),
            root,
            store: StoreView::default(),
            scratch: folder.scratch(),
            stdout: folder.stdout(),
            stderr: folder.stderr(),
            network: order.network,
            limits: Limits {
                timeout: order.timeout,
                memory_bytes: order.memory.bytes(),
                processes: self.bounds.processes,
                disk_bytes: self.bounds.disk_bytes,
                log_bytes: self.bounds.log_bytes,
                files: self.bounds.files,
            },
        }
    }

    /// Makes an end of what a run left. Of one that is over, what is as good as new is kept for the next.
    fn tidy(self: &Arc<Self>, folder: RunFolder, is_over: bool) -> impl Future<Output = ()> + use<> {
        let workshop = Arc::clone(self);
        async move {
            let folders = Arc::clone(&workshop.run_folders);
            let tidied = blocking(move || {
                let tidied = if is_over { folders.give_back(folder) } else { folders.remove(&folder) };
                tidied.map_err(|error| Failure::io("remove what an action left", error))
            });
            if let Err(Failure::Worker(error)) = tidied.await {
                tracing::warn!(error, "what an action left behind stays until the next start");
            }
            workshop.roots.trim();
            workshop.store_paths.trim().await;
        }
    }
}

async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    cancel.run_until_cancelled(work).await.unwrap_or(Err(Failure::Cancelled))
}

pub(crate) fn not_run(error: SandboxError) -> Failure {
    match error {
        SandboxError::TooLarge => Failure::invalid("the arguments and the environment of the command are too large"),
        SandboxError::Refused { .. } | SandboxError::LauncherGone => Failure::Worker(error.to_string()),
    }
}

/// Stores logs and outputs. Of an action that was ended only the logs are kept: its outputs are not what it wanted.
async fn keep(blobs: &BlobClient, asked: &Asked, run: Run, answer: &mut Answer) -> Result<(), Failure> {
    let (asked, function, is_ended) = (asked.clone(), blobs.function(), answer.ended.is_some());
    let words = answer.ended.as_ref().filter(|ended| ended.code == Code::ResourceExhausted as i32);
    let words = words.map(|ended| ended.message.clone());
    let (logs, outputs) = blocking(move || {
        if let Some(words) = words {
            outputs::add_last_words(&run.stderr, &words).map_err(|error| Failure::io("write a log", error))?;
        }
        let mut logs = Collected::default();
        let digests = [&run.stdout, &run.stderr].map(|log| logs.add_log(log, function));
        let [stdout, stderr] = digests;
        let (stdout, stderr) = (stdout?, stderr?);
        let raw = |digest: &Option<gf_digest::Digest>, path: &Path| match digest {
            Some(digest) if digest.size_bytes() <= MAX_RAW_LOG_BYTES => fs::read(path).map(bytes::Bytes::from),
            _ => Ok(bytes::Bytes::new()),
        };
        let unreadable = |error| Failure::io("read a log", error);
        logs.result.stdout_raw = raw(&stdout, &run.stdout).map_err(unreadable)?;
        logs.result.stderr_raw = raw(&stderr, &run.stderr).map_err(unreadable)?;
        logs.result.stdout_digest = stdout.map(Into::into);
        logs.result.stderr_digest = stderr.map(Into::into);
        let outputs = match is_ended {
            true => Ok(Collected::default()),
            false => outputs::collect(&asked, &View::of(&run), run.limits.disk_bytes, function),
        };
        Ok((logs, outputs))
    })
    .await?;
    let exit_code = answer.result.exit_code;
    // What the logs say is wanted most when the outputs are not as they should be.
    let (found, refused) = match outputs {
        Ok(found) => (found, Ok(())),
        Err(refused) => (Collected::default(), Err(refused)),
    };
    let mut named = found.blobs;
    named.extend(logs.blobs);
    answer.result = ActionResult {
        exit_code,
        stdout_raw: logs.result.stdout_raw,
        stdout_digest: logs.result.stdout_digest,
        stderr_raw: logs.result.stderr_raw,
        stderr_digest: logs.result.stderr_digest,
        ..found.result
    };
    if let Err(error) = outputs::store(blobs, &named).await {
        answer.result = ActionResult::default();
        return Err(error);
    }
    refused
}

/// Which limit, how much it is, and who can raise it.
fn ended(limit: Limit, limits: &Limits, memory: Memory) -> rpc::Status {
    let Limits { timeout, processes, disk_bytes, files, log_bytes, .. } = limits;
    let (code, message) = match limit {
        Limit::Time => (
            Code::DeadlineExceeded,
            format!(
                "the action ran longer than its time limit of {timeout:?}; a client can ask for more with Action.timeout"
            ),
        ),
        Limit::Memory => (Code::ResourceExhausted, out_of_memory(memory)),
        Limit::Processes => (
            Code::ResourceExhausted,
            format!(
                "the action had more than {processes} processes and threads at one time; an operator can raise this limit for \
                 the worker"
            ),
        ),
        Limit::Disk => (
            Code::ResourceExhausted,
            format!(
                "the action wrote more than its disk limit of {disk_bytes} bytes; an operator can raise it for the worker"
            ),
        ),
        Limit::Files => (
            Code::ResourceExhausted,
            format!(
                "the action made more than {files} files, folders and links; an operator can raise this limit for the worker"
            ),
        ),
        Limit::FullDisk => (
            Code::ResourceExhausted,
            "the disk of the worker was about to be full, and the action had written more to it than it had left, or \
             held deleted files that cannot be measured; the worker needs a larger one"
                .to_owned(),
        ),
        Limit::Log => (
            Code::ResourceExhausted,
            format!("stdout or stderr grew beyond the limit of {log_bytes} bytes; write large output to a file"),
        ),
        Limit::Cancelled => (Code::Cancelled, "the action was cancelled".to_owned()),
    };
    status(code, message)
}

fn out_of_memory(memory: Memory) -> String {
    match memory {
        Memory::Reserved(bytes) => format!(
            "the action used more than its memory limit of {bytes} bytes; it can ask for more with the platform property \
             `memory`"
        ),
        Memory::Shared(bytes) => format!(
            "the action used more memory than this worker had left of the limit of {bytes} bytes for all its actions; one \
             that says with the platform property `memory` how much it takes gets a worker that has it free"
        ),
    }
}

impl Answer {
    fn ran(&mut self, ran: &Ran, before: SystemTime, after: SystemTime) {
        // The launcher reads the clock of the machine, which may have been set meanwhile.
        let started = ran.started.clamp(before, after);
        let ended = ran.ended.clamp(started, after);
        self.took_place(started, ended);
        self.used(&ran.usage);
        self.result.exit_code = ran.exit_code;
    }

    fn used(&mut self, used: &Usage) {
        let value = usage(used).encode_to_vec();
        self.metadata.auxiliary_metadata = vec![Any { type_url: ResourceUsage::type_url(), value }];
    }

    fn took_place(&mut self, started: SystemTime, ended: SystemTime) {
        self.metadata.execution_start_timestamp = Some(timestamp(started));
        self.metadata.execution_completed_timestamp = Some(timestamp(ended));
        let took = ended.duration_since(started).unwrap_or_default();
        self.metadata.virtual_execution_duration = Some(wire_duration(took));
    }

    fn finish(self, assignment_id: String, done: Result<(), Failure>) -> Finished {
        let Self { mut result, metadata, ended, .. } = self;
        result.execution_metadata = Some(metadata);
        let (verdict, status) = match (done, ended) {
            (Ok(()), None) => (Verdict::Completed, rpc::Status::default()),
            (Ok(()), Some(ended)) => (Verdict::Ended, ended),
            (Err(failure), _) => failure.into_answer(),
        };
        let message = status.message.clone();
        Finished { assignment_id, verdict: verdict as i32, result: Some(result), status: Some(status), message }
    }
}

fn usage(usage: &Usage) -> ResourceUsage {
    ResourceUsage {
        user_time: Some(wire_duration(usage.user_time)),
        system_time: Some(wire_duration(usage.system_time)),
        peak_memory_bytes: usage.peak_memory_bytes,
        peak_memory_is_of_largest_process: usage.peak_memory_is_of_largest_process,
        read_bytes: usage.read_bytes,
        written_bytes: usage.written_bytes,
    }
}

//! One process that stays, and its folder.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::blobs::blocking;
use crate::config::Bounds;
use crate::failure::Failure;
use crate::local_blobs::LocalBlobs;
use crate::removal::Trash;
use crate::sandbox::{ActionUser, Launcher, Limits, Process, Ran, Root, Run, SandboxError, StoreView, Usage};

use super::harvest::take_out;
use super::job::Job;
use super::protocol::{Broken, WorkResponse};
use super::root::{LiveRoot, Tools};

/// No process stays longer, however much it is used.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What a process that closed its output gets to end by itself, so that its exit code is known.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Of what it wrote to standard error, what is told.
const TOLD_BYTES: u64 = 4096;

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    AtOnce,
    /// It seems to have ended already.
    Patient,
}

/// The process, once it was started. Whoever has it asks it, and ends it at last.
#[derive(Debug)]
pub(super) struct Tenured {
    folder: PathBuf,
    root: Arc<LiveRoot>,
    process: Option<Process>,
    /// Where in its standard error this request began.
    said_before: u64,
    /// What it had used when the last request was answered.
    used_before: Usage,
}

impl Tenured {
    /// Makes its folder.
    pub(super) fn new(folder: PathBuf, owner: Option<ActionUser>) -> io::Result<Self> {
        fs::create_dir(&folder)?;
        fs::create_dir(folder.join("scratch"))?;
        let root = LiveRoot::create(&folder.join("root"), owner)?;
        Ok(Self { folder, root: Arc::new(root), process: None, said_before: 0, used_before: Usage::default() })
    }

    /// Whether it has done something before.
    pub(super) const fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Lays the inputs out, and starts it if it does not run.
    pub(super) async fn prepare(
        &mut self,
        job: &Arc<Job>,
        blobs: &Arc<LocalBlobs>,
        launcher: &Launcher,
        bounds: &Bounds,
    ) -> Result<(), Failure> {
        let (root, job_too, blobs) = (Arc::clone(&self.root), Arc::clone(job), Arc::clone(blobs));
        let tools = if self.is_running() { Tools::LaidOut } else { Tools::Missing };
        blocking(move || {
            let filled = root.fill(&job_too.inputs, &job_too.parents, &blobs, tools);
            filled.map_err(|error| Failure::io("lay out the inputs of a persistent worker", error))
        })
        .await?;
        if self.process.is_none() {
            let process = launcher.spawn(self.run(job, bounds)).await;
            self.process = Some(process.map_err(crate::execute::not_run)?);
        }
        self.said_before = fs::metadata(self.stderr()).map_or(0, |found| found.len());
        Ok(())
    }

    fn run(&self, job: &Job, bounds: &Bounds) -> Run {
        Run {
            arguments: job.key.arguments.clone(),
            environment: job.key.environment.clone(),
            working_directory: job.key.working_directory.clone(),
            root: Root::Private(self.folder.join("root")),
            store: StoreView::default(),
            scratch: self.folder.join("scratch"),
            stdout: self.folder.join("stdout"),
            stderr: self.stderr(),
            network: job.key.network,
            limits: Limits {
                timeout: LONGEST_LIFE,
                memory_bytes: job.key.memory.bytes(),
                processes: bounds.processes,
                disk_bytes: bounds.disk_bytes,
                log_bytes: bounds.log_bytes,
                files: bounds.files,
            },
        }
    }

    /// Asks, and waits for the answer. Nothing but this ends the wait, so the caller has a deadline.
    pub(super) async fn ask(&mut self, job: &Job) -> Result<WorkResponse, Broken> {
        let Some(Process { stdin, stdout, .. }) = &mut self.process else { return Err(Broken::Ended) };
        let protocol = job.key.protocol;
        let mut unasked = [0; 64];
        match stdout.try_read(&mut unasked) {
            Ok(0) => return Err(Broken::Ended),
            Ok(length) if protocol.is_silence(unasked.get(..length).unwrap_or_default()) => {}
            Ok(_) => return Err(Broken::Malformed("it wrote without being asked".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let asking = async {
            stdin.write_all(&job.request).await?;
            Ok(())
        };
        // A process may answer while it still listens.
        let ((), response) = tokio::try_join!(asking, protocol.read(stdout))?;
        Ok(response)
    }

    /// What it used since the last request was answered, or since it began.
    pub(super) async fn used(&mut self) -> Usage {
        let Some(meter) = self.process.as_ref().map(Process::meter) else { return Usage::default() };
        let Ok(used) = blocking(move || Ok(meter.read())).await else { return Usage::default() };
        used.since(&std::mem::replace(&mut self.used_before, used))
    }

    /// What it had used when the last request was answered.
    pub(super) const fn used_before(&self) -> Usage {
        self.used_before
    }

    /// Takes the outputs to `into`.
    pub(super) async fn take_outputs(&self, job: &Arc<Job>, into: PathBuf, max_bytes: u64) -> Result<(), Failure> {
        let (root, job) = (Arc::clone(&self.root), Arc::clone(job));
        blocking(move || {
            let taken = take_out(&root, &job.outputs, &into, max_bytes);
            taken.map_err(|error| Failure::io("take the outputs of a persistent worker", error))
        })
        .await
    }

    /// Removes what was of one request; no, if that cannot be done.
    pub(super) async fn is_clean_again(&self, job: &Arc<Job>) -> bool {
        let (root, job) = (Arc::clone(&self.root), Arc::clone(job));
        let cleared = blocking(move || {
            root.clear(&job.inputs).map_err(|error| Failure::io("clear the folder of a persistent worker", error))
        });
        match cleared.await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(?error, "a persistent worker is ended for what it did to its folder");
                false
            }
        }
    }

    /// Ends it, waits until everything of it is gone, and removes its folder. How it ended, if it ran.
    pub(super) async fn end(mut self, ending: Ending, trash: &Arc<Trash>) -> Option<Ran> {
        let ran = match self.process.take() {
            None => None,
            Some(process) => match wait(process, ending).await {
                Ok(ran) => Some(ran),
                // Its sandbox went with it.
                Err(SandboxError::LauncherGone) => None,
                Err(error) => {
                    tracing::warn!(%error, "how a persistent worker ended is not known");
                    None
                }
            },
        };
        let trash = Arc::clone(trash);
        let folder = self.folder.clone();
        let removed = blocking(move || {
            trash.remove(&folder).map_err(|error| Failure::io("remove the folder of a persistent worker", error))
        });
        if let Err(error) = removed.await {
            tracing::warn!(?error, "what a persistent worker left behind stays until the next start");
        }
        ran
    }

    /// The end of what it wrote to standard error for this request.
    pub(super) fn last_words(&self) -> String {
        last_of(&self.stderr(), self.said_before).unwrap_or_default()
    }

    fn stderr(&self) -> PathBuf {
        self.folder.join("stderr")
    }
}

async fn wait(mut process: Process, ending: Ending) -> Result<Ran, SandboxError> {
    if ending == Ending::Patient
        && let Ok(ran) = timeout(LAST_BREATH, process.ended()).await
    {
        return ran;
    }
    process.kill();
    process.wait().await
}

fn last_of(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(TOLD_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TOLD_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

//! Processes that stay for the next action: Bazel's persistent workers.
//!
//! An action that names one (`persistentWorkerKey`), marks the files of its tool and has flag files is a request to a
//! process that was started for an earlier one, if one waits that was started in just the same way: for the same instance,
//! from the same tool, with the same arguments, environment, network and memory. Any other action runs alone.
//! Deliberately absent: several requests at one time, and requests to cancel; who does not answer is ended.
//!
//! What always holds: a process works for one instance and for one request at a time; it lives in a sandbox and cannot
//! reach the cache; what one request brought is gone from its folder before the next; how many wait, for how long, and
//! how much memory they may have together is bounded; none is left when its server or the worker is.

mod harvest;
mod inputs;
mod job;
mod process;
mod protocol;
mod root;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assignment::{Memory, Order};
use crate::blobs::{BlobClient, blocking};
use crate::config::Bounds;
use crate::failure::Failure;
use crate::local_blobs::LocalBlobs;
use crate::removal::Trash;
use crate::sandbox::{Launcher, Limit, Usage};

pub(crate) use job::{Job, Wish};

use inputs::Directories;
use job::{Key, bytes, contents, key_of, request_of};
use process::{Ending, Tenured};
use protocol::Broken;

/// A process that was not asked for so long is ended.
const LONGEST_IDLE: Duration = Duration::from_secs(300);
/// What waits is counted with the memory that it may have, or with this where it did not say how much it takes.
const USUAL_MEMORY_BYTES: u64 = 1 << 30;
/// The part of the worker's memory that those who wait may have.
const IDLE_MEMORY_SHARE: u64 = 2;
/// A process that dies under a request may have been made ill by an earlier one: a fresh one is tried.
const ATTEMPTS: u32 = 2;
/// Beyond what a clock can say.
const FOR_EVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// The processes of a worker.
#[derive(Debug)]
pub(crate) struct PersistentProcesses {
    folder: PathBuf,
    next: AtomicU64,
    blobs: Arc<LocalBlobs>,
    trash: Arc<Trash>,
    directories: Directories,
    bounds: Bounds,
    idle_bounds: IdleBounds,
    /// The longest idle first.
    idle: Mutex<Vec<Idle>>,
    /// Processes on their way out.
    endings: TaskTracker,
}

/// What may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdleBounds {
    pub(crate) processes: usize,
    pub(crate) memory_bytes: u64,
}

impl IdleBounds {
    /// One for each core, with a part of the memory.
    pub(crate) fn of(cores: u32, memory_bytes: u64) -> Self {
        Self { processes: usize::try_from(cores).unwrap_or(usize::MAX), memory_bytes: memory_bytes / IDLE_MEMORY_SHARE }
    }
}

#[derive(Debug)]
struct Idle {
    key: Key,
    process: Tenured,
    since: Instant,
}

impl Idle {
    fn memory_bytes(&self) -> u64 {
        match self.key.memory {
            Memory::Reserved(bytes) => bytes,
            Memory::Shared(bytes) => bytes.min(USUAL_MEMORY_BYTES),
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Asked {
    /// With an answer; its outputs were taken out.
    Answered { exit_code: i32, output: Vec<u8>, used: Usage },
    /// By a limit, after last words on standard error.
    Ended { limit: Limit, words: String, used: Usage },
}

/// What a request has around it.
#[derive(Clone, Copy)]
pub(crate) struct Around<'a> {
    pub(crate) launcher: &'a Launcher,
    pub(crate) cancel: &'a CancellationToken,
    /// A folder that is made for the outputs.
    pub(crate) outputs: &'a Path,
}

/// One try.
enum Try {
    Done(Asked),
    Died { limit: Option<Limit>, words: String, message: String, used: Usage },
}

impl PersistentProcesses {
    /// Removes what an earlier worker left.
    pub(crate) fn open(
        folder: PathBuf,
        blobs: Arc<LocalBlobs>,
        trash: Arc<Trash>,
        bounds: Bounds,
        idle_bounds: IdleBounds,
    ) -> io::Result<Self> {
        trash.remove(&folder)?;
        std::fs::create_dir_all(&folder)?;
        Ok(Self {
            folder,
            next: AtomicU64::new(0),
            blobs,
            trash,
            directories: Directories::new(),
            bounds,
            idle_bounds,
            idle: Mutex::default(),
            endings: TaskTracker::new(),
        })
    }

    /// Makes an order a request, and fetches what it needs; nothing, if it has to run alone.
    pub(crate) async fn job(&self, blobs: &BlobClient, order: &Order) -> Result<Option<Arc<Job>>, Failure> {
        let Some(wish) = &order.persistent else { return Ok(None) };
        let Some(mut inputs) = self.directories.read(blobs, order.inputs.root).await? else { return Ok(None) };
        let Some(key) = key_of(order, wish, &mut inputs) else { return Ok(None) };
        // What is copied for a request is bounded like what it writes; alone it would not be copied.
        if bytes(&inputs) > self.bounds.disk_bytes {
            return Ok(None);
        }
        let pins = self.blobs.pin(blobs, contents(&inputs)).await?;
        let (order, cache) = (order.clone(), Arc::clone(&self.blobs));
        blocking(move || {
            let request = request_of(&order, &inputs, &cache);
            let Some(request) = request.and_then(|request| key.protocol.encode(&request)) else { return Ok(None) };
            let outputs = order.outputs.outputs.iter().map(|output| output.path.clone()).collect();
            let (parents, timeout) = (order.inputs.output_parents, order.timeout);
            Ok(Some(Arc::new(Job { key, inputs, parents, outputs, request, timeout, _pins: pins })))
        })
        .await
    }

    /// Has a process do it: one that waits, or a new one.
    pub(crate) async fn ask(&self, job: &Arc<Job>, around: Around<'_>) -> Result<Asked, Failure> {
        let now = Instant::now();
        let deadline = now.checked_add(job.timeout).unwrap_or(now + FOR_EVER);
        let mut waiting = self.take(&job.key);
        let mut attempt = 1;
        loop {
            let process = match waiting.take() {
                Some(process) => process,
                None => self.new_process().await?,
            };
            match self.try_once(process, job, around, deadline).await? {
                Try::Done(asked) => return Ok(asked),
                Try::Died { message, .. } if attempt < ATTEMPTS => {
                    tracing::info!(message, "a persistent worker died under a request; a fresh one is tried");
                }
                Try::Died { limit: Some(limit), words, used, .. } => {
                    return Ok(Asked::Ended { limit, words, used });
                }
                Try::Died { limit: None, message, .. } => return Err(Failure::Worker(message)),
            }
            attempt += 1;
        }
    }

    async fn try_once(
        &self,
        mut process: Tenured,
        job: &Arc<Job>,
        around: Around<'_>,
        deadline: Instant,
    ) -> Result<Try, Failure> {
        let was_running = process.is_running();
        if let Err(failure) = process.prepare(job, &self.blobs, around.launcher, &self.bounds).await {
            process.end(Ending::AtOnce, &self.trash).await;
            // It may have spoiled its folder, which a fresh one has not.
            return if was_running {
                let message = format!("{failure:?}");
                Ok(Try::Died { limit: None, words: String::new(), message, used: Usage::default() })
            } else {
                Err(failure)
            };
        }
        tokio::select! {
            biased;
            () = around.cancel.cancelled() => {}
            () = sleep_until(deadline) => {
                let (words, used) = (process.last_words(), process.used().await);
                process.end(Ending::AtOnce, &self.trash).await;
                return Ok(Try::Done(Asked::Ended { limit: Limit::Time, words, used }));
            }
            answer = process.ask(job) => return match answer {
                Ok(response) => {
                    let (exit_code, output, used) = (response.exit_code, response.output, process.used().await);
                    let asked = Asked::Answered { exit_code, output, used };
                    self.conclude(process, job, around.outputs).await.map(|()| Try::Done(asked))
                }
                Err(broken) => Ok(self.bury(process, &broken).await),
            },
        }
        process.end(Ending::AtOnce, &self.trash).await;
        Err(Failure::Cancelled)
    }

    /// Takes the outputs of a request that was answered, and lets the process wait for the next.
    async fn conclude(&self, process: Tenured, job: &Arc<Job>, outputs: &Path) -> Result<(), Failure> {
        let taken = process.take_outputs(job, outputs.to_owned(), self.bounds.disk_bytes).await;
        if taken.is_ok() && process.is_clean_again(job).await {
            self.put_back(job.key.clone(), process);
        } else {
            process.end(Ending::AtOnce, &self.trash).await;
        }
        taken
    }

    /// Ends a process that broke off, and says why it did.
    async fn bury(&self, process: Tenured, broken: &Broken) -> Try {
        let ending = if matches!(broken, Broken::Ended) { Ending::Patient } else { Ending::AtOnce };
        let (words, used_before) = (process.last_words(), process.used_before());
        let ran = process.end(ending, &self.trash).await;
        let used = ran.as_ref().map_or_else(Usage::default, |ran| ran.usage.since(&used_before));
        let limit = ran.as_ref().and_then(|ran| ran.ended_by).filter(|limit| *limit != Limit::Cancelled);
        let how = ran.filter(|_| ending == Ending::Patient).map_or_else(String::new, |ran| match ran.ended_by {
            None => format!(" with exit code {}", ran.exit_code),
            Some(limit) => format!(" by a limit ({limit:?})"),
        });
        let said = if words.is_empty() { "nothing".to_owned() } else { format!("{words:?}") };
        let message = format!("the persistent worker failed: {broken}{how}; on standard error it said {said}");
        Try::Died { limit, words, message, used }
    }

    async fn new_process(&self) -> Result<Tenured, Failure> {
        let folder = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let owner = self.blobs.owner();
        blocking(move || {
            Tenured::new(folder, owner).map_err(|error| Failure::io("make the folder of a persistent worker", error))
        })
        .await
    }

    /// The one that was asked last, because most of it is still in memory.
    fn take(&self, key: &Key) -> Option<Tenured> {
        let mut idle = self.lock();
        let found = idle.iter().rposition(|idle| idle.key == *key)?;
        Some(idle.remove(found).process)
    }

    fn put_back(&self, key: Key, process: Tenured) {
        let mut idle = self.lock();
        idle.push(Idle { key, process, since: Instant::now() });
        let memory = |idle: &[Idle]| idle.iter().map(Idle::memory_bytes).fold(0, u64::saturating_add);
        while idle.len() > self.idle_bounds.processes || memory(&idle) > self.idle_bounds.memory_bytes {
            if idle.is_empty() {
                break;
            }
            self.dismiss(idle.remove(0).process);
        }
    }

    /// Ends what waits for too long. It is called every few seconds.
    pub(crate) fn tend(&self) {
        let mut idle = self.lock();
        let expired = idle.iter().take_while(|idle| idle.since.elapsed() > LONGEST_IDLE).count();
        idle.drain(..expired).for_each(|idle| self.dismiss(idle.process));
    }

    /// Ends all that wait, and waits until they are gone.
    pub(crate) async fn clear(&self) {
        let idle = std::mem::take(&mut *self.lock());
        idle.into_iter().for_each(|idle| self.dismiss(idle.process));
        self.endings.close();
        self.endings.wait().await;
        self.endings.reopen();
    }

    fn dismiss(&self, process: Tenured) {
        let trash = Arc::clone(&self.trash);
        self.endings.spawn(async move { process.end(Ending::AtOnce, &trash).await });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

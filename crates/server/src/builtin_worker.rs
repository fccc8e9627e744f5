//! The worker inside the server: another process of the same program, attached over a socket that it inherits.
//!
//! It runs hostile code, so it shares nothing with the server but that socket and a credential that says no more than
//! that it may attach. A thread of its own owns the process: it starts it, waits for it, and starts it again after a
//! pause. Deliberately absent: what a worker does, and what the two say to each other.
//!
//! What always holds: there is at most one such process; its credential ends with it. It ends before the server does,
//! and is killed by the system when the server is. A worker that cannot run never keeps the server from
//! serving the cache.

mod condition;
mod last_words;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gf_tenancy::{Access, Loan, NoRandomness};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::config::{Network, Persistent, WorkerSettings};
use crate::listen::Connections;
use crate::operator::report::OwnWorker;
pub(crate) use condition::Condition;
use last_words::LastWords;

/// From the end of a worker to the next one; twice as long each time, ...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... at most this, ...
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// ... and short again after one that lived this long.
const HEALTHY_LIFE: Duration = Duration::from_secs(60);
/// What a worker gets to bring its actions to their end. Requests get more, so that the last results are told.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// From SIGKILL to the end of the process, which only the disk can hold up.
const KILL_DEADLINE: Duration = Duration::from_secs(2);
/// How `gf` exits when it was told what cannot be, or found that it cannot be so: trying again does not help.
const HOPELESS: [i32; 2] = [2, 3];
/// What a worker needs of the server's environment, which may hold secrets.
const ENVIRONMENT: [&str; 3] = ["PATH", "TMPDIR", "RUST_BACKTRACE"];
/// The inherited socket is the worker's standard input: the one descriptor that is handed on by its nature.
const CONNECTION_FD: &str = "0";

/// The worker inside the server. Dropping it kills it; [`Self::stop`] is kinder.
pub(crate) struct BuiltinWorker {
    control: Arc<Control>,
    ended: oneshot::Receiver<()>,
}

/// What it takes to start one.
pub(crate) struct Blueprint {
    /// The `gf` program.
    pub(crate) program: PathBuf,
    /// The data folder of the server.
    pub(crate) data_dir: PathBuf,
    /// What the operator said about it.
    pub(crate) settings: WorkerSettings,
    /// Who lends it its credential.
    pub(crate) access: Arc<Access>,
    /// Who serves its connection.
    pub(crate) connections: Connections,
    /// Where to write down what becomes of it.
    pub(crate) condition: Condition,
}

impl BuiltinWorker {
    /// Begins to keep one running. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(blueprint: Blueprint) -> io::Result<Self> {
        let control = Arc::new(Control::default());
        let (end, ended) = oneshot::channel();
        let supervisor = Supervisor { blueprint, runtime: Handle::current(), control: Arc::clone(&control) };
        thread::Builder::new().name("worker-keeper".to_owned()).spawn(move || {
            supervisor.keep_running();
            let _nobody_waits = end.send(());
        })?;
        Ok(Self { control, ended })
    }

    /// Asks it to end, which it does when what it runs is done, and kills it when that takes too long.
    pub(crate) async fn stop(self) {
        self.stop_within(STOP_DEADLINE).await;
    }

    async fn stop_within(mut self, deadline: Duration) {
        self.control.stop(Signal::TERM);
        if timeout(deadline, &mut self.ended).await.is_err() {
            tracing::warn!("the worker inside the server does not end: killing it");
            self.control.stop(Signal::KILL);
            let _gone = timeout(KILL_DEADLINE, &mut self.ended).await;
        }
    }
}

impl Drop for BuiltinWorker {
    fn drop(&mut self) {
        self.control.stop(Signal::KILL);
    }
}

/// Why a worker did not start.
#[derive(Debug, Error)]
enum WorkerStartError {
    #[error(transparent)]
    Credential(#[from] NoRandomness),
    #[error("its connection cannot be made: {0}")]
    Connection(io::Error),
    #[error("{program} cannot be started: {source}", program = program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("it cannot be watched: {0}")]
    Watch(io::Error),
}

/// How a worker ended, and why as far as it said so.
struct Ended {
    status: ExitStatus,
    reason: String,
}

struct Supervisor {
    blueprint: Blueprint,
    runtime: Handle,
    control: Arc<Control>,
}

impl Supervisor {
    fn keep_running(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let ended = self.run_once();
            if self.control.is_stopping() {
                return;
            }
            pause = if began.elapsed() < HEALTHY_LIFE { pause } else { FIRST_PAUSE };
            let reason = match ended {
                Ok(Ended { status, reason }) if status.code().is_some_and(|code| HOPELESS.contains(&code)) => {
                    tracing::warn!(
                        reason,
                        "no actions run on this machine: its worker cannot; the cache is served all the same, and \
                         `gf worker` attaches others"
                    );
                    return self.blueprint.condition.set(OwnWorker::GivenUp { reason });
                }
                Ok(Ended { reason, .. }) => {
                    tracing::warn!(reason, ?pause, "the worker inside the server ended; the next one follows");
                    reason
                }
                Err(error) => {
                    tracing::warn!(%error, ?pause, "the worker inside the server does not start; trying again");
                    error.to_string()
                }
            };
            self.blueprint.condition.set(OwnWorker::Restarting { reason });
            if self.control.sleep(pause) {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Runs one worker to its end.
    fn run_once(&self) -> Result<Ended, WorkerStartError> {
        let Blueprint { program, access, connections, .. } = &self.blueprint;
        let credential = access.lend_attachment()?;
        let (ours, theirs) = UnixStream::pair().map_err(WorkerStartError::Connection)?;
        let mut child = self
            .blueprint
            .command(&credential, theirs)
            .spawn()
            .map_err(|source| WorkerStartError::Spawn { program: program.clone(), source })?;
        let last_words = match self.attend(&mut child, ours, connections) {
            Ok(last_words) => last_words,
            Err(error) => {
                let _ended_already = child.kill();
                let _unwatched = child.wait();
                self.control.release();
                return Err(error);
            }
        };
        self.blueprint.condition.set(OwnWorker::Running);
        let status = child.wait().map_err(WorkerStartError::Watch);
        self.control.release();
        let status = status?;
        let reason = last_words.and_then(LastWords::verdict).unwrap_or_else(|| format!("it ended with {status}"));
        Ok(Ended { status, reason })
    }

    fn attend(
        &self,
        child: &mut Child,
        ours: UnixStream,
        connections: &Connections,
    ) -> Result<Option<LastWords>, WorkerStartError> {
        // First, so that it never waits for a reader.
        let last_words = child.stderr.take().map(LastWords::of).transpose().map_err(WorkerStartError::Watch)?;
        // Unlike its number, this never names another process, so it may be used when the child has ended.
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
        self.control.hold(process.map_err(|error| WorkerStartError::Watch(error.into()))?);
        let _inside = self.runtime.enter();
        ours.set_nonblocking(true).map_err(WorkerStartError::Connection)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(WorkerStartError::Connection)?;
        connections.serve_stream(ours);
        Ok(last_words)
    }
}

impl Blueprint {
    /// The command holds the worker's end of the connection until it is dropped.
    fn command(&self, credential: &Loan, connection: UnixStream) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg0("gf")
            .args(arguments(&self.data_dir, &self.settings))
            .env_clear()
            .envs(ENVIRONMENT.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("GF_WORKER_TOKEN", credential.credential().expose())
            .stdin(OwnedFd::from(connection))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the server, which tells its worker.
            .process_group(0);
        command
    }
}

/// The command line of `gf worker`.
fn arguments(data_dir: &Path, settings: &WorkerSettings) -> Vec<OsString> {
    let WorkerSettings { cores, memory_bytes, root, properties, cache_bytes, network, persistent, bounds } = settings;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut arguments: Vec<OsString> = vec!["worker".into()];
    let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
    option("--inherited-connection", CONNECTION_FD.into());
    option("--data-dir", data_dir.join("worker").into());
    option("--name", name.into());
    let said = [
        ("--cores", cores.map(|cores| cores.to_string().into())),
        ("--memory", memory_bytes.map(|bytes| format!("{bytes}B").into())),
        ("--cache", cache_bytes.map(|bytes| format!("{bytes}B").into())),
        ("--action-disk", bounds.disk_bytes.map(|bytes| format!("{bytes}B").into())),
        ("--action-log", bounds.log_bytes.map(|bytes| format!("{bytes}B").into())),
        ("--action-files", bounds.files.map(|files| files.to_string().into())),
        ("--action-processes", bounds.processes.map(|processes| processes.to_string().into())),
        ("--root", root.clone().map(PathBuf::into_os_string)),
    ];
    said.into_iter().filter_map(|(name, value)| Some((name, value?))).for_each(|(name, value)| option(name, value));
    for property in properties {
        option("--property", format!("{}={}", property.name, property.value).into());
    }
    if *network == Network::OnRequest {
        arguments.push("--network".into());
    }
    if *persistent == Persistent::Refused {
        arguments.push("--no-persistent".into());
    }
    arguments
}

/// What the thread and the rest of the server share: the process that runs, and whether it shall.
#[derive(Default)]
struct Control {
    state: Mutex<State>,
    stopping: Condvar,
}

#[derive(Default)]
struct State {
    is_stopping: bool,
    process: Option<OwnedFd>,
}

impl Control {
    /// From now on none is started, and the one that runs gets a signal.
    fn stop(&self, signal: Signal) {
        let mut state = self.lock();
        state.is_stopping = true;
        state.signal(signal);
        self.stopping.notify_all();
    }

    fn is_stopping(&self) -> bool {
        self.lock().is_stopping
    }

    /// Takes in the process that runs.
    fn hold(&self, process: OwnedFd) {
        let mut state = self.lock();
        state.process = Some(process);
        if state.is_stopping {
            state.signal(Signal::TERM);
        }
    }

    fn release(&self) {
        self.lock().process = None;
    }

    /// Waits, and says whether the server stops.
    fn sleep(&self, pause: Duration) -> bool {
        let wait = self.stopping.wait_timeout_while(self.lock(), pause, |state| !state.is_stopping);
        wait.unwrap_or_else(PoisonError::into_inner).0.is_stopping
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn signal(&self, signal: Signal) {
        // It fails only for a process that has ended.
        let _ended = self.process.as_ref().map(|process| pidfd_send_signal(process, signal));
    }
}

#[cfg(test)]
mod tests;

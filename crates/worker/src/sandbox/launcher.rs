//! The worker's side of the launcher: orders go in, and how each run ended comes out.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use super::process::{Pipes, Process};
use super::template::HIDE;
use super::waiting::{Begun, Waiting};
use super::wire::{self, Failure, Frames, Outcome, Reply, Request, Setup, Start, Variable, frame};
use super::{ActionUser, LAUNCHER_ARGUMENT, Network, Ran, Root, Run, SandboxConfig};

/// Orders that wait for the socket. Each run keeps a place for the order to stop it, so one less run at one time.
const WAITING_ORDERS: usize = 2048;
const READ_BYTES: usize = 64 << 10;

/// A process that makes sandboxes. When it is dropped, the process ends, and all sandboxes with it.
#[derive(Debug)]
pub struct Launcher {
    orders: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
    action_owner: Option<ActionUser>,
    gone: CancellationToken,
    over: JoinHandle<()>,
}

/// What the kernel allows here, as found by trying it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Whether [`Root::Layers`] can be shown; otherwise only [`Root::Private`].
    pub overlay: bool,
    /// Whether [`Network::Loopback`] can be had; otherwise only [`Network::Host`].
    pub own_network: bool,
    /// Whether the memory of all processes of a run together is bounded, and by which version of control groups.
    pub cgroup_version: Option<u32>,
    /// What cannot be had here and what to do about it: sentences for the operator.
    pub limitations: Vec<String>,
}

/// Why there is no launcher.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The process could not be started.
    #[error("the launcher cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It ended before it said anything.
    #[error("the launcher ended before it was ready: {0}")]
    Ended(#[source] io::Error),
    /// The system refuses sandboxes. Nothing is ever run without one.
    #[error("this system refuses sandboxes ({doing}: {source}): {advice}")]
    Refused {
        /// What was refused.
        doing: String,
        /// Why.
        source: io::Error,
        /// What to change.
        advice: &'static str,
    },
}

/// Why a run could not be made or its end not be told. It is never the fault of the command.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The system refused a part of the sandbox; nothing ran.
    #[error("the sandbox cannot be made ({doing}: {source})")]
    Refused {
        /// What was refused.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// Arguments and environment are larger than the kernel takes.
    #[error("the command is too large")]
    TooLarge,
    /// The launcher is gone, and all its sandboxes with it.
    #[error("the launcher of sandboxes is gone")]
    LauncherGone,
}

impl Launcher {
    /// Starts the process and waits until it has tried what the kernel allows.
    ///
    /// # Errors
    /// See [`LauncherError`].
    pub async fn start(config: SandboxConfig) -> Result<(Self, Report), LauncherError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(LauncherError::Start)?;
        ours.set_nonblocking(true).map_err(LauncherError::Start)?;
        let mut socket = UnixStream::from_std(ours).map_err(LauncherError::Start)?;
        let child = std::process::Command::new(&config.program)
            .arg(LAUNCHER_ARGUMENT)
            // What the worker was told there is nothing for a process next to hostile code.
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(LauncherError::Start)?;
        let mut frames = Frames::default();
        match greet(&mut socket, &mut frames, &config.to_wire()).await {
            Ok(Outcome::Ready(ready)) => Ok(Self::serve(socket, frames, child, &config, ready)),
            Ok(Outcome::Failed(failure)) => {
                reap(child).await;
                Err(refused(&failure))
            }
            Ok(Outcome::Ended(_) | Outcome::Begun(_)) => {
                reap(child).await;
                Err(LauncherError::Ended(io::ErrorKind::InvalidData.into()))
            }
            Err(error) => {
                drop(socket);
                reap(child).await;
                Err(LauncherError::Ended(error))
            }
        }
    }

    fn serve(
        socket: UnixStream,
        frames: Frames,
        child: Child,
        config: &SandboxConfig,
        ready: wire::Ready,
    ) -> (Self, Report) {
        let (read, write) = socket.into_split();
        let (orders, ordered) = mpsc::channel(WAITING_ORDERS);
        let waiting = Arc::new(Waiting::new());
        let told = Arc::clone(&waiting);
        let gone = CancellationToken::new();
        let is_gone = gone.clone();
        let over = tokio::spawn(async move {
            // When there will be no more orders, the launcher sees the socket end, and ends it too.
            let writing = async {
                write_orders(write, ordered).await;
                std::future::pending::<()>().await
            };
            tokio::select! { () = writing => {}, () = read_replies(read, frames, &told) => {} }
            told.give_up();
            reap(child).await;
            is_gone.cancel();
        });
        let action_owner = ready.privileged.then_some(config.action_user);
        let report = Report {
            overlay: ready.overlay,
            own_network: ready.own_network,
            cgroup_version: Some(ready.cgroup_version).filter(|version| *version > 0),
            limitations: ready.limitations,
        };
        (Self { orders, waiting, next: AtomicU64::new(1), action_owner, gone, over }, report)
    }
}

impl Launcher {
    /// Whom actions run as, outside. What they get to see must be owned by it: an overlay cannot copy a file of an owner
    /// that the sandbox does not know. Nothing, if that is the user of the worker itself.
    #[must_use]
    pub const fn action_owner(&self) -> Option<ActionUser> {
        self.action_owner
    }

    /// Waits until the process is gone, for whatever reason. Nothing runs any more after that.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// Runs a command, and comes back when it and everything that it started are gone. A command that cannot be started
    /// ends like one that a shell cannot start: with 127 if the program is not there, with 126 if it or the working
    /// directory cannot be used, and with the reason on standard error. Dropping this future ends the run.
    ///
    /// # Errors
    /// See [`SandboxError`]: what went wrong here, and never what the command did wrong.
    pub async fn run(&self, run: Run, cancel: CancellationToken) -> Result<Ran, SandboxError> {
        let mut begun = self.begin(start_of(&run)).await?;
        tokio::select! {
            biased;
            ran = begun.ended() => return ran,
            () = cancel.cancelled() => begun.stop(),
        }
        begun.ended().await
    }

    /// Starts a command that is talked to: its standard input and output are pipes. Everything else is as in
    /// [`Launcher::run`], so its standard error goes to a file; [`Run::stdout`] is not used.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn spawn(&self, run: Run) -> Result<Process, SandboxError> {
        let pipes = Pipes::make(&run.scratch, self.action_owner)?;
        let mut start = start_of(&run);
        pipes.put_into(&mut start);
        let mut begun = self.begin(start).await?;
        let process = begun.begun().await?;
        pipes.connect(begun, Meter::of(process))
    }

    async fn begin(&self, start: Start) -> Result<Begun, SandboxError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let order = frame(&Request { id, start: Some(start) }).ok_or(SandboxError::TooLarge)?;
        let stop = self.orders.clone().reserve_owned().await.map_err(|_| SandboxError::LauncherGone)?;
        let begun = Begun::register(id, stop, &self.waiting).ok_or(SandboxError::LauncherGone)?;
        self.orders.send(order).await.map_err(|_| SandboxError::LauncherGone)?;
        Ok(begun)
    }

    /// Ends all sandboxes and the process, and waits until it is gone.
    pub async fn stop(self) {
        drop(self.orders);
        // A task that panicked has ended too.
        let _ = self.over.await;
    }
}

async fn write_orders(mut socket: OwnedWriteHalf, mut orders: mpsc::Receiver<Vec<u8>>) {
    while let Some(order) = orders.recv().await {
        if socket.write_all(&order).await.is_err() {
            return;
        }
    }
}

/// Until the launcher is gone, or says something that is not its language.
async fn read_replies(mut socket: OwnedReadHalf, mut frames: Frames, waiting: &Waiting) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        while let Ok(Some(Reply { id, outcome: Some(outcome) })) = frames.next::<Reply>() {
            waiting.tell(id, outcome);
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => frames.push(buffer.get(..length).unwrap_or_default()),
        }
    }
}

async fn greet(socket: &mut UnixStream, frames: &mut Frames, setup: &Setup) -> io::Result<Outcome> {
    socket.write_all(&frame(setup).ok_or(io::ErrorKind::InvalidInput)?).await?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if let Some(reply) = frames.next::<Reply>()? {
            return reply.outcome.ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
        match socket.read(&mut buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => frames.push(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// Waits for a process that is about to end.
async fn reap(mut child: Child) {
    // Neither a thread that is gone nor a child that somebody else waited for leaves anything to do.
    let _ = tokio::task::spawn_blocking(move || child.wait()).await;
}

pub(super) fn refused(failure: &Failure) -> LauncherError {
    LauncherError::Refused { doing: failure.doing.clone(), source: failure.error(), advice: advice(&failure.doing) }
}

/// What usually stands in the way.
fn advice(doing: &str) -> &'static str {
    match doing {
        "make a user namespace" | "make namespaces" => {
            "allow user namespaces: sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0 where they exist; in a container, a seccomp profile that \
             allows clone, unshare, mount and pivot_root"
        }
        "mount /proc" => {
            "this container hides parts of /proc, and so the kernel refuses a new one: run it with \
             --security-opt systempaths=unconfined, or procMount: Unmasked in Kubernetes"
        }
        super::factory::LEAVE_ROOT => {
            "root without CAP_SYS_ADMIN cannot let actions run as another user, and they would own the files of this \
             machine or container: run the worker as an ordinary user, or give it CAP_SYS_ADMIN"
        }
        _ if doing.starts_with(HIDE) => "put the data of the worker elsewhere, or show other folders",
        _ => {
            "the worker needs user, mount and pid namespaces and Linux 5.14 or newer; in a container, allow mount, \
             mount_setattr, move_mount, open_tree and pivot_root in the seccomp and AppArmor profiles"
        }
    }
}

pub(super) fn start_of(run: &Run) -> Start {
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let (layers, private) = match &run.root {
        Root::Layers(layers) => (layers.iter().map(|layer| bytes(layer)).collect(), None),
        Root::Private(folder) => (Vec::new(), Some(bytes(folder))),
    };
    let variable = |(name, value): (&std::ffi::OsString, &std::ffi::OsString)| Variable {
        name: name.as_bytes().to_vec(),
        value: value.as_bytes().to_vec(),
    };
    Start {
        arguments: run.arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        environment: run.environment.iter().map(variable).collect(),
        working_directory: bytes(&run.working_directory),
        layers,
        private,
        scratch: bytes(&run.scratch),
        stdin_pipe: None,
        stdout: bytes(&run.stdout),
        stderr: bytes(&run.stderr),
        stdout_is_pipe: false,
        host_network: run.network == Network::Host,
        timeout_us: wire::micros(run.limits.timeout),
        memory_bytes: run.limits.memory_bytes,
        processes: run.limits.processes,
        disk_bytes: run.limits.disk_bytes,
        log_bytes: run.limits.log_bytes,
        files: run.limits.files,
        store: run.store.to_wire(),
    }
}

//! One command, run apart from everything else of the machine.
//!
//! A [`Launcher`] is a process of one thread that makes sandboxes out of Linux namespaces (user, mount, pid, ipc, uts,
//! and net) and says how they ended. Deliberately absent: where inputs come from and what becomes of outputs.
//!
//! What always holds: a command that runs, runs with everything its [`Run`] asks for, or not at all; when
//! [`Launcher::run`] is over, or the launcher or the worker is killed, no process of the sandbox is left and nothing
//! stays mounted.

mod bare;
mod cgroup;
mod command;
mod config;
mod factory;
mod init;
mod launcher;
mod measure;
mod meter;
mod network;
mod order;
mod probe;
mod process;
mod scratch;
mod service;
mod store;
mod sys;
mod template;
mod view;
mod waiting;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

pub use bare::run_bare;
pub use config::{ActionUser, SandboxConfig, machine_memory_bytes};
pub use launcher::{Launcher, LauncherError, Report, SandboxError};
pub use process::Process;
pub use scratch::remove_scratch;
pub(crate) use scratch::{SHM, ScratchFolder, TMP};
pub use store::{StoreObject, StoreView};

/// The only argument of a program that is to be a launcher.
pub const LAUNCHER_ARGUMENT: &str = "sandbox-launcher";

/// Is the launcher, if this process was started to be one. A program that has a [`Launcher`] calls it first thing in
/// `main`, before there is a second thread.
#[must_use]
pub fn run_if_launcher() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let asked = arguments.next().is_some_and(|argument| argument == LAUNCHER_ARGUMENT) && arguments.next().is_none();
    asked.then(service::serve_stdin)
}

/// What to run, and around what.
#[derive(Clone, Debug)]
pub struct Run {
    /// The program and its arguments. A program without a slash is looked up in `PATH` of `environment`, one with a
    /// slash that is not absolute is relative to `working_directory`.
    pub arguments: Vec<OsString>,
    /// The whole environment; nothing is added.
    pub environment: BTreeMap<OsString, OsString>,
    /// Below the input root; empty for the root itself. It exists.
    pub working_directory: PathBuf,
    /// The input root.
    pub root: Root,
    /// What is seen at `/nix/store`, read-only.
    pub store: StoreView,
    /// A folder of this run alone on the disk: what is written goes below it, also `/tmp`. Nothing is in it but perhaps
    /// the empty folders `tmp` and `shm`, which then are the action's own.
    pub scratch: PathBuf,
    /// Where stdout and stderr go: files that are empty, or that this run creates.
    pub stdout: PathBuf,
    /// See `stdout`.
    pub stderr: PathBuf,
    /// Whether it shares the network of the machine; otherwise it has a loopback of its own.
    pub network: Network,
    /// The bounds.
    pub limits: Limits,
}

/// What an action's files are made of.
#[derive(Clone, Debug)]
pub enum Root {
    /// Read-only folders, the first above the others, seen through an overlay whose upper folder is
    /// [`Run::upper`]. White-outs and opaque folders of the layers are extended attributes in the `user` namespace.
    Layers(Vec<PathBuf>),
    /// A folder of this run alone, which it may change.
    Private(PathBuf),
}

impl Run {
    /// Where the command's changes to the layers are found afterwards.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.scratch.join("upper")
    }
}

/// What of the network a command sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// A loopback of its own and nothing else.
    Loopback,
    /// That of the machine.
    Host,
}

/// The bounds of one run. What each means to the process is said in [`Limit`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From start to end.
    pub timeout: Duration,
    /// All processes together where the system has control groups for us, the largest one otherwise.
    pub memory_bytes: u64,
    /// Processes and threads at one time. The kernel lets no more than one beyond begin.
    pub processes: u32,
    /// All that is written below [`Run::scratch`].
    pub disk_bytes: u64,
    /// Files, folders and links below it.
    pub files: u64,
    /// Each of stdout and stderr.
    pub log_bytes: u64,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The exit code, or 128 and the number of the signal that ended it.
    pub exit_code: i32,
    /// The limit that ended it, if one did.
    pub ended_by: Option<Limit>,
    /// When the process began and when it and all that it had started were gone.
    pub started: SystemTime,
    /// See `started`.
    pub ended: SystemTime,
    /// What it used.
    pub usage: Usage,
}

/// Why a run was ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::timeout`] passed.
    Time,
    /// The kernel ended a process for want of memory, or a process was seen beyond the limit.
    Memory,
    /// More than [`Limits::disk_bytes`] were written.
    Disk,
    /// More than [`Limits::files`] were made.
    Files,
    /// The disk was about to be full, and more was written than it had left, or so that nobody can say how much.
    FullDisk,
    /// A log grew beyond [`Limits::log_bytes`].
    Log,
    /// More than [`Limits::processes`] were seen.
    Processes,
    /// [`Launcher::run`] was told to stop.
    Cancelled,
}

/// What the processes of a run used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time outside the kernel.
    pub user_time: Duration,
    /// Processor time in the kernel.
    pub system_time: Duration,
    /// Of all processes together when `peak_memory_is_of_largest_process` is false.
    pub peak_memory_bytes: u64,
    /// Whether only the largest process could be measured.
    pub peak_memory_is_of_largest_process: bool,
    /// From storage devices.
    pub read_bytes: u64,
    /// To storage devices.
    pub written_bytes: u64,
}

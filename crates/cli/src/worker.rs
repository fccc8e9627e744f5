//! `gf worker`: attach to a server and run its actions, until a signal.
//!
//! Exit codes tell whoever keeps it running: 2 and 3 mean that trying again as it is does not help. The worker inside a
//! server ends with it: the system kills it when the server is gone, however that came.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process;
use std::time::Duration;

use gf_server::config::Environment;
use gf_server::telemetry::{self, LogConfig};
use gf_worker::{Bounds, NetworkPolicy, PersistentPolicy, ServerConnection, Token, WorkerConfig, WorkerError};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::args::WorkerArgs;
use crate::client::warn_of_plain_http;
use crate::failure::{Failure, FailureKind};
use crate::output::say;
use crate::serve::{Signals, raise_file_limit};

const TOKEN_VARIABLE: &str = "GF_WORKER_TOKEN";
/// For blocking work that is still at the disk when everything else has ended.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(2);
/// A worker whose server stops it gets 8 s from it.
const DRAIN_DEADLINE_INSIDE: Duration = Duration::from_secs(5);
/// Ctrl-C, `timeout` and supervisors signal a process and its group: two signals this close are one wish.
const SAME_WISH: Duration = Duration::from_millis(200);

pub(crate) fn run(args: WorkerArgs) -> Result<(), Failure> {
    let config = config(args)?;
    let _last_lines = telemetry::init(LogConfig::default()).map_err(Failure::failed)?;
    raise_file_limit();
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the threads of the worker cannot be started: {error}")))?;
    let result = runtime.block_on(work(config));
    runtime.shutdown_timeout(RUNTIME_DEADLINE);
    result
}

async fn work(config: WorkerConfig) -> Result<(), Failure> {
    let mut signals = Signals::install()?;
    let stop = CancellationToken::new();
    let mut worker = std::pin::pin!(gf_worker::run(config, stop.clone()));
    tokio::select! {
        ended = &mut worker => return ended.map_err(failure),
        () = signals.next() => stop.cancel(),
    }
    if let Ok(ended) = timeout(SAME_WISH, &mut worker).await {
        return ended.map_err(failure);
    }
    tokio::select! {
        ended = worker => ended.map_err(failure),
        () = signals.next() => {
            say("gf: second signal: exiting at once");
            // The launcher sees its socket end, and ends what runs.
            process::exit(FailureKind::Failed as i32);
        }
    }
}

fn failure(error: WorkerError) -> Failure {
    let kind = if error.is_hopeless() { FailureKind::NotSo } else { FailureKind::Failed };
    Failure::new(kind, error)
}

fn config(args: WorkerArgs) -> Result<WorkerConfig, Failure> {
    let (token, has_token) = token(args.token_file.as_ref())?;
    let is_inside = args.inherited_connection.is_some();
    let server = if is_inside {
        let connection = standard_input()?;
        end_with_server(connection.as_fd())?;
        ServerConnection::Inherited(connection)
    } else {
        let ca_pem = args.ca.as_ref().map(read).transpose()?;
        if let (Ok(server), true) = (args.server.parse(), has_token) {
            warn_of_plain_http(&server);
        }
        ServerConnection::Url { url: args.server, ca_pem }
    };
    let name = args.name.unwrap_or_else(host_name);
    let data_dir = match args.data_dir {
        Some(folder) => folder,
        None => default_folder()?,
    };
    let data_dir = std::path::absolute(data_dir).map_err(Failure::failed)?;
    let mut config = WorkerConfig::new(name, data_dir, server, token);
    config.properties = args.properties;
    config.cores = args.cores.unwrap_or(config.cores);
    config.memory_bytes = args.memory.unwrap_or(config.memory_bytes);
    config.cache_bytes = args.cache.unwrap_or(config.cache_bytes);
    config.network = if args.network { NetworkPolicy::OnRequest } else { NetworkPolicy::Refused };
    config.persistent = if args.no_persistent { PersistentPolicy::Refused } else { PersistentPolicy::OnRequest };
    let usual = config.bounds;
    config.bounds = Bounds {
        disk_bytes: args.action_disk.unwrap_or(usual.disk_bytes),
        log_bytes: args.action_log.unwrap_or(usual.log_bytes),
        files: args.action_files.unwrap_or(usual.files),
        processes: args.action_processes.unwrap_or(usual.processes),
    };
    config.sandbox.tool_root = args.root;
    if is_inside {
        config.drain_deadline = DRAIN_DEADLINE_INSIDE;
    }
    Ok(config)
}

/// A second name of it: the descriptor itself is the standard library's.
fn standard_input() -> Result<OwnedFd, Failure> {
    let input = io::stdin().as_fd().try_clone_to_owned();
    input.map_err(|error| Failure::new(FailureKind::Usage, format!("the inherited connection is not there: {error}")))
}

/// Asks the system to kill this process when the server ends: its connection ends then too, but actions would be let
/// run to their end for nobody.
fn end_with_server(connection: BorrowedFd<'_>) -> Result<(), Failure> {
    let failed =
        |error| Failure::failed(format!("it cannot be arranged that the worker ends with the server: {error}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    // The server made the connection. One that is gone already sends no signal any more, and has another for a parent
    // in its place.
    let server = socket_peercred(connection).map_err(failed)?.pid;
    if getppid() == Some(server) { Ok(()) } else { Err(Failure::failed("the server is gone already")) }
}

/// The token, and whether there is one.
fn token(file: Option<&PathBuf>) -> Result<(Token, bool), Failure> {
    let text = match file {
        Some(file) => String::from_utf8_lossy(&read(file)?).into_owned(),
        None => std::env::var_os(TOKEN_VARIABLE).unwrap_or_default().to_string_lossy().into_owned(),
    };
    // A server that nobody guards takes workers without one; another says that it wants it.
    let text = text.trim();
    Ok((Token::new(text), !text.is_empty()))
}

fn read(file: &PathBuf) -> Result<Vec<u8>, Failure> {
    fs::read(file)
        .map_err(|error| Failure::new(FailureKind::Usage, format!("{} cannot be read: {error}", file.display())))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Within that of a server, beside the folder of the worker inside it.
fn default_folder() -> Result<PathBuf, Failure> {
    Environment::of_process()
        .state_dir
        .map(|state| state.join("attached-worker"))
        .ok_or_else(|| Failure::new(FailureKind::Usage, "there is no folder for the worker: give --data-dir DIR"))
}

//! `gf serve`: start, say so, wait for a signal, drain.

use std::pin::pin;
use std::process;
use std::time::{Duration, Instant};

use gf_server::config::{Config, Environment, Overrides};
use gf_server::{App, telemetry};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::args::ServeArgs;
use crate::failure::{Failure, FailureKind};
use crate::output::say;

/// With cutting off what is left (2 s), closing the store and [`RUNTIME_DEADLINE`], it stays below the 30 s after which
/// Kubernetes kills.
const DRAIN_DEADLINE: Duration = Duration::from_secs(22);
/// Ctrl-C, `timeout` and supervisors signal a process and its group: two signals this close are one wish ...
const SAME_WISH: Duration = Duration::from_millis(200);
/// ... so the drain gets this long before the second one counts.
const SAME_WISH_GRACE: Duration = Duration::from_secs(10);
/// For blocking work that is still at the disk when everything else has ended.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(2);
/// What runs now, even when another version took the place of its file.
const THIS_PROGRAM: &str = "/proc/self/exe";

pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    let overrides = Overrides { listen: args.listen, data_dir: args.data_dir };
    let mut config = Config::load(args.config.as_deref(), overrides, &Environment::of_process())
        .map_err(|errors| Failure::new(FailureKind::Usage, errors))?;
    config.worker_program = Some(THIS_PROGRAM.into());
    let _last_lines = telemetry::init(config.log).map_err(Failure::failed)?;
    raise_file_limit();
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the threads of the server cannot be started: {error}")))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(RUNTIME_DEADLINE);
    result
}

async fn serve(config: Config) -> Result<(), Failure> {
    // Before anything else, so that a signal during the start is not lost.
    let mut signals = Signals::install()?;
    let app = tokio::select! {
        app = App::start(config) => app.map_err(Failure::failed)?,
        // Nothing was acknowledged yet, so there is nothing to drain.
        () = signals.next() => return Ok(()),
    };
    say(format_args!("listening on {}", app.url()));
    signals.next().await;
    tracing::info!("draining: requests under way may finish; a second signal exits at once");
    let asked = Instant::now();
    let mut stop = pin!(app.stop(DRAIN_DEADLINE));
    let stopped = tokio::select! {
        stopped = &mut stop => Ok(stopped),
        () = signals.next() => {
            let grace = if asked.elapsed() < SAME_WISH { SAME_WISH_GRACE } else { Duration::ZERO };
            timeout(grace, stop).await
        }
    };
    if let Ok(stopped) = stopped {
        return stopped.map(drop).map_err(Failure::failed);
    }
    say("gf: second signal: exiting at once");
    // No destructor may hold it up. The store is safe against a killed process.
    process::exit(FailureKind::Failed as i32);
}

pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn install() -> Result<Self, Failure> {
        let install =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
        Ok(Self { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Every connection and every open blob needs a descriptor; the usual soft limit of 1024 is for old programs.
pub(crate) fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays low");
    }
}

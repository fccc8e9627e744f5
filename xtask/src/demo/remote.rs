//! The second half of the demo: the same workspace built and tested by workers, one of which does not live to the end.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use gf_tests::{Bazel, Built, GfServer, GfWorker, Metrics, Place};

use super::BUILD_LIMIT;
use crate::steps::Steps;

/// Every action runs on a worker, whether its result is known or not; one that cannot fails the build.
const OPTIONS: [&str; 4] =
    ["--spawn_strategy=remote", "--remote_local_fallback=false", "--noremote_accept_cached", "--jobs=8"];
/// For a worker to attach, and to get something to do.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);

/// What remote execution did, to be shown.
pub(super) struct Remote {
    built: Built,
    /// Executions that the server counts, the ones that were begun anew included.
    executions: f64,
}

/// A configuration in which the worker shows actions the tools of the place where Bazel is, when that is not this
/// machine as it is.
pub(super) fn configuration(place: &Place, data: &Path) -> Result<Option<PathBuf>> {
    if matches!(place, Place::Host(_)) {
        return Ok(None);
    }
    let file = data.join("demo.toml");
    let root = place.on_host(Path::new("/")).display().to_string();
    fs::write(&file, format!("[worker]\nroot = {root:?}\n"))?;
    Ok(Some(file))
}

/// Builds and tests everything on two workers, and kills one of them in the middle.
pub(super) fn run(
    steps: &mut Steps,
    binary: &Path,
    server: &GfServer,
    data: &Path,
    place: &Place,
    bazel: &Bazel<'_>,
) -> Result<Remote> {
    let tools = place.on_host(Path::new("/"));
    let doomed = steps.run("start a second worker", || {
        let worker = GfWorker::start(binary, server, &data.join("second-worker"), "doomed", &tools)?;
        wait_for(server, "gf_workers", 2.0)?;
        Ok(worker)
    })?;
    let executor = format!("--remote_executor={}", server.grpc());
    let mut options = vec![executor.as_str()];
    options.extend(OPTIONS);
    let before = metric(server, "gf_executions_total")?;
    let built = steps.run("build and test it all remotely, and kill the second worker meanwhile", || {
        thread::scope(|scope| {
            let build = scope.spawn(|| bazel.build("test", &["//..."], &options, BUILD_LIMIT));
            // As many as one worker of this size can have, and one more: both are at work.
            let killed = wait_for(server, "gf_executions_running", busy()).and_then(|()| doomed.kill());
            let built = build.join().map_err(|_| anyhow::anyhow!("the build panicked"))?;
            killed.context("the second worker was not killed while it was at work")?;
            built
        })
    })?;
    built.log.all_remote_runs()?;
    if metric(server, "gf_workers")? != 1.0 {
        bail!("the server still believes that the killed worker is there");
    }
    Ok(Remote { built, executions: metric(server, "gf_executions_total")? - before })
}

impl Remote {
    pub(super) fn print(&self) {
        let runs = self.built.log.mnemonics();
        let count: usize = runs.values().sum();
        let runs: Vec<_> = runs.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("remote runs  {count} processes on workers, none here: {}", runs.join(", "));
        println!("worker lost  one of two was killed in the middle; {:.0} executions ended well", self.executions);
    }
}

/// More than one worker takes on at once: one action a core.
#[allow(clippy::cast_precision_loss, reason = "cores are few")]
fn busy() -> f64 {
    thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64) + 1.0
}

fn wait_for(server: &GfServer, name: &str, at_least: f64) -> Result<()> {
    let deadline = Instant::now() + ATTACH_LIMIT;
    while metric(server, name)? < at_least {
        if Instant::now() > deadline {
            bail!("{name} did not reach {at_least} within {} s", ATTACH_LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn metric(server: &GfServer, name: &str) -> Result<f64> {
    Ok(Metrics::read(server.address())?.sum(name, &[]))
}

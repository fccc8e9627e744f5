//! The second half of the demo: the same workspace built and tested by workers, one of which does not live to the end.

use std::{
    collections::BTreeMap,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use gf_tests::{Bazel, Built, GfServer, GfWorker, Metrics, Place, http_get};

use super::BUILD_LIMIT;
use crate::steps::Steps;

/// Every action runs on a worker, whether its result is known or not; one that cannot fails the build.
const OPTIONS: [&str; 5] = [
    "--spawn_strategy=remote",
    "--remote_local_fallback=false",
    "--noremote_accept_cached",
    "--jobs=8",
    "--remote_default_exec_properties=pool=demo",
];
const STEADY: &str = "steady";
const DOOMED: &str = "doomed";
/// One core each, so that both have work whatever the machine; and nobody else has what the actions ask for.
const WORKER_OPTIONS: [&str; 4] = ["--cores", "1", "--property", "pool=demo"];
/// For a worker to attach, and to get something to do.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);

/// What remote execution did, to be shown.
pub(super) struct Remote {
    built: Built,
    /// Executions that the server counts, the ones that were begun anew included.
    executions: f64,
}

/// Builds and tests everything on two workers, and kills one of them in the middle. Both are of the demo's own, since they
/// show actions the tools of the place where Bazel is; the server's worker shows those of this machine.
pub(super) fn run(
    steps: &mut Steps,
    binary: &Path,
    server: &GfServer,
    data: &Path,
    place: &Place,
    bazel: &Bazel<'_>,
) -> Result<Remote> {
    let worker = |name: &str| start_worker(binary, server, data, place, name);
    let (steady, doomed) = steps.run("start two workers", || Ok((worker(STEADY)?, worker(DOOMED)?)))?;
    let executor = format!("--remote_executor={}", server.grpc());
    let mut options = vec![executor.as_str()];
    options.extend(OPTIONS);
    let before = executions(server)?;
    let built = steps.run("build and test it all remotely, and kill a worker that is at work", || {
        thread::scope(|scope| {
            let build = scope.spawn(|| bazel.build("test", &["//..."], &options, BUILD_LIMIT));
            let at_work = |workers: &Workers| workers.get(DOOMED).is_some_and(|running| *running > 0);
            let killed = wait_for(server, "work for both", at_work).and_then(|()| doomed.kill());
            let built = build.join().map_err(|_| anyhow::anyhow!("the build panicked"))?;
            killed.context("the second worker was not killed while it was at work")?;
            built
        })
    })?;
    built.log.all_remote_runs()?;
    if workers(server)?.contains_key(DOOMED) {
        bail!("the server still believes that the killed worker is there");
    }
    let ended = steady.stop()?;
    if !ended.success() {
        bail!("the other worker ended with {ended}");
    }
    Ok(Remote { built, executions: executions(server)? - before })
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

/// A worker of the demo, attached.
pub(super) fn start_worker(
    binary: &Path,
    server: &GfServer,
    data: &Path,
    place: &Place,
    name: &str,
) -> Result<GfWorker> {
    let tools = place.on_host(Path::new("/"));
    let worker = GfWorker::start_with(binary, server, &data.join(name), name, &tools, &WORKER_OPTIONS)?;
    wait_for(server, "worker of that name", |workers| workers.contains_key(name))?;
    Ok(worker)
}

/// How many actions each worker runs, by its name.
type Workers = BTreeMap<String, usize>;

fn workers(server: &GfServer) -> Result<Workers> {
    let report: serde_json::Value = serde_json::from_str(&http_get(server.address(), "/api/v1/execution")?)?;
    let workers = report["workers"].as_array().context("the server names no workers")?;
    let running = |worker: &serde_json::Value| worker["running"].as_array().map_or(0, Vec::len);
    Ok(workers.iter().map(|worker| (worker["name"].as_str().unwrap_or_default().to_owned(), running(worker))).collect())
}

fn wait_for(server: &GfServer, what: &str, is_so: impl Fn(&Workers) -> bool) -> Result<()> {
    let deadline = Instant::now() + ATTACH_LIMIT;
    while !is_so(&workers(server)?) {
        if Instant::now() > deadline {
            bail!("no {what} within {} s", ATTACH_LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn executions(server: &GfServer) -> Result<f64> {
    Ok(Metrics::read(server.address())?.sum("gf_executions_total", &[]))
}

//! How soon a large input root is ready: as the worker itself says it of actions that Execute ran.
//!
//! The worker is another process than the server and fetches from it over loopback.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Bench;
use super::actions::{between, execute, fresh, upload_all, wait_for_worker};
use super::tree::LargeTree;
use crate::connection::{Connection, Connections, Side};
use crate::data::{Blob, Source};
use crate::load::median;
use crate::process::Server;
use crate::report::Outcome;

const STOP_LIMIT: Duration = Duration::from_secs(60);

/// One worker, which has the tree; then one file after another is changed. In milliseconds.
pub(super) async fn again(bench: &Bench<'_>) -> anyhow::Result<Outcome> {
    let mut farm = Farm::start(bench, "input-root-again").await?;
    let worker = farm.attach(bench, 0).await?;
    farm.fetch().await?;
    let mut taken = Vec::new();
    for _ in 0..bench.rounds {
        taken.push(farm.fetch().await?.as_secs_f64() * 1e3);
    }
    worker.stop().await?;
    farm.server.stop().await?;
    Ok(outcome(&taken, "files of 4 KiB; input_fetch of two actions as the worker says it"))
}

/// A worker without anything in every round. In seconds.
pub(super) async fn cold(bench: &Bench<'_>) -> anyhow::Result<Outcome> {
    let mut farm = Farm::start(bench, "input-root-cold").await?;
    let mut taken = Vec::new();
    for number in 0..bench.rounds {
        let worker = farm.attach(bench, number).await?;
        taken.push(farm.fetch().await?.as_secs_f64());
        worker.stop().await?;
    }
    farm.server.stop().await?;
    Ok(outcome(&taken, "files of 4 KiB; over loopback, a new worker in every round"))
}

fn outcome(taken: &[f64], how: &str) -> Outcome {
    let rounds: Vec<_> = taken.iter().map(|taken| format!("{taken:.3}")).collect();
    let note = format!("{how}; rounds {}", rounds.join(" "));
    Outcome { figure: median(taken.iter().copied()), note, ..Outcome::default() }
}

/// A server that leaves the work to others, and the tree in it.
struct Farm {
    server: Server,
    connection: Connection,
    source: Source,
    tree: LargeTree,
}

impl Farm {
    async fn start(bench: &Bench<'_>, name: &str) -> anyhow::Result<Self> {
        let without_worker = "[worker]\nenabled = false\n";
        let server = Server::product_with(bench.gf, &bench.folder.join(name), without_worker).await?;
        let connection = Connections::open(Side::Product, &server.url).await?.of_caller(0);
        let mut source = Source::fresh();
        let tree = LargeTree::random(&mut source);
        upload_all(&connection, tree.files()).await?;
        upload_all(&connection, &tree.folders().blobs).await?;
        Ok(Self { server, connection, source, tree })
    }

    async fn attach(&self, bench: &Bench<'_>, number: usize) -> anyhow::Result<Worker> {
        let worker = Worker::start(bench.gf, &self.server.url, &bench.folder.join(format!("worker-{number}")))?;
        wait_for_worker(&self.connection).await?;
        Ok(worker)
    }

    /// Changes one file and runs an action that prints it: how long the worker took for the inputs.
    async fn fetch(&mut self) -> anyhow::Result<Duration> {
        let (path, file) = self.tree.change_one(&mut self.source)?;
        let folders = self.tree.folders();
        let made = fresh(&mut self.source, &["/bin/cat", &path], &folders.root);
        let blobs: Vec<Blob> = folders.blobs.into_iter().chain(made.blobs).chain([file.clone()]).collect();
        upload_all(&self.connection, &blobs).await?;
        let result = execute(&self.connection, made.request).await?;
        ensure!(result.stdout_digest.as_ref() == Some(&file.digest), "an action printed something else than its input");
        let metadata = result.execution_metadata.unwrap_or_default();
        let (begun, ended) = (metadata.input_fetch_start_timestamp, metadata.input_fetch_completed_timestamp);
        between(begun.as_ref(), ended.as_ref()).context("the result does not say how long its inputs took")
    }
}

/// `gf worker` as a process; it is killed when this is dropped.
struct Worker(Child);

impl Worker {
    fn start(gf: &Path, server: &str, data_dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(gf);
        command.args(["worker", "--server", server, "--name", "bench", "--data-dir"]).arg(data_dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        Ok(Self(command.spawn().with_context(|| format!("start {} worker", gf.display()))?))
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.0.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("the worker has ended")?;
        kill_process(pid, Signal::TERM)?;
        let status = timeout(STOP_LIMIT, self.0.wait()).await.context("the worker does not stop")??;
        ensure!(status.success(), "the worker stopped with {status}");
        Ok(())
    }
}

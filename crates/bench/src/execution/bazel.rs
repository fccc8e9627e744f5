//! A build of a C++ workspace by Bazel: every action by our worker, beside every action in Bazel's own sandbox.
//!
//! Both sides have a new output base, a running Java machine and a finished analysis before the clock starts, and the same
//! number of jobs; ours has a new server. Neither has any result of an earlier build. What is compared is the wall time
//! of `bazel build`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use gf_tests::{Bazel, Built, Chroot, Glue, Place};

use super::Bench;
use super::actions::wait_for_worker;
use super::workspace::{self, COMPILATIONS, TARGET};
use crate::connection::{Connections, Side};
use crate::load::median;
use crate::process::Server;
use crate::report::{Absent, Outcome};

/// A build takes far less; a client that needs more hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// A round takes a minute; more of them tell little more.
const MOST_ROUNDS: usize = 3;
/// Enough for a small worker and its queue. Bazel's own sandbox runs as many at once as there are cores.
const JOBS: &str = "--jobs=8";
const LOCAL: [&str; 2] = ["--spawn_strategy=sandboxed", "--genrule_strategy=sandboxed"];
const REMOTE: [&str; 2] = ["--spawn_strategy=remote", "--remote_local_fallback=false"];

/// Seconds of the remote build, as so many times those of the local one.
pub(super) async fn measure(bench: &Bench<'_>) -> Result<Outcome, Absent> {
    let chroot = Chroot::find().map_err(|missing| Absent::Skipped(format!("{missing:#}")))?;
    let workshop = tokio::task::block_in_place(|| Workshop::new(&chroot))?;
    Ok(compare(bench, &chroot, &workshop).await?)
}

async fn compare(bench: &Bench<'_>, chroot: &Chroot, workshop: &Workshop) -> anyhow::Result<Outcome> {
    let (mut local, mut remote) = (Vec::new(), Vec::new());
    let mut sandbox = String::new();
    for number in 0..bench.rounds.min(MOST_ROUNDS) {
        let built = tokio::task::block_in_place(|| workshop.build(&format!("local-{number}"), &LOCAL))?;
        sandbox = in_a_sandbox(&built)?;
        local.push(built.finished.took.as_secs_f64());
        remote.push(remotely(bench, chroot, workshop, number).await?.as_secs_f64());
    }
    let ratios: Vec<f64> = remote.iter().zip(&local).map(|(remote, local)| remote / local).collect();
    let note = format!(
        "rounds {}; {COMPILATIONS} compilations, {JOBS}, beside {sandbox}",
        ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" "),
    );
    Ok(Outcome {
        figure: median(remote),
        floor: Some(median(local)),
        ratio: Some(median(ratios)),
        note,
        ..Outcome::default()
    })
}

async fn remotely(bench: &Bench<'_>, chroot: &Chroot, workshop: &Workshop, number: usize) -> anyhow::Result<Duration> {
    let tools = format!("[worker]\nroot = {:?}\n", chroot.root().display().to_string());
    let server = Server::product_with(bench.gf, &bench.folder.join(format!("cpp-{number}")), &tools).await?;
    wait_for_worker(&Connections::open(Side::Product, &server.url).await?.of_caller(0)).await?;
    let executor = format!("--remote_executor={}", server.url.replacen("http", "grpc", 1));
    let options = [&[executor.as_str()], REMOTE.as_slice()].concat();
    let built = tokio::task::block_in_place(|| workshop.build(&format!("remote-{number}"), &options))?;
    built.log.all_remote_runs()?;
    all_compiled(&built)?;
    server.stop().await?;
    Ok(built.finished.took)
}

/// A place with the workspace in it.
struct Workshop {
    place: Place,
    glue: Glue,
    workspace: PathBuf,
}

impl Workshop {
    fn new(chroot: &Chroot) -> anyhow::Result<Self> {
        let place = Place::Chroot(chroot.enter()?);
        let workspace = place.work().join("turbine");
        workspace::write(&place.on_host(&workspace)).context("write the workspace")?;
        let glue = Glue::lay_out(&place)?;
        glue.apply(&place, &workspace)?;
        Ok(Self { place, glue, workspace })
    }

    /// With a Bazel of its own, which has analysed the workspace before.
    fn build(&self, name: &str, options: &[&str]) -> anyhow::Result<Built> {
        let bazel = Bazel::new(&self.place, &self.glue, &self.workspace, name);
        let options = [&[JOBS], options].concat();
        bazel.build("build", &[TARGET], &[&["--nobuild"], options.as_slice()].concat(), LIMIT)?;
        let built = bazel.build("build", &[TARGET], &options, LIMIT)?;
        // Its Java machine must not be in the way of the next one.
        bazel.run(&["shutdown"], LIMIT)?;
        Ok(built)
    }
}

fn all_compiled(built: &Built) -> anyhow::Result<()> {
    let compiled = built.log.mnemonics().get("CppCompile").copied().unwrap_or_default();
    ensure!(compiled == COMPILATIONS, "{compiled} of {COMPILATIONS} compilations were run");
    Ok(())
}

/// What Bazel calls the sandbox that ran everything.
fn in_a_sandbox(built: &Built) -> anyhow::Result<String> {
    all_compiled(built)?;
    let elsewhere = built.log.spawns.iter().find(|spawn| !spawn.runner.contains("sandbox"));
    ensure!(elsewhere.is_none(), "an action ran in no sandbox: {elsewhere:?}");
    Ok(built.log.spawns.first().map(|spawn| spawn.runner.clone()).unwrap_or_default())
}

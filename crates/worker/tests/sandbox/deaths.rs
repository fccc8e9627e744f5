//! Whoever dies, sandboxes die too.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use gf_worker::sandbox::{Launcher, SandboxError};
use tokio_util::sync::CancellationToken;

use super::support::{self, Bench, processes_with, until};

const ROLE: &str = "GF_TEST_DOOMED_WORKER";

#[tokio::test]
async fn the_launcher_takes_its_sandboxes_along() {
    let bench = Bench::new().await;
    let mark = format!("32.{:06}", std::process::id());
    let run = bench.script("orphan", &format!("trap '' TERM HUP; setsid sleep {mark} & wait"));
    let kill = async {
        until("it runs", || processes_with(&mark) > 0).await;
        let launcher = support::launcher_of(std::process::id(), bench.folder.path());
        rustix::process::kill_process(launcher, rustix::process::Signal::KILL).unwrap();
    };
    let (ran, ()) = tokio::join!(bench.launcher.run(run, CancellationToken::new()), kill);
    assert!(matches!(ran, Err(SandboxError::LauncherGone)), "{ran:?}");
    until("its processes are gone", || processes_with(&mark) == 0).await;
    tokio::time::timeout(std::time::Duration::from_secs(30), bench.launcher.gone()).await.unwrap();
    let run = bench.script("later", "true");
    let ran = bench.launcher.run(run, CancellationToken::new()).await;
    assert!(matches!(ran, Err(SandboxError::LauncherGone)), "{ran:?}");
}

#[tokio::test]
async fn a_killed_worker_takes_its_sandboxes_along() {
    let folder = tempfile::tempdir().unwrap();
    let mark = format!("33.{:06}", std::process::id());
    let mut worker = Command::new(env::current_exe().unwrap())
        .args(["--exact", "deaths::doomed_worker", "--nocapture"])
        .env(ROLE, folder.path())
        .env("MARK", &mark)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("it runs", || processes_with(&mark) > 0).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    until("its processes are gone", || processes_with(&mark) == 0).await;
}

/// Not a test: the process that [`a_killed_worker_takes_its_sandboxes_along`] kills, which is this one only when asked.
#[tokio::test]
async fn doomed_worker() {
    let (Some(folder), Ok(mark)) = (env::var_os(ROLE), env::var("MARK")) else { return };
    let (launcher, report) = Launcher::start(support::config(Path::new(&folder))).await.unwrap();
    let bench = Bench { launcher, report, folder: tempfile::tempdir_in(folder).unwrap() };
    let run = bench.script("doomed", &format!("trap '' TERM HUP; setsid sleep {mark} & wait"));
    bench.run(run).await;
}

#[tokio::test]
async fn a_dropped_run_ends() {
    let bench = Bench::new().await;
    let mark = format!("34.{:06}", std::process::id());
    let run = bench.launcher.run(bench.script("dropped", &format!("sleep {mark}")), CancellationToken::new());
    tokio::select! {
        ran = run => panic!("it ended: {ran:?}"),
        () = until("it runs", || processes_with(&mark) > 0) => {}
    }
    until("it is gone", || processes_with(&mark) == 0).await;
    bench.sh("after", "true").await;
}

#[tokio::test]
async fn a_launcher_that_is_stopped_leaves_nothing() {
    let bench = Bench::new().await;
    bench.sh("one", "true").await;
    let folder = bench.folder.path().to_owned();
    assert!(support::processes_that_see(&folder) > 0, "the launcher has mounted nothing there");
    bench.launcher.stop().await;
    until("no process and no mount is left", || support::processes_that_see(&folder) == 0).await;
}

#[tokio::test]
async fn a_launcher_that_is_asked_to_end_goes_on() {
    let bench = Bench::new().await;
    let launcher = support::launcher_of(std::process::id(), bench.folder.path());
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        rustix::process::kill_process(launcher, signal).unwrap();
    }
    // A worker that drains still needs it.
    bench.sh("after", "true").await;
}

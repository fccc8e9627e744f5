//! How runs end, and what is said of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use gf_worker::sandbox::{Limit, SandboxError};
use tokio_util::sync::CancellationToken;

use super::support::{Bench, until};

#[tokio::test]
async fn commands_end_with_what_they_ended_with() {
    let bench = Bench::new().await;
    for (name, script, code) in [("true", "exit 0", 0), ("three", "exit 3", 3), ("signal", "kill -USR1 $$", 128 + 10)] {
        let said = bench.run(bench.script(name, script)).await;
        assert_eq!((said.ran.exit_code, said.ran.ended_by), (code, None), "{name}: {said:?}");
        assert!(said.ran.started <= said.ran.ended);
    }
}

#[tokio::test]
async fn what_was_said_is_where_it_was_to_go() {
    let bench = Bench::new().await;
    let said = bench.run(bench.script("both", "echo out; echo err >&2; echo more >>/dev/stdout; cat")).await;
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\nmore\n", "err\n"));
}

#[tokio::test]
async fn the_environment_is_exactly_what_was_given() {
    let bench = Bench::new().await;
    let mut run = bench.command("environment", &["env"]);
    run.environment.insert("ODD".into(), "a=b\n c".into());
    assert_eq!(bench.run(run).await.ok(), "ODD=a=b\n c\nPATH=/usr/bin:/bin\n");
}

#[tokio::test]
async fn a_command_that_cannot_start_ends_as_in_a_shell() {
    let bench = Bench::new().await;
    for (name, program, code, reason) in [
        ("absent", "no-such-program", 127, "No such file"),
        ("absent-path", "./no/such/program", 127, "No such file"),
        ("plain", "./input", 126, "ermission denied"),
        ("folder", "./folder", 126, "ermission denied"),
    ] {
        let said = bench.run(bench.command(name, &[program])).await;
        assert_eq!((said.ran.exit_code, said.ran.ended_by), (code, None), "{name}: {said:?}");
        assert!(said.stderr.contains(program) && said.stderr.contains(reason), "{name}: {said:?}");
    }
    let mut run = bench.command("nowhere", &["/bin/true"]);
    run.working_directory = PathBuf::from("no/such/folder");
    let said = bench.run(run).await;
    assert_eq!(said.ran.exit_code, 126);
    assert!(said.stderr.contains("working directory"), "{said:?}");
}

#[tokio::test]
async fn programs_are_found_by_path_and_from_the_working_directory() {
    let bench = Bench::new().await;
    let mut run = bench.script("relative", "pwd; printf '#!/bin/sh\\necho here' >tool; chmod +x tool; ./tool");
    run.working_directory = PathBuf::from("folder");
    assert_eq!(bench.run(run).await.ok(), "/build/folder\nhere\n");
}

#[tokio::test]
async fn the_path_is_searched_to_its_end() {
    let bench = Bench::new().await;
    let mut run = bench.command("path", &["tool", "an argument"]);
    let inputs = bench.folder.path().join("path/inputs");
    for (folder, mode) in [("no", 0o644), ("yes", 0o755)] {
        let tool = inputs.join(folder).join("tool");
        fs::create_dir_all(inputs.join(folder)).unwrap();
        // It does not say what runs it: the shell does.
        fs::write(&tool, format!("echo {folder} \"$1\"\n")).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(mode)).unwrap();
    }
    run.environment.insert("PATH".into(), "/absent:no:/build/yes:/bin".into());
    assert_eq!(bench.run(run).await.ok(), "yes an argument\n");
    let mut run = bench.command("usual", &["true"]);
    run.environment.clear();
    bench.run(run).await.ok();
}

#[tokio::test]
async fn what_was_used_is_told() {
    let bench = Bench::new().await;
    // A child that is waited for, and one that is not.
    let busy = "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'";
    let said = bench
        .run(bench.script("busy", &format!("{busy}; head -c 30000000 /dev/zero | tail -c 5000000 >/dev/null")))
        .await;
    let usage = said.ran.usage;
    assert!(usage.user_time.as_micros() > 1_000, "{usage:?}");
    assert!(usage.peak_memory_bytes > 1 << 20, "{usage:?}");
    assert_eq!(usage.peak_memory_is_of_largest_process, bench.report.cgroup_version.is_none());
}

#[tokio::test]
async fn a_run_that_is_cancelled_ends_at_once() {
    let bench = Bench::new().await;
    let (cancel, run) = (CancellationToken::new(), bench.script("long", "trap '' TERM; echo begun; sleep 1000 & wait"));
    let stdout = run.stdout.clone();
    let cancelled = async {
        until("it has begun", || std::fs::read(&stdout).is_ok_and(|said| !said.is_empty())).await;
        cancel.cancel();
    };
    let (ran, ()) = tokio::join!(bench.launcher.run(run, cancel.clone()), cancelled);
    assert_eq!(ran.unwrap().ended_by, Some(Limit::Cancelled));
}

#[tokio::test]
async fn many_run_at_once() {
    let bench = Bench::new().await;
    let runs = (0..32).map(|n| bench.script(&format!("run-{n}"), &format!("echo {n}")));
    let runs = runs.map(|run| async { bench.run(run).await.ok() });
    let said = futures_of(runs.collect()).await;
    assert_eq!(said, (0..32).map(|n| format!("{n}\n")).collect::<Vec<_>>());
}

async fn futures_of<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in futures.iter_mut().filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(output) = future.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        if futures.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_is_not_the_fault_of_the_command() {
    let bench = Bench::new().await;
    let mut run = bench.script("broken", "true");
    run.scratch = run.scratch.join("absent");
    let error = bench.launcher.run(run, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SandboxError::Refused { .. }), "{error:?}");
    // And the launcher goes on.
    bench.sh("after", "true").await;
}

//! `gf workers`, `gf queue` and `gf why`, and the worker inside the server.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, text};

/// From the end of a server to that of its worker, which has nothing to wait for.
const WORKER_DEADLINE: Duration = Duration::from_secs(60);

fn ask(server: &Server, home: &Path, args: &[&str]) -> Output {
    gf(home).args(args).args(["--server", &server.url]).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn server_with(home: &Path, config: &str) -> Server {
    let file = home.join("gf.toml");
    fs::write(&file, config).unwrap();
    Server::start(home, &["--config", file.to_str().unwrap()])
}

#[test]
fn a_server_without_workers_says_so() {
    let home = tempfile::tempdir().unwrap();
    let server = server_with(home.path(), "[worker]\nenabled = false\n");
    let report = json(&ask(&server, home.path(), &["workers", "--json"]));
    assert_eq!((&report["queued"], &report["workers"]), (&Value::from(0), &Value::Array(Vec::new())));
    assert_eq!(report["own_worker"]["state"], "off");
    let shown = text(&ask(&server, home.path(), &["workers"]).stdout);
    assert!(shown.contains("gf worker --server URL"), "{shown}");
    assert_eq!(text(&ask(&server, home.path(), &["queue"]).stdout), "nothing waits, and nothing runs\n");
    let shown = text(&ask(&server, home.path(), &["status"]).stdout);
    assert!(
        shown.contains("execution no workers, 0 waiting\n          the server's own worker is switched off"),
        "{shown}"
    );
    assert!(shown.contains("scrub     "), "{shown}");
}

#[test]
fn an_unknown_operation_exits_3() {
    let home = tempfile::tempdir().unwrap();
    let server = server_with(home.path(), "[worker]\nenabled = false\n");
    let uuid = "8f7c2f6e-9ad4-4c0e-8a1c-3a5d3f1d2b4a";
    for name in [&format!("operations/{uuid}"), &format!("default/operations/{uuid}"), "what", "../status", "a?b#c"] {
        for format in [&["--json"][..], &[]] {
            let asked = ask(&server, home.path(), &[&["why", name], format].concat());
            assert_eq!(asked.status.code(), Some(3), "{name}: {}", text(&asked.stderr));
            assert!(text(&asked.stderr).contains("no such operation"), "{name}: {}", text(&asked.stderr));
        }
    }
}

#[test]
fn all_of_it_needs_the_token() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("token"), "opensesame\n").unwrap();
    let config = "[access]\ntoken_file = \"token\"\nanonymous_read = true\n[worker]\nenabled = false\n";
    let server = server_with(home.path(), config);
    let why = ["why", "operations/8f7c2f6e-9ad4-4c0e-8a1c-3a5d3f1d2b4a"];
    for (command, code) in [(&["workers"][..], 0), (&["queue"], 0), (&why, 3)] {
        let asked = ask(&server, home.path(), command);
        assert_eq!(asked.status.code(), Some(1), "{command:?}");
        assert!(text(&asked.stderr).contains("GF_TOKEN"), "{}", text(&asked.stderr));
        let mut with_token = gf(home.path());
        with_token.args(command).args(["--server", &server.url]).env("GF_TOKEN", "opensesame");
        assert_eq!(with_token.output().unwrap().status.code(), Some(code), "{command:?}");
    }
}

/// Waits until the worker inside the server is there, or cannot be: then says why, and there is nothing to test here.
fn has_worker(server: &Server, home: &Path) -> bool {
    let until = Instant::now() + DEADLINE;
    loop {
        let report = json(&ask(server, home, &["workers", "--json"]));
        if report["own_worker"]["state"] == "given_up" {
            let reason = report["own_worker"]["reason"].as_str().unwrap();
            assert!(!reason.is_empty(), "{report}");
            let status = text(&ask(server, home, &["status"]).stdout);
            assert!(status.contains("the server's own worker cannot run here"), "{status}");
            gf_testkit::skip(format!("no worker can run on this machine: {reason}"));
            return false;
        }
        if report["workers"].as_array().is_some_and(|workers| !workers.is_empty()) {
            return true;
        }
        assert!(Instant::now() < until, "{report}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_worker_inside_is_shown_and_ends_with_a_killed_server() {
    let home = tempfile::tempdir().unwrap();
    let mut server = server_with(home.path(), "[worker]\nproperties = [\"pool=test\"]\n");
    if !has_worker(&server, home.path()) {
        return;
    }
    let shown = text(&ask(&server, home.path(), &["workers"]).stdout);
    assert!(shown.starts_with("NAME") && shown.contains("pool=test") && shown.contains("ready"), "{shown}");
    let shown = text(&ask(&server, home.path(), &["status"]).stdout);
    assert!(shown.contains("execution 1 worker, "), "{shown}");

    let worker = worker_of(server.id());
    server.signal("-KILL");
    server.wait_for_end();
    let until = Instant::now() + WORKER_DEADLINE;
    while is_alive(worker) {
        assert!(Instant::now() < until, "the worker outlives its server");
        sleep(Duration::from_millis(5));
    }
}

/// A worker whose server is gone before it could ask to end with it.
#[test]
fn a_worker_without_its_server_does_not_begin() {
    let home = tempfile::tempdir().unwrap();
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // This test made the connection, and the shell is the parent of the worker: the shell is not the server.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$0\" \"$@\" || exit $?", env!("CARGO_BIN_EXE_gf"), "worker", "--inherited-connection", "0"]);
    command.arg("--data-dir").arg(home.path()).stdin(std::os::fd::OwnedFd::from(theirs));
    let ended = command.output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("the server is gone already"), "{}", text(&ended.stderr));
}

/// The child of a process whose command line says that it is a worker.
fn worker_of(server: u32) -> u32 {
    let mut processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_worker = |process: &u32| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        parent(*process) == Some(server) && text(&line).contains("--inherited-connection")
    };
    processes.find(is_worker).unwrap()
}

/// The fields of `/proc/PID/stat` behind the name, which may hold anything.
fn stat(process: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

fn parent(process: u32) -> Option<u32> {
    stat(process)?.get(1)?.parse().ok()
}

/// Whoever takes over orphans may be slow to bury this one.
fn is_alive(process: u32) -> bool {
    stat(process).is_some_and(|stat| stat[0] != "Z")
}

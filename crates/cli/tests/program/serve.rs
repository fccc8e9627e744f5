//! `gf serve`: its start, its end, and what it refuses.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::Instant;

use crate::running::{DEADLINE, Server, gf, run, text};

#[test]
fn it_answers_once_it_says_so_and_drains_on_sigterm() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start(home.path(), &[]);
    assert!(server.url.starts_with("http://127.0.0.1:"), "{}", server.url);
    assert_eq!(server.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(server.get("/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(server.get("/nothing/here").0, 404);
    server.signal("-TERM");
    assert_eq!(server.wait_for_end().code(), Some(0));
}

#[test]
fn ctrl_c_drains_too() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start(home.path(), &[]);
    server.signal("-INT");
    assert_eq!(server.wait_for_end().code(), Some(0));
}

#[test]
fn a_second_signal_exits_at_once() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start(home.path(), &[]);
    // A request whose body does not come holds the drain up.
    let mut stream = server.connect();
    stream.write_all(b"PUT /cas/").unwrap();
    stream.write_all(&[b'0'; 64]).unwrap();
    stream.write_all(b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nbegun").unwrap();
    wait_until_in_flight(&server);
    server.signal("-TERM");
    server.wait_for_line("draining");
    server.signal("-TERM");
    server.wait_for_line("second signal");
    assert_eq!(server.wait_for_end().code(), Some(1));
}

#[test]
fn one_wish_that_arrives_twice_is_no_second_signal() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, "[worker]\nenabled = false\n").unwrap();
    let mut server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
    let id = server.id().to_string();
    // As `timeout` does: the process, then its group.
    assert!(Command::new("sh").args(["-c", "kill -TERM $0 && kill -INT $0", &id]).status().unwrap().success());
    assert_eq!(server.wait_for_end().code(), Some(0));
}

fn wait_until_in_flight(server: &Server) {
    let until = Instant::now() + DEADLINE;
    while !server.get("/metrics").1.contains("gf_requests_in_flight{method=\"PUT\"} 1") {
        assert!(Instant::now() < until, "the upload did not begin");
    }
}

#[test]
fn a_port_in_use_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = gf(home.path()).args(["serve", "--listen", &address, "--data-dir"]).arg(home.path()).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = text(&ended.stderr);
    assert!(said.contains(&format!("{address} is in use")) && said.contains("--listen"), "{said}");
}

#[test]
fn it_refuses_to_be_open_to_the_network() {
    let home = tempfile::tempdir().unwrap();
    let ended = run(home.path(), &["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(ended.status.code(), Some(2));
    let said = text(&ended.stderr);
    assert!(said.contains("token_file") && said.contains("GF_TOKEN") && said.contains("127.0.0.1"), "{said}");

    let mut command = gf(home.path());
    command.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(home.path()).env("GF_TOKEN", "open sesame");
    assert_eq!(command.output().unwrap().status.code(), Some(2), "a token with a space is none");

    let mut command = gf(home.path());
    command.args(["config", "check"]).arg(home.path().join("gf.toml")).env("GF_TOKEN", OsStr::from_bytes(b"\xff\xfe"));
    fs::write(home.path().join("gf.toml"), "").unwrap();
    let checked = command.output().unwrap();
    assert_eq!(checked.status.code(), Some(3), "a token that is no text must not count as none");
    assert!(text(&checked.stderr).contains("GF_TOKEN holds no token"), "{}", text(&checked.stderr));
}

#[test]
fn readyz_fails_when_the_data_folder_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    fs::rename(home.path().join("data"), home.path().join("gone")).unwrap();
    let (status, reason) = server.get("/readyz");
    assert_eq!(status, 503);
    assert!(reason.contains("data folder") && reason.contains("cannot be used"), "{reason}");
    assert!(!reason.contains(home.path().to_str().unwrap()), "strangers are told where the data are: {reason}");
    assert_eq!(server.get("/healthz").0, 200);
}

#[test]
fn logs_as_json_are_json() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, "[log]\nformat = \"json\"\n").unwrap();
    let mut server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
    server.signal("-TERM");
    let line = server.wait_for_line("draining");
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["level"], "INFO");
    server.wait_for_end();
}

#[test]
fn metrics_are_open_metrics() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let (status, metrics) = server.get("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.ends_with("# EOF\n"));
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("gf_"), "{line}");
        value.parse::<f64>().unwrap();
    }
}

#[test]
fn it_goes_on_when_nobody_reads_its_log() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    // A worker that starts meanwhile would make its folder where the data are missing.
    fs::write(&file, "[worker]\nenabled = false\n").unwrap();
    let mut server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
    fs::rename(home.path().join("data"), home.path().join("gone")).unwrap();
    // Each logs a line, and a pipe holds a few hundred.
    for _ in 0..1500 {
        assert_eq!(server.get("/readyz").0, 503);
    }
    fs::rename(home.path().join("gone"), home.path().join("data")).unwrap();
    server.signal("-TERM");
    assert_eq!(server.wait_for_end().code(), Some(0));
}

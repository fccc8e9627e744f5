//! `gf worker` over TLS, with the token of workers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, text};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Case {
    home: tempfile::TempDir,
    server: Server,
}

impl Case {
    /// A server that everybody may ask and only the token of workers may work for.
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        file("cert.pem", &made.cert.pem());
        file("key.pem", &made.signing_key.serialize_pem());
        file("worker-token", &format!("{TOKEN}\n"));
        file("wrong-token", &TOKEN.replace('0', "f"));
        let tls = "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
        file("gf.toml", &format!("{tls}[workers]\ntoken_file = \"worker-token\"\n[worker]\nenabled = false\n"));
        let config = home.path().join("gf.toml");
        let server = Server::start(home.path(), &["--config", config.to_str().unwrap()]);
        assert!(server.url.starts_with("https://"), "{}", server.url);
        Self { home, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn worker(&self, token: &str, more: &[&str]) -> Command {
        let mut command = gf(self.home.path());
        command.args(["worker", "--server", &self.server.url, "--name", "attached", "--data-dir"]);
        command.arg(self.path("worker")).arg("--token-file").arg(self.path(token)).args(more);
        command
    }

    fn ca(&self) -> String {
        self.path("cert.pem").display().to_string()
    }

    fn workers(&self) -> Value {
        let mut asked = gf(self.home.path());
        asked.args(["workers", "--json", "--server", &self.server.url, "--ca", &self.ca()]);
        let answer = asked.output().unwrap();
        assert!(answer.status.success(), "{}", text(&answer.stderr));
        serde_json::from_slice::<Value>(&answer.stdout).unwrap()["workers"].clone()
    }
}

/// Killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this machine refuses sandboxes, of which the worker has told then: there is nothing to test here.
fn is_refused_here(said: &str) -> bool {
    let is_refused = said.contains("this system refuses sandboxes");
    if is_refused {
        gf_testkit::skip(format!("no worker can run on this machine: {said}"));
    }
    is_refused
}

#[test]
fn a_worker_with_the_token_attaches_over_tls_and_drains() {
    let case = Case::start();
    let log = case.path("log");
    let mut command = case.worker("worker-token", &["--ca", &case.ca(), "--property", "pool=far"]);
    let mut worker = Running(command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap());
    let until = Instant::now() + DEADLINE;
    while case.workers()[0]["name"] != "attached" {
        let said = fs::read_to_string(&log).unwrap();
        if worker.0.try_wait().unwrap().is_some() && is_refused_here(&said) {
            return;
        }
        assert!(Instant::now() < until, "it does not attach: {said}");
        sleep(Duration::from_millis(20));
    }
    let shown = case.workers();
    assert!(shown[0]["properties"].as_array().unwrap().iter().any(|property| property["value"] == "far"), "{shown}");

    assert!(Command::new("kill").args(["-TERM", &worker.0.id().to_string()]).status().unwrap().success());
    let status = worker.0.wait().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(status.success() && said.contains("drained"), "{said}");
    assert!(!said.contains(TOKEN), "its token is in no log");
    let until = Instant::now() + DEADLINE;
    while case.workers() != Value::Array(Vec::new()) {
        assert!(Instant::now() < until, "it is still counted: {}", case.workers());
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_wrong_token_ends_a_worker_with_the_reason() {
    let case = Case::start();
    let ended = case.worker("wrong-token", &["--ca", &case.ca()]).output().unwrap();
    let said = text(&ended.stderr);
    if is_refused_here(&said) {
        return;
    }
    assert_eq!(ended.status.code(), Some(3), "trying again does not help: {said}");
    assert!(said.contains("the server refuses this worker") && said.contains("token"), "{said}");

    fs::remove_file(case.path("wrong-token")).unwrap();
    let ended = case.worker("wrong-token", &[]).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(text(&ended.stderr).contains("wrong-token cannot be read"), "{}", text(&ended.stderr));
}

/// The operator may yet put the certificate in order, so the worker goes on trying; but it says what is wrong.
#[test]
fn a_server_that_cannot_be_trusted_is_told() {
    let case = Case::start();
    let mut worker = Running(case.worker("worker-token", &[]).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    for line in BufReader::new(worker.0.stderr.take().unwrap()).lines() {
        said += &line.unwrap();
        said.push('\n');
        if said.contains("trying again") {
            break;
        }
    }
    if is_refused_here(&said) {
        return;
    }
    assert!(said.contains("not attached to the server") && said.contains("certificate"), "{said}");
    assert!(is_empty(&case.path("worker/runs")));
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

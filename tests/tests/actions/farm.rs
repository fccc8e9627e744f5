//! A server, workers for it, and the promise that nothing of what ran is left.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use gf_tests::{GfServer, GfWorker, processes_of};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;

/// What must be the case soon.
const SOON: Duration = Duration::from_secs(300);

pub(crate) struct Farm {
    pub(crate) server: GfServer,
    data: TempDir,
    mark: String,
}

impl Farm {
    /// A server with a worker of its own, of which the configuration says this. None if no worker can run here, which was
    /// said then.
    pub(crate) fn with_worker(worker: &str) -> Option<Self> {
        let farm = Self::with(&format!("[worker]\n{worker}"));
        let mut report = Value::Null;
        farm.wait_until("the worker inside the server comes, or cannot", || {
            report = farm.ask(&["workers"]);
            report["own_worker"]["state"] == "given_up" || workers(&report) == 1
        });
        if report["own_worker"]["state"] == "given_up" {
            let reason = &report["own_worker"]["reason"];
            gf_testkit::skip(format!("no worker can run on this machine: {reason}"));
            return None;
        }
        Some(farm)
    }

    /// A server that leaves the work to others.
    pub(crate) fn without_worker() -> Self {
        Self::with("[worker]\nenabled = false\n")
    }

    /// A server with this configuration.
    pub(crate) fn with(text: &str) -> Self {
        Self::of(&GfServer::binary().unwrap(), text)
    }

    /// The same by this program.
    pub(crate) fn of(binary: &Path, text: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = data.path().join("gf.toml");
        fs::write(&config, text).unwrap();
        let arguments = ["--config", config.to_str().unwrap()];
        let address = ([127, 0, 0, 1], 0).into();
        let server = GfServer::start_with(binary, address, data.path(), &arguments).unwrap();
        let mark = format!("{}", data.path().file_name().unwrap().display());
        Self { server, data, mark }
    }

    /// The data folder of the server.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.server, &self.mark).await
    }

    /// A worker that has attached. None if it cannot run here.
    pub(crate) fn worker(&self, name: &str, more: &[&str]) -> GfWorker {
        self.worker_of(&GfServer::binary().unwrap(), name, more)
    }

    /// The same by this program.
    pub(crate) fn worker_of(&self, binary: &Path, name: &str, more: &[&str]) -> GfWorker {
        let data = self.data.path().join(name);
        let worker = GfWorker::start_with(binary, &self.server, &data, name, Path::new("/"), more).unwrap();
        // One that was killed may still be counted.
        self.wait_until("the worker attaches", || {
            let report = self.ask(&["workers"]);
            report["workers"].as_array().is_some_and(|workers| workers.iter().any(|worker| worker["name"] == name))
        });
        worker
    }

    /// What a command of `gf` says for programs.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let text = self.gf(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// What a command of `gf` says for people.
    pub(crate) fn gf(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(GfServer::binary().unwrap());
        let answer = command.args(arguments).args(["--server", self.server.url()]).output().unwrap();
        assert!(answer.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8(answer.stdout).unwrap()
    }

    /// What there is to say about where an operation is.
    pub(crate) fn why(&self, operation: &str) -> Value {
        self.ask(&["why", operation])["explanation"].clone()
    }

    /// Waits until a process of the action is there.
    pub(crate) fn wait_until_it_runs(&self, operation: &str) {
        self.wait_until("the action runs", || {
            self.why(operation)["stage"] == "running" && !self.processes().is_empty()
        });
    }

    pub(crate) fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} within {} s", SOON.as_secs());
            sleep(Duration::from_millis(20));
        }
    }

    /// The processes of actions of this farm.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mark = format!("GF_MARK={}", self.mark);
        let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let is_ours = environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
            is_ours.then(|| fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " "))
        });
        processes.collect()
    }

    /// Ends the test: nothing of what ran may be left, neither running nor mounted.
    pub(crate) fn stop(self) {
        self.wait_until("what ran is gone", || self.processes().is_empty());
        assert!(self.server.stop().unwrap().success(), "the server did not stop well");
        let folder = self.data.path();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(folder.to_str().unwrap()), "something is still mounted below {}", folder.display());
        // A worker that was killed at its deadline is the kernel's to clear away.
        let deadline = Instant::now() + SOON;
        loop {
            let left = processes_of(folder);
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "still running: {left:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

fn workers(report: &Value) -> usize {
    report["workers"].as_array().map_or(0, Vec::len)
}

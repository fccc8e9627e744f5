//! A launcher, folders for runs, and what a shell script said in a sandbox.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gf_worker::sandbox::{Launcher, Limits, Network, Ran, Report, Root, Run, SandboxConfig};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A launcher and the folder in which its runs live.
pub(crate) struct Bench {
    pub(crate) launcher: Launcher,
    pub(crate) report: Report,
    pub(crate) folder: TempDir,
}

/// How a script ended and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ran: Ran,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// What it said, of one that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.ran.exit_code, self.ran.ended_by), (0, None), "{self:?}");
        self.stdout
    }
}

pub(crate) fn config(folder: &Path) -> SandboxConfig {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_gf-launcher"));
    SandboxConfig { program, ..SandboxConfig::new(folder.to_path_buf()) }
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (launcher, report) = Launcher::start(config(folder.path())).await.unwrap();
        Self { launcher, report, folder }
    }

    /// A run of a shell script with an input root that has a file `input` and a folder `folder`.
    pub(crate) fn script(&self, name: &str, script: &str) -> Run {
        self.command(name, &["/bin/sh", "-c", script])
    }

    pub(crate) fn command(&self, name: &str, arguments: &[&str]) -> Run {
        let folder = self.folder.path().join(name);
        let (inputs, scratch) = (folder.join("inputs"), folder.join("scratch"));
        fs::create_dir_all(inputs.join("folder")).unwrap();
        fs::create_dir(&scratch).unwrap();
        fs::write(inputs.join("input"), "original\n").unwrap();
        if let Some(owner) = self.launcher.action_owner() {
            for path in [inputs.clone(), inputs.join("folder"), inputs.join("input")] {
                std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)).unwrap();
            }
        }
        let root = if self.report.overlay { Root::Layers(vec![inputs]) } else { Root::Private(inputs) };
        Run {
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            working_directory: PathBuf::new(),
            root,
            scratch,
            stdout: folder.join("stdout"),
            stderr: folder.join("stderr"),
            network: Network::Loopback,
            limits: Limits {
                timeout: Duration::from_secs(30),
                memory_bytes: 512 << 20,
                processes: 100,
                disk_bytes: 64 << 20,
                log_bytes: 1 << 20,
            },
        }
    }

    pub(crate) async fn run(&self, run: Run) -> Said {
        let (stdout, stderr) = (run.stdout.clone(), run.stderr.clone());
        let ran = self.launcher.run(run, CancellationToken::new()).await.unwrap();
        let read = |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Said { ran, stdout: read(stdout), stderr: read(stderr) }
    }

    /// What a script says that must succeed.
    pub(crate) async fn sh(&self, name: &str, script: &str) -> String {
        self.run(self.script(name, script)).await.ok()
    }
}

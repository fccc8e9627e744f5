//! A launcher, folders for runs, and what a shell script said in a sandbox.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gf_worker::sandbox::{Launcher, Limits, Network, Ran, Report, Root, Run, SandboxConfig, StoreView};
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

/// Where the launcher is, if not where it was built.
pub(crate) const LAUNCHER: &str = "GF_TEST_LAUNCHER";

pub(crate) fn launcher_program() -> PathBuf {
    std::env::var_os(LAUNCHER).map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_gf-launcher")), PathBuf::from)
}

pub(crate) fn config(folder: &Path) -> SandboxConfig {
    SandboxConfig { program: launcher_program(), ..SandboxConfig::new(folder.to_path_buf()) }
}

/// Waits for a condition that something else brings about.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many processes of the machine have this argument.
pub(crate) fn processes_with(argument: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let has = |line: Vec<u8>| line.split(|byte| *byte == 0).any(|each| each == argument.as_bytes());
    processes.filter(|process| fs::read(process.path().join("cmdline")).is_ok_and(has)).count()
}

/// How many processes see a mount of `folder` or below it.
pub(crate) fn processes_that_see(folder: &Path) -> usize {
    let folder = folder.to_str().unwrap();
    let sees = |process: &Path| fs::read_to_string(process.join("mountinfo")).is_ok_and(|text| text.contains(folder));
    fs::read_dir("/proc").unwrap().flatten().filter(|process| sees(&process.path())).count()
}

/// The launcher that was started by `parent` and has made its root in `folder`.
pub(crate) fn launcher_of(parent: u32, folder: &Path) -> rustix::process::Pid {
    let is_it = |process: &Path| {
        let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
        let parent_is_ours = read("status").contains(&format!("\nPPid:\t{parent}\n"));
        parent_is_ours && read("mountinfo").contains(folder.to_str().unwrap())
    };
    let found = fs::read_dir("/proc").unwrap().flatten().find(|process| is_it(&process.path())).unwrap();
    rustix::process::Pid::from_raw(found.file_name().to_str().unwrap().parse().unwrap()).unwrap()
}

impl Bench {
    pub(crate) async fn new() -> Self {
        Self::new_in(&std::env::temp_dir()).await
    }

    pub(crate) async fn new_in(parent: &Path) -> Self {
        let folder = tempfile::tempdir_in(parent).unwrap();
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
            store: StoreView::default(),
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
                files: 10_000,
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

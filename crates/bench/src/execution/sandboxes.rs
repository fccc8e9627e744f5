//! The floor of small actions: a bare program of one thread that makes the namespaces and mounts of the product's
//! sandbox for every `/bin/true`, and does nothing else: no server, no worker, no launcher, no inputs, no results.
//!
//! Its folders are made before the clock starts. It runs in a process of its own, which is good for nothing afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use gf_worker::Bounds;
use gf_worker::sandbox::{Limits, Network, Root, Run, SandboxConfig, StoreView, remove_scratch, run_bare};

use crate::load::as_float;

/// What the bare program is told.
#[derive(Args, Clone, Debug)]
pub(crate) struct Sandboxes {
    /// A folder of this run alone, on the disk of the product's data
    #[arg(long)]
    folder: PathBuf,
    /// How many
    #[arg(long)]
    count: usize,
    /// So many live at one time
    #[arg(long)]
    at_once: usize,
    /// Stay in the network of the machine
    #[arg(long)]
    host_network: bool,
}

impl Sandboxes {
    /// Runs them and prints the seconds. The process must have one thread.
    #[expect(clippy::print_stdout, reason = "it is the answer to the process that asks")]
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let config = SandboxConfig::new(self.folder.join("sandbox"));
        std::fs::create_dir_all(&config.folder)?;
        let runs = (0..self.count).map(|number| self.one(number)).collect::<std::io::Result<Vec<_>>>()?;
        let begun = Instant::now();
        let ran = run_bare(&config, &runs, self.at_once)?;
        let taken = begun.elapsed();
        ensure!(ran.iter().all(|ran| ran.exit_code == 0 && ran.ended_by.is_none()), "/bin/true failed in a sandbox");
        println!("{}", taken.as_secs_f64());
        Ok(())
    }

    /// As the worker asks for an action without inputs.
    fn one(&self, number: usize) -> std::io::Result<Run> {
        let folder = self.folder.join(number.to_string());
        let (root, scratch) = (folder.join("root"), folder.join("scratch"));
        std::fs::create_dir_all(&root)?;
        std::fs::create_dir_all(&scratch)?;
        let bounds = Bounds::default();
        Ok(Run {
            arguments: vec!["/bin/true".into()],
            environment: BTreeMap::new(),
            working_directory: PathBuf::new(),
            root: Root::Layers(vec![root]),
            store: StoreView::default(),
            scratch,
            stdout: folder.join("stdout"),
            stderr: folder.join("stderr"),
            network: if self.host_network { Network::Host } else { Network::Loopback },
            limits: Limits {
                timeout: Duration::from_secs(3600),
                memory_bytes: u64::MAX,
                processes: bounds.processes,
                disk_bytes: bounds.disk_bytes,
                files: bounds.files,
                log_bytes: bounds.log_bytes,
            },
        })
    }
}

/// Starts the bare program; the answer is sandboxes a second.
pub(super) async fn per_second(folder: &Path, count: usize, at_once: usize, network: Network) -> anyhow::Result<f64> {
    let folder = folder.join("sandboxes");
    let (count_argument, at_once) = (count.to_string(), at_once.to_string());
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("sandboxes").arg("--folder").arg(&folder);
    command.args(["--count", &count_argument, "--at-once", &at_once]);
    command.args((network == Network::Host).then_some("--host-network"));
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = command.output().await.context("start a program that makes sandboxes")?;
    remove_scratch(&folder).context("remove what sandboxes left")?;
    ensure!(output.status.success(), "the program that makes sandboxes ended with {}", output.status);
    let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().context("read its seconds")?;
    Ok(as_float(u64::try_from(count)?) / seconds)
}

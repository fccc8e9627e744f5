//! `gf worker` as a process.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::GfServer;

const STOP_LIMIT: Duration = Duration::from_secs(120);

/// A running worker; killed when dropped.
#[derive(Debug)]
pub struct GfWorker {
    child: Child,
}

impl GfWorker {
    /// Starts a worker for `server` that shows actions the tools of the root file system `tools`. It attaches when it
    /// is ready.
    pub fn start(binary: &Path, server: &GfServer, data: &Path, name: &str, tools: &Path) -> Result<Self> {
        Self::start_with(binary, server, data, name, tools, &[])
    }

    /// The same with more arguments.
    pub fn start_with(
        binary: &Path,
        server: &GfServer,
        data: &Path,
        name: &str,
        tools: &Path,
        more: &[&str],
    ) -> Result<Self> {
        // The kernel ends it when this process dies before it could.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary).arg("worker");
        let arguments: [(&str, &OsStr); 4] = [
            ("--server", server.url().as_ref()),
            ("--data-dir", data.as_os_str()),
            ("--name", name.as_ref()),
            ("--root", tools.as_os_str()),
        ];
        for (option, value) in arguments {
            command.arg(option).arg(value);
        }
        command.args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self { child: child.with_context(|| format!("cannot start {}", binary.display()))? })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to finish what it has and to end.
    pub fn stop(self) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < STOP_LIMIT {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the worker did not stop within {} s", STOP_LIMIT.as_secs())
    }
}

impl Drop for GfWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The `gf` binary as a process.

use std::{
    env,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const START_LIMIT: Duration = Duration::from_secs(120);
/// A drain alone may take 22 s, and the last checkpoint what the disk needs.
const STOP_LIMIT: Duration = Duration::from_secs(120);
const GREETING: &str = "listening on ";

/// A running `gf serve`; killed when dropped.
#[derive(Debug)]
pub struct GfServer {
    child: Child,
    url: String,
    /// Where it says what it does, when it speaks no TLS.
    address: String,
}

impl GfServer {
    /// The binary that is under test: `GF_BINARY`, or the one that cargo put beside this program.
    pub fn binary() -> Result<PathBuf> {
        if let Some(path) = env::var_os("GF_BINARY") {
            return Ok(PathBuf::from(path));
        }
        let own = env::current_exe()?;
        let candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join("gf"));
        let found = candidates.into_iter().find(|path| path.is_file());
        found.context("there is no `gf` binary: run `cargo build -p gf-cli`, or set GF_BINARY")
    }

    /// Starts a server on a free port with its data in `data`.
    pub fn start(data: &Path) -> Result<Self> {
        Self::start_with(&Self::binary()?, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), data, &[])
    }

    /// Starts `binary` at `address` with more arguments, and waits until it listens.
    pub fn start_with(binary: &Path, address: SocketAddr, data: &Path, arguments: &[&str]) -> Result<Self> {
        // The kernel asks it to stop when this process dies before it could.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(binary);
        command.arg("serve").args(["--listen", &address.to_string()]).arg("--data-dir").arg(data).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A Ctrl-C at the terminal is for the caller, who then stops it in order.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let stderr = child.stderr.take().context("the server has no standard error")?;
        // The guard comes first: a server that never says that it listens is killed.
        let mut server = Self { child, url: String::new(), address: String::new() };
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Nobody listens after the start; the pipe is read on so that the server never blocks on it.
                let _ = sender.send(line);
            }
        });
        server.url = wait_for_greeting(&lines)?;
        server.address = server.url.split("://").nth(1).unwrap_or_default().to_owned();
        Ok(server)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `http://HOST:PORT`, as the server said it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same endpoint for gRPC clients.
    pub fn grpc(&self) -> String {
        let scheme = if self.url.starts_with("https:") { "grpcs" } else { "grpc" };
        format!("{scheme}://{}", self.address)
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) -> Result<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let begin = Instant::now();
        while begin.elapsed() < STOP_LIMIT {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the server did not stop within {} s", STOP_LIMIT.as_secs())
    }

    /// Whether it ended by itself.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for GfServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_greeting(lines: &mpsc::Receiver<String>) -> Result<String> {
    let deadline = Instant::now() + START_LIMIT;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some((_, rest)) = line.split_once(GREETING) {
                    let url = rest.split_whitespace().next().unwrap_or_default();
                    return Ok(url.trim_end_matches(['"', ',', '/']).to_owned());
                }
                said.push(line);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the server was not ready within {} s:\n{}", START_LIMIT.as_secs(), said.join("\n"))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the server did not start:\n{}", said.join("\n")),
        }
    }
}

/// The public address of a server without configuration if it is free, else any free port of this machine.
pub fn free_address() -> SocketAddr {
    let public = SocketAddr::from((Ipv4Addr::LOCALHOST, 8980));
    match TcpListener::bind(public) {
        Ok(_) => public,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

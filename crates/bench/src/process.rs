//! The servers as processes of their own: started, asked for their memory, stopped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A server must answer after so long; the limit on start-up is a row, this only ends a hopeless run.
const START_LIMIT: Duration = Duration::from_secs(300);
/// A server must drain and exit within this.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// About twice what all rows together upload.
const CONFIG: &str = "[store]\ncapacity = \"32GiB\"\n";
/// Says that every edge answers; the address follows.
const LISTENING: &str = "listening on ";

/// A running server; it is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    pid: Pid,
    /// `http://ADDRESS:PORT`.
    pub(crate) url: String,
    /// From the start of the process to the line that says that it listens.
    pub(crate) started_in: Duration,
    log: JoinHandle<()>,
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resident {
    /// All of it, `VmRSS`.
    pub(crate) total: u64,
    /// The part that no file backs, `RssAnon`.
    pub(crate) anonymous: u64,
}

impl Server {
    /// Starts the floor out of this very program.
    pub(crate) async fn floor() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.args(["floor", "--listen", "127.0.0.1:0"]);
        Self::start(command).await.context("start the floor")
    }

    /// Starts `gf serve` over `data_dir`. All is as it comes, but that there is room for what the rows upload: without
    /// being told, the store leaves part of a disk to others.
    pub(crate) async fn product(gf: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        Self::product_with(gf, data_dir, "").await
    }

    /// The same, told something more in its configuration.
    pub(crate) async fn product_with(gf: &Path, data_dir: &Path, more: &str) -> anyhow::Result<Self> {
        let config = data_dir.with_extension("toml");
        std::fs::write(&config, format!("{CONFIG}{more}")).with_context(|| format!("write {}", config.display()))?;
        let mut command = Command::new(gf);
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(config).arg("--data-dir").arg(data_dir);
        Self::start(command).await.with_context(|| format!("start {} serve", gf.display()))
    }

    async fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let before = Instant::now();
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("the process has no number")?;
        let stderr = child.stderr.take().context("the process has no standard error")?;
        let mut lines = BufReader::new(stderr).lines();
        let url = timeout(START_LIMIT, url(&mut lines)).await.context("it does not listen")??;
        let started_in = before.elapsed();
        Ok(Self { child, pid, url, started_in, log: tokio::spawn(drain(lines)) })
    }

    /// Resident memory now.
    pub(crate) fn resident(&self) -> anyhow::Result<Resident> {
        let path = format!("/proc/{}/status", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| resident_field(&status, name).with_context(|| format!("no {name} in {path}"));
        Ok(Resident { total: field("VmRSS:")?, anonymous: field("RssAnon:")? })
    }

    /// Its number.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Asks it to drain and waits for it; it must exit by itself and with success.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::TERM)?;
        let status = timeout(STOP_LIMIT, self.child.wait()).await.context("it does not stop")??;
        self.log.abort();
        ensure!(status.success(), "it stopped with {status}");
        Ok(())
    }

    /// Kills it without warning and waits until it is gone.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        self.log.abort();
        Ok(())
    }
}

/// A process that stands still for as long as this lives.
pub(crate) struct Paused(Pid);

impl Paused {
    /// Makes it stand still.
    pub(crate) fn begin(pid: i32) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(pid).context("no process has this number")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.0, Signal::CONT) {
            eprintln!("a server cannot go on: {error}");
        }
    }
}

async fn url(lines: &mut Lines<BufReader<ChildStderr>>) -> anyhow::Result<String> {
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await? {
        if let Some((_, rest)) = line.split_once(LISTENING) {
            let end = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
            return Ok(rest[..end].to_owned());
        }
        said.push(line);
        said.truncate(50);
    }
    bail!("it ended before it listened: {}", said.join("; "))
}

/// A pipe that nobody empties would stop the server. Its warnings are the operator's to see.
async fn drain(mut lines: Lines<BufReader<ChildStderr>>) {
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains("WARN") || line.contains("ERROR") || line.contains("panicked") {
            eprintln!("    server: {line}");
        }
    }
}

/// Processor time that all threads of a process have used so far.
pub(crate) fn processor_time(pid: i32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = processor_ticks(&stat).with_context(|| format!("no times in {path}"))?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// The sum of `utime` and `stime`. The program's name before them may hold anything, but ends with the last bracket.
fn processor_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn resident_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The `gf` to measure: the one named, or a release build of this workspace, brought up to date.
pub(crate) async fn program(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        ensure!(named.is_file(), "{} is no program", named.display());
        return Ok(named.to_owned());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building gf …");
    let arguments = ["build", "--quiet", "--release", "--package", "gf-cli", "--bin", "gf"];
    let status = Command::new(cargo).args(arguments).current_dir(workspace).status().await.context("run cargo")?;
    ensure!(status.success(), "gf does not build; with --gf PATH a finished program is measured");
    let own = std::env::current_exe()?;
    let profile = own.parent().context("this program lies in no folder")?;
    // `target/debug/gf-bench` and `target/release/gf-bench` both have the release build beside or near them.
    let built = profile.with_file_name("release").join("gf");
    ensure!(built.is_file(), "{} was not built; name the program with --gf PATH", built.display());
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tgf\nVmRSS:\t   12345 kB\nRssAnon:\t     100 kB\n";
        assert_eq!(resident_field(status, "VmRSS:"), Some(12345 * 1024));
        assert_eq!(resident_field(status, "RssAnon:"), Some(102_400));
        assert_eq!(resident_field(status, "RssFile:"), None);
    }

    #[test]
    fn processor_time_is_user_and_system_time() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 25 0 0 20 0 1 0 100 200 300";
        assert_eq!(processor_ticks(stat), Some(175));
        assert!(processor_time(std::process::id().try_into().unwrap()).is_ok());
    }

    #[tokio::test]
    async fn a_program_that_ends_early_is_reported_with_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo the disk is on fire >&2"]);
        let error = Server::start(command).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("the disk is on fire"), "{error}");
    }

    #[tokio::test]
    async fn a_paused_server_goes_on_afterwards() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap 'exit 0' TERM; echo listening on http://127.0.0.1:7 >&2; while :; do :; done"]);
        let server = Server::start(command).await.unwrap();
        let paused = Paused::begin(server.pid()).unwrap();
        let stands_still = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
            stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
        };
        let begun = Instant::now();
        while !stands_still() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it was not paused");
            std::thread::yield_now();
        }
        drop(paused);
        server.stop().await.unwrap();
    }

    #[tokio::test]
    async fn the_address_is_found_in_human_and_json_lines() {
        for line in ["listening on http://127.0.0.1:7", r#"{"message":"listening on http://127.0.0.1:7","n":1}"#] {
            let mut command = Command::new("sh");
            command.args(["-c", "echo hello >&2; echo \"$1\" >&2; exec sleep 60", "sh", line]);
            let server = Server::start(command).await.unwrap();
            assert_eq!(server.url, "http://127.0.0.1:7");
            assert!(server.resident().unwrap().total > 0);
            server.kill().await.unwrap();
        }
    }
}

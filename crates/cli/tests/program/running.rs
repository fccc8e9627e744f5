//! A `gf` process of a test: started on a free port, killed at the end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Everything that a test waits for must come within this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// `gf` with an environment that the machine does not leak into.
pub(crate) fn gf(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gf"));
    for name in ["GF_TOKEN", "GF_CONFIG", "GF_SERVER", "GF_CA", "GF_CLIENT_CERT", "GF_CLIENT_KEY", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", home);
    command
}

/// Runs a command that ends by itself.
pub(crate) fn run(home: &Path, args: &[&str]) -> Output {
    gf(home).args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    pub(crate) url: String,
}

impl Server {
    /// Starts on a free port with data below `home`, and waits until it says where it listens.
    pub(crate) fn start(home: &Path, args: &[&str]) -> Self {
        let mut command = gf(home);
        command.arg("serve").args(args).arg("--data-dir").arg(home.join("data"));
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        // A test that does not ask for lines soon stops the reading: the server must not mind.
        let (sender, lines) = sync_channel(16);
        thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut server = Self { child, lines, url: String::new() };
        let line = server.wait_for_line("listening on ");
        server.url = line.split_once("listening on ").unwrap().1.to_owned();
        server
    }

    pub(crate) fn wait_for_line(&self, part: &str) -> String {
        let mut seen = Vec::new();
        let until = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{part:?} was not printed; only\n{}", seen.join("\n")),
            }
        }
    }

    pub(crate) fn authority(&self) -> &str {
        self.url.split_once("://").unwrap().1
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the server did not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Status and body of a GET.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.authority()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

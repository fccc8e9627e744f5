//! Running a client with a time limit.

use std::{
    fmt::Write as _,
    fs,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(10);
/// Enough of a failed client's output to see why, not so much that it hides the test's own message.
const SHOWN_BYTES: usize = 6000;

/// What a client left behind when it ended.
#[derive(Debug)]
pub struct Finished {
    /// The program and its arguments, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// The same, or an error that shows the end of the output when the client failed.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{}\n{}", self.heading(&format!("failed ({})", self.status)), self.tail())
    }

    /// The end of both outputs.
    pub fn tail(&self) -> String {
        let mut text = String::new();
        for (name, output) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !output.trim().is_empty() {
                let _ = write!(text, "--- {name}\n{}\n", last_bytes(output));
            }
        }
        text
    }

    fn heading(&self, what: &str) -> String {
        format!("{} {what} after {:.1} s", self.command, self.took.as_secs_f64())
    }
}

fn last_bytes(text: &str) -> &str {
    let start = (text.len().saturating_sub(SHOWN_BYTES)..=text.len()).find(|at| text.is_char_boundary(*at));
    start.and_then(|at| text.get(at..)).unwrap_or_default().trim_end()
}

/// Runs `command` without input and waits for its end. A client that is still there after `limit` is killed, and that
/// is an error.
pub fn run_within(mut command: Command, limit: Duration) -> Result<Finished> {
    let folder = tempfile::tempdir()?;
    let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
    command.stdin(Stdio::null()).stdout(fs::File::create(&stdout)?).stderr(fs::File::create(&stderr)?);
    let name = describe(&command);
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begin.elapsed() > limit {
            break None;
        }
        thread::sleep(POLL);
    };
    let timed_out = status.is_none();
    let status = match status {
        Some(status) => status,
        None => {
            child.kill()?;
            child.wait()?
        }
    };
    let read = |path| -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned()) };
    let finished =
        Finished { command: name, status, stdout: read(&stdout)?, stderr: read(&stderr)?, took: begin.elapsed() };
    if timed_out {
        bail!("{}\n{}", finished.heading("was killed: it still ran"), finished.tail());
    }
    Ok(finished)
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_status_are_kept() {
        let finished = run_within(shell("echo out; echo err >&2; exit 3"), Duration::from_secs(20)).unwrap();
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(finished.status.code(), Some(3));
        let message = finished.success().unwrap_err().to_string();
        assert!(message.contains("exit 3") && message.contains("err"), "{message}");
    }

    #[test]
    fn a_client_that_does_not_end_is_killed() {
        let message = run_within(shell("exec sleep 100"), Duration::from_millis(100)).unwrap_err().to_string();
        assert!(message.contains("was killed"), "{message}");
    }
}

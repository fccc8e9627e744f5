//! Running a client with a time limit.

use std::{
    fmt::Write as _,
    fs,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

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

/// Runs `command` without input and waits for its end. A client that is still there after `limit` is killed with all
/// that it has started, and that is an error.
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
            kill_all(child.id());
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

/// Kills a process and its descendants. A group of its own would do the same, but would also shield the client from
/// Ctrl-C, and from a test runner that kills this one.
fn kill_all(id: u32) {
    let mut family = vec![id];
    // Parents first, and each stopped before its children are listed: none can start another meanwhile.
    let mut next = 0;
    while let Some(id) = family.get(next).copied() {
        signal(id, Signal::STOP);
        family.extend(children_of(id));
        next += 1;
    }
    for id in family {
        signal(id, Signal::KILL);
    }
}

fn signal(id: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

fn parent_of(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before may hold anything, also spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
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

    #[test]
    fn what_a_killed_client_started_is_killed_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        let script = format!("sh -c 'echo $$ >{0}.new; mv {0}.new {0}; sleep 100; true' & wait", file.display());
        run_within(shell(&script), Duration::from_secs(10)).unwrap_err();
        let grandchild: u32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let until = Instant::now() + Duration::from_secs(120);
        // Whoever takes in orphans may leave a dead one unburied.
        while is_alive(grandchild) {
            assert!(Instant::now() < until, "{grandchild} lives on");
            thread::sleep(POLL);
        }
    }

    fn is_alive(id: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    }
}

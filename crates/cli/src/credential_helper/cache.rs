//! What an identity was exchanged for, in a file of its user alone: Bazel asks often, and an exchange is for a job.
//!
//! What always holds: what is kept for one identity is not found by another, and no file is there with half of it.
//! Deliberately absent: removing what has ended, which opens nothing and is a few hundred bytes; the next one of the
//! same identity takes its place.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::failure::Failure;

/// The longest file that is read.
const MAX_BYTES: u64 = 16 << 10;

/// What is kept.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Kept {
    pub(super) token: String,
    /// In seconds since 1970.
    pub(super) expires_s: u64,
}

/// The place for one identity at one server.
pub(super) struct Cache {
    folder: PathBuf,
    path: PathBuf,
}

impl Cache {
    /// The place; `None` when the user has none, and everything is exchanged anew.
    pub(super) fn open(server: &str, identity: &Identity) -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
        let folder = root.join("gloriousflywheel").join("tokens");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).ok()?;
        let [first, second] = identity.parts();
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for part in [server, first, second] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        let name: String = context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(name);
        Some(Self { folder, path })
    }

    /// Waits for its turn, which lasts until what comes back is dropped.
    pub(super) fn lock(&self) -> Result<File, Failure> {
        let path = self.path.with_extension("lock");
        let locked = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let locked =
            locked.and_then(|file| flock(&file, FlockOperation::LockExclusive).map(|()| file).map_err(Into::into));
        locked.map_err(|error| Failure::failed(format!("{} cannot be locked: {error}", path.display())))
    }

    /// What is kept. A file that others could have written, or can read, counts as none.
    pub(super) fn read(&self) -> Option<Kept> {
        let file = File::open(&self.path).ok()?;
        let about = file.metadata().ok()?;
        if about.uid() != rustix::process::geteuid().as_raw() || about.mode() & 0o077 != 0 {
            return None;
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(super) fn write(&self, kept: &Kept) -> Result<(), Failure> {
        let new = self.path.with_extension(format!("{}.new", std::process::id()));
        let written = self.put(&new, kept);
        written.map_err(|error| {
            let _ = fs::remove_file(&new);
            Failure::failed(format!("the token cannot be kept in {}: {error}", self.folder.display()))
        })
    }

    fn put(&self, new: &Path, kept: &Kept) -> io::Result<()> {
        let _ = fs::remove_file(new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
        file.write_all(&serde_json::to_vec(kept)?)?;
        fs::rename(new, &self.path)
    }
}

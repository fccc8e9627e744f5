//! The files of the cache on the disk: their names, how they are written, and which of them are whole.
//!
//! A small file is written under its own name, because a second name costs as much as the file. What always holds: the
//! time of a file is set last, so a file that has the time of its [`Look`] and the size in its name is whole, unless the
//! machine itself went down.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use gf_digest::{Digest, DigestFunction};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::folders::Content;
use crate::removal::{Trash, spread};
use crate::sandbox::ActionUser;

/// What files look like, and the folders that they are shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Inputs of actions, in folders that their owner may write to. Files are of 2000-01-01: build tools that compare
    /// times see no difference between workers, and archivers know no earlier years.
    Inputs,
    /// Store paths. All is of the first second of 1970 and nobody may write to it, as in any Nix store: interpreters have
    /// compiled their libraries for files of that time.
    StorePaths,
}

impl Look {
    /// The time of everything that was given none.
    pub(crate) fn time(self) -> SystemTime {
        let seconds = match self {
            Self::Inputs => 946_684_800,
            Self::StorePaths => 1,
        };
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }
}

/// Where large files lie until they are whole.
const PARTS: &str = "parts";

/// The folder of the cache.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    folder: OwnedFd,
    look: Look,
    owner: Option<ActionUser>,
    /// Whether the mask of the process takes permissions away that files need.
    is_masked: bool,
    next_part: AtomicU64,
}

/// A file that is not whole yet. It is removed unless it is kept.
#[derive(Debug)]
pub(super) struct Part {
    files: Arc<Files>,
    name: String,
    pub(super) file: File,
    is_kept: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_kept {
            let _next_start_removes_it = rustix::fs::unlinkat(&self.files.folder, &self.name, AtFlags::empty());
        }
    }
}

impl Files {
    /// Opens the folder, emptied of what nobody knows to be whole.
    pub(super) fn open(path: PathBuf, look: Look, owner: Option<ActionUser>, trash: &Trash) -> io::Result<Self> {
        if !is_whole(&path, owner) {
            trash.remove(&path)?;
        }
        trash.remove(&path.join(PARTS))?;
        fs::create_dir_all(&path)?;
        spread(&path);
        for name in shards().chain([PARTS.to_owned()]) {
            fs::create_dir_all(path.join(name))?;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, &path, flags, Mode::empty())?;
        let mut files = Self { path, folder, look, owner, is_masked: true, next_part: AtomicU64::new(0) };
        files.is_masked = files.find_mask()?;
        fs::write(files.path.join(MARK), mark(owner))?;
        Ok(files)
    }

    /// Every file that is whole; the others are removed.
    pub(super) fn scan(&self) -> io::Result<Vec<Content>> {
        let mut whole = Vec::new();
        for shard in shards() {
            for entry in fs::read_dir(self.path.join(shard))? {
                let entry = entry?;
                let content = entry.file_name().to_str().and_then(parse_name);
                match content.filter(|content| entry.metadata().is_ok_and(|found| self.has_finished(content, &found))) {
                    Some(content) => whole.push(content),
                    None => fs::remove_file(entry.path())?,
                }
            }
        }
        Ok(whole)
    }

    /// Writes a file under its own name. Nobody else may write it meanwhile.
    pub(super) fn write(&self, content: &Content, bytes: &[u8]) -> io::Result<()> {
        let name = name(content);
        let mut file = match self.create(&name, content.is_executable) {
            // Of a try that was cut off, or of a removal that failed.
            Err(Errno::EXIST) => {
                self.remove(content)?;
                self.create(&name, content.is_executable)?
            }
            created => created?,
        };
        let written = file.write_all(bytes).and_then(|()| self.finish(content.is_executable, &file));
        if written.is_err() {
            let _next_start_removes_it = self.remove(content);
        }
        written
    }

    /// Begins a file that takes long to write.
    pub(super) fn new_part(self: &Arc<Self>, content: &Content) -> io::Result<Part> {
        let name = format!("{PARTS}/{}", self.next_part.fetch_add(1, Ordering::Relaxed));
        let file = self.create(&name, content.is_executable)?;
        Ok(Part { files: Arc::clone(self), name, file, is_kept: false })
    }

    /// Gives a file that is whole its name.
    pub(super) fn keep(&self, content: &Content, mut part: Part) -> io::Result<()> {
        self.finish(content.is_executable, &part.file)?;
        rustix::fs::renameat(&self.folder, &part.name, &self.folder, name(content))?;
        part.is_kept = true;
        Ok(())
    }

    /// Removes a file.
    pub(super) fn remove(&self, content: &Content) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, name(content), AtFlags::empty())?)
    }

    /// The folder that names of files are relative to.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Whom files belong to.
    pub(crate) const fn owner(&self) -> Option<ActionUser> {
        self.owner
    }

    /// What they look like.
    pub(crate) const fn look(&self) -> Look {
        self.look
    }

    /// Whether what is created must be given its permissions once more.
    pub(crate) const fn is_masked(&self) -> bool {
        self.is_masked
    }

    fn create(&self, name: &str, is_executable: bool) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.folder, name, flags, Mode::from(mode_of(is_executable))).map(File::from)
    }

    fn finish(&self, is_executable: bool, file: &File) -> io::Result<()> {
        if let Some(owner) = self.owner {
            std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid))?;
        }
        if self.is_masked {
            file.set_permissions(fs::Permissions::from_mode(mode_of(is_executable)))?;
        }
        file.set_modified(self.look.time())
    }

    fn has_finished(&self, content: &Content, found: &fs::Metadata) -> bool {
        let has_time = found.modified().is_ok_and(|time| time == self.look.time());
        found.is_file() && found.len() == content.digest.size_bytes() && has_time
    }

    fn find_mask(&self) -> io::Result<bool> {
        let name = format!("{PARTS}/mask");
        let folder = rustix::fs::mkdirat(&self.folder, &name, FOLDER_MODE);
        let found = folder.and_then(|()| rustix::fs::statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW))?;
        rustix::fs::unlinkat(&self.folder, &name, AtFlags::REMOVEDIR)?;
        Ok(Mode::from_raw_mode(found.st_mode) != FOLDER_MODE)
    }

    /// Where a file is.
    pub(super) fn path(&self, content: &Content) -> PathBuf {
        self.path.join(name(content))
    }
}

/// What folders of inputs may be used for, by whom.
pub(crate) const FOLDER_MODE: Mode = Mode::RWXU.union(Mode::RGRP).union(Mode::XGRP).union(Mode::ROTH).union(Mode::XOTH);

pub(crate) const fn mode_of(is_executable: bool) -> u32 {
    if is_executable { 0o555 } else { 0o444 }
}

/// The time of inputs that were given none.
pub(crate) fn file_time() -> SystemTime {
    Look::Inputs.time()
}

/// The name of a file, from the folder of the cache.
pub(crate) fn name(content: &Content) -> String {
    let hash = content.digest.hash_hex();
    let shard = hash.as_str().get(..2).unwrap_or_default();
    let suffix = if content.is_executable { ".x" } else { "" };
    format!("{shard}/{}-{hash}-{}{suffix}", content.digest.function(), content.digest.size_bytes())
}

fn parse_name(name: &str) -> Option<Content> {
    let (name, is_executable) = name.strip_suffix(".x").map_or((name, false), |name| (name, true));
    let mut parts = name.split('-');
    let function = parts.next()?;
    let function = DigestFunction::ALL.into_iter().find(|known| known.name() == function)?;
    let (hash, size) = (parts.next()?, parts.next()?.parse().ok()?);
    let digest = Digest::parse(function, hash, size).ok()?;
    parts.next().is_none().then_some(Content { digest, is_executable })
}

fn shards() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|byte| format!("{byte:02x}"))
}

/// Says in which life of the machine, and for whom, the files were written: the kernel has all that was written in it,
/// whatever happened to the worker.
pub(super) const MARK: &str = "written";

fn mark(owner: Option<ActionUser>) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let owner = owner.map_or_else(String::new, |owner| format!("{}:{}", owner.uid, owner.gid));
    format!("{} {owner}", boot.trim())
}

fn is_whole(folder: &Path, owner: Option<ActionUser>) -> bool {
    let mark = mark(owner);
    !mark.starts_with(' ') && fs::read_to_string(folder.join(MARK)).is_ok_and(|found| found == mark)
}

//! The input root that a running process sees, and that the worker changes between its requests.
//!
//! Whoever lives in it may be hostile and changes it at any moment, so no path through it is ever followed: every folder
//! is opened by its name in an open folder, and never through a link. What the process moves about stays its own,
//! because nothing leads out of the folder. What is laid out are copies (of shared blocks where the file system can),
//! never links into the cache: the process owns what it sees.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, fchown, lchown};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid};

use crate::local_blobs::{LocalBlobs, file_time, mode_of};
use crate::paths::InsidePath;
use crate::sandbox::ActionUser;

use super::inputs::{InputFile, Node};

/// How deep a process may have made folders.
pub(super) const MAX_DEPTH: usize = 256;
/// Names in one folder that are taken away; with more, the process is given up with its folder.
const MAX_NAMES: usize = 1_000_000;
const FOLDER_MODE: u32 = 0o755;
/// What may be changed is not secret: a copy of an input is its process's own.
const WRITABLE: u32 = 0o200;

/// Whether the tool is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tools {
    Missing,
    LaidOut,
}

/// The folder.
#[derive(Debug)]
pub(super) struct LiveRoot {
    folder: OwnedFd,
    owner: Option<ActionUser>,
}

impl LiveRoot {
    /// Creates it, for a process that does not run yet.
    pub(super) fn create(path: &Path, owner: Option<ActionUser>) -> io::Result<Self> {
        fs::create_dir(path)?;
        fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))?;
        if let Some(owner) = owner {
            lchown(path, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(Self { folder: open_folder(CWD, path)?, owner })
    }

    /// Lays inputs out, whose contents are pinned in the cache, and the folders that outputs lie in.
    pub(super) fn fill(
        &self,
        inputs: &Node,
        parents: &[InsidePath],
        blobs: &LocalBlobs,
        tools: Tools,
    ) -> io::Result<()> {
        self.fill_folder(self.folder.as_fd(), inputs, blobs, tools)?;
        parents.iter().try_for_each(|parent| self.make_parent(parent))
    }

    fn fill_folder(&self, folder: BorrowedFd<'_>, inputs: &Node, blobs: &LocalBlobs, tools: Tools) -> io::Result<()> {
        let is_laid_out = tools == Tools::LaidOut;
        for file in inputs.files.iter().filter(|file| !(file.is_tool && is_laid_out)) {
            self.copy(folder, file, blobs)?;
        }
        for (name, target) in &inputs.symlinks {
            rustix::fs::symlinkat(target.as_str(), folder, name.as_str())?;
            self.own_link(folder, name)?;
        }
        for (name, child) in &inputs.folders {
            let below = if child.stays && is_laid_out {
                open_folder(folder, name.as_str())?
            } else {
                self.new_folder(folder, name)?
            };
            self.fill_folder(below.as_fd(), child, blobs, tools)?;
        }
        Ok(())
    }

    fn copy(&self, folder: BorrowedFd<'_>, file: &InputFile, blobs: &LocalBlobs) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut copy = File::from(rustix::fs::openat(folder, file.name.as_str(), flags, Mode::RUSR | Mode::WUSR)?);
        // It shares blocks where the file system can.
        io::copy(&mut File::open(blobs.path(&file.content))?, &mut copy)?;
        if let Some(owner) = self.owner {
            fchown(&copy, Some(owner.uid), Some(owner.gid))?;
        }
        copy.set_permissions(Permissions::from_mode(mode_of(file.content.is_executable) | WRITABLE))?;
        copy.set_modified(file_time())
    }

    fn new_folder(&self, folder: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
        rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(FOLDER_MODE))?;
        let below = open_folder(folder, name)?;
        rustix::fs::fchmod(&below, Mode::from_raw_mode(FOLDER_MODE))?;
        if let Some(owner) = self.owner {
            fchown(&below, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(below)
    }

    fn own_link(&self, folder: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let Some(owner) = self.owner else { return Ok(()) };
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        Ok(rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Makes a folder and those that it lies in. A link or a file on the way is left as it is: what lies behind it is the
    /// action's own business.
    fn make_parent(&self, parent: &InsidePath) -> io::Result<()> {
        let mut folder = self.folder.try_clone()?;
        for name in parent.names() {
            folder = match open_folder(&folder, name.as_str()) {
                Ok(below) => below,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.new_folder(folder.as_fd(), name)?,
                Err(error) if is_no_folder(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// Removes everything that is no part of the tool. An error means that the process did something that leaves no hope
    /// of a clean folder.
    pub(super) fn clear(&self, inputs: &Node) -> io::Result<()> {
        clear(self.folder.as_fd(), Some(inputs), 0)
    }

    /// The folder itself.
    pub(super) fn root(&self) -> io::Result<OwnedFd> {
        self.folder.try_clone()
    }

    /// The folder that an output lies in, unless something on the way is none.
    pub(super) fn find(&self, folder: &InsidePath) -> io::Result<Option<OwnedFd>> {
        let mut found = self.folder.try_clone()?;
        for name in folder.names() {
            found = match open_folder(&found, name.as_str()) {
                Ok(below) => below,
                Err(error) if error.kind() == io::ErrorKind::NotFound || is_no_folder(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        Ok(Some(found))
    }
}

fn clear(folder: BorrowedFd<'_>, inputs: Option<&Node>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("folders in folders are too deep"));
    }
    for name in names(folder)? {
        let kind = kind(folder, &name)?;
        let child = inputs.and_then(|inputs| inputs.child(&name)).filter(|child| child.stays);
        if inputs.is_some_and(|inputs| inputs.has_tool(&name)) {
            if kind != FileType::RegularFile {
                return Err(io::Error::other("a file of the tool was replaced"));
            }
        } else if kind == FileType::Directory {
            clear(open_folder(folder, name.as_c_str())?.as_fd(), child, depth + 1)?;
            if child.is_none() {
                rustix::fs::unlinkat(folder, &name, AtFlags::REMOVEDIR)?;
            }
        } else {
            rustix::fs::unlinkat(folder, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

/// The names in a folder.
pub(super) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
        if names.len() > MAX_NAMES {
            return Err(io::Error::other("a folder has too many names"));
        }
    }
    Ok(names)
}

/// What a name is, whatever a link leads to.
pub(super) fn kind(folder: BorrowedFd<'_>, name: &CStr) -> io::Result<FileType> {
    let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(found.st_mode))
}

/// Opens what is a folder and no link.
pub(super) fn open_folder(at: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

fn is_no_folder(error: &io::Error) -> bool {
    let no_folder = [rustix::io::Errno::NOTDIR, rustix::io::Errno::LOOP].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|error| no_folder.contains(&error))
}

//! Trees on the disk.
//!
//! What always holds: everything belongs to whom actions run as, because an overlay copies nothing of an owner that its
//! sandbox does not know.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gf_reapi::execution::NodeProperties;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::failure::Failure;
use crate::folders::{FileEntry, Folder, Tree};
use crate::local_blobs::{LocalBlobs, file_time};
use crate::paths::InsidePath;

use super::difference::Change;

/// What files of a layout are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Material {
    /// Further names of files in the cache.
    Links,
    /// Files that may be written to.
    Copies,
}

/// Lays trees out. The files that they need are pinned in the cache.
pub(crate) struct Layout {
    pub(crate) blobs: Arc<LocalBlobs>,
    pub(crate) material: Material,
}

impl Layout {
    /// Makes an empty folder.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<(), Failure> {
        self.new_folder(path).map_err(|error| failed(path, &error))
    }

    /// Fills a folder that is empty.
    pub(crate) fn fill(&self, tree: &Tree, folder: &Folder, path: &Path) -> Result<(), Failure> {
        for file in &folder.files {
            let path = path.join(&*file.name);
            self.file(file, &path).map_err(|error| failed(&path, &error))?;
        }
        for (name, target) in &folder.symlinks {
            let path = path.join(&**name);
            self.link(target, &path).map_err(|error| failed(&path, &error))?;
        }
        for (name, digest) in &folder.folders {
            let path = path.join(&**name);
            self.make_folder(&path)?;
            if let Some(folder) = tree.folder(digest) {
                self.fill(tree, folder, &path)?;
            }
        }
        set_folder_properties(folder, path).map_err(|error| failed(path, &error))
    }

    /// Makes the layer of differences in an empty folder.
    pub(crate) fn apply(&self, tree: &Tree, changes: &[Change], top: &Path) -> Result<(), Failure> {
        for change in changes {
            let done = match change {
                Change::Folder(path, _) if path.as_os_str().is_empty() => Ok(()),
                Change::Folder(path, _) => self.new_folder(&top.join(path)),
                Change::File(path, file) => self.file(file, &top.join(path)),
                Change::Link(path, target) => self.link(target, &top.join(path)),
                Change::Gone(path) => white_out(&top.join(path)),
                Change::Subtree(path, folder) => {
                    let path = top.join(path);
                    self.make_folder(&path)?;
                    self.fill(tree, folder, &path)?;
                    Ok(())
                }
            };
            done.map_err(|error| failed(top, &error))?;
        }
        // Last, because what is made in a folder changes its time.
        for change in changes.iter().rev() {
            if let Change::Folder(path, folder) = change {
                set_folder_properties(folder, &top.join(path)).map_err(|error| failed(top, &error))?;
            }
        }
        Ok(())
    }

    /// Makes folders and those that they lie in.
    pub(crate) fn make_parents(&self, top: &Path, parents: &[InsidePath]) -> Result<(), Failure> {
        for parent in parents {
            let mut path = top.to_owned();
            for name in parent.names() {
                path.push(name);
                match self.new_folder(&path) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(failed(&path, &error)),
                }
            }
        }
        Ok(())
    }

    fn new_folder(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o755).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        self.own(path)
    }

    fn file(&self, file: &FileEntry, path: &Path) -> io::Result<()> {
        let cached = self.blobs.path(&file.content);
        if self.material == Material::Links && file.properties.is_none() {
            match fs::hard_link(&cached, path) {
                // A file has at most 65,000 names on ext4.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MLINK.raw_os_error()) => {}
                answer => return answer,
            }
        }
        let mut copy = File::create_new(path)?;
        io::copy(&mut File::open(&cached)?, &mut copy)?;
        let writable = if self.material == Material::Copies { 0o200 } else { 0 };
        let usual = crate::local_blobs::mode_of(file.content.is_executable) | writable;
        let (mode, time) = file.properties.as_deref().map_or((None, None), mode_and_time);
        self.own(path)?;
        copy.set_permissions(Permissions::from_mode(mode.unwrap_or(usual)))?;
        copy.set_modified(time.unwrap_or_else(file_time))
    }

    fn link(&self, target: &str, path: &Path) -> io::Result<()> {
        symlink(target, path)?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        match self.blobs.owner() {
            Some(owner) => lchown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }
}

/// The white-out that every kernel with overlays knows, and that any user may make.
fn white_out(path: &Path) -> io::Result<()> {
    Ok(mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)?)
}

fn set_folder_properties(folder: &Folder, path: &Path) -> io::Result<()> {
    let Some(properties) = folder.properties.as_deref() else { return Ok(()) };
    let (mode, time) = mode_and_time(properties);
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    match time {
        Some(time) => File::open(path)?.set_modified(time),
        None => Ok(()),
    }
}

/// Only permissions: the bits that give a program its owner's rights are nobody's to ask for.
fn mode_and_time(properties: &NodeProperties) -> (Option<u32>, Option<SystemTime>) {
    let time = properties.mtime.and_then(|time| {
        let seconds = u64::try_from(time.seconds).ok()?;
        let nanos = u32::try_from(time.nanos).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos.min(999_999_999)))
    });
    (properties.unix_mode.map(|mode| mode & 0o777), time)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format_args!("lay out the input {}", path.display()), error)
}

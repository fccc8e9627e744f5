//! Trees on the disk.
//!
//! What always holds: everything belongs to whom actions run as, because an overlay copies nothing of an owner that its
//! sandbox does not know; whoever nobody waits for any more stops between two files.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use gf_reapi::execution::NodeProperties;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::folders::{Content, FileEntry, Folder, Tree};
use crate::local_blobs::{FOLDER_MODE, Files, Look, file_name, mode_of};
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

/// Gives a file in the first folder a further name in the second.
pub(crate) type Link = fn(BorrowedFd<'_>, &str, BorrowedFd<'_>, &Path) -> rustix::io::Result<()>;

/// Lays trees out. The files that they need are pinned in the cache.
pub(crate) struct Layout {
    pub(crate) files: Arc<Files>,
    pub(crate) material: Material,
    pub(crate) link: Link,
    /// Set once nobody waits for it.
    pub(crate) is_unwanted: Arc<AtomicBool>,
}

/// Says that nobody waits any more, when it goes.
pub(crate) struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Folders that one thread takes at a time; fewer are left to one thread.
const FOLDERS_AT_ONCE: usize = 16;
/// Threads of one tree. More would only wait for the disk together.
const MAX_THREADS: usize = 4;

/// A folder of a tree and where it goes.
type Placed<'a> = (PathBuf, &'a Folder);

impl Layout {
    pub(crate) fn new(files: Arc<Files>, material: Material) -> (Self, Wanted) {
        let is_unwanted = Arc::new(AtomicBool::new(false));
        let wanted = Wanted(Arc::clone(&is_unwanted));
        let link: Link = |old, name, new, path| rustix::fs::linkat(old, name, new, path, AtFlags::empty());
        (Self { files, material, link, is_unwanted }, wanted)
    }

    /// Makes a folder and what is in it.
    pub(crate) fn make(&self, tree: &Tree, folder: &Folder, path: &Path) -> Result<OwnedFd, Failure> {
        let top = self.make_top(path)?;
        self.fill(tree, folder, top.as_fd(), Path::new("")).map_err(|error| failed(path, &error))?;
        Ok(top)
    }

    /// Makes a file.
    pub(crate) fn make_file(&self, content: Content, path: &Path) -> Result<(), Failure> {
        let file = FileEntry { name: "".into(), content, properties: None };
        self.file(&file, CWD, path).map_err(|error| failed(path, &error))
    }

    /// Fills a folder that is there and empty.
    pub(crate) fn fill_top(&self, tree: &Tree, folder: &Folder, path: &Path) -> Result<OwnedFd, Failure> {
        let top = open_folder(CWD, path).map_err(|error| failed(path, &error))?;
        self.fill(tree, folder, top.as_fd(), Path::new("")).map_err(|error| failed(path, &error))?;
        Ok(top)
    }

    /// Makes an empty folder.
    pub(crate) fn make_top(&self, path: &Path) -> Result<OwnedFd, Failure> {
        self.new_folder(CWD, path).and_then(|()| open_folder(CWD, path)).map_err(|error| failed(path, &error))
    }

    /// Makes the layer of differences in an empty folder.
    pub(crate) fn apply(&self, tree: &Tree, changes: &[Change], top: BorrowedFd<'_>) -> Result<(), Failure> {
        for change in changes {
            let done = match change {
                Change::Folder(path, _) if path.as_os_str().is_empty() => Ok(()),
                Change::Folder(path, _) => self.new_folder(top, path),
                Change::File(path, file) => self.file(file, top, path),
                Change::Link(path, target) => self.symlink(target, top, path),
                Change::Gone(path) => white_out(top, path),
                Change::Subtree(path, folder) => {
                    self.new_folder(top, path).and_then(|()| self.fill(tree, folder, top, path))
                }
            };
            done.map_err(|error| failed(change.path(), &error))?;
        }
        // Last, because what is made in a folder changes its time.
        for change in changes.iter().rev() {
            if let Change::Folder(path, folder) = change {
                set_folder_properties(folder, top, path).map_err(|error| failed(path, &error))?;
            }
        }
        Ok(())
    }

    /// Makes folders and those that they lie in.
    pub(crate) fn make_parents(&self, top: BorrowedFd<'_>, parents: &[InsidePath]) -> Result<(), Failure> {
        for parent in parents {
            let mut path = PathBuf::new();
            for name in parent.names() {
                path.push(name);
                let made = match self.new_folder(top, &path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.uncover(top, &path),
                    made => made,
                };
                made.map_err(|error| failed(&path, &error))?;
            }
        }
        Ok(())
    }

    /// Where a white-out hides what the base has, a folder takes its place that hides as much.
    fn uncover(&self, top: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let found = rustix::fs::statat(top, path, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice {
            return Ok(());
        }
        rustix::fs::unlinkat(top, path, AtFlags::empty())?;
        self.new_folder(top, path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(top, path, flags, Mode::empty())?;
        Ok(rustix::fs::fsetxattr(&folder, OPAQUE, b"y", XattrFlags::empty())?)
    }

    /// Fills a folder that is empty: first all folders, then files by several threads.
    fn fill(&self, tree: &Tree, folder: &Folder, top: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
        let mut folders: Vec<Placed<'_>> = vec![(at.to_owned(), folder)];
        let mut next = 0;
        while let Some((path, folder)) = folders.get(next) {
            let below =
                folder.folders.iter().filter_map(|(name, digest)| Some((path.join(&**name), tree.folder(digest)?)));
            let below: Vec<Placed<'_>> = below.map(|(path, folder)| (path, &**folder)).collect();
            for (path, _) in &below {
                self.check_wanted()?;
                self.new_folder(top, path)?;
            }
            folders.extend(below);
            next += 1;
        }
        self.fill_each(top, &folders)?;
        folders.iter().rev().try_for_each(|(path, folder)| match self.files.look() {
            Look::Inputs => set_folder_properties(folder, top, path),
            Look::StorePaths => seal_folder(top, path),
        })
    }

    fn fill_each(&self, top: BorrowedFd<'_>, folders: &[Placed<'_>]) -> io::Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<()> {
            loop {
                let first = next.fetch_add(FOLDERS_AT_ONCE, Ordering::Relaxed);
                let some = folders.iter().skip(first).take(FOLDERS_AT_ONCE);
                if first >= folders.len() {
                    return Ok(());
                }
                for (path, folder) in some {
                    self.fill_one(folder, top, path)?;
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let helpers = folders.len().div_ceil(FOLDERS_AT_ONCE).min(cores).min(MAX_THREADS).saturating_sub(1);
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let of_helpers = helpers.into_iter().map(|helper| {
                helper.join().unwrap_or_else(|_| Err(io::Error::other("a thread that lays out inputs failed")))
            });
            of_helpers.fold(mine, io::Result::and)
        })
    }

    fn fill_one(&self, folder: &Folder, top: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        if folder.files.is_empty() && folder.symlinks.is_empty() {
            return Ok(());
        }
        let opened = open_folder(top, path)?;
        for file in &folder.files {
            self.check_wanted()?;
            self.file(file, opened.as_fd(), Path::new(&*file.name))?;
        }
        for (name, target) in &folder.symlinks {
            self.symlink(target, opened.as_fd(), Path::new(&**name))?;
        }
        Ok(())
    }

    fn check_wanted(&self) -> io::Result<()> {
        if self.is_unwanted.load(Ordering::Relaxed) {
            return Err(io::Error::other("nobody waits for it any more"));
        }
        Ok(())
    }

    fn new_folder(&self, at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        rustix::fs::mkdirat(at, path, FOLDER_MODE)?;
        if self.files.is_masked() {
            rustix::fs::chmodat(at, path, FOLDER_MODE, AtFlags::empty())?;
        }
        self.own(at, path)
    }

    fn file(&self, file: &FileEntry, at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let cached = file_name(&file.content);
        if self.material == Material::Links && file.properties.is_none() {
            match (self.link)(self.files.folder(), &cached, at, path) {
                // A file has at most 65,000 names on ext4.
                Err(Errno::MLINK) => {}
                answer => return Ok(answer?),
            }
        }
        self.copy(file, &cached, at, path)
    }

    fn copy(&self, file: &FileEntry, cached: &str, at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let cached = rustix::fs::openat(self.files.folder(), cached, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut copy = File::from(rustix::fs::openat(at, path, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(&mut File::from(cached), &mut copy)?;
        let writable = if self.material == Material::Copies { 0o200 } else { 0 };
        let usual = mode_of(file.content.is_executable) | writable;
        let (mode, time) = file.properties.as_deref().map_or((None, None), mode_and_time);
        self.own(at, path)?;
        copy.set_permissions(Permissions::from_mode(mode.unwrap_or(usual)))?;
        copy.set_modified(time.unwrap_or_else(|| self.files.look().time()))
    }

    fn symlink(&self, target: &str, at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        rustix::fs::symlinkat(target, at, path)?;
        if self.files.look() == Look::StorePaths {
            set_time(at, path, Look::StorePaths.time())?;
        }
        self.own(at, path)
    }

    fn own(&self, at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let Some(owner) = self.files.owner() else { return Ok(()) };
        let (user, group) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        Ok(rustix::fs::chownat(at, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

fn open_folder(at: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

/// Marks a folder that does not show what layers below have in its place.
const OPAQUE: &str = "user.overlay.opaque";

/// The white-out that every kernel with overlays knows, and that any user may make.
fn white_out(at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mknodat(at, path, FileType::CharacterDevice, Mode::empty(), 0)?)
}

/// Nobody may write to it any more.
fn seal_folder(at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    set_time(at, path, Look::StorePaths.time())?;
    Ok(rustix::fs::chmodat(at, path, Mode::from_raw_mode(mode_of(true)), AtFlags::empty())?)
}

/// Of a link, it is its own.
fn set_time(at: BorrowedFd<'_>, path: &Path, time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = rustix::fs::Timespec {
        tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: since.subsec_nanos().into(),
    };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(at, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn set_folder_properties(folder: &Folder, at: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let Some(properties) = folder.properties.as_deref() else { return Ok(()) };
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let (mode, time) = mode_and_time(properties);
    if let Some(time) = time {
        set_time(at, path, time)?;
    }
    match mode {
        Some(mode) => Ok(rustix::fs::chmodat(at, path, Mode::from_raw_mode(mode), AtFlags::empty())?),
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
    if error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) {
        return Failure::invalid("the input root has a path that is longer than this system takes");
    }
    Failure::io(format_args!("lay out the input {}", path.display()), error)
}

//! Folders of runs: made once, and used again while they are as good as new.
//!
//! To make and remove its few files and folders costs more than a small sandbox, above all on ext4, which takes no inode
//! again that was just freed and looks at all of those one by one. What always holds: a folder has one run at a time, and
//! is given to another only if nothing is left in it and whatever an action may have opened in it is in all that can be
//! seen of it as it was made: owner, mode, links, size, blocks, times, attributes, access lists, flags. Only when its inode
//! was last changed may differ, a time that nobody can set.
//!
//! Deliberately absent: repair. What an action changed about a folder itself, and not only in it, is removed. So is the
//! whole folder of a run whose processes could reach others (by the network of the machine they could hand on what
//! they had open), and of one that did not end in good order.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Dir, IFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::removal::{Trash, spread};
use crate::sandbox::{ActionUser, SHM, ScratchFolder, TMP};

/// The name of an empty folder that an action may change.
pub(crate) const ROOT: &str = "root";
/// More are not kept.
const MOST_KEPT: usize = 64;
const LOG_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
/// What the kernel takes as the value of one.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;

/// Makes and keeps them.
#[derive(Debug)]
pub(crate) struct RunFolders {
    folder: PathBuf,
    next: AtomicU64,
    owner: Option<ActionUser>,
    trash: Arc<Trash>,
    unused: Mutex<Vec<RunFolder>>,
}

/// The folder of one run.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    pieces: Vec<Piece>,
}

/// Something in it that an action gets to see.
#[derive(Debug)]
struct Piece {
    path: PathBuf,
    kind: Kind,
    new: Look,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    Log,
}

/// What can be seen of a file or folder, but for what is in it.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    inode: (u64, u64),
    owner: (u32, u32),
    mode: u32,
    links: u64,
    size: u64,
    blocks: u64,
    /// Nothing where the file system has no flags.
    flags: Option<IFlags>,
    /// With names and values, and access lists among them.
    attributes: Vec<(CString, Vec<u8>)>,
    times: Times,
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    read: (i64, i64),
    changed: (i64, i64),
}

impl RunFolders {
    /// Removes what an earlier worker left.
    pub(crate) fn open(folder: PathBuf, owner: Option<ActionUser>, trash: Arc<Trash>) -> io::Result<Self> {
        trash.remove(&folder)?;
        fs::create_dir_all(&folder)?;
        spread(&folder);
        Ok(Self { folder, next: AtomicU64::new(0), owner, trash, unused: Mutex::default() })
    }

    /// One that was used before, if any is kept.
    pub(crate) fn take_kept(&self) -> Option<RunFolder> {
        self.lock().pop()
    }

    /// A new one.
    pub(crate) fn make(&self) -> io::Result<RunFolder> {
        let path = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let made = self.fill(&path);
        if made.is_err() {
            let _next_start_removes_it = self.trash.remove(&path);
        }
        Ok(RunFolder { pieces: made?, path })
    }

    /// Takes it back from a run that is over.
    pub(crate) fn give_back(&self, folder: RunFolder) -> io::Result<()> {
        let is_as_new = self.renew(&folder).unwrap_or(false);
        let mut unused = self.lock();
        if is_as_new && unused.len() < MOST_KEPT {
            unused.push(folder);
            return Ok(());
        }
        drop(unused);
        self.remove(&folder)
    }

    /// Removes it.
    pub(crate) fn remove(&self, folder: &RunFolder) -> io::Result<()> {
        self.trash.remove(&folder.path)
    }

    fn fill(&self, path: &Path) -> io::Result<Vec<Piece>> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        let scratch = path.join("scratch");
        self.folder(&scratch, FOLDER_MODE)?;
        let mut folders = vec![(path.join(ROOT), FOLDER_MODE)];
        folders.extend([TMP, SHM].map(|ScratchFolder { name, mode }| (scratch.join(name), mode)));
        let mut pieces = Vec::new();
        for (path, mode) in folders {
            pieces.push(Piece { new: self.folder(&path, mode)?, path, kind: Kind::Folder });
        }
        for path in ["stdout", "stderr"].map(|name| path.join(name)) {
            let file = OpenOptions::new().write(true).create_new(true).mode(LOG_MODE).open(&path)?;
            pieces.push(Piece { new: self.settle(&file, LOG_MODE)?, path, kind: Kind::Log });
        }
        Ok(pieces)
    }

    fn folder(&self, path: &Path, mode: u32) -> io::Result<Look> {
        fs::create_dir(path)?;
        self.settle(&File::open(path)?, mode)
    }

    /// Gives it to whom actions run as; how it looks then.
    fn settle(&self, file: &File, mode: u32) -> io::Result<Look> {
        if let Some(owner) = self.owner {
            std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
        Look::of(file)
    }

    /// Empties it; whether it is as it was made.
    fn renew(&self, folder: &RunFolder) -> io::Result<bool> {
        let kept = |path: &Path| folder.pieces.iter().any(|piece| piece.path.starts_with(path));
        for path in [&folder.path, &folder.scratch()] {
            self.empty(path, &open_folder(path)?, &kept)?;
        }
        for piece in &folder.pieces {
            let file = match piece.kind {
                Kind::Folder => {
                    let opened = open_folder(&piece.path)?;
                    self.empty(&piece.path, &opened, &|_| false)?;
                    opened
                }
                Kind::Log => open_log(&piece.path)?,
            };
            if !piece.is_as_new(&file)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn empty(&self, path: &Path, opened: &File, is_kept: &dyn Fn(&Path) -> bool) -> io::Result<()> {
        for entry in Dir::new(OwnedFd::from(opened.try_clone()?))? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let path = path.join(OsStr::from_bytes(name.to_bytes()));
                if !is_kept(&path) {
                    self.trash.remove(&path)?;
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<RunFolder>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunFolder {
    /// What the first process of the sandbox keeps in order.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    #[cfg(test)]
    fn root(&self) -> PathBuf {
        self.path.join(ROOT)
    }

    /// Where an empty folder [`ROOT`] is, and what is made for this run alone may lie.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An empty file.
    pub(crate) fn stdout(&self) -> PathBuf {
        self.path.join("stdout")
    }

    /// An empty file.
    pub(crate) fn stderr(&self) -> PathBuf {
        self.path.join("stderr")
    }
}

impl Piece {
    fn is_as_new(&self, file: &File) -> io::Result<bool> {
        if self.kind == Kind::Log && file.metadata()?.len() > 0 {
            file.set_len(0)?;
        }
        let look = Look::of(file)?;
        if look.times != self.new.times {
            self.new.times.put_back(file)?;
        }
        Ok(Look { times: self.new.times, ..look } == self.new)
    }
}

impl Look {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let flags = match rustix::fs::ioctl_getflags(file) {
            Ok(flags) => Some(flags),
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            inode: (found.dev(), found.ino()),
            owner: (found.uid(), found.gid()),
            mode: found.mode(),
            links: found.nlink(),
            size: found.size(),
            blocks: found.blocks(),
            flags,
            attributes: attributes(file)?,
            times: Times { read: (found.atime(), found.atime_nsec()), changed: (found.mtime(), found.mtime_nsec()) },
        })
    }
}

fn attributes(file: &File) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let length = match rustix::fs::flistxattr_query(file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0; length];
    let length = rustix::fs::flistxattr(file, names.as_mut_slice())?;
    names.truncate(length);
    let mut attributes = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok()) {
        let mut value = vec![0; MAX_ATTRIBUTE_BYTES];
        let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice())?;
        value.truncate(length);
        attributes.push((name.to_owned(), value));
    }
    Ok(attributes)
}

/// Looking into it leaves no trace.
fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn open_log(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

impl Times {
    fn put_back(self, file: &File) -> io::Result<()> {
        let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: time(self.read), last_modification: time(self.changed) };
        Ok(rustix::fs::futimens(file, &times)?)
    }
}

#[cfg(test)]
mod tests;

//! Removing what an action has left behind, whatever it is.
//!
//! What always holds: the depth of the tree costs neither stack nor open files nor long paths, because every folder is
//! moved beside the others before it is looked into. Nothing below the named folder is reached by a path: every folder is
//! opened by its name in an open one, without following a link, and what is changed or removed is named in that. So
//! somebody who still writes to the tree can keep it from going, but cannot send the removal elsewhere. A worker that
//! is not root owns what its actions wrote and opens what they shut.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Folders of one removal that are looked through once more, because something was put into them meanwhile.
const MAX_SECOND_PASSES: u32 = 1000;

/// A folder that things are thrown into. It lies on the same file system as what is thrown away.
#[derive(Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
    next: AtomicU64,
}

impl Trash {
    /// Empties the folder, or creates it.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        let trash = Self { folder, next: AtomicU64::new(0) };
        if trash.folder.try_exists()? {
            // Names of before and of now must not meet.
            let old = trash.folder.with_extension("old");
            if !old.try_exists()? {
                fs::rename(&trash.folder, &old)?;
            }
            fs::create_dir_all(&trash.folder)?;
            trash.remove(&old)?;
        } else {
            fs::create_dir_all(&trash.folder)?;
        }
        Ok(trash)
    }

    /// Removes a file or folder. Nothing there is no error.
    ///
    /// Whoever names it must be the only one who can change the folder that it is in.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let parent = match open_folder(CWD, parent) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        };
        let trash = open_folder(CWD, &self.folder)?;
        let Some(first) = self.dispose(&parent, name, &trash)? else { return Ok(()) };
        let mut passes = MAX_SECOND_PASSES;
        let mut names = vec![first];
        while let Some(name) = names.pop() {
            let folder = match open_folder(&trash, OsStr::new(&name)) {
                // Nobody but this worker changes the trash itself.
                Err(Errno::NOENT) => continue,
                opened => opened?,
            };
            self.empty(&folder, &trash, &mut names)?;
            match rustix::fs::unlinkat(&trash, &name, AtFlags::REMOVEDIR) {
                // Whoever fills it has not noticed yet that nobody waits for that.
                Err(Errno::NOTEMPTY | Errno::EXIST) if passes > 0 => {
                    passes -= 1;
                    names.push(name);
                }
                removed => removed?,
            }
        }
        Ok(())
    }

    fn empty(&self, folder: &OwnedFd, trash: &OwnedFd, names: &mut Vec<String>) -> io::Result<()> {
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.extend(self.dispose(folder, OsStr::from_bytes(name.to_bytes()), trash)?);
            }
        }
        Ok(())
    }

    /// Removes what has this name in a folder; if that is a folder too, it is moved here, and its name here returned.
    fn dispose(&self, parent: &OwnedFd, name: &OsStr, trash: &OwnedFd) -> io::Result<Option<String>> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            // Linux says the first of a folder, and some file systems the second.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(Errno::NOENT) => return Ok(None),
            removed => return Ok(removed.map(|()| None)?),
        }
        let here = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        // A folder moves only if it may be written to, because `..` in it changes.
        open_to_owner(parent, name)?;
        rustix::fs::renameat(parent, name, trash, &here)?;
        // What was moved need not be what was opened.
        open_to_owner(trash, OsStr::new(&here))?;
        Ok(Some(here))
    }
}

/// Lets the owner into a folder. What is no folder is left as it is.
fn open_to_owner(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // By this name the kernel knows the open folder itself, and it may be opened by nobody yet.
    Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), Mode::RWXU)?)
}

fn open_folder(parent: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Has what is made in the folders of this one put into different parts of the disk, where the file system can.
///
/// Ext4 takes no inode again that was freed a minute ago, and looks at all of those one by one. Of thousands of files
/// that are made where thousands were just removed, each would cost milliseconds.
pub(crate) fn spread(folder: &Path) {
    let marked = fs::File::open(folder).map_err(|_| rustix::io::Errno::NOENT).and_then(|folder| {
        let flags = rustix::fs::ioctl_getflags(&folder)?;
        rustix::fs::ioctl_setflags(&folder, flags | rustix::fs::IFlags::TOPDIR)
    });
    if let Err(error) = marked {
        tracing::debug!(%error, path = %folder.display(), "the file system cannot spread folders");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn deep_shut_and_linked_folders_go() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let (victim, kept) = (dir.path().join("victim"), dir.path().join("kept"));
        fs::create_dir(&victim).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        std::os::unix::fs::symlink(&kept, victim.join("link")).unwrap();
        // Deeper than a path can be long.
        let mut top = victim.join("d");
        fs::create_dir(&top).unwrap();
        for _ in 0..3000 {
            let outer = dir.path().join("outer");
            fs::create_dir(&outer).unwrap();
            fs::rename(&top, outer.join("d")).unwrap();
            top = victim.join("d");
            fs::rename(&outer, &top).unwrap();
        }
        fs::set_permissions(&top, Permissions::from_mode(0o000)).unwrap();
        trash.remove(&victim).unwrap();
        assert!(!victim.exists() && kept.join("file").exists());
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
        trash.remove(&victim).unwrap();
    }

    #[test]
    fn a_folder_that_becomes_a_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let (victim, kept) = (dir.path().join("victim"), dir.path().join("kept"));
        fs::create_dir_all(victim.join("inner")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        fs::set_permissions(&kept, Permissions::from_mode(0o755)).unwrap();
        let (open, here) = (open_folder(CWD, &victim).unwrap(), open_folder(CWD, &trash.folder).unwrap());
        // What an accomplice does between two looks.
        fs::remove_dir(victim.join("inner")).unwrap();
        std::os::unix::fs::symlink(&kept, victim.join("inner")).unwrap();
        assert!(open_to_owner(&open, OsStr::new("inner")).is_err());
        fs::rename(victim.join("inner"), trash.folder.join("7")).unwrap();
        assert!(open_folder(&here, OsStr::new("7")).is_err());
        trash.remove(&trash.folder.join("7")).unwrap();
        trash.remove(&victim).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(kept.join("file").exists() && !victim.exists());
    }

    #[test]
    fn what_a_killed_worker_left_in_it_goes_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("trash");
        fs::create_dir_all(folder.join("0/left")).unwrap();
        Trash::open(folder.clone()).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(!dir.path().join("trash.old").exists());
    }
}

//! Removing what an action has left behind, whatever it is.
//!
//! What always holds: the depth of the tree costs neither stack nor open files nor long paths, because every folder is
//! moved beside the others before it is looked into; no link is followed. A worker that is not root owns what its actions
//! wrote and opens what they shut.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let Some(kind) = found(fs::symlink_metadata(path))? else { return Ok(()) };
        if !kind.is_dir() {
            return fs::remove_file(path);
        }
        let mut passes = MAX_SECOND_PASSES;
        let mut folders = vec![self.take(path)?];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(self.take(&entry.path())?);
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            match fs::remove_dir(&folder) {
                // Whoever fills it has not noticed yet that nobody waits for that.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && passes > 0 => {
                    passes -= 1;
                    folders.push(folder);
                }
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Moves a folder here, open to its owner.
    fn take(&self, folder: &Path) -> io::Result<PathBuf> {
        let here = self.folder.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        fs::rename(folder, &here)?;
        Ok(here)
    }
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

fn found<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
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
    fn what_a_killed_worker_left_in_it_goes_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("trash");
        fs::create_dir_all(folder.join("0/left")).unwrap();
        Trash::open(folder.clone()).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert!(!dir.path().join("trash.old").exists());
    }
}

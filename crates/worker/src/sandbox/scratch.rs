//! What lies in the scratch folder of a run, and removing what an action has left behind.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A folder that every run has in its scratch folder. It may be there before the run: empty, and with this mode the
/// action's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScratchFolder {
    pub(crate) name: &'static str,
    pub(crate) mode: u32,
}

/// What is seen as `/tmp`.
pub(crate) const TMP: ScratchFolder = ScratchFolder { name: "tmp", mode: 0o1777 };
/// What is seen as `/dev/shm`.
pub(crate) const SHM: ScratchFolder = ScratchFolder { name: "shm", mode: 0o1777 };

/// Removes a folder and everything in it, also what its owner has shut: a worker that is not root owns what its actions
/// wrote, but neither overlays nor actions leave every folder open. No link is followed. Nothing there is no error.
///
/// # Errors
/// What the file system says, for instance because something in it is another user's.
pub fn remove_scratch(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_folders(path)?;
            fs::remove_dir_all(path)
        }
        answer => answer,
    }
}

/// Lets the owner into every folder. Only the worker is left here to change anything: the action is over.
fn open_folders(root: &Path) -> io::Result<()> {
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shut_folders_are_removed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (scratch, kept) = (folder.path().join("scratch"), folder.path().join("kept"));
        fs::create_dir_all(scratch.join("a/b/c")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "kept").unwrap();
        fs::write(scratch.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, scratch.join("a/link")).unwrap();
        fs::set_permissions(scratch.join("a/b"), Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(scratch.join("a"), Permissions::from_mode(0o500)).unwrap();
        remove_scratch(&scratch).unwrap();
        assert!(!scratch.exists());
        assert!(kept.join("file").exists());
        remove_scratch(&scratch).unwrap();
    }
}

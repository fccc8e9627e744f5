//! Files of copies: made for their owner alone, and with their name only when they are whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// What SQLite keeps beside a file that is in use.
pub(crate) const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The path with something at its end.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Takes a file for its owner alone, which is to hold the fingerprints of tokens, and empties it: what a killed process left
/// there is of no use. It is this caller's for as long as the file is held; `WouldBlock` when somebody else fills it.
pub(crate) fn take_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.try_lock()?;
    // Whoever had it before may have given it its name meanwhile.
    let (own, there) = (file.metadata()?, fs::metadata(path));
    if own.nlink() != 1 || there.is_ok_and(|there| there.ino() != own.ino()) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    Ok(file)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a whole file its name, durably: at no moment is half of it there. This never replaces what came there meanwhile.
pub(crate) fn give_name(whole: &Path, name: &Path) -> io::Result<()> {
    File::open(whole)?.sync_all()?;
    match fs::hard_link(whole, name) {
        // File systems without links, such as those of sticks.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => rename_to_new(whole, name)?,
        linked => linked?,
    }
    let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn rename_to_new(whole: &Path, name: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, whole, CWD, name, RenameFlags::NOREPLACE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_filled_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, name) = (folder.path().join("a.partial"), folder.path().join("a"));
        fs::write(&partial, "half of it").unwrap();
        let held = take_private(&partial).unwrap();
        assert_eq!(fs::read(&partial).unwrap(), b"");
        assert_eq!(take_private(&partial).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        fs::write(&partial, "whole").unwrap();
        give_name(&partial, &name).unwrap();
        drop(held);
        // It has its name: nobody empties it any more.
        assert_eq!(take_private(&partial).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        remove_if_there(&partial).unwrap();
        assert!(take_private(&partial).is_ok());
        assert_eq!(fs::read(&name).unwrap(), b"whole");
    }

    #[test]
    fn without_links_it_is_renamed_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, name) = (folder.path().join("whole"), folder.path().join("name"));
        fs::write(&whole, "whole").unwrap();
        rename_to_new(&whole, &name).unwrap();
        assert!(fs::read(&name).unwrap() == b"whole" && !whole.exists());
        fs::write(&whole, "another").unwrap();
        assert_eq!(rename_to_new(&whole, &name).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&name).unwrap(), b"whole");
    }
}

//! Files of copies: made for their owner alone, and with their name only when they are whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What SQLite keeps beside a file that is in use.
pub(crate) const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The path with something at its end.
pub(crate) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Makes a file for its owner alone: it is to hold the fingerprints of tokens.
pub(crate) fn make_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives a whole file its name, durably. Unlike renaming, this never replaces what came there meanwhile.
pub(crate) fn give_name(whole: &Path, name: &Path) -> io::Result<()> {
    File::open(whole)?.sync_all()?;
    fs::hard_link(whole, name)?;
    let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

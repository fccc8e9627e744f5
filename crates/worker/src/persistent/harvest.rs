//! Taking outputs out of the input root of a process that is still alive.
//!
//! Whoever looks for outputs afterwards, or removes them, goes by plain paths, which is safe only where nobody changes
//! anything. So files and links are moved to a folder that the process never sees, and folders are copied there: a
//! process may still be inside one that was moved. What always holds: nothing is read or written through a link.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use crate::paths::InsidePath;

use super::root::{self, LiveRoot, MAX_DEPTH};

/// Entries of all folders among the outputs of one request.
const MAX_ENTRIES: u64 = 500_000;

/// What may still be copied.
struct Budget {
    entries: u64,
    bytes: u64,
}

/// Takes outputs to the same paths below `into`, a new folder on the same file system. What is not there is left out.
/// After an error, the process may be inside a folder below `into`: it must end before that is looked into.
pub(super) fn take_out(live: &LiveRoot, outputs: &[InsidePath], into: &Path, max_bytes: u64) -> io::Result<()> {
    let mut budget = Budget { entries: MAX_ENTRIES, bytes: max_bytes };
    let mut outputs: Vec<&InsidePath> = outputs.iter().collect();
    // Folders come before what lies in them, which has come with them then.
    outputs.sort_unstable();
    if outputs.first().is_some_and(|output| output.names().is_empty()) {
        return copy_root(live, into, &mut budget);
    }
    fs::create_dir(into)?;
    let mut taken: HashSet<&[String]> = HashSet::new();
    for output in outputs {
        let names = output.names();
        let has_come = (1..=names.len()).any(|length| names.get(..length).is_some_and(|above| taken.contains(above)));
        if !has_come && take(live, output, into, &mut budget)? {
            taken.insert(names);
        }
    }
    Ok(())
}

fn copy_root(live: &LiveRoot, into: &Path, budget: &mut Budget) -> io::Result<()> {
    let root = live.root()?;
    copy_folder(root.as_fd(), into, budget, 0)
}

/// Whether it was there.
fn take(live: &LiveRoot, output: &InsidePath, into: &Path, budget: &mut Budget) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (output.parent(), output.names().last()) else { return Ok(false) };
    let Some(folder) = live.find(&parent)? else { return Ok(false) };
    let kind = match rustix::fs::statat(&folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // No output that was taken is above this one, so all of these are folders that the worker made.
    let target = into.join(output.to_path());
    fs::create_dir_all(target.parent().unwrap_or(into))?;
    if kind == FileType::Directory {
        copy_folder(root::open_folder(&folder, name.as_str())?.as_fd(), &target, budget, 0)?;
        return Ok(true);
    }
    rustix::fs::renameat(&folder, name.as_str(), CWD, &target)?;
    // Only now its name is out of the hands of the process.
    if fs::symlink_metadata(&target)?.is_dir() {
        return Err(io::Error::other("an output changed while it was taken"));
    }
    Ok(true)
}

fn copy_folder(from: BorrowedFd<'_>, to: &Path, budget: &mut Budget, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("an output is too deep"));
    }
    fs::create_dir(to)?;
    for name in root::names(from)? {
        budget.entries =
            budget.entries.checked_sub(1).ok_or_else(|| io::Error::other("the outputs have too many entries"))?;
        let target = to.join(OsStr::from_bytes(name.to_bytes()));
        match root::kind(from, &name)? {
            FileType::Directory => {
                copy_folder(root::open_folder(from, name.as_c_str())?.as_fd(), &target, budget, depth + 1)?;
            }
            FileType::RegularFile => copy_file(from, &name, &target, budget)?,
            FileType::Symlink => {
                let leads_to = rustix::fs::readlinkat(from, &name, Vec::new())?;
                symlink(OsStr::from_bytes(leads_to.to_bytes()), &target)?;
            }
            // Whoever looks for outputs says what is wrong with it.
            _ => rustix::fs::mknodat(CWD, &target, FileType::Fifo, Mode::RUSR, 0)?,
        }
    }
    let found = File::from(from.try_clone_to_owned()?).metadata()?;
    let copy = File::open(to)?;
    copy.set_modified(found.modified()?)?;
    // The worker must get in, even where it is not root.
    copy.set_permissions(Permissions::from_mode(found.permissions().mode() & 0o777 | 0o700))
}

fn copy_file(from: BorrowedFd<'_>, name: &CStr, to: &Path, budget: &mut Budget) -> io::Result<()> {
    // A pipe that took its place must not keep us waiting.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
    let found = source.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("an output changed while it was read"));
    }
    let mut copy = File::create_new(to)?;
    let copied = io::copy(&mut source.take(budget.bytes.saturating_add(1)), &mut copy)?;
    budget.bytes =
        budget.bytes.checked_sub(copied).ok_or_else(|| io::Error::other("the outputs are larger than allowed"))?;
    copy.set_modified(found.modified()?)?;
    copy.set_permissions(Permissions::from_mode(found.permissions().mode() & 0o777 | 0o400))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> InsidePath {
        InsidePath::parse("output", text).unwrap()
    }

    #[test]
    fn outputs_are_taken_out_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, into, outside) = (dir.path().join("root"), dir.path().join("into"), dir.path().join("outside"));
        let live = LiveRoot::create(&inside, None).unwrap();
        fs::create_dir_all(outside.join("below")).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::create_dir_all(inside.join("folder/deep")).unwrap();
        fs::write(inside.join("folder/deep/file"), "deep").unwrap();
        fs::write(inside.join("file"), "file").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        symlink(outside.join("secret"), inside.join("folder/link")).unwrap();

        let outputs = ["folder/deep/file", "folder", "file", "link", "link/secret", "link/below/x", "absent"].map(path);
        take_out(&live, &outputs, &into, 1000).unwrap();
        let out = into;
        assert_eq!(fs::read_to_string(out.join("file")).unwrap(), "file");
        assert_eq!(fs::read_to_string(out.join("folder/deep/file")).unwrap(), "deep");
        assert!(out.join("link").is_symlink() && out.join("folder/link").is_symlink());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 2, "nothing was moved or made there");
        assert!(outside.join("secret").is_file() && !inside.join("file").exists());
    }

    #[test]
    fn what_a_link_hides_is_no_output_and_what_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("root"), dir.path().join("outside"));
        let live = LiveRoot::create(&inside, None).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        let into = dir.path().join("into");
        take_out(&live, &[path("link/secret")], &into, 1000).unwrap();
        assert_eq!(fs::read_dir(into).unwrap().count(), 0);

        fs::create_dir(inside.join("large")).unwrap();
        fs::write(inside.join("large/file"), "0123456789").unwrap();
        let into = dir.path().join("again");
        assert!(take_out(&live, &[path("large")], &into, 9).is_err());
    }
}

//! Files without a name, which take room on the disk as long as a process holds them.
//!
//! Measured is what any thread has open: threads may have tables of descriptors of their own. A file can also be held
//! where its size cannot be read from in here: it is only mapped, or under way from one process to another over a socket,
//! or registered for asynchronous calls. Such files are [`Held::hidden`], of which no more is known than that there are
//! some.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::{Written, open_folder};

/// What a process may have mapped and open, as far as it is looked at.
const MOST_BYTES: u64 = 16 << 20;

/// What is held on some file systems.
pub(super) struct Held<'a> {
    devices: &'a [u64],
    seen: HashSet<u64>,
    pub(super) all: Written,
}

impl<'a> Held<'a> {
    pub(super) fn on(devices: &'a [u64]) -> Self {
        Self { devices, seen: HashSet::new(), all: Written::default() }
    }

    /// Adds what a process has open.
    pub(super) fn add(&mut self, process: &OwnedFd) {
        for open in threads(process).filter_map(|thread| open_folder(&thread, c"fd").ok()) {
            let Ok(entries) = Dir::read_from(&open) else { continue };
            let stats = entries
                .flatten()
                .filter_map(|entry| rustix::fs::statat(&open, entry.file_name(), AtFlags::empty()).ok());
            for stat in stats.filter(|stat| stat.st_nlink == 0 && self.devices.contains(&stat.st_dev)) {
                // They are all on one disk, and a file of an overlay has the number that it has below.
                if self.seen.insert(stat.st_ino) {
                    self.all.add(Written::of(&stat));
                }
            }
        }
    }

    /// Whether a process holds others, of all whose open files were added.
    pub(super) fn hidden(&self, process: &OwnedFd) -> bool {
        self.maps_another(process) || threads(process).any(|thread| hands_on(&thread).unwrap_or(false))
    }

    fn maps_another(&self, process: &OwnedFd) -> bool {
        let devices: Vec<String> = self
            .devices
            .iter()
            .map(|device| format!("{:02x}:{:02x}", rustix::fs::major(*device), rustix::fs::minor(*device)))
            .collect();
        let maps = read(process, c"maps");
        maps.lines()
            .filter_map(nameless)
            .any(|(device, inode)| devices.iter().any(|each| each == device) && !self.seen.contains(&inode))
    }
}

/// Device and number of the file that a line of `maps` is about, if that has no name any more.
fn nameless(line: &str) -> Option<(&str, u64)> {
    let mut fields = line.strip_suffix(" (deleted)")?.split_ascii_whitespace().skip(3);
    Some((fields.next()?, fields.next()?.parse().ok()?))
}

/// Whether descriptors are in something that a thread has open.
fn hands_on(thread: &OwnedFd) -> rustix::io::Result<bool> {
    let (open, about) = (open_folder(thread, c"fd"), open_folder(thread, c"fdinfo"));
    let (Ok(open), Ok(about)) = (open, about) else { return Ok(false) };
    for entry in Dir::read_from(&open)?.flatten() {
        let Ok(stat) = rustix::fs::statat(&open, entry.file_name(), AtFlags::empty()) else { continue };
        // What is no file at all is of no type.
        let may_hold = matches!(FileType::from_raw_mode(stat.st_mode), FileType::Socket | FileType::Unknown);
        if may_hold && read(&about, entry.file_name()).lines().any(counts_files) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a socket says of descriptors under way in it, and a ring of asynchronous calls of those registered.
fn counts_files(line: &str) -> bool {
    let count = ["scm_fds:", "UserFiles:"].iter().find_map(|name| line.strip_prefix(name));
    count.is_some_and(|count| count.trim() != "0")
}

fn threads(process: &OwnedFd) -> impl Iterator<Item = OwnedFd> {
    let tasks = open_folder(process, c"task").ok();
    let entries = tasks.as_ref().and_then(|tasks| Dir::read_from(tasks).ok()).into_iter().flatten().flatten();
    let names: Vec<_> = entries
        .filter(|entry| entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit))
        .map(|entry| entry.file_name().to_owned())
        .collect();
    names.into_iter().filter_map(move |name| open_folder(tasks.as_ref()?, &name).ok())
}

fn read(folder: &OwnedFd, name: &CStr) -> String {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut bytes = Vec::new();
    if let Ok(file) = rustix::fs::openat(folder, name, flags, Mode::empty()) {
        // Of a process that ends meanwhile, what was read is all there is.
        let _ = std::fs::File::from(file).take(MOST_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_files_without_a_name_are_told_from_others() {
        let line = "7f5c4000-7f5c5000 rw-s 00000000 fe:00 4711                       /tmp/a b (deleted)";
        assert_eq!(nameless(line), Some(("fe:00", 4711)));
        assert_eq!(nameless("7f5c4000-7f5c5000 r--p 00000000 fe:00 4711       /usr/bin/true"), None);
        assert_eq!(nameless("7f5c4000-7f5c5000 rw-p 00000000 00:00 0"), None);
        assert!(counts_files("scm_fds: 2") && counts_files("UserFiles:\t1"));
        assert!(!counts_files("scm_fds: 0") && !counts_files("flags:\t02") && !counts_files("UserFiles:\t0"));
    }
}

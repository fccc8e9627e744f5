//! How much a sandbox has written and what the disk has left, and how many and how large its processes are, seen by its
//! first process.
//!
//! What it cannot measure: a file without a name that no process has open, because it is only mapped, or under way
//! between two processes. The kernel shows its number, and its size to the machine's own root alone; what of it is mapped
//! says nothing of how large it is. Such a file is bounded in size like every file, but not how many there are. So whoever
//! holds one has to go when the disk is about to be full, although it may have been a neighbour that filled it: of two
//! actions that may be at fault both are ended rather than none, and the report names the full disk and no limit of the
//! action's own. A program that keeps the file open, or its name, is measured and attributed rightly.

mod nameless;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nameless::Held;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatVfs};

/// Deeper folders are as good as a full disk.
const DEEPEST: usize = 256;
/// What the kernel calls a block, whatever the file system does.
const BLOCK_BYTES: u64 = 512;

/// Of a disk, the part that actions leave to everything else on it: one in so many, but no more than that is of use.
const LOW_SHARE: u64 = 50;
const LOW_BYTES: u64 = 1 << 30;
const LOW_FILES: u64 = 65_536;

/// What is on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub bytes: u64,
    /// Names in folders, and files without a name.
    pub files: u64,
}

impl Written {
    const fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.files = self.files.saturating_add(other.files);
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(other.bytes), files: self.files.saturating_sub(other.files) }
    }

    fn of(stat: &Stat) -> Self {
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        Self { bytes: blocks.saturating_mul(BLOCK_BYTES), files: 1 }
    }
}

/// What there is room for on a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    left: Written,
    /// With less than this it is about to be full.
    low: Written,
}

impl Free {
    const NOTHING: Self = Self { left: Written { bytes: 0, files: 0 }, low: Written { bytes: 0, files: 0 } };

    fn of(system: &StatVfs) -> Self {
        // File systems that make inodes as they need them say that they have none.
        let counts_files = system.f_files > 0;
        Self {
            left: Written {
                bytes: system.f_bavail.saturating_mul(system.f_frsize),
                files: if counts_files { system.f_favail } else { u64::MAX },
            },
            low: Written {
                bytes: (system.f_blocks.saturating_mul(system.f_frsize) / LOW_SHARE).min(LOW_BYTES),
                files: (system.f_files / LOW_SHARE).min(LOW_FILES),
            },
        }
    }

    pub(super) const fn is_low(self) -> bool {
        self.left.bytes < self.low.bytes || self.left.files < self.low.files
    }

    /// Whether it is about to be full, and more was written than is left: then whoever wrote it has to go.
    pub(super) const fn is_used_up_by(self, written: Written) -> bool {
        let bytes_used_up = self.left.bytes < self.low.bytes && written.bytes > self.left.bytes;
        let files_used_up = self.left.files < self.low.files && written.files > self.left.files;
        bytes_used_up || files_used_up
    }

    /// What was taken since, until `later`.
    pub(super) const fn without(self, later: Self) -> Written {
        self.left.without(later.left)
    }
}

/// The folders that a sandbox can write to.
pub(super) struct Folders {
    folders: Vec<OwnedFd>,
    /// The file systems that they are on, and that of the input root.
    devices: Vec<u64>,
}

impl Folders {
    /// Of a sandbox that has been entered.
    pub(super) fn new(folders: Vec<OwnedFd>) -> io::Result<Self> {
        let mut devices = vec![rustix::fs::stat("/build")?.st_dev];
        for folder in &folders {
            devices.push(rustix::fs::fstat(folder)?.st_dev);
        }
        Ok(Self { folders, devices })
    }

    /// What is on the disk in them, and in files that processes hold without a name; nothing if they are too deep.
    pub(super) fn measure(&self, processes: &Processes) -> Option<Written> {
        let mut all = self.content()?;
        all.add(processes.held(&self.devices).all);
        Some(all)
    }

    /// What is in them now; nothing if they are too deep.
    pub(super) fn content(&self) -> Option<Written> {
        self.folders.iter().try_fold(Written::default(), |mut all, folder| {
            all.add(measure_folder(folder.as_fd(), 0)?);
            Some(all)
        })
    }

    /// Whether processes hold files that cannot be measured. It takes long to find out.
    pub(super) fn are_not_all(&self, processes: &Processes) -> bool {
        let held = processes.held(&self.devices);
        processes.each().any(|process| held.hidden(&process))
    }

    /// What is free where they are.
    pub(super) fn free(&self) -> Free {
        let system = self.folders.first().and_then(|folder| rustix::fs::fstatvfs(folder).ok());
        system.as_ref().map_or(Free::NOTHING, Free::of)
    }
}

/// Whatever disappears while it is looked at, counts as nothing.
fn measure_folder(folder: BorrowedFd<'_>, depth: usize) -> Option<Written> {
    if depth > DEEPEST {
        return None;
    }
    let mut all = Written::default();
    let Ok(entries) = Dir::read_from(folder) else { return Some(all) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        all.add(Written::of(&stat));
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Ok(inner) = open_folder(folder, name)
        {
            all.add(measure_folder(inner.as_fd(), depth + 1)?);
        }
    }
    Some(all)
}

/// The processes of a sandbox.
pub(super) struct Processes {
    proc: OwnedFd,
}

impl Processes {
    /// Of a sandbox that has been entered.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self { proc: open_folder(CWD, c"/proc")? })
    }

    /// How many there are with all their threads, without this one.
    pub(super) fn count(&self) -> u64 {
        let threads = self.each().filter_map(|process| thread_count(&process));
        threads.fold(0, u64::saturating_add).saturating_sub(1)
    }

    /// The memory of the largest, without what it shares with files.
    pub(super) fn largest_bytes(&self) -> u64 {
        self.each().filter_map(|process| memory_bytes(&process)).max().unwrap_or(0)
    }

    /// Files without a name on these file systems.
    fn held<'a>(&self, devices: &'a [u64]) -> Held<'a> {
        let mut held = Held::on(devices);
        self.each().for_each(|process| held.add(&process));
        held
    }

    fn each(&self) -> impl Iterator<Item = OwnedFd> {
        let entries = Dir::read_from(&self.proc).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit))
            .filter_map(|entry| open_folder(&self.proc, entry.file_name()).ok())
    }
}

/// The kernel shows every thread as a folder, and counts folders as links.
fn thread_count(process: &OwnedFd) -> Option<u64> {
    const OWN_LINKS: u64 = 2;
    let folder = rustix::fs::statat(process, c"task", AtFlags::empty()).ok()?;
    Some(folder.st_nlink.saturating_sub(OWN_LINKS))
}

fn memory_bytes(process: &OwnedFd) -> Option<u64> {
    let file = rustix::fs::openat(process, c"statm", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0_u8; 128];
    let length = rustix::io::read(&file, &mut text).ok()?;
    let text = std::str::from_utf8(text.get(..length)?).ok()?;
    let mut pages = text.split_ascii_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    Some(resident.saturating_sub(shared).saturating_mul(page_bytes))
}

fn open_folder(parent: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_about_to_be_full_is_used_up_by_who_wrote_the_most() {
        let written = |bytes, files| Written { bytes, files };
        let low = written(1000, 100);
        let free = |bytes, files| Free { left: written(bytes, files), low };
        assert!(!free(1000, 100).is_low() && !free(1000, 100).is_used_up_by(written(1 << 40, 1 << 40)));
        assert!(free(999, 100).is_low() && free(1000, 99).is_low());
        assert!(free(999, 100).is_used_up_by(written(1000, 0)));
        assert!(!free(999, 100).is_used_up_by(written(999, 1 << 40)), "small, and there are files enough");
        assert!(free(1000, 99).is_used_up_by(written(0, 100)));
    }
}

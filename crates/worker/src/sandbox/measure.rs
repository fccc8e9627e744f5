//! How much a sandbox has written, and how many and how large its processes are, seen by its first process.
//!
//! What it does not find: a file without a name that no process has open, because it is only mapped, or under way
//! between two processes. Such a file is still bounded in size like every file.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

/// Deeper folders are as good as a full disk.
const DEEPEST: usize = 256;
/// What the kernel calls a block, whatever the file system does.
const BLOCK_BYTES: u64 = 512;

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

    /// The bytes on the disk in them, and in files that processes hold without a name; nothing if they are too deep.
    pub(super) fn measure(&self, processes: &Processes) -> Option<u64> {
        let mut all = processes.nameless_bytes(&self.devices);
        for folder in &self.folders {
            all = all.saturating_add(measure_folder(folder.as_fd(), 0)?);
        }
        Some(all)
    }

    /// What is free where they are.
    pub(super) fn free_bytes(&self) -> u64 {
        let system = self.folders.first().and_then(|folder| rustix::fs::fstatvfs(folder).ok());
        system.map_or(0, |system| system.f_bfree.saturating_mul(system.f_frsize))
    }
}

/// Whatever disappears while it is looked at, counts as nothing.
fn measure_folder(folder: BorrowedFd<'_>, depth: usize) -> Option<u64> {
    if depth > DEEPEST {
        return None;
    }
    let mut all = 0_u64;
    let Ok(entries) = Dir::read_from(folder) else { return Some(0) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        all = all.saturating_add(disk_bytes(&stat));
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Ok(inner) = open_folder(folder, name)
        {
            all = all.saturating_add(measure_folder(inner.as_fd(), depth + 1)?);
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

    /// The disk that is taken by files without a name on these file systems.
    fn nameless_bytes(&self, devices: &[u64]) -> u64 {
        let mut seen = HashSet::new();
        let mut all = 0_u64;
        for process in self.each() {
            let Ok(open) = open_folder(&process, c"fd") else { continue };
            let Ok(entries) = Dir::read_from(&open) else { continue };
            let stats = entries
                .flatten()
                .filter_map(|entry| rustix::fs::statat(&open, entry.file_name(), AtFlags::empty()).ok());
            for stat in stats.filter(|stat| stat.st_nlink == 0 && devices.contains(&stat.st_dev)) {
                if seen.insert((stat.st_dev, stat.st_ino)) {
                    all = all.saturating_add(disk_bytes(&stat));
                }
            }
        }
        all
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

fn disk_bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES)
}

fn open_folder(parent: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

//! What one sandbox sees: the template, and over it the input root, `/tmp`, `/proc`, store paths, terminals of its own.
//!
//! Everything here happens in the new process, in its new namespaces. Paths are opened while it still is the user of
//! the launcher, who alone may pass through the worker's folders; mounted is as the user of the action, because an
//! overlay gives what it copies to whoever mounted it.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use super::scratch::{SHM, TMP};
use super::store;
use super::wire::{Doing, Failure, Start, Store};

const PRIVATE_FOLDER: Mode = Mode::RWXU;

/// The folders of one run, found but not mounted.
pub(super) struct Found<'a> {
    scratch: OwnedFd,
    layers: Vec<OwnedFd>,
    private: Option<OwnedFd>,
    store: Option<(OwnedFd, &'a Store)>,
}

/// Clones the template, goes there and finds the folders of the run.
pub(super) fn find<'a>(template: &Path, start: &'a Start) -> Result<Found<'a>, Failure> {
    rustix::mount::mount_bind_recursive(template, template).doing("clone the root of sandboxes")?;
    let found = Found {
        scratch: folder(&start.scratch)?,
        layers: start.layers.iter().map(|layer| folder(layer)).collect::<Result<_, _>>()?,
        private: start.private.as_ref().map(|private| folder(private)).transpose()?,
        store: start.store.as_ref().map(|store| Ok((folder(&store.folder)?, store))).transpose()?,
    };
    rustix::process::chdir(template).doing("enter the root of the sandbox")?;
    Ok(found)
}

fn folder(path: &[u8]) -> Result<OwnedFd, Failure> {
    let path = Path::new(OsStr::from_bytes(path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(format!("open the folder {}", path.display()))
}

/// What a command can write to, opened for whoever measures it.
pub(super) struct Written {
    /// Changed inputs and new files, `/tmp`, `/dev/shm`.
    pub folders: Vec<OwnedFd>,
}

/// Mounts what is of this run alone, makes all of it the root, and lets go of the machine's.
pub(super) fn enter(found: &Found<'_>) -> Result<Written, Failure> {
    let [tmp, shm] = [TMP, SHM].map(|each| own_folder(found, each.name, Mode::from_raw_mode(each.mode)));
    let [tmp, shm] = [tmp?, shm?];
    let inputs = mount_inputs(found)?;
    bind(tmp.as_fd(), "tmp")?;
    bind(shm.as_fd(), "dev/shm")?;
    if let Some((folder, store)) = &found.store {
        store::mount(folder.as_fd(), &store.objects)?;
    }
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("devpts", "dev/pts", "devpts", safe, c"newinstance,ptmxmode=0666,mode=0620")
        .doing("mount /dev/pts")?;
    rustix::mount::mount("proc", "proc", "proc", safe | MountFlags::NODEV, None).doing("mount /proc")?;
    rustix::process::pivot_root(".", ".").doing("change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing("let go of the root of the machine")?;
    rustix::process::chdir("/").doing("enter the new root")?;
    Ok(Written { folders: vec![tmp, shm, inputs] })
}

fn mount_inputs(found: &Found<'_>) -> Result<OwnedFd, Failure> {
    if let Some(private) = &found.private {
        bind(private.as_fd(), "build")?;
        return reopen(private);
    }
    let upper = own_folder(found, "upper", PRIVATE_FOLDER.union(Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH))?;
    let work = own_folder(found, "work", PRIVATE_FOLDER)?;
    let options = overlay_options(found, &upper, &work).doing("write the options of the overlay")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("overlay", "build", "overlay", flags, options.as_c_str()).doing("mount the input root")?;
    Ok(upper)
}

/// `volatile`, because without it the end of every sandbox would write back the whole file system below the scratch
/// folder; what a power cut takes from an action that runs is nobody's.
fn overlay_options(found: &Found<'_>, upper: &OwnedFd, work: &OwnedFd) -> Result<CString, std::io::Error> {
    let layers: Vec<String> = found.layers.iter().map(|layer| in_proc(layer.as_fd())).collect();
    let (layers, upper, work) = (layers.join(":"), in_proc(upper.as_fd()), in_proc(work.as_fd()));
    Ok(CString::new(format!("lowerdir={layers},upperdir={upper},workdir={work},userxattr,volatile"))?)
}

/// A folder of this run below its scratch folder, which it owns.
fn own_folder(found: &Found<'_>, name: &str, mode: Mode) -> Result<OwnedFd, Failure> {
    let doing = || format!("create {name} in the scratch folder");
    match rustix::fs::mkdirat(&found.scratch, name, mode) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error).doing(doing()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&found.scratch, name, flags, Mode::empty()).doing(doing())
}

fn reopen(folder: &OwnedFd) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, in_proc(folder.as_fd()), flags, Mode::empty()).doing("open the input root")
}

fn bind(source: BorrowedFd<'_>, place: &str) -> Result<(), Failure> {
    rustix::mount::mount_bind(in_proc(source), place).doing(format!("mount /{place}"))
}

/// The name of an open folder, whatever its path and whoever may pass through it.
pub(super) fn in_proc(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

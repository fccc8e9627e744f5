//! What a sandbox sees at `/nix/store`.
//!
//! A small file system of its own, on which every object is mounted. What always holds: nothing else of any store is
//! seen there, and nothing of it can be written to, no set-user-id bit counts, and no device node does.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountFlags;

use super::sys;
use super::view::in_proc;
use super::wire::{self, Doing, Failure, StoreRoot};

const STORE: &str = "nix/store";
const FOLDER: Mode = Mode::RWXU.union(Mode::RGRP).union(Mode::XGRP).union(Mode::ROTH).union(Mode::XOTH);

/// What is seen at `/nix/store`: nothing, unless told.
#[derive(Clone, Debug, Default)]
pub struct StoreView {
    /// What the objects lie in, which everybody may pass through who gets there.
    pub folder: PathBuf,
    /// Name by name.
    pub objects: Vec<(String, StoreObject)>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreObject {
    /// The folder of this name in [`StoreView::folder`].
    Folder(String),
    /// The file of this name there.
    File(String),
    /// A link to this target.
    Symlink(String),
}

impl StoreView {
    pub(super) fn to_wire(&self) -> Option<wire::Store> {
        let object = |(name, object): &(String, StoreObject)| wire::StoreObject {
            name: name.clone(),
            root: Some(match object {
                StoreObject::Folder(name) => StoreRoot::Folder(name.clone()),
                StoreObject::File(name) => StoreRoot::File(name.clone()),
                StoreObject::Symlink(target) => StoreRoot::Symlink(target.clone()),
            }),
        };
        let folder = self.folder.as_os_str().as_bytes().to_vec();
        (!self.objects.is_empty()).then(|| wire::Store { folder, objects: self.objects.iter().map(object).collect() })
    }
}

/// Mounts the objects below the root that this process is in.
pub(super) fn mount(folder: BorrowedFd<'_>, objects: &[wire::StoreObject]) -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", STORE, "tmpfs", flags, c"mode=0755").doing("mount a tmpfs for store paths")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let store = rustix::fs::openat(CWD, STORE, flags, Mode::empty()).doing("open the folder of store paths")?;
    let folder = in_proc(folder);
    for object in objects {
        show(&folder, store.as_fd(), object).doing(format!("show the store path {}", object.name))?;
    }
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::add_mount_attributes(store.as_fd(), attributes, true).doing("make store paths read-only")
}

fn show(folder: &str, store: BorrowedFd<'_>, object: &wire::StoreObject) -> rustix::io::Result<()> {
    let name = object.name.as_str();
    let source = match &object.root {
        Some(StoreRoot::Folder(source)) => {
            rustix::fs::mkdirat(store, name, FOLDER)?;
            source
        }
        Some(StoreRoot::File(source)) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(store, name, flags, Mode::RUSR)?;
            source
        }
        Some(StoreRoot::Symlink(target)) => return rustix::fs::symlinkat(target.as_str(), store, name),
        None => return Err(rustix::io::Errno::INVAL),
    };
    rustix::mount::mount_bind(format!("{folder}/{source}"), format!("{STORE}/{name}"))
}

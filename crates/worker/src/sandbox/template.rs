//! What all sandboxes see alike: a read-only tree of mounts that is made once.
//!
//! Every sandbox clones it with one call, which is much quicker than mounting its parts one by one. What always
//! holds: nothing of it can be written to, and no set-user-id bit and no device node on a shown folder counts.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, OpenTreeFlags};

use super::sys;
use super::wire::{Doing, Failure, Setup};

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "dev/fd"),
    ("/proc/self/fd/0", "dev/stdin"),
    ("/proc/self/fd/1", "dev/stdout"),
    ("/proc/self/fd/2", "dev/stderr"),
    ("pts/ptmx", "dev/ptmx"),
    ("../tmp", "var/tmp"),
];
/// What a sandbox mounts something of its own on.
const PLACES: [&str; 9] = ["build", "tmp", "proc", "dev", "dev/pts", "dev/shm", "var", "nix", "nix/store"];

/// Where the tree is mounted, in the mount namespace of the launcher.
pub(super) struct Template {
    path: PathBuf,
}

impl Template {
    /// Mounts it on a folder in the launcher's folder.
    pub(super) fn build(setup: &Setup) -> Result<Self, Failure> {
        let path = Path::new(OsStr::from_bytes(&setup.folder)).join("sandbox-root");
        create_folder(&path).doing(format!("create {}", path.display()))?;
        rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755,size=1m")
            .doing("mount a tmpfs for the root of sandboxes")?;
        let template = Self { path };
        template.add_places().doing("create the folders of a sandbox")?;
        for device in DEVICES {
            template.add_device(device).doing(format!("show /dev/{device}"))?;
        }
        keep_hidden(setup)?;
        let tool_root = setup.tool_root.as_deref().map_or(Path::new("/"), |root| Path::new(OsStr::from_bytes(root)));
        for shown in &setup.shown {
            let shown = Path::new(OsStr::from_bytes(shown));
            template.show(tool_root, shown).doing(format!("show {}", shown.display()))?;
        }
        if setup.tool_root.is_none() {
            template.show_resolver().doing("show the configuration of name servers")?;
        }
        template.seal().doing("make the root of sandboxes read-only")?;
        Ok(template)
    }

    /// Where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn add_places(&self) -> io::Result<()> {
        for place in PLACES {
            create_folder(&self.path.join(place))?;
        }
        for (target, link) in LINKS {
            symlink(target, self.path.join(link))?;
        }
        Ok(())
    }

    fn add_device(&self, name: &str) -> io::Result<()> {
        let place = self.path.join("dev").join(name);
        fs::File::create(&place)?;
        Ok(rustix::mount::mount_bind(Path::new("/dev").join(name), &place)?)
    }

    /// Shows `path` of `tool_root` at `path`: a link as a link, everything else read-only.
    fn show(&self, tool_root: &Path, path: &Path) -> io::Result<()> {
        let relative: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        let (source, place) = (tool_root.join(&relative), self.path.join(&relative));
        let kind = match fs::symlink_metadata(&source) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        if kind.is_symlink() {
            return symlink(fs::read_link(&source)?, &place);
        }
        if kind.is_dir() {
            create_folder(&place)?;
        } else {
            fs::File::create(&place)?;
        }
        bind_read_only(&source, &place)
    }

    /// On many machines `/etc/resolv.conf` is a link to where nothing else is shown.
    fn show_resolver(&self) -> io::Result<()> {
        let Ok(file) = fs::canonicalize("/etc/resolv.conf") else { return Ok(()) };
        if file.strip_prefix("/").is_ok_and(|relative| self.path.join(relative).exists()) {
            return Ok(());
        }
        self.show(Path::new("/"), &file)
    }

    fn seal(&self) -> io::Result<()> {
        let root = rustix::fs::open(&self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::add_mount_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
    }
}

/// What belongs to the worker must not be below what is shown.
fn keep_hidden(setup: &Setup) -> Result<(), Failure> {
    let folder = Path::new(OsStr::from_bytes(&setup.folder));
    let folder = fs::canonicalize(folder).doing(format!("find {}", folder.display()))?;
    let root = setup.tool_root.as_deref().map_or(Path::new("/"), |root| Path::new(OsStr::from_bytes(root)));
    for shown in &setup.shown {
        let shown = Path::new(OsStr::from_bytes(shown));
        let source = root.join(shown.strip_prefix("/").unwrap_or(shown));
        if fs::canonicalize(source).is_ok_and(|shown| folder.starts_with(shown)) {
            let doing = format!("{HIDE} {} from actions, which see {}", folder.display(), shown.display());
            return Err(rustix::io::Errno::INVAL).doing(doing);
        }
    }
    Ok(())
}

/// How the refusal of a folder that would be seen begins.
pub(super) const HIDE: &str = "hide";

/// A clone of the mounts at and below `source`, made read-only before anybody can see it.
fn bind_read_only(source: &Path, place: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::add_mount_attributes(tree.as_fd(), attributes, true)?;
    let from_the_tree = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree.as_fd(), "", CWD, place, from_the_tree)?)
}

fn create_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        answer => answer,
    }
}

//! The files of an action as it saw them: its upper folder over the layers below.
//!
//! Paths are plain paths of this machine. That is safe because every folder on the way was found to be a folder and no
//! link, and nobody is left to change that.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::paths::InsidePath;
use crate::sandbox::{Root, Run};

/// A folder of the view: the folders that it is made of, the first above the others. Never empty.
#[derive(Clone, Debug)]
pub(crate) struct View {
    layers: Vec<PathBuf>,
}

/// What is found at a name.
#[derive(Debug)]
pub(crate) enum Node {
    Folder(View, Metadata),
    File(PathBuf, Metadata),
    Link(PathBuf, Metadata),
    /// A pipe, a socket or a device.
    Special,
}

impl View {
    /// The files of a run that is over.
    pub(crate) fn of(run: &Run) -> Self {
        match &run.root {
            Root::Private(path) => Self { layers: vec![path.clone()] },
            Root::Layers(layers) => {
                Self { layers: std::iter::once(run.upper()).chain(layers.iter().cloned()).collect() }
            }
        }
    }

    #[cfg(test)]
    pub(crate) const fn of_layers(layers: Vec<PathBuf>) -> Self {
        Self { layers }
    }

    /// What is at a path; nothing when something on the way is no folder.
    pub(crate) fn find(&self, path: &InsidePath) -> io::Result<Option<Node>> {
        let Some((last, folders)) = path.names().split_last() else {
            return Ok(Some(Node::Folder(self.clone(), self.metadata()?)));
        };
        let mut view = self.clone();
        for name in folders {
            match view.child(OsStr::new(name))? {
                Some(Node::Folder(child, _)) => view = child,
                _ => return Ok(None),
            }
        }
        view.child(OsStr::new(last))
    }

    /// What is at a name of this folder.
    pub(crate) fn child(&self, name: &OsStr) -> io::Result<Option<Node>> {
        let mut folders: Vec<PathBuf> = Vec::new();
        let mut first = None;
        for layer in &self.layers {
            let path = layer.join(name);
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if !found.is_dir() {
                if folders.is_empty() {
                    return Ok(leaf(path, found));
                }
                break;
            }
            let is_opaque = is_opaque(&path)?;
            folders.push(path);
            first.get_or_insert(found);
            if is_opaque {
                break;
            }
        }
        Ok(first.map(|found| Node::Folder(Self { layers: folders }, found)))
    }

    /// The names in this folder, sorted; some may turn out to be nothing.
    pub(crate) fn names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for layer in &self.layers {
            let entries = match fs::read_dir(layer) {
                Ok(entries) => entries,
                // No upper folder: nothing was written.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                names.insert(entry?.file_name());
            }
        }
        Ok(names)
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.layers
            .iter()
            .map(fs::symlink_metadata)
            .find(Result::is_ok)
            .unwrap_or_else(|| Err(io::Error::from(io::ErrorKind::NotFound)))
    }
}

fn leaf(path: PathBuf, found: Metadata) -> Option<Node> {
    let kind = found.file_type();
    if kind.is_file() {
        // The other form of white-out.
        let is_white_out = found.len() == 0 && has_attribute(&path, c"user.overlay.whiteout");
        (!is_white_out).then_some(Node::File(path, found))
    } else if kind.is_symlink() {
        Some(Node::Link(path, found))
    } else if kind.is_char_device() && found.rdev() == 0 {
        None
    } else {
        Some(Node::Special)
    }
}

fn is_opaque(folder: &Path) -> io::Result<bool> {
    let mut value = [0; 4];
    match rustix::fs::lgetxattr(folder, c"user.overlay.opaque", &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP | rustix::io::Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn has_attribute(path: &Path, name: &std::ffi::CStr) -> bool {
    rustix::fs::lgetxattr(path, name, &mut [0; 16]).is_ok()
}

//! What must lie above one tree so that another is seen. Pure: digests of directories are compared, so what is the same
//! costs nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::folders::{Content, FileEntry, Folder, Tree};

use super::add_contents;

/// One entry of the upper layer. A folder comes before what is in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// A folder that both have, with changes in it.
    Folder(PathBuf, Arc<Folder>),
    /// A folder that only the new tree has there.
    Subtree(PathBuf, Arc<Folder>),
    File(PathBuf, FileEntry),
    Link(PathBuf, Box<str>),
    /// What the old tree has there is not in the new one.
    Gone(PathBuf),
}

impl Change {
    /// Where it is, from the root.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder(path, _)
            | Self::Subtree(path, _)
            | Self::File(path, _)
            | Self::Link(path, _)
            | Self::Gone(path) => path,
        }
    }

    /// Adds the files that it brings.
    pub(crate) fn add_contents(&self, tree: &Tree, contents: &mut HashSet<Content>) {
        match self {
            Self::File(_, file) => {
                contents.insert(file.content);
            }
            Self::Subtree(_, folder) => add_contents(tree, folder, contents),
            Self::Folder(..) | Self::Link(..) | Self::Gone(_) => {}
        }
    }
}

/// The changes from `old` to `new`, and how many entries they take on the disk; `None` when that is more than `limit`.
pub(crate) fn difference(old: &Tree, new: &Tree, limit: u64) -> Option<(Vec<Change>, u64)> {
    let mut search = Search { old, new, changes: Vec::new(), cost: 0, limit };
    if old.root_digest != new.root_digest {
        search.compare(&old.root, &new.root, Path::new(""))?;
    }
    Some((search.changes, search.cost))
}

struct Search<'a> {
    old: &'a Tree,
    new: &'a Tree,
    changes: Vec<Change>,
    cost: u64,
    limit: u64,
}

impl Search<'_> {
    fn compare(&mut self, old: &Arc<Folder>, new: &Arc<Folder>, at: &Path) -> Option<()> {
        self.add(Change::Folder(at.to_owned(), Arc::clone(new)), 1)?;
        for file in &new.files {
            if find(&old.files, &file.name, |file| &file.name) != Some(file) {
                self.add(Change::File(at.join(&*file.name), file.clone()), 1)?;
            }
        }
        for link in &new.symlinks {
            if find(&old.symlinks, &link.0, |link| &link.0) != Some(link) {
                self.add(Change::Link(at.join(&*link.0), link.1.clone()), 1)?;
            }
        }
        self.compare_folders(old, new, at)?;
        for name in names(old) {
            if !has(new, name) {
                self.add(Change::Gone(at.join(name)), 1)?;
            }
        }
        Some(())
    }

    fn compare_folders(&mut self, old: &Arc<Folder>, new: &Arc<Folder>, at: &Path) -> Option<()> {
        for (name, digest) in &new.folders {
            let before = find(&old.folders, name, |(name, _)| name);
            if before.is_some_and(|(_, before)| before == digest) {
                continue;
            }
            let child = self.new.folder(digest)?;
            match before.and_then(|(_, before)| self.old.folder(before)) {
                Some(before) => self.compare(before, child, &at.join(&**name))?,
                None => {
                    let entries = self.entries(child)?;
                    self.add(Change::Subtree(at.join(&**name), Arc::clone(child)), entries)?;
                }
            }
        }
        Some(())
    }

    /// How many entries a new folder is, if not too many.
    fn entries(&self, folder: &Arc<Folder>) -> Option<u64> {
        let mut entries = 0;
        let mut left = vec![folder];
        while let Some(folder) = left.pop() {
            entries += 1 + (folder.files.len() + folder.symlinks.len()) as u64;
            if self.cost + entries > self.limit {
                return None;
            }
            for (_, digest) in &folder.folders {
                left.push(self.new.folder(digest)?);
            }
        }
        Some(entries)
    }

    fn add(&mut self, change: Change, entries: u64) -> Option<()> {
        self.cost += entries;
        self.changes.push(change);
        (self.cost <= self.limit).then_some(())
    }
}

/// Lists are sorted by name.
fn find<'a, T>(list: &'a [T], name: &str, name_of: impl Fn(&T) -> &Box<str>) -> Option<&'a T> {
    let index = list.binary_search_by(|entry| (**name_of(entry)).cmp(name)).ok()?;
    list.get(index)
}

fn names(folder: &Folder) -> impl Iterator<Item = &str> {
    let files = folder.files.iter().map(|file| &*file.name);
    let folders = folder.folders.iter().map(|(name, _)| &**name);
    files.chain(folders).chain(folder.symlinks.iter().map(|(name, _)| &**name))
}

fn has(folder: &Folder, name: &str) -> bool {
    find(&folder.files, name, |file| &file.name).is_some()
        || find(&folder.folders, name, |(name, _)| name).is_some()
        || find(&folder.symlinks, name, |(name, _)| name).is_some()
}

//! A large input root: 10,000 files of 4 KiB in 1,000 folders below a root.

use anyhow::Context;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;

use super::actions::blob_of;
use crate::data::{Blob, Source};

const FILES_OF_A_FOLDER: usize = 10;
/// Folders in the root, ...
const TOP_FOLDERS: usize = 10;
/// ... and in each of them.
const INNER_FOLDERS: usize = 99;
const FILE_BYTES: usize = 4 << 10;

/// The tree with its bytes.
pub(super) struct LargeTree {
    /// Those of one folder after the other.
    files: Vec<Blob>,
}

/// Its folders as blobs.
pub(super) struct Folders {
    /// All of them.
    pub(super) blobs: Vec<Blob>,
    /// That of the root.
    pub(super) root: rex::Digest,
}

impl LargeTree {
    /// Of random bytes.
    pub(super) fn random(source: &mut Source) -> Self {
        let count = TOP_FOLDERS * (1 + INNER_FOLDERS) * FILES_OF_A_FOLDER;
        Self { files: (0..count).map(|_| source.blob(FILE_BYTES)).collect() }
    }

    /// Its files.
    pub(super) fn files(&self) -> &[Blob] {
        &self.files
    }

    /// Other bytes for one of its files: its path, and what is in it now.
    pub(super) fn change_one(&mut self, source: &mut Source) -> anyhow::Result<(String, Blob)> {
        let number = source.below(self.files.len());
        let file = self.files.get_mut(number).context("the tree is empty")?;
        *file = source.blob(FILE_BYTES);
        let (folder, name) = (number / FILES_OF_A_FOLDER, number % FILES_OF_A_FOLDER);
        let (top, inner) = (folder / (1 + INNER_FOLDERS), folder % (1 + INNER_FOLDERS));
        let path = match inner {
            0 => format!("top{top}/file{name}"),
            inner => format!("top{top}/inner{:02}/file{name}", inner - 1),
        };
        Ok((path, file.clone()))
    }

    /// Its folders as they are now.
    pub(super) fn folders(&self) -> Folders {
        let mut blobs = Vec::new();
        let mut root = rex::Directory::default();
        for (top, files) in self.files.chunks((1 + INNER_FOLDERS) * FILES_OF_A_FOLDER).enumerate() {
            let mut folders = files.chunks(FILES_OF_A_FOLDER).map(folder_of);
            let mut directory = folders.next().unwrap_or_default();
            for (inner, folder) in folders.enumerate() {
                let folder = blob_of(&folder);
                directory.directories.push(node(format!("inner{inner:02}"), &folder));
                blobs.push(folder);
            }
            let directory = blob_of(&directory);
            root.directories.push(node(format!("top{top}"), &directory));
            blobs.push(directory);
        }
        let root = blob_of(&root);
        let digest = root.digest.clone();
        blobs.push(root);
        Folders { blobs, root: digest }
    }
}

fn folder_of(files: &[Blob]) -> rex::Directory {
    let file = |(number, blob): (usize, &Blob)| rex::FileNode {
        name: format!("file{number}"),
        digest: Some(blob.digest.clone()),
        ..Default::default()
    };
    rex::Directory { files: files.iter().enumerate().map(file).collect(), ..Default::default() }
}

fn node(name: String, folder: &Blob) -> rex::DirectoryNode {
    rex::DirectoryNode { name, digest: Some(folder.digest.clone()) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn it_has_so_many_files_and_folders_and_a_change_changes_its_way_to_the_root() {
        let mut source = Source::seeded(3);
        let mut tree = LargeTree::random(&mut source);
        let before = tree.folders();
        assert_eq!((tree.files().len(), before.blobs.len()), (10_000, 1_001));
        let (path, _) = tree.change_one(&mut source).unwrap();
        let hashes: HashSet<_> = before.blobs.iter().map(|blob| blob.digest.hash.clone()).collect();
        let after = tree.folders();
        let changed = after.blobs.iter().filter(|blob| !hashes.contains(&blob.digest.hash)).count();
        assert_eq!(changed, path.split('/').count());
        assert_ne!(before.root, after.root);
    }
}

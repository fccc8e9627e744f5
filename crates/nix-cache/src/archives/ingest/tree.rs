//! The directories of an archive that are open, as the messages that they will be.

use bytes::{BufMut as _, Bytes, BytesMut};
use gf_digest::Digest;
use gf_nix_formats::nar::{NarName, NarTarget};
use gf_reapi::WireDigest;
use gf_reapi::execution::{Directory, DirectoryNode, FileNode, SymlinkNode};
use prost::Message as _;

use crate::archives::Root;

/// Beyond this an encoded directory is refused as the input of an action.
const MAX_DIRECTORY_BYTES: usize = 16 << 20;

/// More than what the entry of one name can take.
const MAX_ENTRY_BYTES: usize = 8 << 10;

/// A tree being built from the leaves. Nothing is held of a directory but the bytes of its message.
#[derive(Default)]
pub(super) struct Tree {
    open: Vec<OpenDirectory>,
    /// The name of the node that comes next.
    name: Option<String>,
    root: Option<Root>,
}

/// A directory that is not over yet.
#[derive(Default)]
pub(super) struct OpenDirectory {
    /// The name under which it is entered above.
    name: Option<String>,
    /// The three lists of the message, each already encoded: the names of an archive are sorted as each list must be.
    files: BytesMut,
    directories: BytesMut,
    symlinks: BytesMut,
}

/// No REAPI directory can hold what came.
#[derive(Debug)]
pub(super) struct Unrepresentable;

const FILES: u32 = 1;
const DIRECTORIES: u32 = 2;
const SYMLINKS: u32 = 3;

impl Tree {
    /// A directory begins.
    pub(super) fn open(&mut self) {
        self.open.push(OpenDirectory { name: self.name.take(), ..OpenDirectory::default() });
    }

    /// The name of the next node.
    pub(super) fn enter(&mut self, name: &NarName) -> Result<(), Unrepresentable> {
        let is_full = self.open.last().is_some_and(|open| open.encoded_bytes() + MAX_ENTRY_BYTES > MAX_DIRECTORY_BYTES);
        match name.as_str() {
            Some(name) if !is_full => self.name = Some(name.to_owned()),
            _ => return Err(Unrepresentable),
        }
        Ok(())
    }

    /// A file was read.
    pub(super) fn file(&mut self, digest: Digest, executable: bool) {
        match self.entry() {
            Some((name, open)) => {
                let digest = Some(WireDigest::from(digest));
                let node = FileNode { name, digest, is_executable: executable, ..FileNode::default() };
                prost::encoding::message::encode(FILES, &node, &mut open.files);
            }
            None => self.root = Some(Root::File { digest, executable }),
        }
    }

    /// A symbolic link was read.
    pub(super) fn symlink(&mut self, target: &NarTarget) -> Result<(), Unrepresentable> {
        let target = target.as_str().ok_or(Unrepresentable)?.to_owned();
        match self.entry() {
            Some((name, open)) => {
                let node = SymlinkNode { name, target, node_properties: None };
                prost::encoding::message::encode(SYMLINKS, &node, &mut open.symlinks);
            }
            None => self.root = Some(Root::Symlink { target }),
        }
        Ok(())
    }

    /// The directory that was begun last is over: its message.
    pub(super) fn close(&mut self) -> Bytes {
        let Some(closed) = self.open.pop() else { return Bytes::new() };
        self.name.clone_from(&closed.name);
        closed.message()
    }

    /// The directory that was closed last has this digest.
    pub(super) fn directory(&mut self, digest: Digest) {
        match self.entry() {
            Some((name, open)) => {
                let node = DirectoryNode { name, digest: Some(WireDigest::from(digest)) };
                prost::encoding::message::encode(DIRECTORIES, &node, &mut open.directories);
            }
            None => self.root = Some(Root::Directory(digest)),
        }
    }

    /// What the archive is, once it is over.
    pub(super) fn into_root(self) -> Option<Root> {
        self.root
    }

    /// The directories that are open, the outermost first, and the name of the node that comes next.
    pub(super) fn into_open(self) -> (Vec<OpenDirectory>, Option<String>) {
        (self.open, self.name)
    }

    /// Where the next node belongs; `None` when it is the root.
    fn entry(&mut self) -> Option<(String, &mut OpenDirectory)> {
        Some((self.name.take()?, self.open.last_mut()?))
    }
}

impl OpenDirectory {
    /// The name under which it is entered above; `None` for the root.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What it holds so far.
    pub(super) fn decode(self) -> Result<Directory, prost::DecodeError> {
        Directory::decode(self.message())
    }

    fn encoded_bytes(&self) -> usize {
        self.files.len() + self.directories.len() + self.symlinks.len()
    }

    /// The fields of a canonical message are in the order of their numbers.
    fn message(mut self) -> Bytes {
        self.files.put(self.directories);
        self.files.put(self.symlinks);
        self.files.freeze()
    }
}

#[cfg(test)]
mod tests {
    use gf_digest::DigestFunction;

    use super::*;

    fn name(name: &str) -> NarName {
        NarName::new(Bytes::copy_from_slice(name.as_bytes())).unwrap()
    }

    #[test]
    fn a_directory_is_the_canonical_message() {
        let digest = Digest::of(DigestFunction::Sha256, b"x");
        let mut tree = Tree::default();
        tree.open();
        for (entry, kind) in [("a", 0), ("b", 1), ("c", 2), ("d", 0), ("e", 1)] {
            tree.enter(&name(entry)).unwrap();
            match kind {
                0 => tree.file(digest, entry == "a"),
                1 => tree.symlink(&NarTarget::new(Bytes::from_static(b"../t")).unwrap()).unwrap(),
                _ => {
                    tree.open();
                    assert!(tree.close().is_empty());
                    tree.directory(Digest::empty(DigestFunction::Sha256));
                }
            }
        }
        let bytes = tree.close();
        let directory = Directory::decode(bytes.clone()).unwrap();
        assert_eq!(gf_reapi::check_directory(&directory), Ok(()));
        assert_eq!(directory.encode_to_vec(), bytes);
        assert_eq!((directory.files.len(), directory.directories.len(), directory.symlinks.len()), (2, 1, 2));
        assert!(directory.files[0].is_executable && !directory.files[1].is_executable);
        tree.directory(digest);
        assert_eq!(tree.into_root(), Some(Root::Directory(digest)));
    }
}

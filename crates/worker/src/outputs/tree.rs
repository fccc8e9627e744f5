//! Output directories as the protocol names them: Directory messages, and a Tree of all of them.
//!
//! What always holds: the same files make the same bytes; a directory occurs once, and before those that it names.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::{Directory, Tree};
use prost::Message;

/// Directories of one output, in the order in which they were finished: each after those that it names.
#[derive(Debug)]
pub(crate) struct Directories {
    function: DigestFunction,
    finished: Vec<(Digest, Bytes, Directory)>,
    seen: HashSet<Digest>,
}

impl Directories {
    pub(crate) fn new(function: DigestFunction) -> Self {
        Self { function, finished: Vec::new(), seen: HashSet::new() }
    }

    /// Takes a directory whose folders were taken before.
    pub(crate) fn add(&mut self, directory: Directory) -> Digest {
        let bytes = Bytes::from(directory.encode_to_vec());
        let digest = Digest::of(self.function, &bytes);
        if self.seen.insert(digest) {
            self.finished.push((digest, bytes, directory));
        }
        digest
    }

    /// Every directory as a blob.
    pub(crate) fn blobs(&self) -> HashMap<Digest, Bytes> {
        self.finished.iter().map(|(digest, bytes, _)| (*digest, bytes.clone())).collect()
    }

    /// The Tree of the directory that was taken last.
    pub(crate) fn into_tree(self) -> (Digest, Bytes) {
        let mut directories = self.finished.into_iter().rev().map(|(_, _, directory)| directory);
        let tree = Tree { root: directories.next(), children: directories.collect() };
        let bytes = Bytes::from(tree.encode_to_vec());
        (Digest::of(self.function, &bytes), bytes)
    }
}

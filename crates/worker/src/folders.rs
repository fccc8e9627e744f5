//! Directories of input roots: fetched level by level, checked, kept parsed while there is room.
//!
//! What always holds: a folder that is kept is in canonical form, so none of its names leads out of it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use gf_digest::Digest;
use gf_reapi::execution::{Directory, NodeProperties};
use gf_reapi::{WireDigest, check_directory};
use prost::Message;
use tonic::Code;

use crate::blobs::BlobClient;
use crate::failure::Failure;
use crate::lru::Lru;

/// Directories of one root, each counted once.
const MAX_FOLDERS: usize = 500_000;
/// Entries of one root, on all paths.
pub(crate) const MAX_ENTRIES: u64 = 2_000_000;
/// A file has at most 65,000 names on ext4, and those beyond are copies: in smaller roots there are none.
const MANY_NAMES: u64 = 50_000;
/// How deep folders lie in folders.
const MAX_DEPTH: usize = 256;
/// Calls under way for one root.
const CALLS: usize = 4;
/// A large directory is one that no batch takes.
const MAX_FOLDER_BYTES: u64 = 64 << 20;

/// What files that are laid out share with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shares {
    /// Their bytes: they are further names of its files, unless they have properties.
    Links,
    /// Nothing: they are copies.
    Nothing,
}

/// A directory, taken apart.
#[derive(Debug, PartialEq)]
pub(crate) struct Folder {
    pub(crate) files: Vec<FileEntry>,
    pub(crate) folders: Vec<(Box<str>, Digest)>,
    pub(crate) symlinks: Vec<(Box<str>, Box<str>)>,
    pub(crate) properties: Option<Box<NodeProperties>>,
}

/// A file of a directory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileEntry {
    pub(crate) name: Box<str>,
    pub(crate) content: Content,
    pub(crate) properties: Option<Box<NodeProperties>>,
}

/// What a file is made of: the two inodes of a blob are its plain and its executable form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    pub(crate) digest: Digest,
    pub(crate) is_executable: bool,
}

/// An input root: every directory of it, by digest.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) root: Arc<Folder>,
    pub(crate) root_digest: Digest,
    pub(crate) folders: Arc<HashMap<Digest, Arc<Folder>>>,
    /// Files, folders and links on all paths.
    pub(crate) entries: u64,
    /// What the files take on all paths, if each is made of bytes of its own.
    bytes: u64,
    /// The part of it in files that must be: they have properties, which all names of a file share.
    own_bytes: u64,
}

/// What is in a folder, and in all below it on every path.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    entries: u64,
    bytes: u64,
    own_bytes: u64,
}

impl Size {
    /// Of a folder alone.
    fn of(folder: &Folder) -> Self {
        let entries = (folder.files.len() + folder.symlinks.len() + folder.folders.len()) as u64;
        let mut size = Self { entries, ..Self::default() };
        for file in &folder.files {
            let bytes = file.content.digest.size_bytes();
            size.bytes = size.bytes.saturating_add(bytes);
            size.own_bytes = size.own_bytes.saturating_add(if file.properties.is_some() { bytes } else { 0 });
        }
        size
    }

    const fn add(&mut self, other: Self) {
        self.entries = self.entries.saturating_add(other.entries);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.own_bytes = self.own_bytes.saturating_add(other.own_bytes);
    }
}

impl Tree {
    /// The folder of a digest that is named in the tree.
    pub(crate) fn folder(&self, digest: &Digest) -> Option<&Arc<Folder>> {
        self.folders.get(digest)
    }

    /// Puts a tree together out of its folders.
    pub(crate) fn new(root_digest: Digest, folders: HashMap<Digest, Arc<Folder>>) -> Result<Self, Failure> {
        let root = folders.get(&root_digest).cloned();
        let root = root.ok_or_else(|| Failure::Worker("an input root without its root".to_owned()))?;
        let mut sizes = HashMap::new();
        let Size { entries, bytes, own_bytes } = measure(&folders, &root_digest, &mut sizes, 0)?;
        if entries > MAX_ENTRIES {
            return Err(Failure::invalid(format!(
                "the input root has {entries} entries; at most {MAX_ENTRIES} are taken"
            )));
        }
        Ok(Self { root, root_digest, folders: Arc::new(folders), entries, bytes, own_bytes })
    }

    /// Refuses what would take more bytes of the disk than the worker gives for one: a directory that is named on many
    /// paths is small to send, and large to lay out.
    pub(crate) fn check_copies(&self, shares: Shares, max_bytes: u64) -> Result<(), Failure> {
        let copied = match shares {
            Shares::Links if self.entries < MANY_NAMES => self.own_bytes,
            Shares::Links | Shares::Nothing => self.bytes,
        };
        if copied <= max_bytes {
            return Ok(());
        }
        Err(Failure::invalid(format!(
            "the files of the input root take {copied} bytes when each is laid out on every path; this worker takes at most \
             {max_bytes}"
        )))
    }
}

fn measure(
    folders: &HashMap<Digest, Arc<Folder>>,
    digest: &Digest,
    sizes: &mut HashMap<Digest, Size>,
    depth: usize,
) -> Result<Size, Failure> {
    if let Some(known) = sizes.get(digest) {
        return Ok(*known);
    }
    if depth > MAX_DEPTH {
        return Err(Failure::invalid(format!("the input root is deeper than {MAX_DEPTH} folders")));
    }
    let Some(folder) = folders.get(digest) else { return Ok(Size::default()) };
    let mut size = Size::of(folder);
    for (_, child) in &folder.folders {
        size.add(measure(folders, child, sizes, depth + 1)?);
    }
    sizes.insert(*digest, size);
    Ok(size)
}

/// Parsed directories of all roots lately used.
#[derive(Debug)]
pub(crate) struct FolderCache {
    folders: Mutex<Lru<Digest, Arc<Folder>>>,
    max_bytes: u64,
}

impl FolderCache {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { folders: Mutex::new(Lru::new()), max_bytes }
    }

    /// Fetches what is not known of a tree.
    pub(crate) async fn tree(&self, blobs: &BlobClient, root: Digest) -> Result<Tree, Failure> {
        let mut folders = HashMap::new();
        let mut missing = Vec::new();
        let mut level = vec![root];
        let mut seen = HashSet::from([root]);
        while !level.is_empty() {
            let found = self.level(blobs, level, &mut missing).await?;
            level = Vec::new();
            for (digest, folder) in found {
                level.extend(folder.folders.iter().map(|(_, child)| *child).filter(|child| seen.insert(*child)));
                folders.insert(digest, folder);
            }
            if seen.len() > MAX_FOLDERS {
                return Err(Failure::invalid(format!("the input root has more than {MAX_FOLDERS} directories")));
            }
        }
        if !missing.is_empty() {
            return Err(Failure::Missing(missing));
        }
        Tree::new(root, folders)
    }

    async fn level(
        &self,
        blobs: &BlobClient,
        level: Vec<Digest>,
        missing: &mut Vec<Digest>,
    ) -> Result<Vec<(Digest, Arc<Folder>)>, Failure> {
        let (mut found, unknown) = self.known(level);
        for digest in &unknown {
            if digest.size_bytes() > MAX_FOLDER_BYTES || blobs.is_large(digest) {
                return Err(Failure::Refused {
                    code: Code::InvalidArgument,
                    message: format!("the directory {digest} is larger than a message"),
                });
            }
        }
        let calls = blobs.batches(unknown).into_iter().map(|batch| async move {
            let read = blobs.read_batch(&batch).await?;
            Ok::<_, Failure>((batch, read))
        });
        let answers: Vec<_> = stream::iter(calls).buffer_unordered(CALLS).try_collect().await?;
        for (batch, read) in answers {
            let read: HashMap<Digest, Bytes> = read.into_iter().collect();
            for digest in batch {
                match read.get(&digest) {
                    Some(bytes) => found.push((digest, self.keep(digest, bytes)?)),
                    None => missing.push(digest),
                }
            }
        }
        Ok(found)
    }

    fn known(&self, level: Vec<Digest>) -> (Vec<(Digest, Arc<Folder>)>, Vec<Digest>) {
        let mut kept = self.lock();
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        for digest in level {
            match kept.get(&digest) {
                Some(folder) => found.push((digest, Arc::clone(folder))),
                None if digest.is_empty() => found.push((digest, Arc::new(Folder::empty()))),
                None => unknown.push(digest),
            }
        }
        (found, unknown)
    }

    fn keep(&self, digest: Digest, bytes: &Bytes) -> Result<Arc<Folder>, Failure> {
        let folder = Arc::new(Folder::parse(digest, bytes)?);
        let mut kept = self.lock();
        kept.insert(digest, Arc::clone(&folder), folder.weight());
        while kept.weight() > self.max_bytes {
            let Some(oldest) = kept.oldest(|_| true) else { break };
            kept.remove(&oldest);
        }
        Ok(folder)
    }

    fn lock(&self) -> MutexGuard<'_, Lru<Digest, Arc<Folder>>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Folder {
    pub(crate) const fn empty() -> Self {
        Self { files: Vec::new(), folders: Vec::new(), symlinks: Vec::new(), properties: None }
    }

    /// Reads an encoded directory.
    pub(crate) fn parse(digest: Digest, bytes: &Bytes) -> Result<Self, Failure> {
        let wrong = |reason: String| Failure::invalid(format!("{digest} is no input directory: {reason}"));
        let directory = Directory::decode(bytes.clone()).map_err(|error| wrong(error.to_string()))?;
        check_directory(&directory).map_err(|error| wrong(error.to_string()))?;
        let of = |wire: Option<WireDigest>| {
            let wire = wire.ok_or_else(|| wrong("an entry has no digest".to_owned()))?;
            wire.to_digest(digest.function()).map_err(|error| wrong(error.to_string()))
        };
        let mut files = Vec::with_capacity(directory.files.len());
        for node in directory.files {
            let content = Content { digest: of(node.digest)?, is_executable: node.is_executable };
            let properties = properties(node.node_properties);
            files.push(FileEntry { name: node.name.into_boxed_str(), content, properties });
        }
        let mut folders = Vec::with_capacity(directory.directories.len());
        for node in directory.directories {
            folders.push((node.name.into_boxed_str(), of(node.digest)?));
        }
        let symlinks = directory.symlinks.into_iter();
        let symlinks = symlinks.map(|node| (node.name.into_boxed_str(), node.target.into_boxed_str())).collect();
        Ok(Self { files, folders, symlinks, properties: properties(directory.node_properties) })
    }

    /// About what it takes in memory, in bytes.
    fn weight(&self) -> u64 {
        const ENTRY_BYTES: u64 = 96;
        ENTRY_BYTES * (2 + self.files.len() + self.folders.len() + self.symlinks.len()) as u64
    }
}

/// Only properties that a file system has.
fn properties(properties: Option<NodeProperties>) -> Option<Box<NodeProperties>> {
    properties.filter(|properties| properties.mtime.is_some() || properties.unix_mode.is_some()).map(Box::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gf_digest::DigestFunction;

    /// A tree of folders, each of which is named twice by the one above it, with a file at the end.
    fn doubled(levels: usize, bytes: &[u8], properties: Option<Box<NodeProperties>>) -> Tree {
        let digest = |level: usize| Digest::of(DigestFunction::Sha256, &level.to_le_bytes());
        let content = Content { digest: Digest::of(DigestFunction::Sha256, bytes), is_executable: false };
        let file = FileEntry { name: "file".into(), content, properties };
        let mut folders = HashMap::from([(digest(0), Arc::new(Folder { files: vec![file], ..Folder::empty() }))]);
        for level in 1..=levels {
            let twice = ["a", "b"].map(|name| (name.into(), digest(level - 1))).to_vec();
            folders.insert(digest(level), Arc::new(Folder { folders: twice, ..Folder::empty() }));
        }
        Tree::new(digest(levels), folders).unwrap()
    }

    #[test]
    fn a_root_is_as_large_as_it_is_on_the_disk() {
        let is_taken = |tree: &Tree, shares, max| tree.check_copies(shares, max).is_ok();
        let tree = doubled(10, &[0; 1000], None);
        assert!(is_taken(&tree, Shares::Links, 0));
        assert!(is_taken(&tree, Shares::Nothing, 1_024_000) && !is_taken(&tree, Shares::Nothing, 1_023_999));
        // Names that are too many for one file are copies, and so are files with properties.
        let tree = doubled(16, &[0; 1000], None);
        assert!(is_taken(&tree, Shares::Links, 65_536_000) && !is_taken(&tree, Shares::Links, 65_535_999));
        let tree = doubled(3, &[0; 1000], Some(Box::default()));
        assert!(is_taken(&tree, Shares::Links, 8000) && !is_taken(&tree, Shares::Links, 7999));
    }
}

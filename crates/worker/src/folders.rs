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
/// How deep folders lie in folders.
const MAX_DEPTH: usize = 256;
/// Calls under way for one root.
const CALLS: usize = 4;
/// A large directory is one that no batch takes.
const MAX_FOLDER_BYTES: u64 = 64 << 20;

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
        let mut counts = HashMap::new();
        let entries = count(&folders, &root_digest, &mut counts, 0)?;
        if entries > MAX_ENTRIES {
            return Err(Failure::invalid(format!(
                "the input root has {entries} entries; at most {MAX_ENTRIES} are taken"
            )));
        }
        Ok(Self { root, root_digest, folders: Arc::new(folders), entries })
    }
}

fn count(
    folders: &HashMap<Digest, Arc<Folder>>,
    digest: &Digest,
    counts: &mut HashMap<Digest, u64>,
    depth: usize,
) -> Result<u64, Failure> {
    if let Some(known) = counts.get(digest) {
        return Ok(*known);
    }
    if depth > MAX_DEPTH {
        return Err(Failure::invalid(format!("the input root is deeper than {MAX_DEPTH} folders")));
    }
    let Some(folder) = folders.get(digest) else { return Ok(0) };
    let mut entries = (folder.files.len() + folder.symlinks.len() + folder.folders.len()) as u64;
    for (_, child) in &folder.folders {
        entries = entries.saturating_add(count(folders, child, counts, depth + 1)?);
    }
    counts.insert(*digest, entries);
    Ok(entries)
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

//! The inputs of a request, of which some are its tool.
//!
//! Bazel marks the files of tools, when told to with `--experimental_remote_mark_tool_inputs`. What always holds: names
//! lead nowhere but into their folder; how much is looked at is bounded, and what is beyond that is no request.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt, stream};
use gf_digest::{Digest, Hasher};
use gf_reapi::check_directory;
use gf_reapi::execution::{Directory, FileNode, NodeProperties};
use prost::Message;

use crate::blobs::BlobClient;
use crate::failure::Failure;
use crate::folders::Content;
use crate::lru::Lru;
use crate::paths::InsidePath;

/// What Bazel marks tools with.
const TOOL_MARK: &str = "bazel_tool_input";
/// Entries of a root on all paths, because each is copied for each request.
const MAX_ENTRIES: usize = 100_000;
const MAX_DEPTH: usize = 200;
/// Directories that are kept, as they are encoded.
const KEPT_BYTES: u64 = 16 << 20;
/// Calls under way for one root.
const CALLS: usize = 4;

/// A folder of inputs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Node {
    /// Sorted by name, as folders are.
    pub(super) files: Vec<InputFile>,
    pub(super) symlinks: Vec<(String, String)>,
    pub(super) folders: Vec<(String, Self)>,
    /// It is there as long as the process: a part of the tool lies in it, or the process stands in it.
    pub(super) stays: bool,
}

/// A file of a folder.
#[derive(Debug, PartialEq)]
pub(super) struct InputFile {
    pub(super) name: String,
    pub(super) content: Content,
    pub(super) is_tool: bool,
}

impl Node {
    /// Whether a file of this name is a part of the tool.
    pub(super) fn has_tool(&self, name: &CStr) -> bool {
        self.file(name.to_bytes()).is_some_and(|file| file.is_tool)
    }

    /// The folder of this name.
    pub(super) fn child(&self, name: &CStr) -> Option<&Self> {
        let found = self.folders.binary_search_by(|(entry, _)| entry.as_bytes().cmp(name.to_bytes())).ok()?;
        self.folders.get(found).map(|(_, child)| child)
    }

    /// The file at a path.
    pub(super) fn find(&self, path: &InsidePath) -> Option<&InputFile> {
        let (name, folders) = path.names().split_last()?;
        let folder = folders.iter().try_fold(self, |node, name| node.folder(name))?;
        folder.file(name.as_bytes())
    }

    /// Keeps a folder and those that it lies in as long as the process; no, if it is not there.
    pub(super) fn keep(&mut self, names: &[String]) -> bool {
        self.stays = true;
        let Some((name, below)) = names.split_first() else { return true };
        let child = self.folders.binary_search_by(|(entry, _)| entry.cmp(name)).ok();
        child.and_then(|index| self.folders.get_mut(index)).is_some_and(|(_, child)| child.keep(below))
    }

    fn folder(&self, name: &str) -> Option<&Self> {
        let found = self.folders.binary_search_by(|(entry, _)| entry.as_str().cmp(name)).ok()?;
        self.folders.get(found).map(|(_, child)| child)
    }

    fn file(&self, name: &[u8]) -> Option<&InputFile> {
        self.files.get(self.files.binary_search_by(|file| file.name.as_bytes().cmp(name)).ok()?)
    }

    /// Looks at every file with its path, in order.
    pub(super) fn each_file<'a>(&'a self, look: &mut impl FnMut(&str, &'a InputFile)) {
        self.each_below(&mut String::new(), look);
    }

    fn each_below<'a>(&'a self, path: &mut String, look: &mut impl FnMut(&str, &'a InputFile)) {
        let length = path.len();
        for file in &self.files {
            path.push_str(&file.name);
            look(path, file);
            path.truncate(length);
        }
        for (name, child) in &self.folders {
            path.push_str(name);
            path.push('/');
            child.each_below(path, look);
            path.truncate(length);
        }
    }

    /// What the tool is: the same for the same files at the same paths. Nothing, if no file is marked.
    pub(super) fn tool_digest(&self, mut hasher: Hasher) -> Option<Digest> {
        let mut is_any = false;
        self.each_file(&mut |path, InputFile { content: Content { digest, is_executable }, is_tool, .. }| {
            if *is_tool {
                is_any = true;
                hasher.update(path.as_bytes());
                hasher.update(format!("\0{}-{}-{is_executable}\0", digest.hash_hex(), digest.size_bytes()).as_bytes());
            }
        });
        is_any.then(|| hasher.finish())
    }
}

/// Directories lately read.
#[derive(Debug)]
pub(super) struct Directories(Mutex<Lru<Digest, Arc<Directory>>>);

impl Directories {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Lru::new()))
    }

    /// Reads a root; nothing, if it is not one to give to a process that stays. What is wrong with it, or missing of it,
    /// is said when it is run as any other.
    pub(super) async fn read(&self, blobs: &BlobClient, root: Digest) -> Result<Option<Node>, Failure> {
        let mut all = HashMap::new();
        let mut seen = HashSet::from([root]);
        let mut level = vec![root];
        while !level.is_empty() {
            let Some(found) = self.level(blobs, level).await? else { return Ok(None) };
            level = Vec::new();
            for (digest, directory) in found {
                let children = directory.directories.iter().filter_map(|node| node.digest.as_ref());
                let children = children.filter_map(|wire| wire.to_digest(root.function()).ok());
                level.extend(children.filter(|child| seen.insert(*child)));
                all.insert(digest, directory);
            }
            if seen.len() > MAX_ENTRIES {
                return Ok(None);
            }
        }
        Ok(Builder { all: &all, left: MAX_ENTRIES }.node(&root, 0))
    }

    async fn level(
        &self,
        blobs: &BlobClient,
        level: Vec<Digest>,
    ) -> Result<Option<Vec<(Digest, Arc<Directory>)>>, Failure> {
        let (mut found, mut unknown) = (Vec::new(), Vec::new());
        for digest in level {
            match self.kept(&digest) {
                Some(directory) => found.push((digest, directory)),
                None if digest.is_empty() => found.push((digest, Arc::default())),
                None => unknown.push(digest),
            }
        }
        if unknown.iter().any(|digest| blobs.is_large(digest)) {
            return Ok(None);
        }
        let wanted = found.len() + unknown.len();
        let calls = blobs.batches(unknown).into_iter().map(|batch| async move { blobs.read_batch(&batch).await });
        let read = stream::iter(calls).buffer_unordered(CALLS).try_concat().await?;
        for (digest, bytes) in read {
            let Ok(directory) = Directory::decode(bytes) else { return Ok(None) };
            if check_directory(&directory).is_err() {
                return Ok(None);
            }
            let directory = Arc::new(directory);
            self.keep(digest, &directory);
            found.push((digest, directory));
        }
        Ok((found.len() == wanted).then_some(found))
    }

    fn kept(&self, digest: &Digest) -> Option<Arc<Directory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn keep(&self, digest: Digest, directory: &Arc<Directory>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(digest, Arc::clone(directory), digest.size_bytes());
        while kept.weight() > KEPT_BYTES {
            let Some(oldest) = kept.oldest(|_| true) else { break };
            kept.remove(&oldest);
        }
    }
}

/// Makes a tree of directories that name each other.
struct Builder<'a> {
    all: &'a HashMap<Digest, Arc<Directory>>,
    left: usize,
}

impl Builder<'_> {
    fn node(&mut self, digest: &Digest, depth: usize) -> Option<Node> {
        let directory = self.all.get(digest)?;
        let entries = directory.files.len() + directory.symlinks.len() + directory.directories.len();
        self.left = self.left.checked_sub(entries)?;
        // Times and permissions that somebody asks for are not lost: such a root is laid out for an ordinary run.
        let asks_for_more = |properties: &Option<NodeProperties>| properties.as_ref().is_some_and(has_more);
        if depth > MAX_DEPTH
            || asks_for_more(&directory.node_properties)
            || directory.files.iter().any(|file| asks_for_more(&file.node_properties))
        {
            return None;
        }
        let is_tool_folder = directory.node_properties.as_ref().is_some_and(is_marked);
        let mut node = Node::default();
        for file in &directory.files {
            node.files.push(input_file(file, is_tool_folder, digest)?);
        }
        for link in &directory.symlinks {
            node.symlinks.push((link.name.clone(), link.target.clone()));
        }
        for child in &directory.directories {
            let digest = child.digest.as_ref()?.to_digest(digest.function()).ok()?;
            node.folders.push((child.name.clone(), self.node(&digest, depth + 1)?));
        }
        node.stays = node.files.iter().any(|file| file.is_tool) || node.folders.iter().any(|(_, child)| child.stays);
        Some(node)
    }
}

fn input_file(file: &FileNode, is_in_tool: bool, directory: &Digest) -> Option<InputFile> {
    let digest = file.digest.as_ref()?.to_digest(directory.function()).ok()?;
    let content = Content { digest, is_executable: file.is_executable };
    let is_tool = is_in_tool || file.node_properties.as_ref().is_some_and(is_marked);
    Some(InputFile { name: file.name.clone(), content, is_tool })
}

fn is_marked(properties: &NodeProperties) -> bool {
    properties.properties.iter().any(|property| property.name == TOOL_MARK)
}

const fn has_more(properties: &NodeProperties) -> bool {
    properties.mtime.is_some() || properties.unix_mode.is_some()
}

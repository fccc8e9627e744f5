//! From directories back to the events of an archive.

use std::collections::{HashMap, HashSet};
use std::mem::take;

use bytes::Bytes;
use gf_blobstore::{Accept, BlobStore, OwnerId};
use gf_digest::{Digest, DigestFunction};
use gf_nix_formats::nar::{NarError, NarEvent, NarLimits, NarName, NarTarget};
use gf_reapi::WireDigest;
use gf_reapi::check_directory;
use gf_reapi::execution::Directory;
use prost::Message as _;

use super::{ReadError, Root};

/// Directories read from the store at once, and their bytes.
const BATCH_COUNT: usize = 256;
const BATCH_BYTES: u64 = 4 << 20;

/// Encoded directories, all that are below a root.
#[derive(Default)]
pub(super) struct Directories {
    encoded: HashMap<Digest, Bytes>,
}

impl Directories {
    /// Reads all directories that a root needs. Fails when one is missing.
    pub(super) async fn fetch(
        store: &dyn BlobStore,
        owner: OwnerId,
        root: &Root,
        limits: NarLimits,
    ) -> Result<Self, ReadError> {
        match root {
            Root::Directory(digest) => Self::fetch_all(store, owner, vec![*digest], limits).await,
            Root::File { .. } | Root::Symlink { .. } | Root::Opaque(_) => Ok(Self::default()),
        }
    }

    /// Reads all directories below one that is at hand.
    pub(super) async fn fetch_below(
        store: &dyn BlobStore,
        owner: OwnerId,
        directory: &Directory,
        limits: NarLimits,
    ) -> Result<Self, ReadError> {
        Self::fetch_all(store, owner, children(directory)?, limits).await
    }

    /// Each distinct directory once, in no order.
    async fn fetch_all(
        store: &dyn BlobStore,
        owner: OwnerId,
        mut wanted: Vec<Digest>,
        limits: NarLimits,
    ) -> Result<Self, ReadError> {
        let mut found = Self::default();
        let mut seen: HashSet<Digest> = wanted.iter().copied().collect();
        while !wanted.is_empty() {
            let batch = take_batch(&mut wanted);
            let answers = store.read_batch(owner, &batch, Accept::Identity).await;
            for (digest, answer) in batch.into_iter().zip(answers) {
                let (bytes, _) = answer?;
                let children = children(&decode(digest, &bytes)?)?;
                wanted.extend(children.into_iter().filter(|child| seen.insert(*child)));
                found.encoded.insert(digest, bytes);
            }
            // Each but the root is an entry.
            if seen.len() as u64 > limits.entries.saturating_add(1) {
                return Err(NarError::TooManyEntries(limits.entries).into());
            }
            tokio::task::yield_now().await;
        }
        Ok(found)
    }

    /// The digests of all of them. The empty directory is among them, although the store needs not be given it.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.encoded.keys().copied()
    }

    fn get(&self, digest: Digest) -> Result<Directory, ReadError> {
        let bytes = self.encoded.get(&digest).ok_or_else(|| malformed(digest, &"it was not read"))?;
        decode(digest, bytes)
    }
}

/// Takes off as many of the last as are read at once: at least one.
fn take_batch(wanted: &mut Vec<Digest>) -> Vec<Digest> {
    let mut bytes = 0;
    let fit = |digest: &&Digest| {
        bytes += digest.size_bytes();
        bytes <= BATCH_BYTES
    };
    let count = wanted.iter().rev().take(BATCH_COUNT).take_while(fit).count().max(1);
    wanted.split_off(wanted.len() - count)
}

/// An event of an archive, without contents.
pub(super) struct Step {
    /// The event.
    pub(super) event: NarEvent,
    /// With [`NarEvent::File`]: what it contains.
    pub(super) file: Option<Digest>,
}

/// Walks through a tree in the order of an archive.
pub(super) struct Walk<'a> {
    directories: &'a Directories,
    levels: Vec<Level>,
    /// What comes before the next entry.
    ready: Vec<Step>,
}

/// A directory under way: its three lists, each sorted, are walked as one.
struct Level {
    directory: Directory,
    files: usize,
    directories: usize,
    symlinks: usize,
    /// More entries follow that are not here, so its end is not told.
    is_unfinished: bool,
}

impl<'a> Walk<'a> {
    /// Walks through all of `root`.
    pub(super) fn new(root: &Root, directories: &'a Directories) -> Result<Self, ReadError> {
        let mut walk = Self { directories, levels: Vec::new(), ready: Vec::new() };
        match root {
            Root::Directory(digest) => {
                walk.levels.push(Level::new(directories.get(*digest)?));
                walk.ready.push(plain(NarEvent::Directory));
            }
            Root::File { digest, executable } => walk.file(*digest, *executable),
            Root::Symlink { target } => walk.ready.push(symlink(target)?),
            Root::Opaque(digest) => return Err(malformed(*digest, &"it is opaque, and has no tree")),
        }
        Ok(walk)
    }

    /// Walks through the entries of a directory, without its own beginning and end.
    pub(super) fn inside(directory: Directory, directories: &'a Directories) -> Self {
        let level = Level { is_unfinished: true, ..Level::new(directory) };
        Self { directories, levels: vec![level], ready: Vec::new() }
    }

    /// The next event; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Step>, ReadError> {
        if let Some(step) = self.ready.pop() {
            return Ok(Some(step));
        }
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        match level.next_entry() {
            Some(entry) => self.enter(entry).map(Some),
            None => {
                let is_unfinished = level.is_unfinished;
                self.levels.pop();
                Ok((!is_unfinished).then(|| plain(NarEvent::DirectoryEnd)))
            }
        }
    }

    /// The entry itself comes at once, what is behind it next.
    fn enter(&mut self, (name, node): (String, Node)) -> Result<Step, ReadError> {
        match node {
            Node::File(digest, executable) => self.file(digest_of(digest.as_ref())?, executable),
            Node::Directory(digest) => {
                self.levels.push(Level::new(self.directories.get(digest_of(digest.as_ref())?)?));
                self.ready.push(plain(NarEvent::Directory));
            }
            Node::Symlink(target) => self.ready.push(symlink(&target)?),
        }
        Ok(plain(NarEvent::Entry(NarName::new(name.into_bytes().into())?)))
    }

    /// The last one comes first.
    fn file(&mut self, digest: Digest, executable: bool) {
        let event = NarEvent::File { executable, size_bytes: digest.size_bytes() };
        self.ready.push(plain(NarEvent::FileEnd));
        self.ready.push(Step { event, file: Some(digest) });
    }
}

enum Node {
    File(Option<WireDigest>, bool),
    Directory(Option<WireDigest>),
    Symlink(String),
}

impl Level {
    const fn new(directory: Directory) -> Self {
        Self { directory, files: 0, directories: 0, symlinks: 0, is_unfinished: false }
    }

    /// Takes the entry with the smallest name.
    fn next_entry(&mut self) -> Option<(String, Node)> {
        let Directory { files, directories, symlinks, .. } = &mut self.directory;
        let file = files.get_mut(self.files);
        let directory = directories.get_mut(self.directories);
        let symlink = symlinks.get_mut(self.symlinks);
        let file_name = file.as_ref().map(|node| node.name.as_str());
        let directory_name = directory.as_ref().map(|node| node.name.as_str());
        let symlink_name = symlink.as_ref().map(|node| node.name.as_str());
        let least = [file_name, directory_name, symlink_name].into_iter().flatten().min();
        if file_name.is_some() && file_name == least {
            self.files += 1;
            file.map(|node| (take(&mut node.name), Node::File(node.digest.take(), node.is_executable)))
        } else if directory_name.is_some() && directory_name == least {
            self.directories += 1;
            directory.map(|node| (take(&mut node.name), Node::Directory(node.digest.take())))
        } else {
            self.symlinks += 1;
            symlink.map(|node| (take(&mut node.name), Node::Symlink(take(&mut node.target))))
        }
    }
}

fn plain(event: NarEvent) -> Step {
    Step { event, file: None }
}

fn symlink(target: &str) -> Result<Step, NarError> {
    NarTarget::new(Bytes::copy_from_slice(target.as_bytes())).map(|target| plain(NarEvent::Symlink(target)))
}

fn decode(digest: Digest, bytes: &Bytes) -> Result<Directory, ReadError> {
    let directory = Directory::decode(bytes.clone()).map_err(|error| malformed(digest, &error))?;
    check_directory(&directory).map_err(|error| malformed(digest, &error))?;
    Ok(directory)
}

fn children(directory: &Directory) -> Result<Vec<Digest>, ReadError> {
    directory.directories.iter().map(|node| digest_of(node.digest.as_ref())).collect()
}

fn digest_of(wire: Option<&WireDigest>) -> Result<Digest, ReadError> {
    let wire = wire.ok_or_else(|| ReadError::Malformed("an entry of a directory has no digest".to_owned()))?;
    wire.to_digest(DigestFunction::Sha256).map_err(|error| ReadError::Malformed(error.to_string()))
}

fn malformed(digest: Digest, reason: &dyn std::fmt::Display) -> ReadError {
    ReadError::Malformed(format!("{digest}: {reason}"))
}

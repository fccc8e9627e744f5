//! Input roots: what an action finds when it begins.
//!
//! A root with nothing in it is a folder of the action alone. A small one is a tree of hard links into the cache, below
//! an overlay. A large one is kept as a *base*; a root that differs from a base a little is a layer of differences
//! above it, so that the second action over ten thousand files costs as much as it changed. Where overlays are refused,
//! everything is copied.
//!
//! What always holds: what is shared is never written to by an action; what a root stands on stays while it is used.

mod difference;
mod layout;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gf_digest::Digest;

use crate::blobs::{BlobClient, blocking};
use crate::failure::Failure;
use crate::folders::{Content, Folder, FolderCache, Shares, Tree};
use crate::local_blobs::{LocalBlobs, Pins};
use crate::lru::Lru;
use crate::paths::InsidePath;
use crate::removal::{Trash, spread};
use crate::run_folders::ROOT;
use crate::sandbox::Root;

use difference::{Change, difference};
pub(crate) use layout::{Layout, Material};

/// Roots with fewer entries are made anew each time.
const SMALL_ENTRIES: u64 = 500;
/// Entries of all bases together, each of which is a name on the disk.
const MAX_BASE_ENTRIES: u64 = 1_000_000;
/// Bases that a root is compared with.
const CANDIDATES: usize = 16;
/// A root that differs by more than this part of it becomes a base itself.
const LARGEST_DIFFERENCE: u64 = 4;

/// Makes input roots.
#[derive(Debug)]
pub(crate) struct InputRoots {
    folders: FolderCache,
    blobs: Arc<LocalBlobs>,
    trash: Arc<Trash>,
    bases: Mutex<Lru<Digest, Arc<Base>>>,
    bases_folder: PathBuf,
    next_base: AtomicU64,
    /// Of several actions over a new large root, one makes the base and the others stand on it.
    making: tokio::sync::Mutex<()>,
    style: Style,
    max_copied_bytes: u64,
}

/// How roots are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Layers of links below an overlay.
    Overlay,
    /// Copies.
    Private,
}

impl Style {
    const fn shares(self) -> Shares {
        match self {
            Self::Overlay => Shares::Links,
            Self::Private => Shares::Nothing,
        }
    }
}

/// A large tree that stays.
#[derive(Debug)]
struct Base {
    tree: Tree,
    path: PathBuf,
    trash: Arc<Trash>,
    _pins: Pins,
}

impl Drop for Base {
    fn drop(&mut self) {
        if let Err(error) = self.trash.remove(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "an input tree cannot be removed");
        }
    }
}

/// What one action stands on.
#[derive(Debug)]
pub(crate) struct InputRoot {
    pub(crate) root: Root,
    _base: Option<Arc<Base>>,
    _pins: Option<Pins>,
}

/// What an action asks of its root, beside the inputs.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) root: Digest,
    pub(crate) working_directory: InsidePath,
    /// Folders that outputs lie in.
    pub(crate) output_parents: Vec<InsidePath>,
}

impl InputRoots {
    /// Removes what an earlier worker left.
    pub(crate) fn open(
        data_dir: &Path,
        folder_cache_bytes: u64,
        blobs: Arc<LocalBlobs>,
        trash: Arc<Trash>,
        style: Style,
        max_copied_bytes: u64,
    ) -> io::Result<Self> {
        let bases_folder = data_dir.join("bases");
        trash.remove(&bases_folder)?;
        fs::create_dir_all(&bases_folder)?;
        spread(&bases_folder);
        Ok(Self {
            folders: FolderCache::new(folder_cache_bytes),
            blobs,
            trash,
            bases: Mutex::new(Lru::new()),
            bases_folder,
            next_base: AtomicU64::new(0),
            making: tokio::sync::Mutex::new(()),
            style,
            max_copied_bytes,
        })
    }

    /// Fetches what is not here and lays the root out in `run`, a folder of the action in which [`ROOT`] is an empty one.
    pub(crate) async fn make(&self, blobs: &BlobClient, wanted: &Wanted, run: &Path) -> Result<InputRoot, Failure> {
        let tree = self.folders.tree(blobs, wanted.root).await?;
        tree.check_copies(self.style.shares(), self.max_copied_bytes)?;
        let parents = missing_parents(&tree, wanted)?;
        if self.style == Style::Private || tree.entries == 0 {
            return self.make_private(blobs, &tree, parents, run.join(ROOT)).await;
        }
        if tree.entries < SMALL_ENTRIES {
            return self.make_whole(blobs, &tree, parents, run.join("inputs")).await;
        }
        let base = match self.nearest(&tree) {
            Some(near) => near,
            None => self.make_base(blobs, &tree).await?,
        };
        self.make_difference(blobs, &tree, base, parents, run.join("difference")).await
    }

    /// Lets go of what no action uses while the cache is over its bound.
    pub(crate) fn trim(&self) {
        while !self.blobs.trim() && self.drop_a_base() {}
    }

    /// Fills an empty folder, which is the action's to change.
    async fn make_private(
        &self,
        blobs: &BlobClient,
        tree: &Tree,
        parents: Vec<InsidePath>,
        path: PathBuf,
    ) -> Result<InputRoot, Failure> {
        if tree.entries == 0 && tree.root.properties.is_none() && parents.is_empty() {
            return Ok(InputRoot { root: Root::Private(path), _base: None, _pins: None });
        }
        let pins = self.blobs.pin(blobs, contents(tree, &tree.root)).await?;
        let (layout, _wanted) = Layout::new(self.blobs.files(), Material::Copies);
        let (tree, target) = (tree.clone(), path.clone());
        blocking(move || {
            let top = layout.fill_top(&tree, &tree.root, &target)?;
            layout.make_parents(top.as_fd(), &parents)
        })
        .await?;
        // Copies need the cache no more.
        drop(pins);
        Ok(InputRoot { root: Root::Private(path), _base: None, _pins: None })
    }

    async fn make_whole(
        &self,
        blobs: &BlobClient,
        tree: &Tree,
        parents: Vec<InsidePath>,
        path: PathBuf,
    ) -> Result<InputRoot, Failure> {
        let pins = self.blobs.pin(blobs, contents(tree, &tree.root)).await?;
        let (layout, _wanted) = Layout::new(self.blobs.files(), Material::Links);
        let (tree, target) = (tree.clone(), path.clone());
        blocking(move || {
            let top = layout.make(&tree, &tree.root, &target)?;
            layout.make_parents(top.as_fd(), &parents)
        })
        .await?;
        // Links need the cache no more.
        drop(pins);
        Ok(InputRoot { root: Root::Layers(vec![path]), _base: None, _pins: None })
    }

    async fn make_base(&self, blobs: &BlobClient, tree: &Tree) -> Result<(Arc<Base>, Vec<Change>), Failure> {
        let _one_at_a_time = self.making.lock().await;
        if let Some(near) = self.nearest(tree) {
            return Ok(near);
        }
        let pins = self.blobs.pin(blobs, contents(tree, &tree.root)).await?;
        let path = self.bases_folder.join(self.next_base.fetch_add(1, Ordering::Relaxed).to_string());
        let base = Base { tree: tree.clone(), path, trash: Arc::clone(&self.trash), _pins: pins };
        let (layout, _wanted) = Layout::new(self.blobs.files(), Material::Links);
        let base = blocking(move || {
            layout.make(&base.tree, &base.tree.root, &base.path)?;
            Ok(base)
        })
        .await?;
        let base = Arc::new(base);
        let gone = self.keep(Arc::clone(&base));
        blocking(move || {
            drop(gone);
            Ok(())
        })
        .await?;
        Ok((base, Vec::new()))
    }

    async fn make_difference(
        &self,
        blobs: &BlobClient,
        tree: &Tree,
        (base, changes): (Arc<Base>, Vec<Change>),
        parents: Vec<InsidePath>,
        path: PathBuf,
    ) -> Result<InputRoot, Failure> {
        if changes.is_empty() && parents.is_empty() {
            let root = Root::Layers(vec![base.path.clone()]);
            return Ok(InputRoot { root, _base: Some(base), _pins: None });
        }
        let mut changed = HashSet::new();
        changes.iter().for_each(|change| change.add_contents(tree, &mut changed));
        let pins = self.blobs.pin(blobs, changed).await?;
        let (layout, _wanted) = Layout::new(self.blobs.files(), Material::Links);
        let (tree, target) = (tree.clone(), path.clone());
        blocking(move || {
            let top = layout.make_top(&target)?;
            layout.apply(&tree, &changes, top.as_fd())?;
            layout.make_parents(top.as_fd(), &parents)
        })
        .await?;
        let root = Root::Layers(vec![path, base.path.clone()]);
        Ok(InputRoot { root, _base: Some(base), _pins: Some(pins) })
    }

    /// The base that a tree differs from the least, if one is near enough.
    fn nearest(&self, tree: &Tree) -> Option<(Arc<Base>, Vec<Change>)> {
        let candidates: Vec<Arc<Base>> =
            self.lock().recent().take(CANDIDATES).map(|(_, base)| Arc::clone(base)).collect();
        let mut limit = tree.entries / LARGEST_DIFFERENCE;
        let mut nearest: Option<(Arc<Base>, Vec<Change>)> = None;
        for base in candidates {
            if let Some((changes, cost)) = difference(&base.tree, tree, limit) {
                limit = cost;
                nearest = Some((base, changes));
            }
            if limit == 0 {
                break;
            }
        }
        if let Some((base, _)) = &nearest {
            self.lock().get(&base.tree.root_digest);
        }
        nearest
    }

    /// Takes a base in; the answer is what had to go for it.
    fn keep(&self, base: Arc<Base>) -> Vec<Arc<Base>> {
        let mut bases = self.lock();
        let entries = base.tree.entries;
        bases.insert(base.tree.root_digest, base, entries);
        let mut gone = Vec::new();
        while bases.weight() > MAX_BASE_ENTRIES {
            let Some(oldest) = bases.oldest(is_unused) else { break };
            gone.extend(bases.remove(&oldest));
        }
        gone
    }

    fn drop_a_base(&self) -> bool {
        let gone = {
            let mut bases = self.lock();
            bases.oldest(is_unused).and_then(|oldest| bases.remove(&oldest))
        };
        gone.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Lru<Digest, Arc<Base>>> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only the list itself holds it.
fn is_unused(base: &Arc<Base>) -> bool {
    Arc::strong_count(base) == 1
}

/// Every file below a folder.
pub(crate) fn contents(tree: &Tree, folder: &Arc<Folder>) -> HashSet<Content> {
    let mut contents = HashSet::new();
    add_contents(tree, folder, &mut contents);
    contents
}

fn add_contents(tree: &Tree, folder: &Arc<Folder>, contents: &mut HashSet<Content>) {
    let mut seen = HashSet::new();
    let mut left = vec![folder];
    while let Some(folder) = left.pop() {
        contents.extend(folder.files.iter().map(|file| file.content));
        let below = folder.folders.iter().filter(|(_, digest)| seen.insert(*digest));
        left.extend(below.filter_map(|(_, digest)| tree.folder(digest)));
    }
}

/// What stands at a path of a tree.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Folder,
    Nothing,
    /// Something on the way is a file or a link.
    InTheWay,
}

fn place(tree: &Tree, path: &InsidePath) -> Place {
    let mut folder = &tree.root;
    for name in path.names() {
        let child = folder.folders.binary_search_by(|(entry, _)| (**entry).cmp(name.as_str()));
        match child.ok().and_then(|index| folder.folders.get(index)).and_then(|(_, digest)| tree.folder(digest)) {
            Some(child) => folder = child,
            None => {
                let is_file = folder.files.iter().any(|file| &*file.name == name);
                let is_link = folder.symlinks.iter().any(|(entry, _)| &**entry == name);
                return if is_file || is_link { Place::InTheWay } else { Place::Nothing };
            }
        }
    }
    Place::Folder
}

/// The folders of outputs that are not among the inputs, each once. A link on the way is left as it is: what lies behind
/// it is the action's own business.
fn missing_parents(tree: &Tree, wanted: &Wanted) -> Result<Vec<InsidePath>, Failure> {
    let mut parents: Vec<InsidePath> =
        wanted.output_parents.iter().filter(|path| place(tree, path) == Place::Nothing).cloned().collect();
    parents.sort_unstable();
    parents.dedup();
    let directory = &wanted.working_directory;
    let is_made = |parents: &[InsidePath]| parents.iter().any(|path| path.names().starts_with(directory.names()));
    match place(tree, directory) {
        Place::Folder => Ok(parents),
        Place::Nothing if is_made(&parents) => Ok(parents),
        Place::Nothing | Place::InTheWay => Err(Failure::invalid(format!(
            "the working directory {:?} is no folder of the input root",
            directory.to_path().display().to_string()
        ))),
    }
}

#[cfg(test)]
mod tests;

//! Nix store paths on the disk of this worker, laid out once and shown to every action that asks for them.
//!
//! A path is a folder of hard links into a cache of its own, whose files look as in any Nix store. Paths that are the same
//! are laid out once, whatever they are called and whoever asks for them: that an action may see a path was decided by the
//! server, which named its root.
//!
//! Deliberately absent: names, references and signatures, which are the server's; and a promise across a restart: then
//! paths are laid out anew, out of files that are still here.
//!
//! What always holds: what is shown is whole; two actions that need the same path lay it out once; what an action sees
//! stays until it is over, so the bound may be passed while actions run that need more at one time.

mod wanted;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{StreamExt, TryStreamExt, stream};
use gf_digest::DigestFunction;
use tokio::sync::OwnedMutexGuard;

use crate::blobs::{BlobClient, blocking};
use crate::failure::Failure;
use crate::folders::{Content, FolderCache, Tree};
use crate::input_root::{Layout, Material, contents};
use crate::local_blobs::{LocalBlobs, Look, Pins};
use crate::lru::Lru;
use crate::removal::{Trash, spread};
use crate::sandbox::{StoreObject, StoreView};

pub(crate) use wanted::{Root, StorePath};

/// Parsed directories of paths.
const FOLDER_CACHE_BYTES: u64 = 32 << 20;
/// Names on the disk, of all paths together.
const MAX_ENTRIES: u64 = 2_000_000;
/// Paths whose directories are fetched at one time for one action, and paths that are laid out.
const TREES_AT_ONCE: usize = 8;
const LAYOUTS_AT_ONCE: usize = 2;

/// The store paths of a worker.
#[derive(Debug)]
pub(crate) struct StorePaths {
    directories: FolderCache,
    blobs: Arc<LocalBlobs>,
    trash: Arc<Trash>,
    folder: PathBuf,
    next: AtomicU64,
    objects: Mutex<Lru<Root, Arc<Object>>>,
    /// Of several actions that need a path, one lays it out and the others wait for that.
    turns: Mutex<HashMap<Root, Arc<tokio::sync::Mutex<()>>>>,
}

/// One that is laid out.
#[derive(Debug)]
struct Object {
    /// In the folder of all.
    name: String,
    path: PathBuf,
    trash: Arc<Trash>,
    _pins: Pins,
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Err(error) = self.trash.remove(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a store path cannot be removed");
        }
    }
}

/// What one action sees. It stays while this lives.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) view: StoreView,
    _objects: Vec<Arc<Object>>,
}

/// A path that is to be laid out: what there is of it.
#[derive(Debug)]
enum Plan {
    Folder(Tree),
    File(Content),
}

impl StorePaths {
    /// Removes what an earlier worker laid out, and keeps its files. At most `max_bytes` of them are kept.
    pub(crate) fn open(data_dir: &Path, max_bytes: u64, trash: Arc<Trash>) -> io::Result<Self> {
        let data_dir = data_dir.join("store");
        let folder = data_dir.join("paths");
        trash.remove(&folder)?;
        fs::create_dir_all(&folder)?;
        // Whatever the mask of the process: who passes through comes from a sandbox, and the folder above is shut.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        spread(&folder);
        // They are the worker's own: no action may change them even where it gets to them.
        let blobs = LocalBlobs::open_as(Look::StorePaths, data_dir.join("files"), max_bytes, None, &trash)?;
        Ok(Self {
            directories: FolderCache::new(FOLDER_CACHE_BYTES),
            blobs: Arc::new(blobs),
            trash,
            folder,
            next: AtomicU64::new(0),
            objects: Mutex::new(Lru::new()),
            turns: Mutex::default(),
        })
    }

    /// Fetches and lays out what is not here.
    pub(crate) async fn show(&self, blobs: &BlobClient, wanted: &[StorePath]) -> Result<Shown, Failure> {
        if wanted.is_empty() {
            return Ok(Shown::default());
        }
        let roots: HashSet<&Root> = wanted.iter().map(|path| &path.root).filter(|root| !root.is_link()).collect();
        let (mut objects, missing) = self.find(roots.into_iter().cloned());
        if !missing.is_empty() {
            let blobs = blobs.of_function(DigestFunction::Sha256);
            let laid_out = self.lay_out(&blobs, missing).await;
            objects.extend(laid_out.map_err(|failure| about(failure, wanted))?);
        }
        let shown = wanted.iter().filter_map(|path| {
            let object = match &path.root {
                Root::Directory(_) => StoreObject::Folder(objects.get(&path.root)?.name.clone()),
                Root::File(_) => StoreObject::File(objects.get(&path.root)?.name.clone()),
                Root::Symlink(target) => StoreObject::Symlink(target.clone()),
            };
            Some((path.name.clone(), object))
        });
        let view = StoreView { folder: self.folder.clone(), objects: shown.collect() };
        Ok(Shown { view, _objects: objects.into_values().collect() })
    }

    /// Lets go of what no action sees while there is more than the bound.
    pub(crate) async fn trim(&self) {
        while !self.blobs.trim() || self.lock().weight() > MAX_ENTRIES {
            let gone = {
                let mut objects = self.lock();
                objects.oldest(is_unused).and_then(|oldest| objects.remove(&oldest))
            };
            let Some(gone) = gone else { break };
            let removed = blocking(move || {
                drop(gone);
                Ok(())
            });
            if removed.await.is_err() {
                break;
            }
        }
    }

    /// What is here of some roots, and the others.
    fn find(&self, roots: impl Iterator<Item = Root>) -> (HashMap<Root, Arc<Object>>, Vec<Root>) {
        let mut objects = self.lock();
        let (mut found, mut missing) = (HashMap::new(), Vec::new());
        for root in roots {
            match objects.get(&root) {
                Some(object) => drop(found.insert(root, Arc::clone(object))),
                None => missing.push(root),
            }
        }
        (found, missing)
    }

    async fn lay_out(&self, blobs: &BlobClient, roots: Vec<Root>) -> Result<HashMap<Root, Arc<Object>>, Failure> {
        let _turns = self.take_turns(&roots).await;
        let (mut found, missing) = self.find(roots.into_iter());
        let plans = missing.into_iter().map(|root| async move {
            let plan = match &root {
                Root::File(content) => Plan::File(*content),
                Root::Directory(digest) => Plan::Folder(self.directories.tree(blobs, *digest).await?),
                Root::Symlink(_) => return Err(Failure::Worker("a link is not laid out".to_owned())),
            };
            Ok((root, plan))
        });
        let plans: Vec<(Root, Plan)> = stream::iter(plans).buffer_unordered(TREES_AT_ONCE).try_collect().await?;
        let all: HashSet<Content> = plans.iter().flat_map(|(_, plan)| plan.contents()).collect();
        self.check_room(&all)?;
        // All at once, because calls for single paths would be many small ones. Each pins its own below.
        let _fetched = self.blobs.pin(blobs, all).await?;
        let laid_out = plans.into_iter().map(|(root, plan)| async move {
            let object = self.lay_out_one(blobs, plan, root.clone()).await?;
            Ok::<_, Failure>((root, object))
        });
        let laid_out: Vec<_> = stream::iter(laid_out).buffer_unordered(LAYOUTS_AT_ONCE).try_collect().await?;
        found.extend(laid_out);
        Ok(found)
    }

    async fn lay_out_one(&self, blobs: &BlobClient, plan: Plan, root: Root) -> Result<Arc<Object>, Failure> {
        let pins = self.blobs.pin(blobs, plan.contents()).await?;
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.folder.join(&name);
        let object = Object { name, path, trash: Arc::clone(&self.trash), _pins: pins };
        let (layout, _wanted) = Layout::new(self.blobs.files(), Material::Links);
        let entries = plan.entries();
        let object = blocking(move || {
            // What is not finished goes with the object.
            match &plan {
                Plan::Folder(tree) => layout.make(tree, &tree.root, &object.path).map(drop)?,
                Plan::File(content) => layout.make_file(*content, &object.path)?,
            }
            Ok(object)
        })
        .await?;
        let object = Arc::new(object);
        self.lock().insert(root, Arc::clone(&object), entries);
        Ok(object)
    }

    /// One that could never be kept is not begun.
    fn check_room(&self, contents: &HashSet<Content>) -> Result<(), Failure> {
        let bytes: u64 = contents.iter().map(|content| content.digest.size_bytes()).fold(0, u64::saturating_add);
        let max_bytes = self.blobs.max_bytes();
        if bytes <= max_bytes {
            return Ok(());
        }
        Err(Failure::precondition(format!(
            "the Nix store paths of the action take {bytes} bytes, and this worker keeps at most {max_bytes}; an operator \
             can raise the size of its cache"
        )))
    }

    /// The right to lay these out. All who want several take them in the same order, so nobody waits in a circle.
    async fn take_turns(&self, roots: &[Root]) -> Turns<'_> {
        let mut roots: Vec<Root> = roots.to_vec();
        roots.sort_unstable_by_key(Root::order);
        let mut turns = Turns { paths: self, roots: roots.clone(), guards: Vec::new() };
        for root in roots {
            let turn = Arc::clone(lock(&self.turns).entry(root).or_default());
            turns.guards.push(turn.lock_owned().await);
        }
        turns
    }

    fn lock(&self) -> MutexGuard<'_, Lru<Root, Arc<Object>>> {
        lock(&self.objects)
    }
}

/// Turns that were taken; those that nobody waits for are forgotten at the end.
struct Turns<'a> {
    paths: &'a StorePaths,
    roots: Vec<Root>,
    guards: Vec<OwnedMutexGuard<()>>,
}

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        self.guards.clear();
        let mut turns = lock(&self.paths.turns);
        for root in &self.roots {
            // Somebody who waits holds it too.
            if turns.get(root).is_some_and(|turn| Arc::strong_count(turn) == 1) {
                turns.remove(root);
            }
        }
    }
}

impl Plan {
    fn contents(&self) -> HashSet<Content> {
        match self {
            Self::Folder(tree) => contents(tree, &tree.root),
            Self::File(content) => HashSet::from([*content]),
        }
    }

    fn entries(&self) -> u64 {
        match self {
            Self::Folder(tree) => tree.entries + 1,
            Self::File(_) => 1,
        }
    }
}

/// Only the list itself holds it.
fn is_unused(object: &Arc<Object>) -> bool {
    Arc::strong_count(object) == 1
}

/// What store paths are made of is no input: no client can upload it.
fn about(failure: Failure, wanted: &[StorePath]) -> Failure {
    let Failure::Missing(digests) = failure else { return failure };
    let names: Vec<&str> = wanted.iter().take(8).map(|path| path.name.as_str()).collect();
    Failure::precondition(format!(
        "{} blobs of the Nix store paths of the action are not in the store any more ({} paths, such as {}): push them again",
        digests.len(),
        wanted.len(),
        names.join(", ")
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

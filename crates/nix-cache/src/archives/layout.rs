//! Where everything is in an archive: what a reader needs besides the blobs of its files.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use gf_blobstore::{BlobStore, OwnerId};
use gf_digest::Digest;
use gf_nix_formats::nar::{NarLayout, NarLayoutBuilder, NarLimits};

use super::walk::{Directories, Walk};
use super::{ReadError, Root};

/// The layout of an archive that is not opaque. It never changes: a root is a hash of it.
pub(super) struct Layout {
    /// The archive without contents.
    pub(super) nar: NarLayout,
    /// All blobs that the archive needs, each once, the directories first. Not the empty one.
    pub(super) blobs: Vec<Digest>,
    /// For each file, in the order of the archive, its place in `blobs`; `None` for an empty one.
    files: Vec<Option<u32>>,
}

impl Layout {
    /// Reads the directories of `root` and lays its archive out.
    pub(super) async fn read(
        store: &dyn BlobStore,
        owner: OwnerId,
        root: &Root,
        limits: NarLimits,
    ) -> Result<Self, ReadError> {
        let directories = Directories::fetch(store, owner, root, limits).await?;
        let root = root.clone();
        // A large tree takes a processor a tenth of a second.
        let laid_out = tokio::task::spawn_blocking(move || Self::of(&root, &directories, limits)).await;
        laid_out.map_err(|error| ReadError::Malformed(error.to_string()))?
    }

    fn of(root: &Root, directories: &Directories, limits: NarLimits) -> Result<Self, ReadError> {
        let mut blobs = Blobs::default();
        for digest in directories.digests() {
            blobs.place(digest);
        }
        let mut files = Vec::new();
        let mut nar = NarLayoutBuilder::new(limits);
        let mut walk = Walk::new(root, directories)?;
        while let Some(step) = walk.next()? {
            nar.add(&step.event)?;
            files.extend(step.file.map(|digest| blobs.place(digest)));
        }
        Ok(Self { nar: nar.finish()?, blobs: blobs.listed, files })
    }

    /// What a file contains; `None` for nothing.
    pub(super) fn file(&self, number: usize) -> Option<Digest> {
        let place = (*self.files.get(number)?)?;
        self.blobs.get(usize::try_from(place).ok()?).copied()
    }

    fn memory_bytes(&self) -> usize {
        let files = self.files.len() * size_of::<Option<u32>>();
        size_of::<Self>() + self.nar.memory_bytes() + self.blobs.len() * size_of::<Digest>() + files
    }
}

/// Distinct digests, numbered as they come.
#[derive(Default)]
struct Blobs {
    listed: Vec<Digest>,
    places: HashMap<Digest, u32>,
}

impl Blobs {
    /// The number of a digest; `None` for that of nothing.
    fn place(&mut self, digest: Digest) -> Option<u32> {
        if digest.is_empty() {
            return None;
        }
        // The limits of an archive leave no more than that.
        let next = u32::try_from(self.listed.len()).ok()?;
        let place = *self.places.entry(digest).or_insert(next);
        if place == next {
            self.listed.push(digest);
        }
        Some(place)
    }
}

/// Layouts of archives that were read lately.
pub(super) struct Layouts {
    capacity_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    layouts: HashMap<LayoutKey, Kept>,
    /// In the order in which their turn to go comes.
    turns: VecDeque<LayoutKey>,
    bytes: usize,
}

/// An owner sees only what it has, so what one owner read tells another nothing.
type LayoutKey = (OwnerId, Root);

struct Kept {
    layout: Arc<Layout>,
    /// Read since its last turn, and so spared at the next.
    read_again: bool,
}

impl Layouts {
    /// May take so many bytes of memory.
    pub(super) fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, inner: Mutex::default() }
    }

    /// The layout of an archive, if it is kept.
    pub(super) fn get(&self, owner: OwnerId, root: &Root) -> Option<Arc<Layout>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = inner.layouts.get_mut(&(owner, root.clone()))?;
        kept.read_again = true;
        Some(Arc::clone(&kept.layout))
    }

    /// Keeps a layout, unless it is so large that it would push out most others.
    pub(super) fn put(&self, owner: OwnerId, root: &Root, layout: &Arc<Layout>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (owner, root.clone());
        let bytes = layout.memory_bytes();
        if bytes > self.capacity_bytes / 2 || inner.layouts.contains_key(&key) {
            return;
        }
        inner.bytes += bytes;
        inner.turns.push_back(key.clone());
        inner.layouts.insert(key, Kept { layout: Arc::clone(layout), read_again: false });
        while inner.bytes > self.capacity_bytes {
            let Some(key) = inner.turns.pop_front() else { return };
            match inner.layouts.get_mut(&key) {
                Some(kept) if kept.read_again => {
                    kept.read_again = false;
                    inner.turns.push_back(key);
                }
                _ => {
                    let gone = inner.layouts.remove(&key).map_or(0, |kept| kept.layout.memory_bytes());
                    inner.bytes -= gone;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(target: &str) -> (Root, Arc<Layout>) {
        let root = Root::Symlink { target: target.to_owned() };
        let layout = Layout::of(&root, &Directories::default(), NarLimits::default()).unwrap();
        (root, Arc::new(layout))
    }

    #[test]
    fn what_is_read_again_stays_and_the_rest_goes() {
        let owner = OwnerId(1);
        let some: Vec<_> = ["a", "b", "c", "d"].map(link).into();
        let layouts = Layouts::new(some[0].1.memory_bytes() * 3);
        for (root, layout) in &some[..3] {
            layouts.put(owner, root, layout);
        }
        assert!(layouts.get(owner, &some[0].0).is_some());
        assert!(layouts.get(OwnerId(2), &some[0].0).is_none());
        layouts.put(owner, &some[3].0, &some[3].1);
        assert!(layouts.get(owner, &some[0].0).is_some());
        assert!(layouts.get(owner, &some[1].0).is_none());
        assert!(layouts.get(owner, &some[3].0).is_some());
        let tiny = Layouts::new(1);
        tiny.put(owner, &some[0].0, &some[0].1);
        assert!(tiny.get(owner, &some[0].0).is_none());
    }
}

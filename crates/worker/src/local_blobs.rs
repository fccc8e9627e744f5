//! Input files on the disk of this worker: each blob once as a plain and once as an executable file.
//!
//! What always holds: a file under its name is whole and has the digest of its name; nobody writes to it, actions see it
//! read-only through an overlay or get a copy; two assignments that need the same blob fetch it once. What is pinned
//! stays, so the bound may be passed while actions run that need more at one time.
//!
//! Deliberately absent: a promise across a restart of the machine. Then the folder is emptied: a file may be torn, and
//! hashing everything again costs more than fetching what is needed.

mod files;

pub(crate) use files::{FOLDER_MODE, Files, Look, file_time, mode_of, name as file_name};

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use gf_digest::Digest;
use tokio::sync::watch;

use crate::blobs::{BlobClient, blocking};
use crate::failure::Failure;
use crate::folders::Content;
use crate::lru::Lru;
use crate::removal::Trash;
use crate::sandbox::ActionUser;

/// Calls under way for one assignment.
const CALLS: usize = 4;
/// What a file costs on the disk beside its bytes: inode and the rest of its last block.
const FILE_BYTES: u64 = 4096;

/// The cache.
#[derive(Debug)]
pub(crate) struct LocalBlobs {
    files: Arc<Files>,
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    files: Lru<Content, u32>,
    /// Under way; the end of the channel is the end of the try.
    fetching: HashMap<Content, watch::Receiver<()>>,
}

/// Files that stay while this lives.
#[derive(Debug)]
pub(crate) struct Pins {
    cache: Arc<LocalBlobs>,
    contents: Vec<Content>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        for content in &self.contents {
            if let Some(pins) = state.files.peek(content) {
                *pins = pins.saturating_sub(1);
            }
        }
    }
}

/// The right to fetch some blobs. It ends with the last that writes one of them, also when nobody waits for that.
struct Claim {
    cache: Arc<LocalBlobs>,
    forms: HashMap<Digest, Vec<Content>>,
    _end: watch::Sender<()>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        for content in self.forms.values().flatten() {
            state.fetching.remove(content);
        }
    }
}

/// Blobs that are not here yet.
struct Lacking {
    /// Those that nobody fetches.
    claim: Arc<Claim>,
    /// The ends of the claims of others.
    others: Vec<watch::Receiver<()>>,
    /// All of them, to be looked at again.
    contents: Vec<Content>,
}

impl LocalBlobs {
    /// Opens the folder of inputs and takes in what is whole.
    pub(crate) fn open(folder: PathBuf, max_bytes: u64, owner: Option<ActionUser>, trash: &Trash) -> io::Result<Self> {
        Self::open_as(Look::Inputs, folder, max_bytes, owner, trash)
    }

    /// Opens a folder and takes in what is whole.
    pub(crate) fn open_as(
        look: Look,
        folder: PathBuf,
        max_bytes: u64,
        owner: Option<ActionUser>,
        trash: &Trash,
    ) -> io::Result<Self> {
        let files = Files::open(folder, look, owner, trash)?;
        let state = State { files: Lru::new(), fetching: HashMap::new() };
        let cache = Self { files: Arc::new(files), max_bytes, state: Mutex::new(state) };
        cache.take_in(&cache.files.scan()?);
        cache.trim();
        Ok(cache)
    }

    /// Where the files are. Those that are pinned stay.
    pub(crate) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files)
    }

    /// The most that it keeps.
    pub(crate) const fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// The path of a file that is pinned.
    pub(crate) fn path(&self, content: &Content) -> PathBuf {
        self.files.path(content)
    }

    /// Whom files belong to.
    pub(crate) fn owner(&self) -> Option<ActionUser> {
        self.files.owner()
    }

    /// Fetches what is not here, and keeps all of it here while the pins live.
    pub(crate) async fn pin(self: &Arc<Self>, blobs: &BlobClient, wanted: HashSet<Content>) -> Result<Pins, Failure> {
        let mut pins = Pins { cache: Arc::clone(self), contents: Vec::with_capacity(wanted.len()) };
        let mut wanted: Vec<Content> = wanted.into_iter().collect();
        while !wanted.is_empty() {
            let lacking = self.claim(wanted, &mut pins);
            lacking.claim.fetch(blobs).await?;
            // Before the others, who may wait for this one.
            drop(lacking.claim);
            for mut other in lacking.others {
                // An error is the end of the channel, which is what is waited for.
                let _ended = other.changed().await;
            }
            wanted = lacking.contents;
        }
        self.trim();
        Ok(pins)
    }

    /// Pins what is here, and divides the rest into what nobody fetches yet and what somebody does.
    fn claim(self: &Arc<Self>, wanted: Vec<Content>, pins: &mut Pins) -> Lacking {
        let (end, ended) = watch::channel(());
        let mut claim = Claim { cache: Arc::clone(self), forms: HashMap::new(), _end: end };
        let (mut others, mut contents) = (Vec::new(), Vec::new());
        let mut state = self.lock();
        for content in wanted {
            if let Some(count) = state.files.get(&content) {
                *count += 1;
                pins.contents.push(content);
                continue;
            }
            contents.push(content);
            match state.fetching.get(&content) {
                Some(other) => others.push(other.clone()),
                None => {
                    state.fetching.insert(content, ended.clone());
                    claim.forms.entry(content.digest).or_default().push(content);
                }
            }
        }
        Lacking { claim: Arc::new(claim), others, contents }
    }

    fn take_in(&self, contents: &[Content]) {
        let mut state = self.lock();
        for content in contents {
            state.files.insert(*content, 0, content.digest.size_bytes() + FILE_BYTES);
        }
    }

    /// Removes what was used least recently, down to the bound. `false` when more is pinned than that.
    pub(crate) fn trim(&self) -> bool {
        let mut state = self.lock();
        let excess = state.files.weight().saturating_sub(self.max_bytes);
        for oldest in state.files.oldest_until(excess, |pins| *pins == 0) {
            state.files.remove(&oldest);
            if let Err(error) = self.files.remove(&oldest) {
                tracing::warn!(%error, "an input cannot be removed from the cache");
            }
        }
        state.files.weight() <= self.max_bytes
    }

    /// Takes a blob in that was not fetched.
    #[cfg(test)]
    pub(crate) fn put(&self, content: Content, bytes: &[u8]) {
        self.files.write(&content, bytes).unwrap();
        self.take_in(&[content]);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    async fn fetch(self: &Arc<Self>, blobs: &BlobClient) -> Result<(), Failure> {
        let (large, small): (Vec<Digest>, Vec<Digest>) = self.forms.keys().partition(|digest| blobs.is_large(digest));
        let (empty, small): (Vec<Digest>, Vec<Digest>) = small.into_iter().partition(Digest::is_empty);
        for digest in empty {
            self.store(vec![(digest, Bytes::new())]).await?;
        }
        let batches = blobs.batches(small).into_iter().map(|batch| async {
            let read = blobs.read_batch(&batch).await?;
            let here: HashSet<Digest> = read.iter().map(|(digest, _)| *digest).collect();
            self.store(read).await?;
            Ok::<_, Failure>(batch.into_iter().filter(|digest| !here.contains(digest)).collect::<Vec<_>>())
        });
        let mut missing = stream::iter(batches).buffer_unordered(CALLS).try_concat().await?;
        let streams = large.into_iter().map(|digest| async move {
            let is_here = self.fetch_large(blobs, digest).await?;
            Ok::<_, Failure>(if is_here { Vec::new() } else { vec![digest] })
        });
        missing.extend(stream::iter(streams).buffer_unordered(CALLS).try_concat().await?);
        if missing.is_empty() { Ok(()) } else { Err(Failure::Missing(missing)) }
    }

    /// Writes small blobs in every form that is asked for.
    async fn store(self: &Arc<Self>, read: Vec<(Digest, Bytes)>) -> Result<(), Failure> {
        let claim = Arc::clone(self);
        blocking(move || {
            let mut written = Vec::with_capacity(read.len());
            for (digest, bytes) in &read {
                for content in claim.forms.get(digest).into_iter().flatten() {
                    claim.cache.files.write(content, bytes).map_err(|error| Failure::io("write an input", error))?;
                    written.push(*content);
                }
            }
            claim.cache.take_in(&written);
            Ok(())
        })
        .await
    }

    async fn fetch_large(self: &Arc<Self>, blobs: &BlobClient, digest: Digest) -> Result<bool, Failure> {
        for content in self.forms.get(&digest).into_iter().flatten() {
            let files = &self.cache.files;
            let part = files.new_part(content).map_err(|error| Failure::io("create an input", error))?;
            if !blobs.read_to_file(digest, &part.file).await? {
                return Ok(false);
            }
            files.keep(content, part).map_err(|error| Failure::io("keep an input", error))?;
            self.cache.take_in(&[*content]);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use gf_digest::DigestFunction;

    use super::*;

    fn content(bytes: &[u8], is_executable: bool) -> Content {
        Content { digest: Digest::of(DigestFunction::Blake3, bytes), is_executable }
    }

    #[test]
    fn what_is_whole_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let open = |max_bytes| LocalBlobs::open(dir.path().join("cache"), max_bytes, None, &trash).unwrap();
        let (plain, program, torn) = (content(b"one", false), content(b"one", true), content(b"torn", false));
        let cache = open(1 << 20);
        for (content, bytes) in [(plain, b"one"), (program, b"one")] {
            cache.put(content, bytes);
        }
        cache.put(torn, b"torn");
        fs::write(cache.files.path(&torn), "to").unwrap();
        fs::write(dir.path().join("cache/00/what-is-this"), "").unwrap();
        assert_eq!(fs::metadata(cache.files.path(&program)).unwrap().permissions().mode() & 0o777, 0o555);
        assert_eq!(fs::metadata(cache.files.path(&plain)).unwrap().modified().unwrap(), file_time());
        drop(cache);

        let cache = open(1 << 20);
        assert!(cache.lock().files.get(&plain).is_some() && cache.lock().files.get(&program).is_some());
        assert!(cache.lock().files.get(&torn).is_none() && !cache.files.path(&torn).exists());
        assert!(!dir.path().join("cache/00/what-is-this").exists());
        drop(cache);

        let cache = open(FILE_BYTES + 3);
        assert_eq!(cache.lock().files.weight(), FILE_BYTES + 3, "a smaller bound counts at once");
        drop(cache);

        fs::write(dir.path().join("cache").join(files::MARK), "another boot").unwrap();
        assert_eq!(open(1 << 20).lock().files.weight(), 0, "nobody knows what is whole");
    }

    #[test]
    fn what_a_killed_worker_was_writing_is_not_believed_and_can_be_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let open = || LocalBlobs::open(dir.path().join("cache"), 1 << 20, None, &trash).unwrap();
        let cache = open();
        let content = content(b"whole", false);
        // All bytes are there, but not the time that comes after them.
        fs::write(cache.path(&content), "whale").unwrap();
        cache.put(content, b"whole");
        assert_eq!(fs::read(cache.path(&content)).unwrap(), b"whole");
        fs::remove_file(cache.path(&content)).unwrap();
        fs::write(cache.path(&content), "whale").unwrap();
        drop(cache);
        let cache = open();
        assert!(cache.lock().files.get(&content).is_none() && !cache.path(&content).exists());
    }

    #[test]
    fn a_part_that_nobody_keeps_goes() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let cache = LocalBlobs::open(dir.path().join("cache"), 1 << 20, None, &trash).unwrap();
        let content = content(b"large", false);
        let parts = || fs::read_dir(dir.path().join("cache/parts")).unwrap().count();
        let part = cache.files.new_part(&content).unwrap();
        assert_eq!(parts(), 1);
        drop(part);
        assert_eq!(parts(), 0);
        cache.files.keep(&content, cache.files.new_part(&content).unwrap()).unwrap();
        assert!(parts() == 0 && cache.path(&content).exists());
    }

    #[test]
    fn what_is_pinned_stays() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let cache = Arc::new(LocalBlobs::open(dir.path().join("cache"), 1, None, &trash).unwrap());
        let kept = content(b"kept", false);
        cache.put(kept, b"kept");
        let mut pins = Pins { cache: Arc::clone(&cache), contents: Vec::new() };
        let lacking = cache.claim(vec![kept], &mut pins);
        assert!(lacking.claim.forms.is_empty() && lacking.contents.is_empty());
        drop(lacking);
        assert!(!cache.trim() && cache.files.path(&kept).exists());
        drop(pins);
        assert!(cache.trim() && !cache.files.path(&kept).exists());
    }
}

//! Input files on the disk of this worker: each blob once as a plain and once as an executable file.
//!
//! What always holds: a file under its name is whole and has the digest of its name; nobody writes to it, actions see it
//! read-only through an overlay or get a copy; two assignments that need the same blob fetch it once. What is pinned
//! stays, so the bound may be passed while actions run that need more at one time.
//!
//! Deliberately absent: a promise across a restart of the machine. Then the folder is emptied: a file may be torn, and
//! hashing everything again costs more than fetching what is needed.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use gf_digest::{Digest, DigestFunction};
use tokio::sync::watch;

use crate::blobs::{BlobClient, blocking};
use crate::failure::Failure;
use crate::folders::Content;
use crate::lru::Lru;
use crate::removal::Trash;
use crate::sandbox::ActionUser;

/// 2000-01-01: build tools that compare times of inputs see no difference between workers.
const FILE_TIME: Duration = Duration::from_secs(946_684_800);
/// Calls under way for one assignment.
const CALLS: usize = 4;
/// What a file costs on the disk beside its bytes: inode and the rest of its last block.
const FILE_BYTES: u64 = 4096;

/// The cache.
#[derive(Debug)]
pub(crate) struct LocalBlobs {
    folder: PathBuf,
    owner: Option<ActionUser>,
    max_bytes: u64,
    next_part: AtomicU64,
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

/// The right to fetch some blobs, and what is to be waited for.
struct Claim<'a> {
    cache: &'a LocalBlobs,
    mine: Vec<Content>,
    others: Vec<watch::Receiver<()>>,
    _end: watch::Sender<()>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        for content in &self.mine {
            state.fetching.remove(content);
        }
    }
}

impl LocalBlobs {
    /// Opens the folder and takes in what is whole.
    pub(crate) fn open(folder: PathBuf, max_bytes: u64, owner: Option<ActionUser>, trash: &Trash) -> io::Result<Self> {
        if !is_whole(&folder, owner) {
            trash.remove(&folder)?;
        }
        trash.remove(&folder.join("parts"))?;
        for name in (0..=u8::MAX).map(|byte| format!("{byte:02x}")).chain(["parts".to_owned()]) {
            fs::create_dir_all(folder.join(name))?;
        }
        let state = State { files: Lru::new(), fetching: HashMap::new() };
        let cache = Self { folder, owner, max_bytes, next_part: AtomicU64::new(0), state: Mutex::new(state) };
        cache.scan()?;
        fs::write(cache.folder.join(MARK), mark(owner))?;
        cache.trim();
        Ok(cache)
    }

    /// The name of a file that is pinned.
    pub(crate) fn path(&self, content: &Content) -> PathBuf {
        let hash = content.digest.hash_hex();
        let suffix = if content.is_executable { ".x" } else { "" };
        let name = format!("{}-{hash}-{}{suffix}", content.digest.function(), content.digest.size_bytes());
        self.folder.join(hash.as_str().get(..2).unwrap_or_default()).join(name)
    }

    /// Whom files belong to.
    pub(crate) const fn owner(&self) -> Option<ActionUser> {
        self.owner
    }

    /// Fetches what is not here, and keeps all of it here while the pins live.
    pub(crate) async fn pin(self: &Arc<Self>, blobs: &BlobClient, wanted: HashSet<Content>) -> Result<Pins, Failure> {
        let mut pins = Pins { cache: Arc::clone(self), contents: Vec::with_capacity(wanted.len()) };
        let mut wanted: Vec<Content> = wanted.into_iter().collect();
        while !wanted.is_empty() {
            let (claim, left) = self.claim(wanted, &mut pins);
            self.fetch(blobs, &claim.mine).await?;
            wanted = left;
            let others = claim.others.clone();
            drop(claim);
            for mut other in others {
                // An error is the end of the channel, which is what is waited for.
                let _ended = other.changed().await;
            }
        }
        self.trim();
        Ok(pins)
    }

    /// Pins what is here, and divides the rest into what nobody fetches yet and what somebody does. The second value is
    /// what must be looked at again.
    fn claim(&self, wanted: Vec<Content>, pins: &mut Pins) -> (Claim<'_>, Vec<Content>) {
        let (end, ended) = watch::channel(());
        let mut claim = Claim { cache: self, mine: Vec::new(), others: Vec::new(), _end: end };
        let mut left = Vec::new();
        let mut state = self.lock();
        for content in wanted {
            if let Some(count) = state.files.get(&content) {
                *count += 1;
                pins.contents.push(content);
                continue;
            }
            left.push(content);
            match state.fetching.get(&content) {
                Some(other) => claim.others.push(other.clone()),
                None => {
                    state.fetching.insert(content, ended.clone());
                    claim.mine.push(content);
                }
            }
        }
        (claim, left)
    }

    async fn fetch(self: &Arc<Self>, blobs: &BlobClient, contents: &[Content]) -> Result<(), Failure> {
        let mut forms: HashMap<Digest, Vec<Content>> = HashMap::new();
        for content in contents {
            forms.entry(content.digest).or_default().push(*content);
        }
        let (large, small): (Vec<Digest>, Vec<Digest>) = forms.keys().partition(|digest| blobs.is_large(digest));
        let (empty, small): (Vec<Digest>, Vec<Digest>) = small.into_iter().partition(Digest::is_empty);
        for digest in empty {
            self.store(&forms, vec![(digest, Bytes::new())]).await?;
        }
        let forms = &forms;
        let batches = blobs.batches(small).into_iter().map(|batch| async move {
            let read = blobs.read_batch(&batch).await?;
            let here: HashSet<Digest> = read.iter().map(|(digest, _)| *digest).collect();
            self.store(forms, read).await?;
            Ok::<_, Failure>(batch.into_iter().filter(|digest| !here.contains(digest)).collect::<Vec<_>>())
        });
        let mut missing = stream::iter(batches).buffer_unordered(CALLS).try_concat().await?;
        let streams = large.into_iter().map(|digest| async move {
            let is_here = self.fetch_large(blobs, digest, forms.get(&digest).map_or(&[], Vec::as_slice)).await?;
            Ok::<_, Failure>(if is_here { Vec::new() } else { vec![digest] })
        });
        missing.extend(stream::iter(streams).buffer_unordered(CALLS).try_concat().await?);
        if missing.is_empty() { Ok(()) } else { Err(Failure::Missing(missing)) }
    }

    async fn store(
        self: &Arc<Self>,
        forms: &HashMap<Digest, Vec<Content>>,
        read: Vec<(Digest, Bytes)>,
    ) -> Result<(), Failure> {
        let files = read.into_iter().flat_map(|(digest, bytes)| {
            forms.get(&digest).into_iter().flatten().map(move |content| (*content, bytes.clone()))
        });
        let files: Vec<(Content, Bytes)> = files.collect();
        let cache = Arc::clone(self);
        blocking(move || {
            for (content, bytes) in files {
                let (part, mut file) = cache.new_part()?;
                file.write_all(&bytes).map_err(|error| Failure::io("write an input", error))?;
                cache.commit(content, &part, &file)?;
            }
            Ok(())
        })
        .await
    }

    async fn fetch_large(
        self: &Arc<Self>,
        blobs: &BlobClient,
        digest: Digest,
        forms: &[Content],
    ) -> Result<bool, Failure> {
        for content in forms {
            let (part, file) = self.new_part()?;
            let ours = file.try_clone().map_err(|error| Failure::io("write an input", error))?;
            match blobs.read_to_file(digest, ours).await {
                Ok(true) => self.commit(*content, &part, &file)?,
                Ok(false) => {
                    let _next_start_removes_it = fs::remove_file(&part);
                    return Ok(false);
                }
                Err(error) => {
                    let _next_start_removes_it = fs::remove_file(&part);
                    return Err(error);
                }
            }
        }
        Ok(true)
    }

    fn new_part(&self) -> Result<(PathBuf, File), Failure> {
        let part = self.folder.join("parts").join(self.next_part.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        Ok((part, file.map_err(|error| Failure::io("create an input", error))?))
    }

    /// Gives a whole file its name.
    fn commit(&self, content: Content, part: &Path, file: &File) -> Result<(), Failure> {
        self.finish(content.is_executable, file)
            .and_then(|()| fs::rename(part, self.path(&content)))
            .map_err(|error| Failure::io("keep an input", error))?;
        let mut state = self.lock();
        // A fetch that was cancelled may end beside the one that followed it.
        if state.files.peek(&content).is_none() {
            state.files.insert(content, 0, content.digest.size_bytes() + FILE_BYTES);
        }
        Ok(())
    }

    fn finish(&self, is_executable: bool, file: &File) -> io::Result<()> {
        if let Some(owner) = self.owner {
            std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid))?;
        }
        file.set_permissions(fs::Permissions::from_mode(mode_of(is_executable)))?;
        file.set_modified(file_time())
    }

    /// Removes what was used least recently, down to the bound. `false` when more is pinned than that.
    pub(crate) fn trim(&self) -> bool {
        let mut state = self.lock();
        while state.files.weight() > self.max_bytes {
            let Some(oldest) = state.files.oldest(|pins| *pins == 0) else { return false };
            state.files.remove(&oldest);
            if let Err(error) = fs::remove_file(self.path(&oldest)) {
                tracing::warn!(%error, "an input cannot be removed from the cache");
            }
        }
        true
    }

    /// Takes a blob in that was not fetched.
    #[cfg(test)]
    pub(crate) fn put(&self, content: Content, bytes: &[u8]) {
        let (part, mut file) = self.new_part().unwrap();
        file.write_all(bytes).unwrap();
        self.commit(content, &part, &file).unwrap();
    }

    fn scan(&self) -> io::Result<()> {
        let mut state = self.lock();
        for byte in 0..=u8::MAX {
            for entry in fs::read_dir(self.folder.join(format!("{byte:02x}")))? {
                let entry = entry?;
                let content = entry.file_name().to_str().and_then(parse_name);
                let whole = content.filter(|content| {
                    entry.metadata().is_ok_and(|found| found.is_file() && found.len() == content.digest.size_bytes())
                });
                match whole {
                    Some(content) => state.files.insert(content, 0, content.digest.size_bytes() + FILE_BYTES),
                    None => fs::remove_file(entry.path())?,
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) const fn mode_of(is_executable: bool) -> u32 {
    if is_executable { 0o555 } else { 0o444 }
}

/// The time of files that were given none.
pub(crate) fn file_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + FILE_TIME
}

fn parse_name(name: &str) -> Option<Content> {
    let (name, is_executable) = name.strip_suffix(".x").map_or((name, false), |name| (name, true));
    let mut parts = name.split('-');
    let function = parts.next()?;
    let function = DigestFunction::ALL.into_iter().find(|known| known.name() == function)?;
    let (hash, size) = (parts.next()?, parts.next()?.parse().ok()?);
    let digest = Digest::parse(function, hash, size).ok()?;
    parts.next().is_none().then_some(Content { digest, is_executable })
}

/// Says in which life of the machine, and for whom, the files were written: the kernel has all that was written in it,
/// whatever happened to the worker.
const MARK: &str = "written";

fn mark(owner: Option<ActionUser>) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let owner = owner.map_or_else(String::new, |owner| format!("{}:{}", owner.uid, owner.gid));
    format!("{} {owner}", boot.trim())
}

fn is_whole(folder: &Path, owner: Option<ActionUser>) -> bool {
    let mark = mark(owner);
    !mark.starts_with(' ') && fs::read_to_string(folder.join(MARK)).is_ok_and(|found| found == mark)
}

#[cfg(test)]
mod tests {
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
        fs::write(cache.path(&torn), "to").unwrap();
        fs::write(dir.path().join("cache/00/what-is-this"), "").unwrap();
        assert_eq!(fs::metadata(cache.path(&program)).unwrap().permissions().mode() & 0o777, 0o555);
        assert_eq!(fs::metadata(cache.path(&plain)).unwrap().modified().unwrap(), file_time());
        drop(cache);

        let cache = open(1 << 20);
        assert!(cache.lock().files.get(&plain).is_some() && cache.lock().files.get(&program).is_some());
        assert!(cache.lock().files.get(&torn).is_none() && !cache.path(&torn).exists());
        assert!(!dir.path().join("cache/00/what-is-this").exists());
        drop(cache);

        let cache = open(FILE_BYTES + 3);
        assert_eq!(cache.lock().files.weight(), FILE_BYTES + 3, "a smaller bound counts at once");
        drop(cache);

        fs::write(dir.path().join("cache").join(MARK), "another boot").unwrap();
        assert_eq!(open(1 << 20).lock().files.weight(), 0, "nobody knows what is whole");
    }

    #[test]
    fn what_is_pinned_stays() {
        let dir = tempfile::tempdir().unwrap();
        let trash = Trash::open(dir.path().join("trash")).unwrap();
        let cache = Arc::new(LocalBlobs::open(dir.path().join("cache"), 1, None, &trash).unwrap());
        let kept = content(b"kept", false);
        cache.put(kept, b"kept");
        let mut pins = Pins { cache: Arc::clone(&cache), contents: Vec::new() };
        let (claim, left) = cache.claim(vec![kept], &mut pins);
        assert!(claim.mine.is_empty() && left.is_empty());
        drop(claim);
        assert!(!cache.trim() && cache.path(&kept).exists());
        drop(pins);
        assert!(cache.trim() && !cache.path(&kept).exists());
    }
}

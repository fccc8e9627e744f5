//! A file system in memory that can lose power.
//!
//! Each page that was not synced is then kept, dropped or torn, and each name that was not synced is there or not, as
//! a seed decides. That is more than a careful file system loses, and no more than POSIX allows, but for one thing: a
//! file without its name is gone even when the name was only to be changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gf_blobstore::{FileLayer, StoreFile};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

/// The file system. Clones are the same one.
#[derive(Clone)]
pub struct LossyFiles(Arc<Mutex<Disk>>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    /// The number of its content.
    File(usize),
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Pages of `now` that are not in `durable`.
    unsynced: BTreeSet<usize>,
    /// Pages of `now` that a sync failed to write: no later sync tries again.
    dropped: BTreeSet<usize>,
}

struct Disk {
    root: PathBuf,
    boot: u64,
    is_off: bool,
    /// Changes until the power fails by itself.
    changes_left: Option<u64>,
    /// Syncs of files that fail.
    syncs_to_fail: u64,
    /// Syncs of folders that fail.
    folder_syncs_to_fail: u64,
    /// Changed names that a sync of their folder failed to write: no later sync tries again.
    dropped_names: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, Node>,
    durable_names: BTreeMap<PathBuf, Node>,
    contents: Vec<Content>,
}

impl LossyFiles {
    /// An empty file system for what is under `root`, which is there and always stays.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            root: root.to_owned(),
            boot: 1,
            is_off: false,
            changes_left: None,
            syncs_to_fail: 0,
            folder_syncs_to_fail: 0,
            dropped_names: BTreeSet::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            contents: Vec::new(),
        })))
    }

    /// Lets the power fail in the midst of the change that comes after `changes` more.
    pub fn fail_after(&self, changes: u64) {
        self.disk().changes_left = Some(changes);
    }

    /// Lets the next `syncs` syncs of files that have something to write fail. As on a real disk, what they were to write
    /// reads back and is not durable, and a later sync of it succeeds and does nothing.
    pub fn fail_syncs(&self, syncs: u64) {
        self.disk().syncs_to_fail = syncs;
    }

    /// Lets the next `syncs` syncs of folders that have something to write fail, in the same way.
    pub fn fail_folder_syncs(&self, syncs: u64) {
        self.disk().folder_syncs_to_fail = syncs;
    }

    /// Whether the power has failed.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.disk().is_off
    }

    /// Whether every file that has a name is on the disk as it is seen, under that name.
    #[must_use]
    pub fn is_all_synced(&self) -> bool {
        let disk = self.disk();
        disk.names == disk.durable_names
            && disk.names.values().all(|node| match node {
                Node::Folder => true,
                Node::File(number) => {
                    let content = &disk.contents[*number];
                    content.unsynced.is_empty() && content.dropped.is_empty()
                }
            })
    }

    /// Takes the power away, and returns what is found when it comes back. This one answers errors from now on.
    #[must_use]
    pub fn lose_power(&self, seed: u64) -> Self {
        let mut disk = self.disk();
        disk.is_off = true;
        let mut random = StdRng::seed_from_u64(seed);
        // Sometimes nothing arrives, sometimes nearly everything.
        let kept_share = [0.0, 0.2, 0.5, 0.9, 1.0][random.random_range(0..5)];
        let mut names = disk.surviving_names(kept_share, &mut random);
        let mut contents = Vec::new();
        for node in names.values_mut() {
            if let Node::File(number) = node {
                let bytes = disk.contents[*number].surviving(kept_share, &mut random);
                *number = contents.len();
                contents.push(Content { now: bytes.clone(), durable: bytes, ..Content::default() });
            }
        }
        Self(Arc::new(Mutex::new(Disk {
            root: disk.root.clone(),
            boot: disk.boot + 1,
            is_off: false,
            changes_left: None,
            syncs_to_fail: 0,
            folder_syncs_to_fail: 0,
            dropped_names: BTreeSet::new(),
            durable_names: names.clone(),
            names,
            contents,
        })))
    }

    /// Changes the bytes of a file behind everybody's back, durably.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk();
        if let Some(Node::File(number)) = disk.names.get(path).copied() {
            let content = &mut disk.contents[number];
            change(&mut content.now);
            content.durable = content.now.clone();
            content.unsynced.clear();
            content.dropped.clear();
        }
    }

    /// Every file and its size in bytes.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let disk = self.disk();
        let size = |node: &Node| match node {
            Node::Folder => None,
            Node::File(number) => Some(disk.contents[*number].now.len() as u64),
        };
        disk.names.iter().filter_map(|(path, node)| Some((path.clone(), size(node)?))).collect()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change; when the power fails in its midst it may or may not have happened.
    fn change<T>(&self, change: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk();
        disk.must_be_on()?;
        let fails = disk.changes_left == Some(0);
        disk.changes_left = disk.changes_left.map(|left| left.saturating_sub(1));
        let result = change(&mut disk);
        disk.is_off = fails;
        if fails { Err(power_is_off()) } else { result }
    }

    /// Makes something durable; when the power fails meanwhile it is not.
    fn settle(&self, settle: impl FnOnce(&mut Disk) -> io::Result<()>) -> io::Result<()> {
        let mut disk = self.disk();
        disk.must_be_on()?;
        if disk.changes_left == Some(0) {
            disk.is_off = true;
            return Err(power_is_off());
        }
        disk.changes_left = disk.changes_left.map(|left| left - 1);
        settle(&mut disk)
    }

    fn look<T>(&self, look: impl FnOnce(&Disk) -> io::Result<T>) -> io::Result<T> {
        let disk = self.disk();
        disk.must_be_on()?;
        look(&disk)
    }

    fn handle(&self, number: usize) -> Arc<dyn StoreFile> {
        Arc::new(LossyFile { files: self.clone(), number })
    }
}

impl Disk {
    fn must_be_on(&self) -> io::Result<()> {
        if self.is_off { Err(power_is_off()) } else { Ok(()) }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(number)) => Ok(*number),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn is_folder(&self, path: &Path) -> bool {
        path == self.root || self.names.get(path) == Some(&Node::Folder)
    }

    fn surviving_names(&self, kept_share: f64, random: &mut StdRng) -> BTreeMap<PathBuf, Node> {
        let mut names = self.durable_names.clone();
        let every: BTreeSet<&PathBuf> = self.names.keys().chain(self.durable_names.keys()).collect();
        for path in every {
            let now = self.names.get(path);
            let may_last = now != self.durable_names.get(path) && !self.dropped_names.contains(path);
            if may_last && random.random_bool(kept_share) {
                match now {
                    Some(node) => names.insert(path.clone(), *node),
                    None => names.remove(path),
                };
            }
        }
        // Parents come before what is in them.
        let mut reachable: BTreeMap<PathBuf, Node> = BTreeMap::new();
        for (path, node) in names {
            let parent = path.parent().unwrap_or(&path);
            if parent == self.root || reachable.get(parent) == Some(&Node::Folder) {
                reachable.insert(path, node);
            }
        }
        reachable
    }
}

impl Content {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        let first = offset.min(self.now.len());
        if end > self.now.len() {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        let written = first / PAGE_BYTES..end.div_ceil(PAGE_BYTES);
        self.dropped.retain(|page| !written.contains(page));
        self.unsynced.extend(written);
    }

    fn resize(&mut self, size: usize) {
        let first = size.min(self.now.len());
        self.now.resize(size, 0);
        self.unsynced.retain(|page| page * PAGE_BYTES < size);
        self.unsynced.extend(first / PAGE_BYTES..size.div_ceil(PAGE_BYTES));
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for page in std::mem::take(&mut self.unsynced) {
            let part = part(page, PAGE_BYTES, self.now.len());
            self.durable[part.clone()].copy_from_slice(&self.now[part]);
        }
    }

    fn surviving(&self, kept_share: f64, random: &mut StdRng) -> Vec<u8> {
        let (shorter, longer) = (self.now.len().min(self.durable.len()), self.now.len().max(self.durable.len()));
        let size = match random.random_range(0..3) {
            0 => self.durable.len(),
            1 => self.now.len(),
            _ => random.random_range(shorter..=longer),
        };
        let mut bytes = self.durable.clone();
        bytes.resize(size, 0);
        for page in &self.unsynced {
            let whole = random.random_bool(kept_share);
            let torn = !whole && random.random_bool(kept_share / 2.0);
            for sector in part(*page, PAGE_BYTES, size.min(self.now.len())).step_by(SECTOR_BYTES) {
                if whole || torn && random.random_bool(0.5) {
                    let part = part(sector / SECTOR_BYTES, SECTOR_BYTES, size.min(self.now.len()));
                    bytes[part.clone()].copy_from_slice(&self.now[part]);
                }
            }
        }
        bytes
    }
}

/// Part `number` of something of `size` bytes that is cut into parts of `part_bytes`.
fn part(number: usize, part_bytes: usize, size: usize) -> std::ops::Range<usize> {
    (number * part_bytes).min(size)..((number + 1) * part_bytes).min(size)
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl FileLayer for LossyFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StoreFile>> {
        Ok(self.handle(self.look(|disk| disk.file(path))?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn StoreFile>> {
        let number = self.change(|disk| {
            if disk.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if !path.parent().is_some_and(|parent| disk.is_folder(parent)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            disk.contents.push(Content::default());
            let number = disk.contents.len() - 1;
            disk.dropped_names.remove(path);
            disk.names.insert(path.to_owned(), Node::File(number));
            Ok(number)
        })?;
        Ok(self.handle(number))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|disk| {
            let number = disk.file(from)?;
            disk.names.remove(from);
            disk.dropped_names.remove(from);
            disk.dropped_names.remove(to);
            disk.names.insert(to.to_owned(), Node::File(number));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|disk| {
            disk.names.remove(path);
            disk.dropped_names.remove(path);
            Ok(())
        })
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.change(|disk| {
            let missing: Vec<&Path> = path.ancestors().take_while(|folder| !disk.is_folder(folder)).collect();
            for folder in missing {
                disk.names.insert(folder.to_owned(), Node::Folder);
            }
            Ok(())
        })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>> {
        self.look(|disk| {
            if !disk.is_folder(directory) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let mut files = Vec::new();
            for (path, node) in
                disk.names.range(directory.to_owned()..).take_while(|(path, _)| path.starts_with(directory))
            {
                if let Node::File(number) = node
                    && path.parent() == Some(directory)
                    && let Some(name) = path.file_name()
                {
                    files.push((name.to_string_lossy().into_owned(), disk.contents[*number].now.len() as u64));
                }
            }
            Ok(files)
        })
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.settle(|disk| {
            let below = |names: &BTreeMap<PathBuf, Node>| {
                let below = names.range(directory.to_owned()..).map(|(path, _)| path.clone());
                let within = below.take_while(|path| path.starts_with(directory));
                within.filter(|path| path.parent() == Some(directory)).collect::<BTreeSet<_>>()
            };
            let within = below(&disk.names).union(&below(&disk.durable_names)).cloned().collect::<BTreeSet<_>>();
            let is_new = |path: &&PathBuf| {
                disk.names.get(*path) != disk.durable_names.get(*path) && !disk.dropped_names.contains(*path)
            };
            let new: Vec<PathBuf> = within.iter().filter(is_new).cloned().collect();
            if disk.folder_syncs_to_fail > 0 && !new.is_empty() {
                disk.folder_syncs_to_fail -= 1;
                disk.dropped_names.extend(new);
                return Err(io::Error::other("a sync was told to fail"));
            }
            for path in new {
                match disk.names.get(&path) {
                    Some(node) => disk.durable_names.insert(path, *node),
                    None => disk.durable_names.remove(&path),
                };
            }
            Ok(())
        })
    }

    fn boot_id(&self) -> String {
        format!("boot {}", self.disk().boot)
    }

    fn free_bytes(&self, _directory: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

struct LossyFile {
    files: LossyFiles,
    number: usize,
}

impl StoreFile for LossyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.files.look(|disk| {
            let bytes = &disk.contents[self.number].now;
            let bytes = bytes.get(place(offset)?..).unwrap_or_default();
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            Ok(count)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = place(offset)?;
        self.files.change(|disk| {
            disk.contents[self.number].write(bytes, offset);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.files.settle(|disk| {
            let content = &mut disk.contents[self.number];
            if disk.syncs_to_fail > 0 && !content.unsynced.is_empty() {
                disk.syncs_to_fail -= 1;
                content.dropped.append(&mut content.unsynced);
                return Err(io::Error::other("a sync was told to fail"));
            }
            content.sync();
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.files.look(|disk| Ok(disk.contents[self.number].now.len() as u64))
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let size = place(size)?;
        self.files.change(|disk| {
            disk.contents[self.number].resize(size);
            Ok(())
        })
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/disk";

    /// A file with 8 synced pages, and 8 more that are not.
    fn half_synced() -> LossyFiles {
        let files = LossyFiles::new(Path::new(ROOT));
        let file = files.create(&Path::new(ROOT).join("file")).unwrap();
        file.write_at(&[1; 8 * PAGE_BYTES], 0).unwrap();
        file.sync().unwrap();
        files.sync_directory(Path::new(ROOT)).unwrap();
        file.write_at(&[2; 12 * PAGE_BYTES], 4 * PAGE_BYTES as u64).unwrap();
        files
    }

    fn bytes(files: &LossyFiles, name: &str) -> Option<Vec<u8>> {
        let file = files.open(&Path::new(ROOT).join(name)).ok()?;
        let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
        file.read_at(&mut bytes, 0).unwrap();
        Some(bytes)
    }

    #[test]
    fn loses_only_what_was_not_synced() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let before = half_synced();
            let after = before.lose_power(seed);
            let bytes = bytes(&after, "file").unwrap();
            assert!(bytes.len() >= 8 * PAGE_BYTES);
            assert!(bytes[..4 * PAGE_BYTES].iter().all(|byte| *byte == 1), "seed {seed}");
            assert!(bytes[4 * PAGE_BYTES..8 * PAGE_BYTES].iter().all(|byte| *byte > 0), "seed {seed}");
            seen.extend(bytes[4 * PAGE_BYTES..].iter().copied());
            assert!(before.open(&Path::new(ROOT).join("file")).is_err(), "it still runs without power");
            assert_ne!(after.boot_id(), before.boot_id());
        }
        assert_eq!(seen, BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn names_last_once_their_folder_is_synced() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..100 {
            let files = half_synced();
            files.rename(&Path::new(ROOT).join("file"), &Path::new(ROOT).join("other")).unwrap();
            match bytes(&files.lose_power(seed), "other") {
                Some(_) => kept += 1,
                None => lost += 1,
            }
            let files = half_synced();
            files.rename(&Path::new(ROOT).join("file"), &Path::new(ROOT).join("other")).unwrap();
            files.sync_directory(Path::new(ROOT)).unwrap();
            let after = files.lose_power(seed);
            assert!(bytes(&after, "other").is_some() && bytes(&after, "file").is_none());
        }
        assert!(lost > 10 && kept > 10);
    }

    #[test]
    fn fails_after_so_many_changes() {
        let files = LossyFiles::new(Path::new(ROOT));
        let file = files.create(&Path::new(ROOT).join("file")).unwrap();
        files.fail_after(2);
        file.write_at(b"1", 0).unwrap();
        file.sync().unwrap();
        assert!(file.write_at(b"2", 0).is_err());
        assert!(files.is_off());
        assert!(file.read_at(&mut [0], 0).is_err());
    }
}

//! [`DiskBlobStore`]: opening, closing, and the seam's calls.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gf_digest::{Digest, DigestFunction};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::capacity::Capacity;
use super::checkpoint::Checkpoint;
use super::clock::{Clock, MachineTime, TimeSource};
use super::collect::CollectionReport;
use super::core::{Core, Counters, StoreConfig, failed};
use super::decoding::Decoders;
use super::doubtful::Doubtful;
use super::durability::Extent;
use super::file_layer::{FileLayer, SystemFiles};
use super::folder::{self, Folder};
use super::index::Index;
use super::large::LargeFiles;
use super::lease::LeasePolicy;
use super::maintenance::Maintenance;
use super::note;
use super::scrub::ScrubStats;
use super::segments::{Segments, lock};
use super::stock::Stock;
use super::verify::{Repair, VerifyReport};
use crate::{
    Accept, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, HashedBlob, NamelessUpload, NewBlob, OwnerId,
    StoreError, Upload,
};

/// Why a store cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data folder {0} is in use by another process; stop it, or use another --data-dir")]
    InUse(String),
    /// A newer program wrote it.
    #[error(
        "the data folder {path} was written by a newer version (format {found}, this program knows {known}); \
         nothing was touched; use the newer program, or another --data-dir"
    )]
    NewerFormat {
        /// The folder.
        path: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A program from before the first release wrote it.
    #[error(
        "the data folder {path} was written by an older version (format {found}, this program knows {known}) and cannot \
         be taken over; nothing was touched; remove it, or use another --data-dir"
    )]
    OlderFormat {
        /// The folder.
        path: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It holds something else.
    #[error("{path} is no data folder of this program: {reason}; nothing was touched; use another --data-dir")]
    NotAStore {
        /// The folder.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The system failed.
    #[error("cannot open the store in {path}: {doing}: {source}")]
    Io {
        /// The folder.
        path: String,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Figures of a store, for people and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes that the store may use.
    pub capacity_bytes: u64,
    /// Bytes in use on disk.
    pub used_bytes: u64,
    /// Bytes set aside for uploads under way.
    pub reserved_bytes: u64,
    /// Keys in the parts of the index read so far: blobs, entries and grants.
    pub keys: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes under lease at the last look at the whole index, about a minute ago at most; 0 before the first.
    pub leased_bytes: u64,
    /// Evicted since the start.
    pub evicted: u64,
    /// Bytes evicted since the start.
    pub evicted_bytes: u64,
    /// Seconds since the most recently touched of all evicted blobs was touched; `None` while none was evicted.
    pub youngest_evicted_age_s: Option<u64>,
    /// Damaged blobs taken out since the start.
    pub quarantined: u64,
    /// Bytes saved since the start by sharing parts of large blobs.
    pub deduplicated_bytes: u64,
    /// Bytes free on the file system.
    pub free_disk_bytes: u64,
    /// What the scrub has done.
    pub scrub: ScrubStats,
}

/// The embedded store: segments, large files and index in one folder.
pub struct DiskBlobStore {
    core: Arc<Core>,
    maintenance: Mutex<Option<Maintenance>>,
}

/// Smallest and largest size at which a segment is sealed, in bytes.
const SEGMENT_BYTES: (u64, u64) = (1 << 20, 128 << 20);

impl DiskBlobStore {
    /// Opens the store in `config.data_dir`, or makes a new one. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`]; what is there is not touched unless it is a store of ours.
    pub async fn open(config: StoreConfig) -> Result<Arc<Self>, OpenError> {
        Self::open_on(Arc::new(SystemFiles), Arc::new(MachineTime::default()), config).await
    }

    /// Opens a store on another file layer, by another clock.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_on(
        layer: Arc<dyn FileLayer>,
        time: Arc<dyn TimeSource>,
        config: StoreConfig,
    ) -> Result<Arc<Self>, OpenError> {
        let folder = folder::claim(layer.as_ref(), &config.data_dir)?;
        let path = config.data_dir.display().to_string();
        let opened = open_core(layer, time, config, folder).await;
        let core = opened.map_err(|source| OpenError::Io { path: path.clone(), doing: "reading it", source })?;
        let maintenance = Maintenance::start(&core, tokio::runtime::Handle::current());
        let maintenance =
            maintenance.map_err(|source| OpenError::Io { path, doing: "starting its threads", source })?;
        Ok(Arc::new(Self { core, maintenance: Mutex::new(Some(maintenance)) }))
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let core = &self.core;
        let counters = &core.counters;
        let youngest = counters.youngest_evicted.load(Ordering::Relaxed);
        StoreStats {
            capacity_bytes: core.capacity.limit_bytes(),
            used_bytes: core.capacity.used_bytes(),
            reserved_bytes: core.capacity.reserved_bytes(),
            keys: core.index.len(),
            segments: core.segments.sizes().len() as u64,
            leased_bytes: counters.leased_bytes.load(Ordering::Relaxed),
            evicted: counters.evicted_blobs.load(Ordering::Relaxed),
            evicted_bytes: counters.evicted_bytes.load(Ordering::Relaxed),
            youngest_evicted_age_s: (youngest > 0).then(|| u64::from(core.clock.now().saturating_sub(youngest))),
            quarantined: counters.quarantined.load(Ordering::Relaxed),
            deduplicated_bytes: counters.deduplicated_bytes.load(Ordering::Relaxed),
            scrub: lock(&core.scrub).stats(core.clock.now()),
            free_disk_bytes: core.layer.free_bytes(&core.config.data_dir).unwrap_or(0),
        }
    }

    /// What the last look at the whole index found. The store looks by itself, once a minute or a little less often; `None`
    /// before the first time, which is soon after the start.
    #[must_use]
    pub fn stock(&self) -> Option<Arc<Stock>> {
        lock(&self.core.stock).clone()
    }

    /// Looks at the whole index now rather than within a minute. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn take_stock(&self) -> Result<(), StoreError> {
        self.core.take_stock().map_err(failed("taking stock"))
    }

    /// Changes how many bytes the store may use. When it holds more, the next writes evict, as far as leases allow.
    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.core.capacity.set_limit_bytes(capacity_bytes);
    }

    /// Reads and hashes everything. Slow, and may run while the store serves. Ends early when the store is closed, and
    /// not when its caller leaves.
    ///
    /// # Errors
    /// When the file system fails; what was damaged is no error but in the report.
    pub async fn verify(&self, repair: Repair) -> Result<VerifyReport, StoreError> {
        let core = Arc::clone(&self.core);
        let runtime = tokio::runtime::Handle::current();
        // On a thread for waiting: it reads, scans and hashes for as long as it takes.
        let verified = tokio::task::spawn_blocking(move || runtime.block_on(core.verify(repair))).await;
        verified.map_err(io::Error::other).flatten().map_err(failed("verifying the store"))
    }

    /// Frees about `needed_bytes`, as far as leases allow. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn collect(&self, needed_bytes: u64) -> Result<CollectionReport, StoreError> {
        let _one_at_a_time = self.core.evicting()?;
        self.core.collect(needed_bytes).map_err(failed("collecting"))
    }

    /// Evicts about `needed_bytes` of what one owner brought, least recently used first, as far as leases allow. Others lose
    /// nothing but what they have by that owner's bringing it, and that is under lease when they used it. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn collect_of(&self, owner: OwnerId, needed_bytes: u64) -> Result<CollectionReport, StoreError> {
        let _one_at_a_time = self.core.evicting()?;
        self.core.collect_of(owner, needed_bytes).map_err(failed("collecting"))
    }

    /// What [`Self::collect`] would do. Changes nothing. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn plan_collection(&self, needed_bytes: u64) -> Result<CollectionReport, StoreError> {
        self.core.plan_collection(needed_bytes).map_err(failed("planning a collection"))
    }

    /// Makes everything acknowledged so far durable. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.core.sync().map_err(failed("syncing"))
    }

    /// Makes everything acknowledged so far durable, and notes how far, so that a start after a power cut looks only at
    /// what came later. Blocks.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.core.checkpoint(false).map_err(failed("writing a checkpoint"))
    }

    /// Looks at waiting large blobs for shared parts now rather than in a quiet moment.
    pub async fn deduplicate_now(&self) {
        self.core.last_busy.store(0, Ordering::Relaxed);
        self.core.deduplicate_waiting().await;
    }

    /// Stops the work in the background and writes the last checkpoint. Blocks. Calls after it are refused.
    ///
    /// # Errors
    /// When the file system fails; the next start then works as after a crash.
    pub fn close(&self) -> Result<(), StoreError> {
        self.core.closed.store(true, Ordering::Release);
        let Some(maintenance) = lock(&self.maintenance).take() else { return Ok(()) };
        maintenance.stop();
        // Whoever is making room ends after the segment at hand; nobody begins any more.
        drop(lock(&self.core.evicting));
        self.core.segments.remove_ready();
        self.core.checkpoint(true).map_err(failed("writing the last checkpoint"))
    }

    /// The parts of the index that were read, all of them: the memory that a long-running store comes to use.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn load_index(&self) -> Result<bool, StoreError> {
        self.core.index.load_all().map_err(failed("reading the index"))
    }
}

impl Drop for DiskBlobStore {
    fn drop(&mut self) {
        // Not closed: as after a crash, but the threads must not outlive the store.
        self.core.closed.store(true, Ordering::Release);
        if let Some(maintenance) = lock(&self.maintenance).take() {
            maintenance.stop();
        }
    }
}

async fn open_core(
    layer: Arc<dyn FileLayer>,
    time: Arc<dyn TimeSource>,
    config: StoreConfig,
    folder: Folder,
) -> io::Result<Arc<Core>> {
    let root: &Path = &config.data_dir;
    let found = Checkpoint::read(layer.as_ref(), root)?;
    let before = match found.clone() {
        Some(checkpoint) => checkpoint,
        None => without_checkpoint(layer.as_ref(), root)?,
    };
    let epoch = before.epoch.wrapping_add(1).max(1);
    let boot_id = layer.boot_id();
    let lost_power = !folder.is_fresh && !before.is_clean && (boot_id.is_empty() || before.boot_id != boot_id);
    let may_be_same_boot = before.boot_id == boot_id;
    let key = folder.key;
    let segment_bytes = (config.capacity_bytes / 64).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1);
    let first_sequence = u64::from(epoch) << 40;
    let segments = Segments::open(
        Arc::clone(&layer),
        &root.join("segments"),
        key,
        before.segment + 1,
        first_sequence,
        segment_bytes,
    )?;
    // Nor has a first start acknowledged anything that was cut short before it had written a checkpoint.
    let holds_nothing = found.is_none() && segments.sizes().is_empty() && before.large_bytes == 0;
    let is_fresh = folder.is_fresh || holds_nothing;
    let core = Arc::new(Core {
        index: Index::open(Arc::clone(&layer), &root.join("index"), is_fresh)?,
        segments,
        large: LargeFiles::open(
            Arc::clone(&layer),
            &root.join("large"),
            &root.join("incoming"),
            &root.join("quarantine"),
            key,
            epoch,
        )?,
        capacity: Capacity::new(config.capacity_bytes),
        lease: LeasePolicy::new(config.lease),
        clock: Clock::start(time, before.time),
        counters: Counters::default(),
        publish: std::sync::RwLock::default(),
        unsynced_large: Mutex::default(),
        suspects: Mutex::default(),
        vouched: Mutex::new(Extent { segment: before.segment, offset: before.offset, next_large: before.next_large }),
        to_chunk: Mutex::default(),
        moving: Mutex::default(),
        syncing: Mutex::default(),
        evicting: Mutex::default(),
        unfinished: Mutex::default(),
        stock: Mutex::default(),
        beginning_to_share: Mutex::default(),
        promising: Mutex::default(),
        promises_renewed: Mutex::default(),
        changing_entries: std::array::from_fn(|_| Mutex::default()),
        unsettled_removals: Mutex::default(),
        flushes: Arc::default(),
        refused: Mutex::default(),
        making_room: Arc::new(Semaphore::new(1)),
        decoders: Decoders::default(),
        splicing: Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)),
        doubtful: Doubtful::default(),
        is_index_whole: AtomicBool::new(is_fresh || before.is_index_whole),
        closed: AtomicBool::new(false),
        scrub: Mutex::default(),
        epoch,
        last_busy: AtomicU32::new(0),
        folder,
        layer,
        config,
    });
    let is_distrusted = core.is_distrusted()?;
    let segments: u64 = core.segments.sizes().values().sum();
    core.capacity.add_used(segments + before.large_bytes);
    if is_fresh {
        core.index.make_empty_whole()?;
    } else if (lost_power || is_distrusted) && found.is_some() {
        core.index.discard_grown()?;
        let report = core.recover_tail(&before).await?;
        tracing::warn!(?report, "the machine or its disk failed; what did not reach the disk is absent");
        if is_distrusted && may_be_same_boot {
            // What was read may be in memory alone.
            core.suspect_since(&before)?;
        }
    } else if !before.is_clean {
        // The next checkpoint vouches for what a killed process wrote, too.
        core.sync_inherited(&before)?;
    }
    // Without a checkpoint nothing tells how much of the index to believe: every record is looked at again.
    if !core.is_index_whole.load(Ordering::Acquire) {
        tracing::error!("the checkpoint is lost, or a rebuild was cut short; the index is built again while it serves");
        core.index.mark_incomplete();
    }
    note_epoch(&core)?;
    core.first_checkpoint()?;
    Ok(core)
}

/// The number of the last start: kept beside the checkpoint, since what is written after a number was used twice would
/// seem to come before what it replaces.
const EPOCH_NOTE: &str = "epoch";

/// What is known of a store, which may be a new one, without a checkpoint.
fn without_checkpoint(layer: &dyn FileLayer, root: &Path) -> io::Result<Checkpoint> {
    let files = LargeFiles::census(layer, &root.join("large"))?;
    // File numbers must not be used again: a new file would replace an old one.
    let epoch = files.last_epoch.max(noted_epoch(layer, root)?);
    Ok(Checkpoint { epoch, large_bytes: files.bytes, ..Checkpoint::default() })
}

fn noted_epoch(layer: &dyn FileLayer, root: &Path) -> io::Result<u32> {
    let lines = note::read(layer, root, EPOCH_NOTE)?;
    Ok(lines.and_then(|lines| note::value(&lines, "epoch")?.parse().ok()).unwrap_or(0))
}

fn note_epoch(core: &Core) -> io::Result<()> {
    note::write(core.layer.as_ref(), &core.config.data_dir, EPOCH_NOTE, &format!("epoch {}\n", core.epoch))
}

#[async_trait]
impl BlobStore for DiskBlobStore {
    async fn find_missing(&self, owner: OwnerId, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        self.core.find_missing(owner, digests).await
    }

    async fn keep_until(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: SystemTime,
    ) -> Result<Vec<Digest>, StoreError> {
        self.core.keep_until(owner, digests, until).await
    }

    async fn let_go(&self, owner: OwnerId, digests: &[Digest]) -> Result<(), StoreError> {
        self.core.let_go(owner, digests).await
    }

    async fn make_durable(&self) -> Result<(), StoreError> {
        self.core.make_durable().await
    }

    async fn size_of(
        &self,
        owner: OwnerId,
        function: DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError> {
        self.core.size_of(owner, function, hash).await
    }

    async fn read(
        &self,
        owner: OwnerId,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        self.core.read(owner, digest, range, accept).await
    }

    async fn read_batch(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        accept: Accept,
    ) -> Vec<Result<(Bytes, Encoding), StoreError>> {
        let mut results = Vec::with_capacity(digests.len());
        for digest in digests {
            results.push(self.core.read_small(owner, digest, accept).await);
        }
        results
    }

    async fn write_batch(&self, owner: OwnerId, blobs: Vec<NewBlob>) -> Vec<Result<(), StoreError>> {
        self.core.write_batch(owner, blobs).await
    }

    async fn write_hashed(&self, owner: OwnerId, blobs: Vec<HashedBlob>) -> Vec<Result<(), StoreError>> {
        self.core.write_hashed(owner, blobs).await
    }

    async fn upload(&self, owner: OwnerId, digest: Digest, encoding: Encoding) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(self.core.begin_upload(owner, digest, encoding).await?))
    }

    async fn upload_nameless(
        &self,
        owner: OwnerId,
        function: DigestFunction,
    ) -> Result<Box<dyn NamelessUpload>, StoreError> {
        Ok(Box::new(self.core.begin_nameless(owner, function)?))
    }

    async fn split(&self, owner: OwnerId, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        self.core.split(owner, digest).await
    }

    async fn splice(&self, owner: OwnerId, digest: Digest, chunks: &[Digest]) -> Result<(), StoreError> {
        self.core.splice(owner, digest, chunks).await
    }

    async fn get_entry(&self, key: &EntryKey) -> Result<Option<Bytes>, StoreError> {
        self.core.get_entry(key).await
    }

    async fn put_entry(&self, key: &EntryKey, value: Bytes) -> Result<(), StoreError> {
        self.core.put_entry(key, &value).await
    }

    async fn remove_entry(&self, key: &EntryKey) -> Result<bool, StoreError> {
        self.core.remove_entry(key).await
    }
}

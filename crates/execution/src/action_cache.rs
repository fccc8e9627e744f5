//! Action results, by instance and action.
//!
//! A result is stored as it comes, and shown only while every blob that it names is there for the tenant: output
//! files, every file of every tree, the directories below a root directory, stdout and stderr. Looking it up extends
//! the life of all of them.
//!
//! What always holds: a result that is shown is complete; nothing is inlined unless the reader asks, and then only as
//! far as one message holds. Who wrote it is kept with it. What was removed on purpose is hidden at once, and not taken
//! again before its quarantine is over.

mod closure;
mod entry;
mod inlining;
mod inspection;
pub(crate) mod opaque;
mod provenance;
mod tombstones;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gf_blobstore::{
    Accept, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, EntryTable, ErrorKind, MachineTime, OwnerId,
    StoreError, TimeSource,
};
use gf_database::{Database, DatabaseError};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::ActionResult;
use gf_tenancy::{ActionCacheRead, ActionCacheWrite, Authorized, Execute, InstancePermission};
use prost::Message;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::sleep;

use closure::Named;
use entry::Entry;
pub use inlining::Inlining;
pub use inspection::{Inspection, Removal, RemovalError, Standing};
pub use provenance::Provenance;
pub(crate) use provenance::RunOrigin;
use tombstones::Tombstones;
pub use tombstones::{MIGRATIONS, Tombstone, TombstoneError};

use crate::content::{digest_of, owner, write_slices};

/// Writers of entries take one of so many locks, by the hash of the action.
const STRIPES: usize = 64;

/// How often removals that failed are tried again, and tombstones that are over forgotten.
const TEND_EVERY: Duration = Duration::from_secs(30);

/// Why a result is not shown or not stored.
#[derive(Debug, Error)]
pub enum ActionCacheError {
    /// There is none, or not all that it names is there.
    #[error("no complete result is known for this action")]
    NotFound,
    /// The result cannot be one.
    #[error("the action result is not valid: {0}")]
    Invalid(String),
    /// Somebody removed the result of this action, and none is taken for a while.
    #[error(
        "the result of this action was removed ({reason}) and none is taken for {left_s} s more; `gf ac why` says by whom",
        reason = .tombstone.reason
    )]
    Quarantined {
        /// Who, when and why.
        tombstone: Box<Tombstone>,
        /// For how much longer.
        left_s: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ActionCacheError {
    /// Whose fault this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound => ErrorKind::NotFound,
            Self::Invalid(_) | Self::Quarantined { .. } => ErrorKind::Invalid,
            Self::Store(error) => error.kind(),
        }
    }
}

/// Which action. HTTP clients know no size; when both sides know it, it must be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionId {
    /// The function of the action's digest, and of every digest in its result.
    pub function: DigestFunction,
    /// The hash of the action.
    pub hash: [u8; 32],
    /// The size of the action in bytes.
    pub size_bytes: Option<u64>,
}

impl From<Digest> for ActionId {
    fn from(digest: Digest) -> Self {
        Self { function: digest.function(), hash: *digest.hash(), size_bytes: Some(digest.size_bytes()) }
    }
}

impl ActionId {
    /// The size is not part of the key, so that gRPC and HTTP clients find each other's results.
    fn key<P: InstancePermission>(&self, table: EntryTable, grant: &Authorized<P>) -> EntryKey {
        EntryKey {
            table,
            owner: owner(grant),
            instance: grant.instance().clone(),
            digest: Digest::new(self.function, self.hash, 0),
        }
    }
}

/// The result of a run whose contents are stored, and which names nothing that is not here.
#[derive(Clone, Debug)]
pub(crate) struct Settled {
    pub(crate) result: ActionResult,
    closure: Vec<Digest>,
}

/// The action cache. Cheap to clone.
#[derive(Clone)]
pub struct ActionCache {
    store: Arc<dyn BlobStore>,
    /// Held while an entry is replaced, so that adding a closure to a result never brings back an older one.
    writers: Arc<[Mutex<()>]>,
    tombstones: Arc<Tombstones>,
}

impl ActionCache {
    /// Keeps results in `store`, and takes none out of it.
    #[must_use]
    pub fn new(store: Arc<dyn BlobStore>) -> Self {
        Self::with(store, Tombstones::none(Arc::new(MachineTime::default())))
    }

    /// Keeps results in `store`, and in a database that went through [`MIGRATIONS`] which of them were removed on purpose.
    /// Must be called within a runtime: a task finishes what removals left undone, now and whenever one failed.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn open(
        store: Arc<dyn BlobStore>,
        database: Database,
        time: Arc<dyn TimeSource>,
    ) -> Result<Self, DatabaseError> {
        let cache = Self::with(store, Tombstones::open(database, time).await?);
        cache.keep_tending();
        Ok(cache)
    }

    /// Looks after removals until the last cache of this kind is dropped, which this does not delay.
    fn keep_tending(&self) {
        let (store, writers) = (Arc::downgrade(&self.store), Arc::downgrade(&self.writers));
        let tombstones = Arc::downgrade(&self.tombstones);
        let cache = move || {
            let (store, writers) = (store.upgrade()?, writers.upgrade()?);
            Some(Self { store, writers, tombstones: tombstones.upgrade()? })
        };
        tokio::spawn(async move {
            while let Some(cache) = cache() {
                cache.tend().await;
                drop(cache);
                sleep(TEND_EVERY).await;
            }
        });
    }

    fn with(store: Arc<dyn BlobStore>, tombstones: Tombstones) -> Self {
        let writers = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { store, writers, tombstones: Arc::new(tombstones) }
    }

    /// The encoded `ActionResult` of an action.
    ///
    /// # Errors
    /// [`ActionCacheError::NotFound`] when there is none or it is not complete.
    pub async fn get(
        &self,
        grant: &Authorized<ActionCacheRead>,
        action: ActionId,
        inlining: &Inlining,
    ) -> Result<Bytes, ActionCacheError> {
        let (key, entry) = self.look_up(grant, action).await?;
        if *inlining == Inlining::NONE {
            return Ok(entry.result);
        }
        let mut result = ActionResult::decode(entry.result).map_err(|_| ActionCacheError::NotFound)?;
        inlining::put_contents(&*self.store, key.owner, action.function, &mut result, inlining).await;
        Ok(result.encode_to_vec().into())
    }

    /// Stores a result and returns it encoded, as it will be read. Contents in it are stored as blobs.
    ///
    /// # Errors
    /// [`ActionCacheError::Invalid`] when a digest is malformed or belongs to other contents.
    pub async fn update(
        &self,
        grant: &Authorized<ActionCacheWrite>,
        action: ActionId,
        mut result: ActionResult,
    ) -> Result<Bytes, ActionCacheError> {
        let key = action.key(EntryTable::ActionResult, grant);
        self.refuse_removed(&key)?;
        let closure = self.take_contents(&key, &mut result).await?;
        let provenance = Provenance::brought_by(grant.principal(), now_ms());
        self.put(&key, action, closure.as_deref(), &provenance, &result).await
    }

    /// The result of an action that may be run: who may run it may also know that it was run.
    pub(crate) async fn get_executed(
        &self,
        grant: &Authorized<Execute>,
        action: ActionId,
    ) -> Result<ActionResult, ActionCacheError> {
        let (_, entry) = self.look_up(grant, action).await?;
        ActionResult::decode(entry.result).map_err(|_| ActionCacheError::NotFound)
    }

    /// Takes in the result of a run: contents become blobs, and all that it names is kept for the lease.
    ///
    /// # Errors
    /// [`ActionCacheError::NotFound`] when a blob that it names is not here, [`ActionCacheError::Invalid`] when a
    /// digest is malformed.
    pub(crate) async fn settle(
        &self,
        grant: &Authorized<Execute>,
        action: ActionId,
        mut result: ActionResult,
    ) -> Result<Settled, ActionCacheError> {
        let key = action.key(EntryTable::ActionResult, grant);
        let closure = self.take_contents(&key, &mut result).await?.ok_or(ActionCacheError::NotFound)?;
        self.check_complete(key.owner, &closure).await?;
        Ok(Settled { result, closure })
    }

    /// Makes a result of a run visible.
    pub(crate) async fn put_executed(
        &self,
        grant: &Authorized<Execute>,
        action: ActionId,
        settled: &Settled,
        origin: &RunOrigin,
    ) -> Result<(), ActionCacheError> {
        let key = action.key(EntryTable::ActionResult, grant);
        let provenance = Provenance::run_for(grant.principal(), origin, now_ms());
        self.put(&key, action, Some(&settled.closure), &provenance, &settled.result).await?;
        Ok(())
    }

    /// Puts contents into a result, as far as they were asked for and fit.
    pub(crate) async fn inline(
        &self,
        grant: &Authorized<Execute>,
        function: DigestFunction,
        result: &mut ActionResult,
        inlining: &Inlining,
    ) {
        inlining::put_contents(&*self.store, owner(grant), function, result, inlining).await;
    }

    /// The bytes that an HTTP client keeps here and that are no action result, and how many.
    ///
    /// # Errors
    /// [`ActionCacheError::NotFound`].
    pub async fn get_opaque(
        &self,
        grant: &Authorized<ActionCacheRead>,
        action: ActionId,
    ) -> Result<(u64, BlobRead), ActionCacheError> {
        let key = action.key(EntryTable::OpaqueResult, grant);
        if self.tombstones.find(&key).is_some() {
            return Err(ActionCacheError::NotFound);
        }
        let value = self.store.get_entry(&key).await?.ok_or(ActionCacheError::NotFound)?;
        let digest = opaque::read(&value).ok_or(ActionCacheError::NotFound)?;
        match self.store.read(key.owner, digest, ByteRange::ALL, Accept::Identity).await {
            Ok(read) => Ok((digest.size_bytes(), read)),
            Err(StoreError::NotFound(_)) => Err(ActionCacheError::NotFound),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps bytes that are no action result. They take the place of a result.
    ///
    /// # Errors
    /// [`ActionCacheError::Store`].
    pub async fn put_opaque(
        &self,
        grant: &Authorized<ActionCacheWrite>,
        action: ActionId,
        bytes: Bytes,
    ) -> Result<(), ActionCacheError> {
        let key = action.key(EntryTable::OpaqueResult, grant);
        self.refuse_removed(&key)?;
        let digest = digest_of(action.function, &bytes).await;
        write_slices(self.store.upload(key.owner, digest, Encoding::Identity).await?, bytes).await?;
        let _writing = self.writer(&key.digest).lock().await;
        self.refuse_removed(&key)?;
        let provenance = Provenance::brought_by(grant.principal(), now_ms());
        self.store.put_entry(&key, opaque::write(digest, &provenance)).await?;
        self.store.remove_entry(&action.key(EntryTable::ActionResult, grant)).await?;
        Ok(())
    }

    /// The entry of an action, when it is complete.
    async fn look_up<P: InstancePermission>(
        &self,
        grant: &Authorized<P>,
        action: ActionId,
    ) -> Result<(EntryKey, Entry), ActionCacheError> {
        let key = action.key(EntryTable::ActionResult, grant);
        if self.tombstones.find(&key).is_some() {
            return Err(ActionCacheError::NotFound);
        }
        let value = self.store.get_entry(&key).await?.ok_or(ActionCacheError::NotFound)?;
        let entry = Entry::read(&value).ok_or(ActionCacheError::NotFound)?;
        if let (Some(asked), Some(known)) = (action.size_bytes, entry.action_size_bytes)
            && asked != known
        {
            return Err(ActionCacheError::NotFound);
        }
        match entry.closure(action.function) {
            Some(closure) => self.check_complete(key.owner, &closure).await?,
            None => self.complete(&key, &value, &entry).await?,
        }
        Ok((key, entry))
    }

    /// Stores contents as blobs, and finds what the result names; `None` when it cannot be known yet.
    async fn take_contents(
        &self,
        key: &EntryKey,
        result: &mut ActionResult,
    ) -> Result<Option<Vec<Digest>>, ActionCacheError> {
        let function = key.digest.function();
        let contents = inlining::take_contents(result, function)?;
        if !contents.is_empty() {
            let stored = self.store.write_batch(key.owner, contents).await;
            stored.into_iter().collect::<Result<(), StoreError>>()?;
        }
        Named::of(result, function)?.closure(&*self.store, key.owner).await
    }

    async fn put(
        &self,
        key: &EntryKey,
        action: ActionId,
        closure: Option<&[Digest]>,
        provenance: &Provenance,
        result: &ActionResult,
    ) -> Result<Bytes, ActionCacheError> {
        let value = Entry::write(action.size_bytes, closure, provenance, result);
        let encoded = value.result();
        let _writing = self.writer(&key.digest).lock().await;
        // Under the lock: whoever removes the result waits for it, so that none slips in between.
        self.refuse_removed(key)?;
        self.store.put_entry(key, value.bytes).await?;
        Ok(encoded)
    }

    async fn check_complete(&self, owner: OwnerId, closure: &[Digest]) -> Result<(), ActionCacheError> {
        if closure.is_empty() || self.store.find_missing(owner, closure).await?.is_empty() {
            return Ok(());
        }
        Err(ActionCacheError::NotFound)
    }

    /// Checks a result whose closure was not known when it was stored, and keeps the closure.
    async fn complete(&self, key: &EntryKey, value: &Bytes, entry: &Entry) -> Result<(), ActionCacheError> {
        let closure = match self.read_closure(key, entry).await {
            Ok(Some(closure)) => closure,
            Err(ActionCacheError::Store(error)) => return Err(error.into()),
            // What it names turned out to be no tree: it will never be complete.
            Ok(None) | Err(_) => return Err(ActionCacheError::NotFound),
        };
        self.check_complete(key.owner, &closure).await?;
        let filled = entry.with_closure(&closure);
        if filled == *value {
            return Ok(());
        }
        let _writing = self.writer(&key.digest).lock().await;
        if self.store.get_entry(key).await?.as_ref() == Some(value)
            && let Err(error) = self.store.put_entry(key, filled).await
        {
            // The result is complete all the same; the next reader finds the closure anew.
            tracing::warn!(action = %key.digest, %error, "the closure of an action result could not be kept");
        }
        Ok(())
    }

    async fn read_closure(&self, key: &EntryKey, entry: &Entry) -> Result<Option<Vec<Digest>>, ActionCacheError> {
        let result = ActionResult::decode(entry.result.clone()).map_err(|_| ActionCacheError::NotFound)?;
        Named::of(&result, key.digest.function())?.closure(&*self.store, key.owner).await
    }

    fn refuse_removed(&self, key: &EntryKey) -> Result<(), ActionCacheError> {
        match self.tombstones.find(key) {
            None => Ok(()),
            Some(tombstone) => {
                let left_s = tombstone.until_s.saturating_sub(self.tombstones.now_s());
                Err(ActionCacheError::Quarantined { tombstone: Box::new(tombstone), left_s })
            }
        }
    }

    fn writer(&self, digest: &Digest) -> &Mutex<()> {
        // There are STRIPES locks, so the remainder always names one.
        &self.writers[usize::from(digest.hash()[0]) % STRIPES]
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

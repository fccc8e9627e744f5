//! A store in memory, for tests of what stands above the store.
//!
//! It keeps the promises of [`BlobStore`] that a caller can see: bytes are checked, existence is per owner, space is
//! reserved and given back. Deliberately absent: eviction (with a full store, writes are refused), leases, durability.
//! It is simple rather than quick: one lock, whole blobs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use gf_blobstore::{
    Accept, BlobHasher, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, HashedBlob, Named, NamelessUpload, NewBlob,
    OwnerId, Pieces, StoreError, Upload,
};
use gf_digest::{Digest, DigestFunction};

use crate::zstd_decoder::BoundedDecoder;

/// Pieces of a read, in bytes; small enough that tests see several.
const PIECE_BYTES: usize = 256 * 1024;

/// The chunks of [`BlobStore::split`]: FastCDC 2020 with the parameters that servers advertise.
const AVERAGE_CHUNK_BYTES: usize = 512 * 1024;

/// A [`BlobStore`] in memory. Clones share their content.
#[derive(Clone)]
pub struct MemoryBlobStore {
    shared: Arc<Shared>,
}

struct Shared {
    capacity_bytes: u64,
    failing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Held>,
    owned: HashSet<(OwnerId, Digest)>,
    promises: HashMap<(OwnerId, Digest), SystemTime>,
    entries: HashMap<EntryKey, Bytes>,
    used_bytes: u64,
    reserved_bytes: u64,
}

/// A blob as it is held: raw always, and as it came when it came compressed.
#[derive(Clone)]
struct Held {
    raw: Bytes,
    zstd: Option<Bytes>,
}

impl Default for MemoryBlobStore {
    fn default() -> Self {
        Self::with_capacity(u64::MAX)
    }
}

impl MemoryBlobStore {
    /// A store that holds so many bytes of blobs and no more.
    #[must_use]
    pub fn with_capacity(capacity_bytes: u64) -> Self {
        let shared = Shared { capacity_bytes, failing: AtomicBool::new(false), state: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// From now on every call fails as if the disk did, or works again.
    pub fn set_failing(&self, failing: bool) {
        self.shared.failing.store(failing, Ordering::SeqCst);
    }

    /// Bytes promised to uploads under way.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        self.state().reserved_bytes
    }

    /// Until when a blob is promised to an owner.
    #[must_use]
    pub fn promised_until(&self, owner: OwnerId, digest: Digest) -> Option<SystemTime> {
        self.state().promises.get(&(owner, digest)).copied()
    }

    /// Takes a blob away, as eviction would.
    pub fn evict(&self, digest: Digest) {
        let mut state = self.state();
        state.owned.retain(|(_, owned)| *owned != digest);
        if let Some(held) = state.blobs.remove(&digest) {
            state.used_bytes -= held.raw.len() as u64;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless the store was told to fail.
    fn working(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        if self.shared.failing.load(Ordering::SeqCst) {
            return Err(StoreError::Io { doing: "reading the memory store", source: io::Error::other("told to fail") });
        }
        Ok(self.state())
    }

    fn held(&self, owner: OwnerId, digest: Digest) -> Result<Held, StoreError> {
        let state = self.working()?;
        if is_the_empty_blob(digest) {
            return Ok(Held { raw: Bytes::new(), zstd: None });
        }
        if !state.owned.contains(&(owner, digest)) {
            return Err(StoreError::NotFound(digest));
        }
        state.blobs.get(&digest).cloned().ok_or(StoreError::NotFound(digest))
    }

    fn insert(&self, owner: OwnerId, digest: Digest, held: Held) -> Result<(), StoreError> {
        let mut state = self.working()?;
        if !state.blobs.contains_key(&digest) {
            let needed_bytes = digest.size_bytes();
            if needed_bytes > self.shared.capacity_bytes.saturating_sub(state.used_bytes) {
                return Err(no_space(needed_bytes));
            }
            state.used_bytes += needed_bytes;
            state.blobs.insert(digest, held);
        }
        state.owned.insert((owner, digest));
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        let mut state = self.working()?;
        let free = self.shared.capacity_bytes.saturating_sub(state.used_bytes).saturating_sub(state.reserved_bytes);
        if bytes > free {
            return Err(no_space(bytes));
        }
        state.reserved_bytes += bytes;
        drop(state);
        Ok(Reservation { store: self.clone(), bytes })
    }

    fn write_one(&self, owner: OwnerId, blob: NewBlob) -> Result<(), StoreError> {
        drop(self.working()?);
        let NewBlob { digest, bytes, encoding } = blob;
        let held = match encoding {
            Encoding::Identity => Held { raw: bytes, zstd: None },
            Encoding::Zstd => {
                let mut decoder = BoundedDecoder::new(digest)?;
                let mut raw = Vec::new();
                decoder.decode(&bytes, &mut raw)?;
                decoder.finish()?;
                Held { raw: raw.into(), zstd: Some(bytes) }
            }
        };
        check(digest, &held.raw)?;
        self.insert(owner, digest, held)
    }
}

fn is_the_empty_blob(digest: Digest) -> bool {
    digest.is_empty() && digest == Digest::empty(digest.function())
}

fn no_space(needed_bytes: u64) -> StoreError {
    StoreError::NoSpace { needed_bytes, short_bytes: 0, reason: "the memory store is full".to_owned() }
}

fn check(digest: Digest, raw: &[u8]) -> Result<(), StoreError> {
    if raw.len() as u64 != digest.size_bytes() {
        return Err(StoreError::SizeMismatch { digest, received_bytes: raw.len() as u64 });
    }
    let actual = Digest::of(digest.function(), raw);
    if actual == digest { Ok(()) } else { Err(StoreError::DigestMismatch { announced: digest, actual }) }
}

fn compress(digest: Digest, raw: &[u8]) -> Result<Bytes, StoreError> {
    zstd::bulk::compress(raw, 1)
        .map(Bytes::from)
        .map_err(|source| StoreError::Undecodable { digest, reason: source.to_string() })
}

/// The part of `held` that was asked for, encoded as the reader takes it.
fn encoded(digest: Digest, held: Held, range: ByteRange, accept: Accept) -> Result<(Bytes, Encoding), StoreError> {
    let size = digest.size_bytes();
    if range.offset > size {
        return Err(StoreError::OutOfRange { digest, offset: range.offset });
    }
    if let (ByteRange::ALL, Accept::Any | Accept::Zstd, Some(zstd)) = (range, accept, held.zstd) {
        return Ok((zstd, Encoding::Zstd));
    }
    let end = range.limit.map_or(size, |limit| range.offset.saturating_add(limit).min(size));
    let index = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    let raw = held.raw.slice(index(range.offset)..index(end));
    match accept {
        Accept::Identity | Accept::Any => Ok((raw, Encoding::Identity)),
        Accept::Zstd => Ok((compress(digest, &raw)?, Encoding::Zstd)),
    }
}

#[async_trait]
impl BlobStore for MemoryBlobStore {
    async fn find_missing(&self, owner: OwnerId, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let state = self.working()?;
        let mut seen = HashSet::new();
        let missing = |digest: &&Digest| {
            !is_the_empty_blob(**digest) && !state.owned.contains(&(owner, **digest)) && seen.insert(**digest)
        };
        Ok(digests.iter().filter(missing).copied().collect())
    }

    async fn keep_until(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: SystemTime,
    ) -> Result<Vec<Digest>, StoreError> {
        let missing = self.find_missing(owner, digests).await?;
        let mut state = self.working()?;
        for digest in digests.iter().filter(|digest| !missing.contains(digest)) {
            let promised = state.promises.entry((owner, *digest)).or_insert(until);
            *promised = until.max(*promised);
        }
        Ok(missing)
    }

    async fn let_go(&self, owner: OwnerId, digests: &[Digest]) -> Result<(), StoreError> {
        let mut state = self.working()?;
        for digest in digests {
            state.promises.remove(&(owner, *digest));
        }
        Ok(())
    }

    async fn make_durable(&self) -> Result<(), StoreError> {
        self.working().map(drop)
    }

    async fn size_of(
        &self,
        owner: OwnerId,
        function: DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError> {
        let state = self.working()?;
        let empty = Digest::empty(function);
        if *empty.hash() == hash {
            return Ok(Some(empty));
        }
        let is_it = |digest: &Digest| digest.function() == function && *digest.hash() == hash;
        Ok(state.owned.iter().find(|(by, digest)| *by == owner && is_it(digest)).map(|(_, digest)| *digest))
    }

    async fn read(
        &self,
        owner: OwnerId,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        let (bytes, encoding) = encoded(digest, self.held(owner, digest)?, range, accept)?;
        Ok(BlobRead::new(encoding, Box::new(Slices(bytes))))
    }

    async fn read_batch(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        accept: Accept,
    ) -> Vec<Result<(Bytes, Encoding), StoreError>> {
        let read = |digest: &Digest| encoded(*digest, self.held(owner, *digest)?, ByteRange::ALL, accept);
        digests.iter().map(read).collect()
    }

    async fn write_batch(&self, owner: OwnerId, blobs: Vec<NewBlob>) -> Vec<Result<(), StoreError>> {
        blobs.into_iter().map(|blob| self.write_one(owner, blob)).collect()
    }

    async fn write_hashed(&self, owner: OwnerId, blobs: Vec<HashedBlob>) -> Vec<Result<(), StoreError>> {
        let write = |blob: HashedBlob| match blob.digest() {
            digest if digest.is_empty() => self.working().map(drop),
            digest => self.insert(owner, digest, Held { raw: blob.pieces().concat().into(), zstd: None }),
        };
        blobs.into_iter().map(write).collect()
    }

    async fn upload(&self, owner: OwnerId, digest: Digest, encoding: Encoding) -> Result<Box<dyn Upload>, StoreError> {
        let decoder = match encoding {
            Encoding::Identity => None,
            Encoding::Zstd => Some(BoundedDecoder::new(digest)?),
        };
        let reservation = self.reserve(digest.size_bytes())?;
        Ok(Box::new(MemoryUpload { reservation, owner, digest, decoder, received_bytes: 0, raw: Vec::new() }))
    }

    async fn upload_nameless(
        &self,
        owner: OwnerId,
        function: DigestFunction,
    ) -> Result<Box<dyn NamelessUpload>, StoreError> {
        let reservation = self.reserve(0)?;
        Ok(Box::new(MemoryNamelessUpload { reservation, owner, hashing: Some(BlobHasher::new(function)) }))
    }

    async fn split(&self, owner: OwnerId, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        let raw = self.held(owner, digest)?.raw;
        if raw.len() < AVERAGE_CHUNK_BYTES / 4 {
            return Err(StoreError::NotSplit(digest));
        }
        let average = AVERAGE_CHUNK_BYTES;
        let mut chunks = Vec::new();
        for chunk in fastcdc::v2020::FastCDC::new(&raw, average / 4, average, average * 4) {
            let bytes = raw.slice(chunk.offset..chunk.offset + chunk.length);
            let digest = Digest::of(digest.function(), &bytes);
            self.insert(owner, digest, Held { raw: bytes, zstd: None })?;
            chunks.push(digest);
        }
        Ok(chunks)
    }

    async fn splice(&self, owner: OwnerId, digest: Digest, chunks: &[Digest]) -> Result<(), StoreError> {
        let held = chunks.iter().map(|chunk| self.held(owner, *chunk)).collect::<Result<Vec<_>, _>>()?;
        if chunks.iter().map(Digest::size_bytes).try_fold(0_u64, u64::checked_add) != Some(digest.size_bytes()) {
            return Err(StoreError::ChunksMismatch(digest));
        }
        let raw = Bytes::from(held.iter().flat_map(|held| held.raw.iter().copied()).collect::<Vec<u8>>());
        check(digest, &raw).map_err(|_| StoreError::ChunksMismatch(digest))?;
        self.insert(owner, digest, Held { raw, zstd: None })
    }

    async fn get_entry(&self, key: &EntryKey) -> Result<Option<Bytes>, StoreError> {
        Ok(self.working()?.entries.get(key).cloned())
    }

    async fn put_entry(&self, key: &EntryKey, value: Bytes) -> Result<(), StoreError> {
        let mut state = self.working()?;
        let needed_bytes = value.len() as u64;
        // Room is asked for and not taken: like the disk, a full store takes no entry either.
        if needed_bytes > self.shared.capacity_bytes.saturating_sub(state.used_bytes) {
            return Err(no_space(needed_bytes));
        }
        state.entries.insert(key.clone(), value);
        Ok(())
    }

    async fn remove_entry(&self, key: &EntryKey) -> Result<bool, StoreError> {
        Ok(self.working()?.entries.remove(key).is_some())
    }
}

/// The pieces of a read: what is left of it.
struct Slices(Bytes);

#[async_trait]
impl Pieces for Slices {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let piece = self.0.split_to(self.0.len().min(PIECE_BYTES));
        Ok(if piece.is_empty() { None } else { Some(piece) })
    }
}

/// Space promised to an upload; given back when it is dropped.
struct Reservation {
    store: MemoryBlobStore,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.store.state().reserved_bytes -= self.bytes;
    }
}

struct MemoryUpload {
    reservation: Reservation,
    owner: OwnerId,
    digest: Digest,
    decoder: Option<BoundedDecoder>,
    received_bytes: u64,
    raw: Vec<u8>,
}

#[async_trait]
impl Upload for MemoryUpload {
    fn already_present(&self) -> bool {
        self.reservation.store.state().owned.contains(&(self.owner, self.digest))
    }

    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.received_bytes += bytes.len() as u64;
        match &mut self.decoder {
            None => {
                if self.received_bytes > self.digest.size_bytes() {
                    let received_bytes = self.received_bytes;
                    return Err(StoreError::SizeMismatch { digest: self.digest, received_bytes });
                }
                self.raw.extend_from_slice(&bytes);
                Ok(())
            }
            Some(decoder) => decoder.decode(&bytes, &mut self.raw),
        }
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { reservation, owner, digest, decoder, raw, .. } = *self;
        if let Some(decoder) = decoder {
            decoder.finish()?;
        }
        check(digest, &raw)?;
        let store = reservation.store.clone();
        drop(reservation);
        store.insert(owner, digest, Held { raw: raw.into(), zstd: None })
    }
}

struct MemoryNamelessUpload {
    reservation: Reservation,
    owner: OwnerId,
    /// `None` after an error.
    hashing: Option<BlobHasher>,
}

impl MemoryNamelessUpload {
    fn take_hashing(&mut self) -> Result<BlobHasher, StoreError> {
        let void = || StoreError::Io { doing: "writing", source: io::Error::other("this upload has failed") };
        self.hashing.take().ok_or_else(void)
    }
}

#[async_trait]
impl NamelessUpload for MemoryNamelessUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut hashing = self.take_hashing()?;
        let mut more = self.reservation.store.reserve(bytes.len() as u64)?;
        self.reservation.bytes += std::mem::take(&mut more.bytes);
        hashing.update(bytes);
        self.hashing = Some(hashing);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Named, StoreError> {
        let blob = self.take_hashing()?.finish();
        let (store, owner, digest) = (self.reservation.store.clone(), self.owner, blob.digest());
        drop(self);
        let is_new = !store.find_missing(owner, &[digest]).await?.is_empty();
        store.write_hashed(owner, vec![blob]).await.pop().unwrap_or(Ok(()))?;
        Ok(Named { digest, is_new })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: OwnerId = OwnerId(1);

    fn sha256(bytes: &[u8]) -> Digest {
        Digest::of(DigestFunction::Sha256, bytes)
    }

    async fn read_all(store: &MemoryBlobStore, digest: Digest, accept: Accept) -> Result<Vec<u8>, StoreError> {
        let mut read = store.read(OWNER, digest, ByteRange::ALL, accept).await?;
        let mut all = Vec::new();
        while let Some(piece) = read.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    async fn upload(
        store: &MemoryBlobStore,
        digest: Digest,
        encoding: Encoding,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let mut upload = store.upload(OWNER, digest, encoding).await?;
        for piece in bytes.chunks(1000) {
            upload.write(Bytes::copy_from_slice(piece)).await?;
        }
        upload.finish().await
    }

    /// What is shown with this store is shown with the real one: they keep the same promises.
    #[tokio::test]
    async fn it_does_what_every_store_does() {
        crate::blob_store_suite::check(Arc::new(MemoryBlobStore::default())).await;
    }

    #[tokio::test]
    async fn frames_of_every_shape_are_read_back() {
        let store = MemoryBlobStore::default();
        // 128 KiB is exactly one step of the decoder.
        for size in [0, 1, 128 * 1024, 300_000] {
            let raw: Vec<u8> = (0..size).map(|at: usize| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
            let mut frames = zstd::bulk::compress(&raw[..size / 2], 3).unwrap();
            // A skippable frame of three bytes between two data frames.
            frames.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
            frames.extend_from_slice(&zstd::bulk::compress(&raw[size / 2..], 3).unwrap());
            upload(&store, sha256(&raw), Encoding::Zstd, &frames).await.unwrap();
            assert_eq!(read_all(&store, sha256(&raw), Accept::Identity).await.unwrap(), raw);
            let compressed = read_all(&store, sha256(&raw), Accept::Zstd).await.unwrap();
            assert_eq!(zstd::stream::decode_all(&*compressed).unwrap(), raw);
        }
    }

    #[tokio::test]
    async fn wrong_bytes_are_refused_and_leave_nothing() {
        let store = MemoryBlobStore::with_capacity(1 << 20);
        let digest = sha256(&[0; 1000]);
        let bomb = zstd::bulk::compress(&vec![0; 50 << 20], 3).unwrap();
        let mut cut = zstd::bulk::compress(&[0; 1000], 3).unwrap();
        cut.pop();
        let mut trailing = zstd::bulk::compress(&[0; 1000], 3).unwrap();
        trailing.extend_from_slice(b"garbage");
        for wrong in [bomb, cut, trailing, Vec::new()] {
            let refused = upload(&store, digest, Encoding::Zstd, &wrong).await;
            assert!(refused.is_err());
        }
        for wrong in [vec![0; 999], vec![0; 1001], vec![1; 1000]] {
            assert!(upload(&store, digest, Encoding::Identity, &wrong).await.is_err());
        }
        assert_eq!(store.find_missing(OWNER, &[digest]).await.unwrap(), [digest]);
        assert_eq!(store.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn space_is_bounded_and_existence_is_per_owner() {
        let store = MemoryBlobStore::with_capacity(1000);
        let (small, large) = (sha256(&[1; 600]), sha256(&[2; 600]));
        upload(&store, small, Encoding::Identity, &[1; 600]).await.unwrap();
        assert!(matches!(store.upload(OWNER, large, Encoding::Identity).await, Err(StoreError::NoSpace { .. })));
        assert_eq!(store.find_missing(OwnerId(2), &[small]).await.unwrap(), [small]);
        assert!(matches!(store.held(OwnerId(2), small), Err(StoreError::NotFound(_))));
    }
}

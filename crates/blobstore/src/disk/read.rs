//! Reading: from a slot to pieces of bytes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use gf_digest::Digest;

use super::core::Core;
use super::doubtful::Extract;
use super::index::{IndexKey, Place, Slot};
use super::large::{BLOCK_BYTES, LargeFile};
use super::record::array;
use super::segments::ReadFault;
use super::zstandard;
use crate::{Accept, BlobRead, ByteRange, Encoding, OwnerId, Pieces, StoreError};

/// Views are of blobs with bytes of their own and recipes are of those or views, so three steps reach the bytes.
pub(crate) const MAX_DEPTH: u8 = 4;

/// A record can move between the look and the read; it does not move again and again in so short a time.
pub(crate) const ATTEMPTS: u8 = 3;

impl Core {
    /// The slot of a blob that `owner` may see and whose bytes are all here, touched.
    pub(crate) async fn find(&self, owner: OwnerId, digest: &Digest) -> Result<Option<Slot>, StoreError> {
        for _ in 0..ATTEMPTS {
            match self.visible(owner, digest)? {
                // A part that seems to be gone may have moved.
                Some(slot) if !self.is_here(&slot, digest).await? => {}
                found => return Ok(found),
            }
        }
        Ok(None)
    }

    /// As [`Self::find`], of what the disk did not fail to read.
    pub(crate) async fn find_readable(&self, owner: OwnerId, digest: &Digest) -> Result<Option<Slot>, StoreError> {
        match self.find(owner, digest).await? {
            Some(slot) if self.is_doubtful(&slot, digest).await => Ok(None),
            found => Ok(found),
        }
    }

    /// Whether everything that a slot depends on, if it does, is here.
    pub(crate) async fn is_here(&self, slot: &Slot, digest: &Digest) -> Result<bool, StoreError> {
        Ok(!slot.place.has_dependencies() || self.is_whole(slot, digest, MAX_DEPTH).await?)
    }

    /// Whether everything that a slot depends on is here. Touches it, so that it stays as long as what needs it.
    async fn is_whole(&self, slot: &Slot, digest: &Digest, depth: u8) -> Result<bool, StoreError> {
        if depth == 0 {
            return Ok(false);
        }
        let parts = match self.parts(slot, digest).await {
            Ok(parts) => parts,
            Err(StoreError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut turns = Turns::default();
        for part in parts {
            turns.taken().await;
            match self.any_owner(&part.blob)? {
                None => return Ok(false),
                Some(slot) if slot.place.has_dependencies() => {
                    if !Box::pin(self.is_whole(&slot, &part.blob, depth - 1)).await? {
                        return Ok(false);
                    }
                }
                Some(_) => {}
            }
        }
        Ok(true)
    }

    /// The parts of other blobs that a view or a recipe is made of, in order.
    pub(crate) async fn parts(&self, slot: &Slot, digest: &Digest) -> Result<Vec<Part>, StoreError> {
        Ok(named_parts(slot, digest, &self.payload(slot, digest).await?))
    }

    /// The payload of the record that a slot points to.
    async fn payload(&self, slot: &Slot, digest: &Digest) -> Result<Bytes, StoreError> {
        let read = self.segments.read(&slot.key, &slot.place).await;
        let (_, payload) = read.map_err(|fault| self.read_failed(fault, slot, digest))?;
        self.doubtful.was_read(slot, Extract::Head);
        Ok(payload)
    }

    pub(crate) async fn read(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        let size = digest.size_bytes();
        if range.offset > size {
            return Err(StoreError::OutOfRange { digest, offset: range.offset });
        }
        let end = range.limit.map_or(size, |limit| range.offset.saturating_add(limit).min(size));
        if digest.is_empty() {
            return if digest == Digest::empty(digest.function()) {
                Ok(empty(accept))
            } else {
                Err(StoreError::NotFound(digest))
            };
        }
        self.last_busy.store(self.clock.now(), Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let Some(slot) = self.find(owner, &digest).await? else { break };
            if range.offset == end {
                return Ok(empty(accept));
            }
            match self.open(&slot, &digest, range.offset, end, accept).await {
                Ok(read) => return Ok(read),
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::NotFound(digest))
    }

    async fn open(
        self: &Arc<Self>,
        slot: &Slot,
        digest: &Digest,
        from: u64,
        to: u64,
        accept: Accept,
    ) -> Result<BlobRead, StoreError> {
        let whole = from == 0 && to == digest.size_bytes();
        if accept != Accept::Identity && whole {
            match slot.place {
                Place::Segment { encoding: Encoding::Zstd, .. } => {
                    let payload = self.payload(slot, digest).await?;
                    return Ok(BlobRead::new(Encoding::Zstd, Box::new(Whole(Some(payload)))));
                }
                Place::Large { file, encoding: Encoding::Zstd, .. } => {
                    let file = self.open_large(slot, digest, file).await?;
                    let frames = Frames { core: Arc::clone(self), slot: *slot, file, next: 0 };
                    return Ok(BlobRead::new(Encoding::Zstd, Box::new(frames)));
                }
                _ => {}
            }
        }
        let plain = self.open_plain(*slot, *digest, from, to, MAX_DEPTH, Purpose::Serve).await?;
        Ok(if accept == Accept::Zstd {
            BlobRead::new(Encoding::Zstd, Box::new(Compressing(plain)))
        } else {
            BlobRead::new(Encoding::Identity, plain)
        })
    }

    /// Opens the bytes `from..to` of a blob, uncompressed.
    pub(crate) async fn open_plain(
        self: &Arc<Self>,
        slot: Slot,
        digest: Digest,
        from: u64,
        to: u64,
        depth: u8,
        purpose: Purpose,
    ) -> Result<Box<dyn Pieces>, StoreError> {
        match slot.place {
            Place::Segment { encoding, .. } => {
                let payload = self.payload(&slot, &digest).await?;
                let bytes = self.decoded(payload, encoding, &slot, &digest)?;
                // Both are within the blob, which is in memory.
                #[expect(clippy::cast_possible_truncation, reason = "bounded by a length in memory")]
                let part = bytes.slice((from as usize).min(bytes.len())..(to as usize).min(bytes.len()));
                Ok(Box::new(Whole(Some(part))))
            }
            Place::Large { file, .. } => {
                let file = self.open_large(&slot, &digest, file).await?;
                Ok(Box::new(Blocks { core: Arc::clone(self), slot, file, at: from, end: to, purpose }))
            }
            Place::View { .. } | Place::Recipe { .. } => {
                let mut parts = self.parts(&slot, &digest).await?;
                trim(&mut parts, from, to);
                let (core, parts) = (Arc::clone(self), parts.into_iter());
                Ok(Box::new(Chain { core, parts, open: None, digest, depth, purpose }))
            }
        }
    }

    fn decoded(&self, payload: Bytes, encoding: Encoding, slot: &Slot, digest: &Digest) -> Result<Bytes, StoreError> {
        let decoded = match encoding {
            Encoding::Identity => Some(payload),
            Encoding::Zstd => zstandard::decompress(&payload, digest.size_bytes()).ok().map(Bytes::from),
        };
        decoded
            .filter(|bytes| bytes.len() as u64 == digest.size_bytes())
            .ok_or_else(|| self.read_failed(ReadFault::Damaged, slot, digest))
    }

    async fn open_large(&self, slot: &Slot, digest: &Digest, file: u64) -> Result<LargeFile, StoreError> {
        match self.large.open_file(file, Some(&slot.key)).await {
            Ok(file) => {
                self.doubtful.was_read(slot, Extract::Head);
                Ok(file)
            }
            // Evicted since it was looked up, or lost: either way it must not be reported present again.
            Err(ReadFault::Gone) => {
                let _ = self.index.remove_if(&slot.key, |present| present.place == slot.place);
                Err(StoreError::NotFound(*digest))
            }
            Err(fault) => Err(self.read_failed(fault, slot, digest)),
        }
    }

    pub(crate) async fn read_small(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: &Digest,
        accept: Accept,
    ) -> Result<(Bytes, Encoding), StoreError> {
        // The common case first: one record, in a form that the caller takes.
        if let Some(slot @ Slot { place: Place::Segment { encoding, .. }, .. }) = self.visible(owner, digest)?
            && (encoding == Encoding::Identity && accept != Accept::Zstd
                || encoding == Encoding::Zstd && accept != Accept::Identity)
            && let Ok((_, payload)) = self.segments.read(&slot.key, &slot.place).await
        {
            self.doubtful.was_read(&slot, Extract::Head);
            return Ok((payload, encoding));
        }
        let mut read = self.read(owner, *digest, ByteRange::ALL, accept).await?;
        let mut bytes = read.next().await?.unwrap_or_default();
        if let Some(more) = read.next().await? {
            let mut all = Vec::from(bytes);
            all.extend_from_slice(&more);
            while let Some(more) = read.next().await? {
                all.extend_from_slice(&more);
            }
            bytes = all.into();
        }
        Ok((bytes, read.encoding()))
    }
}

/// Lets others have their turn between looks that never wait: a short request can ask for very many.
#[derive(Debug, Default)]
pub(crate) struct Turns(u32);

impl Turns {
    /// So many looks take less than a millisecond.
    const LOOKS: u32 = 512;

    /// Called after each look.
    pub(crate) async fn taken(&mut self) {
        self.0 += 1;
        if self.0 == Self::LOOKS {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// What bytes are read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Somebody asked for them: what they hang on is kept, and read from memory where it was read lately.
    Serve,
    /// To know that the disk still has them: nobody asked, so no lease begins and nothing counts as used.
    Prove,
}

/// A part of a blob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub blob: Digest,
    pub offset: u64,
    pub bytes: u64,
}

/// The parts that the payload of a view or a recipe names.
pub(crate) fn named_parts(slot: &Slot, digest: &Digest, payload: &[u8]) -> Vec<Part> {
    let function = digest.function();
    let named = |bytes: &[u8]| Digest::new(function, array(bytes, 0), u64::from_le_bytes(array(bytes, 32)));
    match slot.place {
        Place::View { .. } => {
            let blob = named(payload);
            vec![Part { blob, offset: u64::from_le_bytes(array(payload, 40)), bytes: digest.size_bytes() }]
        }
        _ => {
            let whole = |blob: Digest| Part { blob, offset: 0, bytes: blob.size_bytes() };
            payload.chunks_exact(40).map(named).map(whole).collect()
        }
    }
}

/// Cuts parts down to the bytes `from..to` of what they make up.
fn trim(parts: &mut Vec<Part>, from: u64, to: u64) {
    let mut at = 0;
    parts.retain_mut(|part| {
        let (start, end) = (at, at + part.bytes);
        at = end;
        let (cut_start, cut_end) = (from.clamp(start, end), to.clamp(start, end));
        part.offset += cut_start - start;
        part.bytes = cut_end - cut_start;
        part.bytes > 0
    });
}

fn empty(accept: Accept) -> BlobRead {
    match accept {
        // A stream of no frames is valid zstd, but not every decoder agrees: one frame of nothing.
        Accept::Zstd => {
            let frame = zstandard::compress(&[]).unwrap_or_default();
            BlobRead::new(Encoding::Zstd, Box::new(Whole(Some(frame.into()))))
        }
        Accept::Identity | Accept::Any => BlobRead::new(Encoding::Identity, Box::new(Whole(None))),
    }
}

/// Bytes at hand.
struct Whole(Option<Bytes>);

#[async_trait]
impl Pieces for Whole {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.take())
    }
}

/// A part of a large file, uncompressed, block by block.
struct Blocks {
    core: Arc<Core>,
    slot: Slot,
    file: LargeFile,
    at: u64,
    end: u64,
    purpose: Purpose,
}

#[async_trait]
impl Pieces for Blocks {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let number = self.at / BLOCK_BYTES;
        let start = number * BLOCK_BYTES;
        let digest = self.file.header.digest;
        let block = match self.purpose {
            Purpose::Serve => self.file.block(number as usize).await,
            Purpose::Prove => self.file.block_on_disk(number as usize).await,
        };
        let extract = Extract::Block(number as usize);
        let block = block.map_err(|fault| self.core.read_failed_at(extract, fault, &self.slot, &digest))?;
        self.core.doubtful.was_read(&self.slot, extract);
        let to = (self.end - start).min(block.len() as u64);
        #[expect(clippy::cast_possible_truncation, reason = "both are within a block")]
        let piece = block.slice(((self.at - start) as usize).min(block.len())..to as usize);
        if piece.is_empty() {
            return Err(self.core.read_failed(ReadFault::Damaged, &self.slot, &digest));
        }
        self.at += piece.len() as u64;
        Ok(Some(piece))
    }
}

/// A whole large file as the zstd frames that it rests in.
struct Frames {
    core: Arc<Core>,
    slot: Slot,
    file: LargeFile,
    next: usize,
}

#[async_trait]
impl Pieces for Frames {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.next == self.file.blocks() {
            return Ok(None);
        }
        let digest = self.file.header.digest;
        let (block, extract) = (self.file.block_at_rest(self.next).await, Extract::Block(self.next));
        self.next += 1;
        let block = block.map_err(|fault| self.core.read_failed_at(extract, fault, &self.slot, &digest))?;
        self.core.doubtful.was_read(&self.slot, extract);
        match block {
            (frame, Encoding::Zstd) => Ok(Some(frame)),
            (plain, Encoding::Identity) => compress(&plain).map(Some),
        }
    }
}

/// Parts of other blobs, one after another.
struct Chain {
    core: Arc<Core>,
    parts: std::vec::IntoIter<Part>,
    open: Option<Box<dyn Pieces>>,
    digest: Digest,
    depth: u8,
    purpose: Purpose,
}

#[async_trait]
impl Pieces for Chain {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            if let Some(open) = &mut self.open
                && let Some(piece) = open.next().await?
            {
                return Ok(Some(piece));
            }
            let Some(part) = self.parts.next() else { return Ok(None) };
            self.open = Some(self.open_part(part).await?);
        }
    }
}

impl Chain {
    // Not `&self`, which could not be held across a wait: an open part is not shared between threads.
    async fn open_part(&mut self, part: Part) -> Result<Box<dyn Pieces>, StoreError> {
        let (from, to) = (part.offset, part.offset + part.bytes);
        for _ in 0..ATTEMPTS {
            let found = match self.purpose {
                Purpose::Serve => self.core.any_owner(&part.blob)?,
                Purpose::Prove => self.core.any_owner_untouched(&part.blob)?,
            };
            let Some(slot) = found.filter(|_| self.depth > 0) else { break };
            match self.core.open_plain(slot, part.blob, from, to, self.depth - 1, self.purpose).await {
                // Moved since it was looked up, or gone.
                Err(StoreError::NotFound(_)) => {}
                result => return result,
            }
        }
        Err(StoreError::NotFound(self.digest))
    }
}

/// Compresses each piece into a frame of its own.
struct Compressing(Box<dyn Pieces>);

#[async_trait]
impl Pieces for Compressing {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self.0.next().await? {
            Some(piece) => compress(&piece).map(Some),
            None => Ok(None),
        }
    }
}

fn compress(piece: &[u8]) -> Result<Bytes, StoreError> {
    zstandard::compress(piece).map(Bytes::from).map_err(|source| StoreError::Io { doing: "compressing a blob", source })
}

impl Core {
    /// Those of `digests` that `owner` must upload, each once.
    pub(crate) async fn find_missing(&self, owner: OwnerId, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let mut missing = Vec::new();
        // Looking at all parts of a blob is slow, so it happens once for each, however often it is asked about.
        let mut made_of_parts = HashSet::new();
        let mut turns = Turns::default();
        for digest in digests {
            turns.taken().await;
            let is_absent = match self.visible(owner, digest)? {
                None => !digest.is_empty() || *digest != Digest::empty(digest.function()),
                Some(slot) if slot.place.has_dependencies() && made_of_parts.insert(*digest) => {
                    !self.is_here(&slot, digest).await? || self.is_doubtful(&slot, digest).await
                }
                Some(slot) => self.doubtful.has(&slot),
            };
            if is_absent {
                missing.push(*digest);
            }
        }
        if missing.len() > 1 {
            let mut seen = HashSet::with_capacity(missing.len());
            missing.retain(|digest| seen.insert(*digest));
        }
        Ok(missing)
    }

    /// The key and digest of a blob known only by its hash, if `owner` may see it.
    pub(crate) async fn size_of(
        &self,
        owner: OwnerId,
        function: gf_digest::DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError> {
        let empty = Digest::empty(function);
        if *empty.hash() == hash {
            return Ok(Some(empty));
        }
        let key = IndexKey::blob(&Digest::new(function, hash, 0));
        let Some(slot) = self.known(self.index.peek(&key))? else { return Ok(None) };
        let digest = Digest::new(function, hash, slot.size_bytes);
        Ok(self.find_readable(owner, &digest).await?.map(|_| digest))
    }
}

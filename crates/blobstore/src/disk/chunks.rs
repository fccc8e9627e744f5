//! Blobs made of parts: splitting by FastCDC, splicing, and saving space where blobs share parts.
//!
//! Splitting copies nothing: a chunk is a view of the blob that it was cut from. Splicing copies nothing either: the
//! blob is a recipe. The parameters are those of REAPI's `FastCdc2020Params`, normalization level 2.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastcdc::v2020::{FastCDC, Normalization};
use gf_digest::{Digest, Hasher};
use tokio::time::timeout;

use super::appending::Payload;
use super::core::{Core, Vacancy, failed};
use super::index::{Fate, IndexKey, Place, Slot};
use super::read::{ATTEMPTS, Part, Turns};
use super::record::{HEADER_BYTES, RecordHeader, RecordKind};
use super::segments::{Appended, NewRecord, lock, write_lock};
use crate::{Accept, ByteRange, Encoding, NewBlob, OwnerId, StoreError, Upload};

/// The parameters of FastCDC that the store splits by; a server tells them to its clients.
pub const CHUNK_AVERAGE_BYTES: u32 = 512 << 10;
/// The seed of FastCDC that the store splits by.
pub const CHUNK_SEED: u32 = 0;

const CHUNK_MIN_BYTES: u32 = CHUNK_AVERAGE_BYTES / 4;
const CHUNK_MAX_BYTES: u32 = CHUNK_AVERAGE_BYTES * 4;

/// The most chunks that one blob may be spliced of: the recipe is one record.
const MAX_CHUNKS: usize = 200_000;

/// The parts of a recipe are at least this long on average: each look at the blob looks at all of them.
const LEAST_PART_BYTES: u64 = 1 << 10;

/// How long a splice waits for others to be read and hashed.
const SPLICE_TIMEOUT: Duration = Duration::from_secs(60);

/// A blob is turned into a recipe when at least one part in so many is here already.
const WORTHWHILE_SHARE: u64 = 4;

impl Core {
    pub(crate) async fn split(self: &Arc<Self>, owner: OwnerId, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        let slot = self.find(owner, &digest).await?.ok_or(StoreError::NotFound(digest))?;
        if let Place::Recipe { .. } = slot.place {
            let parts = self.parts(&slot, &digest).await?;
            for part in &parts {
                self.let_in(owner, &part.blob).await?;
            }
            return Ok(parts.into_iter().map(|part| part.blob).collect());
        }
        if digest.size_bytes() <= u64::from(CHUNK_MIN_BYTES) {
            return Err(StoreError::NotSplit(digest));
        }
        let chunks = self.cut(owner, digest).await?;
        if chunks.len() < 2 {
            return Err(StoreError::NotSplit(digest));
        }
        for chunk in &chunks {
            self.add_view(owner, digest, *chunk).await?;
        }
        Ok(chunks.into_iter().map(|chunk| chunk.blob).collect())
    }

    /// Where FastCDC cuts a blob: each part's digest and its offset in the blob.
    async fn cut(self: &Arc<Self>, owner: OwnerId, digest: Digest) -> Result<Vec<Part>, StoreError> {
        let mut read = self.read(owner, digest, ByteRange::ALL, Accept::Identity).await?;
        let mut chunks = Vec::new();
        let mut buffer: Vec<u8> = Vec::new();
        let (mut offset, mut start, mut ended) = (0, 0, false);
        loop {
            // With a whole largest chunk at hand the cut is the one that the whole blob would give.
            while !ended && buffer.len() - start < CHUNK_MAX_BYTES as usize {
                match read.next().await? {
                    Some(piece) => buffer.extend_from_slice(&piece),
                    None => ended = true,
                }
            }
            if start == buffer.len() {
                return Ok(chunks);
            }
            let length = first_cut(&buffer[start..]);
            let bytes = &buffer[start..start + length];
            let blob = Digest::of(digest.function(), bytes);
            chunks.push(Part { blob, offset, bytes: length as u64 });
            offset += length as u64;
            start += length;
            if start > 4 * CHUNK_MAX_BYTES as usize {
                buffer.drain(..start);
                start = 0;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Makes a chunk a blob of its own: a view of `parent`, unless it is here in its own right.
    async fn add_view(self: &Arc<Self>, owner: OwnerId, parent: Digest, chunk: Part) -> Result<(), StoreError> {
        // Whole, whoever brought it: who may read the blob may read its chunk.
        let mut vacancy = Vacancy::default();
        for _ in 0..ATTEMPTS {
            let Some(present) = self.any_owner(&chunk.blob)? else { break };
            if self.is_here(&present, &chunk.blob).await? {
                return self.let_in(owner, &chunk.blob).await;
            }
            // Certainly not whole, unless a part of it is moving.
            vacancy = Vacancy { place: Some(present.place), has_ended: true, is_doubtful: false };
        }
        let mut reservation = self.reserve(4 * HEADER_BYTES as u64 + 48).await?;
        let mut payload = Vec::with_capacity(48);
        payload.extend_from_slice(parent.hash());
        payload.extend_from_slice(&parent.size_bytes().to_le_bytes());
        payload.extend_from_slice(&chunk.offset.to_le_bytes());
        let header = RecordHeader::blob(RecordKind::View, owner, chunk.blob, Encoding::Identity);
        let kept = self.publish_blob(header, &payload, &mut reservation, vacancy, Appended::view)?;
        if kept.is_some_and(|present| present.owner != owner) {
            self.grant(owner, &chunk.blob, &mut reservation)?;
        }
        Ok(())
    }

    /// Lets an owner who may read a blob read its chunk too.
    async fn let_in(self: &Arc<Self>, owner: OwnerId, chunk: &Digest) -> Result<(), StoreError> {
        if self.visible(owner, chunk)?.is_some() {
            return Ok(());
        }
        let mut reservation = self.reserve(3 * HEADER_BYTES as u64).await?;
        self.grant(owner, chunk, &mut reservation)
    }

    pub(crate) async fn splice(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: Digest,
        chunks: &[Digest],
    ) -> Result<(), StoreError> {
        if digest.is_empty() && digest == Digest::empty(digest.function()) && chunks.iter().all(Digest::is_empty) {
            return Ok(());
        }
        let total = chunks.iter().try_fold(0_u64, |sum, chunk| sum.checked_add(chunk.size_bytes()));
        let one_function = chunks.iter().all(|chunk| chunk.function() == digest.function());
        if total != Some(digest.size_bytes()) || !one_function || chunks.len() > MAX_CHUNKS {
            return Err(StoreError::ChunksMismatch(digest));
        }
        let chunks = &self.flattened(owner, digest, chunks).await?;
        // Absence first: it costs nothing to find out and says most.
        let mut turns = Turns::default();
        for chunk in chunks {
            self.find(owner, chunk).await?.ok_or(StoreError::NotFound(*chunk))?;
            turns.taken().await;
        }
        // A short request can have gigabytes read and hashed.
        let _permit = timeout(SPLICE_TIMEOUT, self.splicing.acquire()).await.map_err(|_| {
            failed("splicing a blob")(std::io::Error::other("too many blobs are being spliced; try again"))
        })?;
        let bytes = self.verify_splice(owner, digest, chunks).await?;
        if self.find_readable(owner, &digest).await?.is_some() {
            return Ok(());
        }
        match bytes {
            // Small enough to be kept whole: a recipe would cost more than it saves.
            Some(bytes) => {
                let blob = NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity };
                self.write_batch(owner, vec![blob]).await.pop().unwrap_or(Ok(()))
            }
            None if digest.size_bytes() < LEAST_PART_BYTES * chunks.len() as u64 => {
                self.copy_splice(owner, digest, chunks).await
            }
            None => self.add_recipe(owner, digest, chunks).await,
        }
    }

    /// Stores a spliced blob with bytes of its own.
    async fn copy_splice(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: Digest,
        chunks: &[Digest],
    ) -> Result<(), StoreError> {
        let mut upload = Box::new(self.begin_upload(owner, digest, Encoding::Identity).await?);
        for chunk in chunks {
            let mut read = self.read(owner, *chunk, ByteRange::ALL, Accept::Identity).await?;
            while let Some(piece) = read.next().await? {
                upload.write(piece).await?;
                tokio::task::yield_now().await;
            }
        }
        upload.finish().await
    }

    /// The chunks, with the parts of those that are recipes in their place: recipes never nest, so that reading one is
    /// always a few steps.
    async fn flattened(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: Digest,
        chunks: &[Digest],
    ) -> Result<Vec<Digest>, StoreError> {
        let mut flat = Vec::with_capacity(chunks.len());
        let empty = Digest::empty(digest.function());
        let mut turns = Turns::default();
        for chunk in chunks.iter().filter(|chunk| **chunk != empty) {
            match self.visible(owner, chunk)?.ok_or(StoreError::NotFound(*chunk))? {
                slot @ Slot { place: Place::Recipe { .. }, .. } => {
                    for part in self.parts(&slot, chunk).await? {
                        self.let_in(owner, &part.blob).await?;
                        flat.push(part.blob);
                    }
                }
                _ => flat.push(*chunk),
            }
            turns.taken().await;
            if flat.len() > MAX_CHUNKS {
                return Err(StoreError::ChunksMismatch(digest));
            }
        }
        Ok(flat)
    }

    /// Reads and hashes the chunks. Returns their bytes when they are few.
    async fn verify_splice(
        self: &Arc<Self>,
        owner: OwnerId,
        digest: Digest,
        chunks: &[Digest],
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut whole = (digest.size_bytes() <= self.config.large_blob_bytes).then(Vec::new);
        let mut hasher = Hasher::new(digest.function());
        for chunk in chunks {
            let mut read = self.read(owner, *chunk, ByteRange::ALL, Accept::Identity).await?;
            while let Some(piece) = read.next().await? {
                hasher.update(&piece);
                // Bytes that are in memory are read without waiting; others must get their turn.
                tokio::task::yield_now().await;
                if let Some(whole) = &mut whole {
                    whole.extend_from_slice(&piece);
                }
            }
        }
        if hasher.finish() == digest { Ok(whole) } else { Err(StoreError::ChunksMismatch(digest)) }
    }

    async fn add_recipe(self: &Arc<Self>, owner: OwnerId, digest: Digest, chunks: &[Digest]) -> Result<(), StoreError> {
        let payload = recipe_payload(chunks);
        let mut reservation = self.reserve((4 * HEADER_BYTES + payload.len()) as u64).await?;
        let header = RecordHeader::blob(RecordKind::Recipe, owner, digest, Encoding::Identity);
        let Some(vacancy) = self.vacancy(owner, &digest, &mut reservation).await? else { return Ok(()) };
        let kept = self.publish_blob(header, &payload, &mut reservation, vacancy, Appended::recipe)?;
        if kept.is_some_and(|present| present.owner != owner) {
            self.grant(owner, &digest, &mut reservation)?;
        }
        Ok(())
    }

    /// Looks at a large blob in a quiet moment: where enough of it is here as parts of others, it becomes a recipe and
    /// its file goes; otherwise its own chunks become known, for others to share. Returns the bytes saved.
    pub(crate) async fn deduplicate(self: &Arc<Self>, owner: OwnerId, digest: Digest) -> Result<u64, StoreError> {
        let Some(slot @ Slot { place: Place::Large { file, .. }, .. }) = self.visible(owner, &digest)? else {
            return Ok(0);
        };
        let chunks = self.cut(owner, digest).await?;
        let mut shared = 0;
        for chunk in &chunks {
            if self.visible(owner, &chunk.blob)?.is_some() && self.find_readable(owner, &chunk.blob).await?.is_some() {
                shared += chunk.bytes;
            }
        }
        if chunks.len() < 2 || shared * WORTHWHILE_SHARE < digest.size_bytes() {
            for chunk in &chunks {
                self.add_view(owner, digest, *chunk).await?;
            }
            return Ok(0);
        }
        let _moving = Moving::begin(self);
        let mut moves = Vec::new();
        for chunk in &chunks {
            if !self.has_elsewhere(owner, &digest, &chunk.blob).await? {
                moves.push(self.copy_out(owner, digest, *chunk).await?);
            }
        }
        let names: Vec<Digest> = chunks.iter().map(|chunk| chunk.blob).collect();
        self.move_to(&moves)?;
        for chunk in &names {
            if !self.has_elsewhere(owner, &digest, chunk).await? {
                return Ok(0);
            }
        }
        let recipe = self.append_recipe(slot, &digest, &names).await?;
        // The chunks may lie in files that came later, and a power cut must not take what the blob leans on from now on.
        self.sync().map_err(failed("saving space"))?;
        self.move_to(&[recipe])?;
        // Read no more from the file, whatever happens, before it goes.
        self.sync_index().map_err(failed("saving space"))?;
        if self.any_owner(&digest)?.is_some_and(|present| present.place != slot.place) {
            self.remove_large(file).map_err(failed("saving space"))?;
        }
        self.counters.deduplicated_bytes.fetch_add(shared, Ordering::Relaxed);
        Ok(shared)
    }

    /// Whether a chunk can be read without the blob that is about to lose its file.
    async fn has_elsewhere(&self, owner: OwnerId, parent: &Digest, chunk: &Digest) -> Result<bool, StoreError> {
        let Some(slot) = self.find_readable(owner, chunk).await? else { return Ok(false) };
        match slot.place {
            Place::View { .. } => Ok(self.parts(&slot, chunk).await?.iter().all(|part| part.blob != *parent)),
            Place::Recipe { .. } => Ok(false),
            Place::Segment { .. } | Place::Large { .. } => Ok(true),
        }
    }

    /// Appends a chunk with bytes of its own, for [`Self::move_to`].
    async fn copy_out(self: &Arc<Self>, owner: OwnerId, parent: Digest, chunk: Part) -> Result<Move, StoreError> {
        let range = ByteRange { offset: chunk.offset, limit: Some(chunk.bytes) };
        let mut read = self.read(owner, parent, range, Accept::Identity).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = read.next().await? {
            bytes.extend_from_slice(&piece);
        }
        let before = self.any_owner(&chunk.blob)?;
        let owner = before.map_or(owner, |slot| slot.owner);
        let mut header = RecordHeader::blob(RecordKind::Blob, owner, chunk.blob, Encoding::Identity);
        header.sequence = self.sequence_of(before.as_ref()).await;
        self.append_for_move(before, header, &bytes, |at| at.plain(Encoding::Identity)).await
    }

    /// Appends the recipe of a blob that has a place already, for [`Self::move_to`].
    async fn append_recipe(
        self: &Arc<Self>,
        before: Slot,
        digest: &Digest,
        chunks: &[Digest],
    ) -> Result<Move, StoreError> {
        let mut header = RecordHeader::blob(RecordKind::Recipe, before.owner, *digest, Encoding::Identity);
        header.sequence = self.sequence_of(Some(&before)).await;
        self.append_for_move(Some(before), header, &recipe_payload(chunks), Appended::recipe).await
    }

    /// The sequence number of the record that a slot points to, which tells when the blob came; 0, for a new one, when
    /// there is none to be read.
    pub(crate) async fn sequence_of(&self, slot: Option<&Slot>) -> u64 {
        let Some(slot) = slot else { return 0 };
        let header = match slot.place {
            Place::Large { file, .. } => self.large.open_file(file, Some(&slot.key)).await.map(|file| file.header),
            _ => self.segments.read(&slot.key, &slot.place).await.map(|(header, _)| header),
        };
        header.map_or(0, |header| header.sequence)
    }

    async fn append_for_move(
        self: &Arc<Self>,
        before: Option<Slot>,
        header: RecordHeader,
        payload: &[u8],
        place: impl Fn(Appended) -> Place,
    ) -> Result<Move, StoreError> {
        let bytes = (HEADER_BYTES + payload.len()) as u64;
        let mut reservation = self.reserve(bytes).await?;
        let (owner, digest, now) = (header.owner, header.digest, self.clock.now());
        let appended = {
            // Who counts what is used must not come between.
            let _publishing = self.publishing()?;
            let appended = self.segments.append(vec![NewRecord { header, payload: Payload::Whole(payload) }], now);
            let appended = appended.map_err(failed("saving space"))?;
            reservation.use_bytes(bytes);
            appended
        };
        let at =
            appended.first().ok_or_else(|| failed("saving space")(std::io::Error::other("nothing was appended")))?;
        let key = IndexKey::blob(&digest);
        let after = Slot { key, place: place(*at), size_bytes: digest.size_bytes(), touched: now, owner };
        Ok(Move { before: before.map(|slot| slot.place), after })
    }

    /// Makes what was appended durable, and only then points to it: until then a power cut must find what it replaces.
    fn move_to(&self, moves: &[Move]) -> Result<(), StoreError> {
        self.segments.sync_places(moves.iter().map(|step| &step.after.place)).map_err(failed("saving space"))?;
        for Move { before, after } in moves {
            let changed = match before {
                // A blob that comes, if it is still not here: nobody shares it, whoever shared an earlier one.
                None => self.index.put_blob(after, |_| Fate::Stays),
                Some(before) => self.index.change(&after.key, |present| {
                    let Slot { touched, owner, .. } = *present.filter(|present| present.place == *before)?;
                    Some(Slot { touched, owner, ..*after })
                }),
            };
            changed.map_err(failed("saving space"))?;
        }
        Ok(())
    }
}

/// Keeps compaction away from what is appended while this lives.
struct Moving {
    core: Arc<Core>,
    first: u32,
}

impl Moving {
    fn begin(core: &Arc<Core>) -> Self {
        // Alone: a compaction that is choosing its segments sees either all of this or none.
        let _alone = write_lock(&core.publish);
        let (first, _, _) = core.segments.end();
        lock(&core.moving).push(first);
        Self { core: Arc::clone(core), first }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        let mut moving = lock(&self.core.moving);
        if let Some(at) = moving.iter().position(|first| *first == self.first) {
            moving.swap_remove(at);
        }
    }
}

/// A blob that was written to another place, and the place that it had.
struct Move {
    before: Option<Place>,
    after: Slot,
}

fn recipe_payload(chunks: &[Digest]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(40 * chunks.len());
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        payload.extend_from_slice(chunk.hash());
        payload.extend_from_slice(&chunk.size_bytes().to_le_bytes());
    }
    payload
}

/// The length of the first chunk of `bytes`.
fn first_cut(bytes: &[u8]) -> usize {
    let mut chunker = FastCDC::with_level_and_seed(
        bytes,
        CHUNK_MIN_BYTES as usize,
        CHUNK_AVERAGE_BYTES as usize,
        CHUNK_MAX_BYTES as usize,
        Normalization::Level2,
        u64::from(CHUNK_SEED),
    );
    chunker.next().map_or(bytes.len(), |chunk| chunk.length)
}

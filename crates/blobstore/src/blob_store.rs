//! The seam: what a service may ask of a store, whatever holds the bytes.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use gf_digest::{Digest, DigestFunction, InstanceName};

use crate::{HashedBlob, StoreError};

/// The number under which the store knows an owner of blobs: one tenant, one number, never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u32);

/// How bytes are written on the wire or at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Identity,
    /// One or more concatenated zstd frames.
    Zstd,
}

/// Which encodings a reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Only the bytes as they are.
    Identity,
    /// Only zstd: bytes held raw are compressed on the way out.
    Zstd,
    /// Whichever the store holds; [`BlobRead::encoding`] tells which came.
    Any,
}

/// A part of a blob, in uncompressed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Where to begin. Equal to the size: nothing is read. Beyond it: [`StoreError::OutOfRange`].
    pub offset: u64,
    /// At most so many bytes; `None` for all that follow.
    pub limit: Option<u64>,
}

impl ByteRange {
    /// The whole blob.
    pub const ALL: Self = Self { offset: 0, limit: None };
}

/// A blob that arrives whole.
#[derive(Clone, Debug)]
pub struct NewBlob {
    /// The digest of the uncompressed bytes.
    pub digest: Digest,
    /// The bytes, encoded as `encoding` says.
    pub bytes: Bytes,
    /// The encoding of `bytes`.
    pub encoding: Encoding,
}

/// Which small named records an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryTable {
    /// Action results, by the digest of their action.
    ActionResult = 1,
    /// Bytes that HTTP clients keep under `/ac/` and that are no action results (ccache).
    OpaqueResult = 2,
    /// Bytes that HTTP clients keep under names of their own choice (sccache).
    NamedValue = 3,
}

/// The key of an entry: a small record that is no blob, since its key is not the digest of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey {
    /// The kind of record.
    pub table: EntryTable,
    /// The owner.
    pub owner: OwnerId,
    /// The instance; the same digest under another instance is another entry.
    pub instance: InstanceName,
    /// The digest that the record is about.
    pub digest: Digest,
}

/// How far ahead [`BlobStore::keep_until`] may promise.
pub const LONGEST_PROMISE: Duration = Duration::from_secs(10 * 366 * 86_400);

/// A content-addressed store.
///
/// Every call that reports a blob present, or serves it, extends its lease. Absence is only ever reported when it
/// is certain; when the store cannot know, it answers [`StoreError::Io`].
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// The digests among `digests` that `owner` must upload, each once, in the order asked. Extends the lease of
    /// the others. The empty blob is always present.
    async fn find_missing(&self, owner: OwnerId, digests: &[Digest]) -> Result<Vec<Digest>, StoreError>;

    /// As [`Self::find_missing`], and what is not missing is promised to `owner` until `until` at least, with all that it is
    /// made of: eviction takes none of it before, whatever is asked meanwhile, and however long the store is down. The
    /// longest promise counts; a moment that has passed promises no more than the lease.
    ///
    /// An owner has one promise for a blob, however many things of its own need it: who lets go counts them. A promise
    /// costs about 100 bytes of space and survives what a write survives.
    ///
    /// # Errors
    /// [`StoreError::TooFarAhead`] beyond [`LONGEST_PROMISE`] from now; [`StoreError::NoSpace`]: nothing was promised.
    async fn keep_until(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        until: SystemTime,
    ) -> Result<Vec<Digest>, StoreError>;

    /// Takes back what was promised to `owner` by [`Self::keep_until`]: the lease begins now, and counts alone. What others
    /// were promised stays promised. Digests without a promise are no error.
    async fn let_go(&self, owner: OwnerId, digests: &[Digest]) -> Result<(), StoreError>;

    /// Returns when everything acknowledged before this call survives a power cut too, promises included. Calls that come
    /// together share one flush of the disk, and its failure.
    async fn make_durable(&self) -> Result<(), StoreError>;

    /// The digest of the blob with this hash, for callers that know no size (the HTTP cache); `None` when `owner`
    /// has no such blob. Extends its lease. The hash of the empty blob is always known.
    async fn size_of(
        &self,
        owner: OwnerId,
        function: DigestFunction,
        hash: [u8; 32],
    ) -> Result<Option<Digest>, StoreError>;

    /// Opens a part of a blob for reading. The reader holds what it reads: eviction does not cut it off.
    async fn read(
        &self,
        owner: OwnerId,
        digest: Digest,
        range: ByteRange,
        accept: Accept,
    ) -> Result<BlobRead, StoreError>;

    /// Reads whole small blobs, one answer for each digest, in order. The caller bounds the sum of their sizes.
    async fn read_batch(
        &self,
        owner: OwnerId,
        digests: &[Digest],
        accept: Accept,
    ) -> Vec<Result<(Bytes, Encoding), StoreError>>;

    /// Stores whole blobs, one answer for each, in order. What is answered `Ok` survives a killed process, and a
    /// power cut after the store's stated window.
    async fn write_batch(&self, owner: OwnerId, blobs: Vec<NewBlob>) -> Vec<Result<(), StoreError>>;

    /// As [`Self::write_batch`], of blobs that were hashed where they came from; they are not hashed again.
    async fn write_hashed(&self, owner: OwnerId, blobs: Vec<HashedBlob>) -> Vec<Result<(), StoreError>>;

    /// Begins an upload in pieces. Reserves the space; dropping the upload gives it back.
    async fn upload(&self, owner: OwnerId, digest: Digest, encoding: Encoding) -> Result<Box<dyn Upload>, StoreError>;

    /// Begins an upload whose digest the store finds out: it is hashed there and nowhere else. Space is reserved in steps,
    /// before it is written to; dropping the upload gives all of it back, and ending it what it did not need.
    async fn upload_nameless(
        &self,
        owner: OwnerId,
        function: DigestFunction,
    ) -> Result<Box<dyn NamelessUpload>, StoreError>;

    /// The chunks, in order, that make up a blob; each is a blob of its own that `owner` can read from now on.
    /// [`StoreError::NotSplit`] when the blob is smaller than a chunk.
    async fn split(&self, owner: OwnerId, digest: Digest) -> Result<Vec<Digest>, StoreError>;

    /// Makes a blob out of chunks that `owner` holds, verified by hashing; nothing is copied.
    async fn splice(&self, owner: OwnerId, digest: Digest, chunks: &[Digest]) -> Result<(), StoreError>;

    /// Reads an entry and extends its life; `None` when there is none.
    async fn get_entry(&self, key: &EntryKey) -> Result<Option<Bytes>, StoreError>;

    /// Writes or replaces an entry, as durable as [`Self::write_batch`]. A value that a power cut takes within the window
    /// can take the one that it replaced along: the key is then absent, which is a miss, or has the older value.
    async fn put_entry(&self, key: &EntryKey, value: Bytes) -> Result<(), StoreError>;

    /// Removes an entry; whether there was one. A removed entry stays removed after a crash.
    async fn remove_entry(&self, key: &EntryKey) -> Result<bool, StoreError>;
}

/// An upload under way. Bytes are hashed, and decoded where they are compressed, as they come.
#[async_trait]
pub trait Upload: Send {
    /// Whether `owner` already has this blob, so that the client may stop sending. Checked anew at each call.
    fn already_present(&self) -> bool;

    /// Encoded bytes taken so far: where a resumed upload goes on.
    fn received_bytes(&self) -> u64;

    /// Takes the next encoded bytes. An error is final: the upload is void and its space given back.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Checks size and digest and makes the blob visible to the owner.
    async fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// An upload under way that gets its digest at its end.
#[async_trait]
pub trait NamelessUpload: Send {
    /// Takes the next bytes. An error is final: the upload is void and its space given back.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Makes the blob visible to the owner, as durable as by [`BlobStore::write_batch`], and tells which it is.
    async fn finish(self: Box<Self>) -> Result<Named, StoreError>;
}

/// What a [`NamelessUpload`] turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The digest of all that came.
    pub digest: Digest,
    /// Whether the owner lacked it before.
    pub is_new: bool,
}

/// A blob, or a part of it, being read.
pub struct BlobRead {
    encoding: Encoding,
    stream: Box<dyn Pieces>,
    /// What is left of a piece that was too long to be handed out at once.
    rest: Bytes,
}

/// Where the pieces of a [`BlobRead`] come from.
#[async_trait]
pub trait Pieces: Send {
    /// The next piece, of any length; otherwise as [`BlobRead::next`] says.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError>;
}

impl BlobRead {
    /// The longest piece, in bytes: a message that carries one stays far below what every client takes.
    pub const MAX_PIECE_BYTES: usize = 1 << 20;

    /// Made by a store: the pieces must be in `encoding`.
    #[must_use]
    pub fn new(encoding: Encoding, stream: Box<dyn Pieces>) -> Self {
        Self { encoding, stream, rest: Bytes::new() }
    }

    /// The encoding of the pieces.
    #[must_use]
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The next piece, of at most [`Self::MAX_PIECE_BYTES`]; `None` at the end. An error means that the bytes at
    /// hand are not those of the digest or cannot be read: what came before is right, what follows is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let mut piece = match std::mem::take(&mut self.rest) {
            none if none.is_empty() => match self.stream.next().await? {
                Some(piece) => piece,
                None => return Ok(None),
            },
            rest => rest,
        };
        if piece.len() > Self::MAX_PIECE_BYTES {
            self.rest = piece.split_off(Self::MAX_PIECE_BYTES);
        }
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Given(Vec<Bytes>);

    #[async_trait]
    impl Pieces for Given {
        async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
            Ok(self.0.pop())
        }
    }

    #[tokio::test]
    async fn long_pieces_are_cut() {
        const LONG: usize = BlobRead::MAX_PIECE_BYTES;
        // Taken from the end.
        let given = [5, 2 * LONG + 3, LONG].map(|length| Bytes::from(vec![1; length]));
        let mut read = BlobRead::new(Encoding::Identity, Box::new(Given(given.to_vec())));
        let mut lengths = Vec::new();
        while let Some(piece) = read.next().await.unwrap() {
            lengths.push(piece.len());
        }
        assert_eq!(lengths, [LONG, LONG, LONG, 3, 5]);
    }
}

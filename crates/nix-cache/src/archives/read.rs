//! Reading an archive.

mod ahead;
mod plan;

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use gf_blobstore::{Accept, BlobRead, BlobStore, ByteRange, Encoding, ErrorKind, OwnerId, StoreError};
use gf_digest::Digest;
use gf_nix_formats::nar::{NarError, NarLayoutBuilder, NarParser};
use gf_nix_formats::{Listing, ListingBuilder};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::layout::Layout;
use super::walk::{Directories, Walk};
use super::{Archives, Root, blob_list};
use ahead::Reader;
use plan::Plan;

/// Why an archive cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A blob is not here, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Blobs are here and do not make up an archive: our fault, or that of who edited the database.
    #[error("the blobs do not make up the archive: {0}")]
    Malformed(String),
    /// The blobs make up an archive of another size.
    #[error("the archive has {actual} bytes, not {expected}")]
    Size {
        /// What was asked for.
        expected: u64,
        /// What is there.
        actual: u64,
    },
    /// The part begins beyond the end.
    #[error("offset {offset} is beyond the end of an archive of {size_bytes} bytes")]
    OutOfRange {
        /// Where the part should have begun.
        offset: u64,
        /// The size of the archive.
        size_bytes: u64,
    },
}

impl ReadError {
    /// Whose fault this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Malformed(_) | Self::Size { .. } => ErrorKind::Unavailable,
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
        }
    }
}

impl From<NarError> for ReadError {
    fn from(error: NarError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// An archive whose blobs were all here when it was opened. Cheap to clone; it holds no blob.
#[derive(Clone)]
pub struct Archive {
    store: Arc<dyn BlobStore>,
    owner: OwnerId,
    size_bytes: u64,
    form: Form,
}

/// How an archive is kept.
#[derive(Clone)]
enum Form {
    Tree(Arc<Layout>),
    Opaque(Digest),
}

/// The bytes of an archive or of a part of it, in pieces of at most 1 MiB: exactly as many as
/// [`ArchiveRead::size_bytes`] says, or an error after fewer.
pub struct ArchiveRead {
    size_bytes: u64,
    reading: Reading,
}

/// A whole archive as frames of zstd, one after another, in pieces of at most 1 MiB. How many bytes come is not known.
pub struct ZstdRead {
    reading: Reading,
}

impl Archive {
    /// The size of the archive in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads a part of the archive. What follows is read ahead, a few pieces far, while pieces are taken; dropping the
    /// answer ends that. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] when the part begins beyond the end.
    pub fn read(&self, range: ByteRange) -> Result<ArchiveRead, ReadError> {
        let (offset, size_bytes) = (range.offset, self.size_bytes);
        if offset > size_bytes {
            return Err(ReadError::OutOfRange { offset, size_bytes });
        }
        let end = range.limit.map_or(size_bytes, |limit| offset.saturating_add(limit).min(size_bytes));
        let plan = self.plan(offset..end);
        Ok(ArchiveRead { size_bytes: end - offset, reading: self.begin(plan, Encoding::Identity) })
    }

    /// Reads the whole archive as zstd. Files that the store holds compressed go out as they are; all else is compressed
    /// on the way, quickly rather than well. Must be called within a Tokio runtime.
    #[must_use]
    pub fn read_zstd(&self) -> ZstdRead {
        ZstdRead { reading: self.begin(self.plan(0..self.size_bytes), Encoding::Zstd) }
    }

    fn plan(&self, range: Range<u64>) -> Plan {
        match &self.form {
            Form::Tree(layout) => Plan::of_tree(Arc::clone(layout), range),
            Form::Opaque(digest) => Plan::of_blob(*digest, range),
        }
    }

    fn begin(&self, plan: Plan, encoding: Encoding) -> Reading {
        let (sender, pieces) = mpsc::channel(ahead::PIECES);
        let reader = Reader { store: Arc::clone(&self.store), owner: self.owner, encoding };
        let mut task = JoinSet::new();
        task.spawn(reader.read_all(plan, sender));
        Reading { pieces, task }
    }
}

impl ArchiveRead {
    /// How many bytes come, in all.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Stream for ArchiveRead {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reading.poll_next(context)
    }
}

impl Stream for ZstdRead {
    type Item = Result<Bytes, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reading.poll_next(context)
    }
}

/// Pieces from the task that reads ahead; it ends with this.
struct Reading {
    pieces: mpsc::Receiver<Result<Bytes, ReadError>>,
    task: JoinSet<()>,
}

impl Reading {
    /// The end is the end only if the task came to it by itself.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, ReadError>>> {
        if let Some(piece) = ready!(self.pieces.poll_recv(context)) {
            return Poll::Ready(Some(piece));
        }
        let ended = ready!(self.task.poll_join_next(context));
        Poll::Ready(ended.and_then(Result::err).map(|error| {
            let source = std::io::Error::other(error);
            Err(StoreError::Io { doing: "reading an archive", source }.into())
        }))
    }
}

/// Digests asked about at once.
const ASKED: usize = 4096;

impl Archives {
    /// Opens the archive of `root` for reading: finds out where everything is in it, and that all blobs are here, which
    /// extends their lease. `nar_size` is what [`Ingested::nar_size`](super::Ingested::nar_size) was.
    ///
    /// # Errors
    /// [`ReadError`]; of the kind `NotFound` when a blob is missing.
    pub async fn open(&self, owner: OwnerId, root: &Root, nar_size: u64) -> Result<Archive, ReadError> {
        let (form, actual) = match root {
            Root::Opaque(digest) => {
                self.require(owner, &[*digest]).await?;
                (Form::Opaque(*digest), digest.size_bytes())
            }
            _ => {
                let layout = self.layout(owner, root).await?;
                self.require(owner, &layout.blobs).await?;
                let size_bytes = layout.nar.size_bytes();
                (Form::Tree(layout), size_bytes)
            }
        };
        if actual != nar_size {
            return Err(ReadError::Size { expected: nar_size, actual });
        }
        Ok(Archive { store: Arc::clone(&self.store), owner, size_bytes: nar_size, form })
    }

    /// What is in the archive and where, as `.ls` files say it. [`Listing::to_json`] fails for an opaque archive with
    /// names that are not UTF-8.
    ///
    /// # Errors
    /// [`ReadError`]; of the kind `NotFound` when a blob is missing.
    pub async fn list(&self, owner: OwnerId, root: &Root) -> Result<Listing, ReadError> {
        if let Root::Opaque(digest) = root {
            let read = self.store.read(owner, *digest, ByteRange::ALL, Accept::Identity).await?;
            return self.list_opaque(read).await;
        }
        let limits = self.limits.nar();
        let directories = Directories::fetch(self.store.as_ref(), owner, root, limits).await?;
        let root = root.clone();
        let list = move || {
            let mut listing = ListingBuilder::new();
            let mut nar = NarLayoutBuilder::new(limits);
            let mut walk = Walk::new(&root, &directories)?;
            while let Some(step) = walk.next()? {
                nar.add(&step.event)?;
                listing.add(&step.event, nar.contents_offset());
            }
            Ok(listing.finish()?)
        };
        let listed = tokio::task::spawn_blocking(list).await;
        listed.map_err(|error| ReadError::Malformed(error.to_string()))?
    }

    async fn list_opaque(&self, mut read: BlobRead) -> Result<Listing, ReadError> {
        let mut parser = NarParser::new(self.limits.nar());
        let mut listing = ListingBuilder::new();
        while let Some(mut piece) = read.next().await? {
            while let Some(event) = parser.next(&mut piece)? {
                listing.add(&event, parser.position());
            }
        }
        parser.finish()?;
        Ok(listing.finish()?)
    }

    /// All blobs that reading the archive needs, each once: directories and files. The empty blob, which every store has,
    /// is not among them.
    ///
    /// # Errors
    /// [`ReadError`]; of the kind `NotFound` when a directory is missing.
    pub async fn blobs(&self, owner: OwnerId, root: &Root) -> Result<Vec<Digest>, ReadError> {
        match root {
            Root::Opaque(digest) => Ok(vec![*digest]),
            _ => Ok(self.layout(owner, root).await?.blobs.clone()),
        }
    }

    /// Reads the list that [`Ingested::blobs`](super::Ingested::blobs) names: what [`Archives::blobs`] finds, without a
    /// walk.
    ///
    /// # Errors
    /// [`ReadError`]; of the kind `NotFound` when it is missing.
    pub async fn read_blob_list(&self, owner: OwnerId, list: Digest) -> Result<Vec<Digest>, ReadError> {
        let mut read = self.store.read(owner, list, ByteRange::ALL, Accept::Identity).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = read.next().await? {
            bytes.extend_from_slice(&piece);
        }
        blob_list::decode(&bytes).ok_or_else(|| ReadError::Malformed(format!("{list} is no list of blobs")))
    }

    async fn layout(&self, owner: OwnerId, root: &Root) -> Result<Arc<Layout>, ReadError> {
        if let Some(layout) = self.layouts.get(owner, root) {
            return Ok(layout);
        }
        let layout = Arc::new(Layout::read(self.store.as_ref(), owner, root, self.limits.nar()).await?);
        self.layouts.put(owner, root, &layout);
        Ok(layout)
    }

    /// Fails when one of these blobs is missing; extends the lease of the others.
    pub(super) async fn require(&self, owner: OwnerId, blobs: &[Digest]) -> Result<(), StoreError> {
        for some in blobs.chunks(ASKED) {
            if let Some(missing) = self.store.find_missing(owner, some).await?.first() {
                return Err(StoreError::NotFound(*missing));
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

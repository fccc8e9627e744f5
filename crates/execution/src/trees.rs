//! All directories below a root, in pages.
//!
//! The walk is breadth first over distinct digests, so a tree in which one directory occurs on 2^30 paths has as many
//! steps as it has directories. The order depends on the directories alone: a page token is a position in it. A
//! directory that is missing is passed over with what is below it; only the root must be there.

mod page_token;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use gf_blobstore::{Accept, BlobStore, ErrorKind, OwnerId, StoreError};
use gf_digest::Digest;
use gf_tenancy::{Authorized, CasRead};
use thiserror::Error;

use crate::content::owner;
use crate::encoded::{Entry, entries};

/// Directories in one walk: beyond that the answer would never be read.
const MAX_DIRECTORIES: usize = 500_000;

/// Encoded directories of one page, in bytes: a message of 4 MB must hold them.
const MAX_PAGE_BYTES: usize = 3_500_000;

/// Directories read from the store at once, and their bytes.
const MAX_BATCH_COUNT: usize = 256;
const MAX_BATCH_BYTES: u64 = 2 << 20;

/// What a directory costs in a page beyond its own bytes: tag and length.
const FIELD_BYTES: usize = 6;

/// Why a walk ends early.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The root is not there.
    #[error("the root directory {0} is not here")]
    RootMissing(Digest),
    /// A blob is no directory, or names something that is no digest.
    #[error("{digest} is not a Directory: {reason}")]
    Malformed {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory fits no page.
    #[error("the directory {0} is larger than a page of {MAX_PAGE_BYTES} bytes")]
    DirectoryTooLarge(Digest),
    /// The tree does not end.
    #[error("the tree has more than {MAX_DIRECTORIES} directories")]
    TooManyDirectories,
    /// The token is none that this server gave for this root.
    #[error("the page token does not belong to this tree")]
    PageToken,
    /// The page size is below zero.
    #[error("the page size {0} is negative")]
    PageSize(i32),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TreeError {
    /// Whose fault this is.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::RootMissing(_) => ErrorKind::NotFound,
            Self::Malformed { .. } | Self::PageToken | Self::PageSize(_) => ErrorKind::Invalid,
            Self::DirectoryTooLarge(_) | Self::TooManyDirectories => ErrorKind::Exhausted,
            Self::Store(error) => error.kind(),
        }
    }
}

/// Some of the directories of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Encoded `Directory` messages, as they are stored, in the order of the walk.
    pub directories: Vec<Bytes>,
    /// Where the next page begins; `None` for the last.
    pub next_page_token: Option<String>,
}

/// A walk under way.
pub struct TreeWalk {
    store: Arc<dyn BlobStore>,
    owner: OwnerId,
    root: Digest,
    page_size: usize,
    /// The position of the next page's first directory.
    page_begin: usize,
    /// The position of the first directory in `ready`.
    position: usize,
    queue: VecDeque<Digest>,
    seen: HashSet<Digest>,
    ready: VecDeque<Bytes>,
    is_done: bool,
}

impl TreeWalk {
    /// Begins at `root`, or at the page that `page_token` names. A page has at most `page_size` directories; with 0,
    /// as many as fit.
    ///
    /// # Errors
    /// [`TreeError::PageToken`] or [`TreeError::PageSize`].
    pub fn new(
        store: Arc<dyn BlobStore>,
        grant: &Authorized<CasRead>,
        root: Digest,
        page_size: i32,
        page_token: &str,
    ) -> Result<Self, TreeError> {
        let page_begin = match page_token {
            "" => 0,
            token => page_token::read(root, token).filter(|at| *at < MAX_DIRECTORIES).ok_or(TreeError::PageToken)?,
        };
        let page_size = match usize::try_from(page_size) {
            Ok(0) => usize::MAX,
            Ok(page_size) => page_size,
            Err(_) => return Err(TreeError::PageSize(page_size)),
        };
        Ok(Self {
            store,
            owner: owner(grant),
            root,
            page_size,
            page_begin,
            position: 0,
            queue: VecDeque::from([root]),
            seen: HashSet::from([root]),
            ready: VecDeque::new(),
            is_done: false,
        })
    }

    /// The next page; `None` after the last.
    ///
    /// # Errors
    /// [`TreeError`]; the walk cannot go on then.
    pub async fn next_page(&mut self) -> Result<Option<Page>, TreeError> {
        if self.is_done {
            return Ok(None);
        }
        self.skip_to_page().await?;
        let mut directories = Vec::new();
        let mut page_bytes = 0;
        while let Some(directory) = self.peek().await? {
            let bytes = directory.len() + FIELD_BYTES;
            let is_full = directories.len() >= self.page_size || page_bytes + bytes > MAX_PAGE_BYTES;
            if is_full && !directories.is_empty() {
                break;
            }
            page_bytes += bytes;
            directories.extend(self.ready.pop_front());
            self.position += 1;
        }
        self.page_begin = self.position;
        self.is_done = self.ready.is_empty();
        let next_page_token = (!self.is_done).then(|| page_token::write(self.root, self.position));
        Ok(Some(Page { directories, next_page_token }))
    }

    async fn skip_to_page(&mut self) -> Result<(), TreeError> {
        while self.position < self.page_begin {
            if self.peek().await?.is_none() {
                return Err(TreeError::PageToken);
            }
            let skipped = self.ready.len().min(self.page_begin - self.position);
            self.ready.drain(..skipped);
            self.position += skipped;
        }
        Ok(())
    }

    /// The next directory, read if need be; `None` at the end of the walk.
    async fn peek(&mut self) -> Result<Option<&Bytes>, TreeError> {
        while self.ready.is_empty() && !self.queue.is_empty() {
            self.read_some().await?;
        }
        Ok(self.ready.front())
    }

    /// Reads the directories at the head of the queue and puts what they name at its end.
    async fn read_some(&mut self) -> Result<(), TreeError> {
        let batch = self.take_batch()?;
        let answers = self.store.read_batch(self.owner, &batch, Accept::Identity).await;
        for (digest, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok((bytes, _)) => self.enter(digest, bytes)?,
                Err(StoreError::NotFound(_)) if digest != self.root => {}
                Err(StoreError::NotFound(_)) => return Err(TreeError::RootMissing(digest)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take_batch(&mut self) -> Result<Vec<Digest>, TreeError> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while let Some(digest) = self.queue.front().copied() {
            if digest.size_bytes() > (MAX_PAGE_BYTES - FIELD_BYTES) as u64 {
                return Err(TreeError::DirectoryTooLarge(digest));
            }
            batch_bytes += digest.size_bytes();
            let is_full = batch.len() == MAX_BATCH_COUNT || batch_bytes > MAX_BATCH_BYTES;
            if is_full && !batch.is_empty() {
                break;
            }
            batch.push(digest);
            self.queue.pop_front();
        }
        Ok(batch)
    }

    fn enter(&mut self, digest: Digest, bytes: Bytes) -> Result<(), TreeError> {
        for entry in entries(&bytes, digest.function()) {
            let entry = entry.map_err(|error| TreeError::Malformed { digest, reason: error.to_string() })?;
            let Entry::Directory(child) = entry else { continue };
            if self.seen.insert(child) {
                self.queue.push_back(child);
            }
            if self.seen.len() > MAX_DIRECTORIES {
                return Err(TreeError::TooManyDirectories);
            }
        }
        self.ready.push_back(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

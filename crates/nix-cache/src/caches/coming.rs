//! An archive that goes on to a client while it comes from an upstream.
//!
//! What always holds: the last piece goes out only after all of it was found to be what its narinfo says; before that a
//! client has no whole archive, and knows how long it would be. A client that is slower than the upstream holds up nobody: it
//! reads the rest from the store.

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use gf_blobstore::{ByteRange, OwnerId, StoreError};
use tokio::sync::mpsc;

use super::NixCaches;
use super::intake::ArchiveFacts;
use super::upstream::Fetch;
use crate::CacheError;
use crate::archives::ArchiveRead;

/// An archive on its way.
pub struct ComingArchive {
    /// Its hash and its size, as its narinfo says.
    pub facts: ArchiveFacts,
    caches: NixCaches,
    owner: OwnerId,
    source: Source,
    /// The piece that came last.
    held: Option<Bytes>,
    /// Bytes that went out.
    sent: u64,
}

enum Source {
    Coming(mpsc::Receiver<Bytes>, Fetch),
    Stored(ArchiveRead),
}

impl ComingArchive {
    pub(super) const fn new(
        caches: NixCaches,
        owner: OwnerId,
        facts: ArchiveFacts,
        pieces: mpsc::Receiver<Bytes>,
        fetch: Fetch,
    ) -> Self {
        Self { facts, caches, owner, source: Source::Coming(pieces, fetch), held: None, sent: 0 }
    }

    /// The pieces, as many bytes as the facts say, or an error after fewer.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, CacheError>> + Send {
        futures::stream::try_unfold(self, Self::next)
    }

    async fn next(mut self) -> Result<Option<(Bytes, Self)>, CacheError> {
        loop {
            match &mut self.source {
                Source::Stored(read) => {
                    let piece = read.try_next().await?;
                    return Ok(piece.map(|piece| (piece, self)));
                }
                Source::Coming(pieces, fetch) => match pieces.recv().await {
                    Some(piece) => {
                        if let Some(before) = self.held.replace(piece) {
                            self.sent += before.len() as u64;
                            return Ok(Some((before, self)));
                        }
                    }
                    None => {
                        let is_here = fetch.end().await?;
                        self.source = Source::Stored(self.read_rest(is_here).await?);
                    }
                },
            }
        }
    }

    /// What did not go out yet, from the store.
    async fn read_rest(&self, is_here: bool) -> Result<ArchiveRead, CacheError> {
        let archive = self.caches.find_archive(self.owner, &self.facts.nar_hash).await?.filter(|_| is_here);
        // It came a moment ago, and was lost since.
        let row = archive.ok_or(CacheError::Store(StoreError::Closed))?;
        let archive = self.caches.shared.archives.open(self.owner, &row.root, row.nar_size).await?;
        Ok(archive.read(ByteRange { offset: self.sent, limit: None })?)
    }
}

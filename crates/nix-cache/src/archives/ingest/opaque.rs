//! An archive that no directory can hold, written down as it is.

use bytes::Bytes;
use gf_blobstore::{Accept, BlobStore, ByteRange, OwnerId, StoreError};
use gf_digest::Digest;
use gf_nix_formats::nar::{NarError, NarEvent, NarLimits, NarName, NarWriter};

use super::spool::{Room, Spool, Spooled};
use super::tree::{OpenDirectory, Tree};
use super::{Halt, IngestError};
use crate::archives::ReadError;
use crate::archives::walk::{Directories, Step, Walk};

/// The archive so far, as bytes.
pub(super) struct Opaque {
    limits: NarLimits,
    writer: NarWriter,
    spool: Spool,
    chunks: Vec<Bytes>,
}

impl Opaque {
    /// Begins an archive that waits in `room`.
    pub(super) fn new(limits: NarLimits, room: &Room) -> Self {
        Self { limits, writer: NarWriter::new(limits), spool: Spool::new(room), chunks: Vec::new() }
    }

    /// Writes the next event. May wait for the disk.
    pub(super) fn write(&mut self, event: &NarEvent) -> Result<(), Halt> {
        self.writer.write(event, &mut self.chunks).map_err(IngestError::from)?;
        let mut chunks = self.chunks.drain(..);
        Ok(chunks.try_for_each(|chunk| self.spool.add(chunk)).map_err(IngestError::Scratch)?)
    }

    /// Writes what was taken apart already: the directories that are open, as far as they go.
    pub(super) async fn replay(&mut self, store: &dyn BlobStore, owner: OwnerId, tree: Tree) -> Result<(), Halt> {
        let (open, name) = tree.into_open();
        for directory in open {
            self.replay_open(store, owner, directory).await?;
        }
        if let Some(name) = name {
            self.write(&entry(&name)?)?;
        }
        Ok(())
    }

    async fn replay_open(&mut self, store: &dyn BlobStore, owner: OwnerId, open: OpenDirectory) -> Result<(), Halt> {
        if let Some(name) = open.name() {
            self.write(&entry(name)?)?;
        }
        self.write(&NarEvent::Directory)?;
        let directory = open.decode().map_err(|error| lost(&error))?;
        let below = Directories::fetch_below(store, owner, &directory, self.limits).await.map_err(unreadable)?;
        let mut walk = Walk::inside(directory, &below);
        while let Some(Step { event, file }) = walk.next().map_err(unreadable)? {
            self.write(&event)?;
            if let Some(digest) = file {
                self.replay_contents(store, owner, digest).await?;
            }
        }
        Ok(())
    }

    async fn replay_contents(&mut self, store: &dyn BlobStore, owner: OwnerId, digest: Digest) -> Result<(), Halt> {
        let read = store.read(owner, digest, ByteRange::ALL, Accept::Identity).await;
        let mut read = read.map_err(IngestError::from)?;
        while let Some(piece) = read.next().await.map_err(IngestError::from)? {
            self.write(&NarEvent::Contents(piece))?;
        }
        Ok(())
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Result<Spooled, Halt> {
        self.writer.finish(&mut self.chunks).map_err(IngestError::from)?;
        for chunk in self.chunks {
            self.spool.add(chunk).map_err(IngestError::Scratch)?;
        }
        Ok(self.spool.finish().map_err(IngestError::Scratch)?)
    }
}

fn entry(name: &str) -> Result<NarEvent, Halt> {
    let name = NarName::new(Bytes::copy_from_slice(name.as_bytes()));
    Ok(NarEvent::Entry(name.map_err(|error: NarError| IngestError::from(error))?))
}

fn unreadable(error: ReadError) -> Halt {
    match error {
        ReadError::Store(error) => IngestError::from(error).into(),
        error => lost(&error),
    }
}

/// What was stored a moment ago cannot be read back.
fn lost(error: &dyn std::error::Error) -> Halt {
    let source = std::io::Error::other(error.to_string());
    IngestError::from(StoreError::Io { doing: "reading an archive back", source }).into()
}

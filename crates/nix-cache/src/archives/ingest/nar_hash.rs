//! The hash of an archive: made where the archive is taken apart, or beside it.
//!
//! One archive alone would otherwise leave all processors but one idle, since its files are hashed as well. As soon as
//! several come, they keep the processors busy themselves.

use std::sync::mpsc::{self, Receiver, SyncSender};

use bytes::Bytes;
use gf_blobstore::StoreError;
use gf_digest::{Digest, DigestFunction, Hasher};
use tokio::runtime::Handle;

use super::{Halt, IngestError};

/// Pieces that wait to be hashed; each has less than half a megabyte.
const PIECES: usize = 8;

/// The hash of what came so far.
pub(super) enum NarHashing {
    /// Made by who takes the archive apart.
    Here(Box<Hasher>),
    /// Made by another thread, which answers when it is told no more.
    Beside(SyncSender<Bytes>, Receiver<Digest>),
}

impl Default for NarHashing {
    fn default() -> Self {
        Self::Here(Box::new(Hasher::new(DigestFunction::Sha256)))
    }
}

impl NarHashing {
    /// Hashes on another thread.
    pub(super) fn beside(runtime: &Handle) -> Self {
        let (sender, pieces) = mpsc::sync_channel::<Bytes>(PIECES);
        let (done, answer) = mpsc::sync_channel(1);
        runtime.spawn_blocking(move || {
            let mut hasher = Hasher::new(DigestFunction::Sha256);
            pieces.iter().for_each(|piece| hasher.update(&piece));
            // Who asked may have gone.
            let _ = done.send(hasher.finish());
        });
        Self::Beside(sender, answer)
    }

    /// Takes the next bytes. May wait for the other thread.
    pub(super) fn update(&mut self, bytes: &Bytes) -> Result<(), Halt> {
        match self {
            Self::Here(hasher) => {
                hasher.update(bytes);
                Ok(())
            }
            Self::Beside(sender, _) => sender.send(bytes.clone()).map_err(|_| stopping()),
        }
    }

    /// The hash of all bytes.
    pub(super) fn finish(self) -> Result<Digest, Halt> {
        match self {
            Self::Here(hasher) => Ok(hasher.finish()),
            Self::Beside(sender, answer) => {
                drop(sender);
                answer.recv().map_err(|_| stopping())
            }
        }
    }
}

/// The other thread does not run.
fn stopping() -> Halt {
    IngestError::from(StoreError::Closed).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_hash_is_the_same_beside() {
        let pieces: Vec<Bytes> = (1..200_u8).map(|length| vec![length; usize::from(length) * 999].into()).collect();
        let expected = Digest::of(DigestFunction::Sha256, &pieces.concat());
        let runtime = Handle::current();
        let hash = move |mut hashing: NarHashing| {
            pieces.iter().try_for_each(|piece| hashing.update(piece)).unwrap();
            hashing.finish().unwrap()
        };
        let hashed =
            tokio::task::spawn_blocking(move || [NarHashing::default(), NarHashing::beside(&runtime)].map(hash));
        assert_eq!(hashed.await.unwrap(), [expected; 2]);
    }
}

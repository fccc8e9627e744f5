//! Hashing of what is uploaded, on another thread while this one receives and writes.
//!
//! One stream alone would otherwise leave all processors but one idle. As soon as several uploads run, they keep the
//! processors busy themselves, and handing bytes over would only cost: then each hashes where it is.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use bytes::Bytes;
use gf_digest::{Digest, DigestFunction, Hasher};
use tokio::task::{JoinHandle, spawn_blocking};

/// So much is handed over at once: it takes ten times as long to hash as to hand over.
const HANDED_OVER_BYTES: usize = 512 << 10;

/// Uploads that hash at this moment.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// The hash of bytes that come one after another.
pub(crate) struct Hashing {
    hasher: Place,
    /// What was taken and is not being hashed yet.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    processors: usize,
    _active: Active,
}

enum Place {
    Here(Box<Hasher>),
    Away(JoinHandle<Box<Hasher>>),
}

impl Hashing {
    pub(crate) fn new(function: DigestFunction) -> Self {
        Self {
            hasher: Place::Here(Box::new(Hasher::new(function))),
            waiting: Vec::new(),
            waiting_bytes: 0,
            processors: available_parallelism().map_or(1, usize::from),
            _active: Active::new(),
        }
    }

    /// Takes the next bytes. May be dropped while it waits: then nothing was taken.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub(crate) async fn take(&mut self, bytes: &Bytes) -> io::Result<()> {
        if ACTIVE.load(Ordering::Relaxed) >= self.processors {
            return self.update(bytes).await;
        }
        if self.waiting_bytes >= HANDED_OVER_BYTES {
            self.come_back().await?;
            self.hand_over();
        }
        self.waiting_bytes += bytes.len();
        self.waiting.push(bytes.clone());
        Ok(())
    }

    /// Hashes bytes where they are, after what was taken before.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub(crate) async fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.come_back().await?;
        if let Place::Here(hasher) = &mut self.hasher {
            self.waiting.drain(..).for_each(|waiting| hasher.update(&waiting));
            self.waiting_bytes = 0;
            hasher.update(bytes);
        }
        Ok(())
    }

    /// The digest of everything taken.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub(crate) async fn finish(mut self) -> io::Result<Digest> {
        self.update(&[]).await?;
        match self.hasher {
            Place::Here(hasher) => Ok(hasher.finish()),
            Place::Away(_) => Err(io::Error::other("a hash did not come back")),
        }
    }

    async fn come_back(&mut self) -> io::Result<()> {
        if let Place::Away(handle) = &mut self.hasher {
            // Waiting for a handle may be given up and begun again.
            let hasher = handle.await.map_err(io::Error::other)?;
            self.hasher = Place::Here(hasher);
        }
        Ok(())
    }

    fn hand_over(&mut self) {
        if let Place::Here(hasher) = &mut self.hasher {
            let mut hasher = hasher.clone();
            let waiting = std::mem::take(&mut self.waiting);
            self.waiting_bytes = 0;
            self.hasher = Place::Away(spawn_blocking(move || {
                waiting.iter().for_each(|bytes| hasher.update(bytes));
                hasher
            }));
        }
    }
}

/// One of those that hash.
struct Active;

impl Active {
    fn new() -> Self {
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of odd lengths, long enough to be handed over many times.
    fn pieces() -> Vec<Bytes> {
        let lengths = (0..60).map(|number| (number * 7919) % 200_000 + 1);
        lengths.map(|length: usize| Bytes::from(vec![u8::try_from(length % 251).unwrap(); length])).collect()
    }

    async fn hash(pieces: &[Bytes], function: DigestFunction) -> Digest {
        let mut hashing = Hashing::new(function);
        for piece in pieces {
            hashing.take(piece).await.unwrap();
        }
        hashing.finish().await.unwrap()
    }

    #[tokio::test]
    async fn the_digest_is_the_same_wherever_it_is_made() {
        let pieces = pieces();
        let whole: Vec<u8> = pieces.concat();
        for function in DigestFunction::ALL {
            let expected = Digest::of(function, &whole);
            assert_eq!(hash(&pieces, function).await, expected);
            let others: Vec<Active> = (0..1024).map(|_| Active::new()).collect();
            assert_eq!(hash(&pieces, function).await, expected);
            drop(others);
        }
    }
}

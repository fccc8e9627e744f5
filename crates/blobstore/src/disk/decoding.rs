//! Decoding of what is uploaded compressed: on threads for waiting, since a small message can become a huge one and costs
//! as much; in steps, so that many uploads share the processors, and one that is given up ends soon. What the decoders keep in
//! memory between their steps is bounded over all uploads, and no owner takes more than its share of that.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, Weak};
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::{Buf, Bytes};
use gf_digest::{Digest, DigestFunction, Hasher};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::core::Core;
use super::lane::Work;
use super::large::LargeWriter;
use super::segments::lock;
use super::zstandard::{DecodeError, StreamDecoder, window_bytes};
use crate::OwnerId;

/// So much comes out of a step, about.
const STEP_BYTES: u64 = 8 << 20;

/// The windows of all decoders together.
const WINDOWS_BYTES: usize = 512 << 20;

/// The part of them that one owner may have: one in so many.
const OWNER_SHARE: usize = 2;

/// How long an upload waits for the windows of others.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(10);

/// Windows are counted in these.
const UNIT_BYTES: usize = 1 << 10;

/// What those who decode share.
pub(crate) struct Decoders {
    /// As many steps at once as there are processors.
    steps: Arc<Semaphore>,
    windows: Arc<Semaphore>,
    /// Of who has windows now, or waits for some.
    shares: Mutex<HashMap<OwnerId, Weak<Semaphore>>>,
}

/// Room for a window, among those of all and those of its owner.
struct Window {
    _of_all: OwnedSemaphorePermit,
    _of_owner: OwnedSemaphorePermit,
}

impl Default for Decoders {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        let windows = Arc::new(Semaphore::new(WINDOWS_BYTES / UNIT_BYTES));
        Self { steps: Arc::new(Semaphore::new(processors)), windows, shares: Mutex::default() }
    }
}

impl Decoders {
    async fn window(&self, owner: OwnerId, size: u64) -> io::Result<Window> {
        let units = u32::try_from(window_bytes(size).div_ceil(UNIT_BYTES as u64)).map_err(io::Error::other)?;
        let share = self.share_of(owner);
        let both = async {
            // In this order: who waits for its own windows must not keep others from theirs.
            let of_owner = share.acquire_many_owned(units).await?;
            let of_all = Arc::clone(&self.windows).acquire_many_owned(units).await?;
            Ok::<_, AcquireError>(Window { _of_all: of_all, _of_owner: of_owner })
        };
        let window = timeout(WINDOW_TIMEOUT, both).await;
        let window = window.map_err(|_| io::Error::other("too many compressed uploads at once; try again"))?;
        window.map_err(io::Error::other)
    }

    fn share_of(&self, owner: OwnerId) -> Arc<Semaphore> {
        let mut shares = lock(&self.shares);
        if let Some(share) = shares.get(&owner).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(WINDOWS_BYTES / UNIT_BYTES / OWNER_SHARE));
        shares.insert(owner, Arc::downgrade(&share));
        share
    }
}

/// An upload that is being decoded into a file.
pub(crate) struct Decoding {
    core: Arc<Core>,
    /// Away during a step, and for good if that was given up.
    decoder: Option<Box<StreamDecoder<Hashed>>>,
    _window: Window,
}

/// A file, and the hash of what was written to it.
pub(crate) struct Hashed {
    pub hasher: Hasher,
    pub writer: LargeWriter,
    /// Goes last: the folder is ours until the file of an upload that was given up has left it.
    _core: Arc<Core>,
}

impl Hashed {
    pub(crate) fn new(core: &Arc<Core>, function: DigestFunction, writer: LargeWriter) -> Self {
        Self { hasher: Hasher::new(function), writer, _core: Arc::clone(core) }
    }
}

impl Work for Hashed {
    fn take(&mut self, bytes: &Bytes) -> io::Result<()> {
        self.hasher.update(bytes);
        self.writer.write_shared(bytes)
    }

    fn rest(&mut self) {
        self.writer.own();
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.writer.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Decoding {
    /// Waits for room for its window.
    pub(crate) async fn new(
        core: &Arc<Core>,
        owner: OwnerId,
        digest: &Digest,
        writer: LargeWriter,
    ) -> io::Result<Self> {
        let window = core.decoders.window(owner, digest.size_bytes()).await?;
        let sink = Hashed::new(core, digest.function(), writer);
        let decoder = StreamDecoder::new(sink, digest.size_bytes())?;
        Ok(Self { core: Arc::clone(core), decoder: Some(Box::new(decoder)), _window: window })
    }

    /// Takes the next compressed bytes. Who gives up waiting for it has given up the upload.
    pub(crate) async fn take(&mut self, bytes: &Bytes) -> Result<(), DecodeError> {
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let taken = self.step(rest.clone()).await?;
            rest.advance(taken);
        }
        Ok(())
    }

    async fn step(&mut self, bytes: Bytes) -> Result<usize, DecodeError> {
        let permit = Arc::clone(&self.core.decoders.steps).acquire_owned().await.map_err(io::Error::other)?;
        let mut decoder = self.decoder.take().ok_or_else(given_up)?;
        let step = spawn_blocking(move || {
            let _permit = permit;
            let taken = decoder.write(&bytes, STEP_BYTES);
            (decoder, taken)
        });
        let (decoder, taken) = step.await.map_err(|error| DecodeError::Sink(io::Error::other(error)))?;
        self.decoder = Some(decoder);
        taken
    }

    /// The file and its hash. Fails when the last frame has not come to its end.
    pub(crate) fn finish(self) -> Result<Hashed, DecodeError> {
        self.decoder.ok_or_else(given_up)?.finish()
    }
}

fn given_up() -> DecodeError {
    DecodeError::Sink(io::Error::other("the upload was given up while it was being decoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window that is free now.
    async fn window(decoders: &Decoders, owner: u32) -> Option<Window> {
        timeout(Duration::ZERO, decoders.window(OwnerId(owner), 16 << 30)).await.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn nobody_has_all_windows() {
        let decoders = Decoders::default();
        let share = (WINDOWS_BYTES / OWNER_SHARE) as u64 / window_bytes(u64::MAX);
        let mut windows = Vec::new();
        for _ in 0..share {
            windows.push(window(&decoders, 1).await.unwrap());
        }
        assert!(window(&decoders, 1).await.is_none(), "it has more than its share");
        for _ in 0..share {
            windows.push(window(&decoders, 2).await.unwrap());
        }
        assert!(window(&decoders, 3).await.is_none(), "there are more than all");
        windows.pop();
        assert!(window(&decoders, 1).await.is_none() && window(&decoders, 3).await.is_some());
        windows.clear();
        assert!(window(&decoders, 4).await.is_some());
        assert_eq!(lock(&decoders.shares).len(), 1, "who has none is forgotten");
    }
}

//! Decoding of what is uploaded compressed: on threads for waiting, since a small message can become a huge one and costs
//! as much; in steps, so that many uploads share the processors, and one that is given up ends soon. What the decoders keep in
//! memory between their steps is bounded over all uploads.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use bytes::{Buf, Bytes};
use gf_digest::{Digest, DigestFunction, Hasher};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::core::Core;
use super::lane::Work;
use super::large::LargeWriter;
use super::zstandard::{DecodeError, StreamDecoder, window_bytes};

/// So much comes out of a step, about.
const STEP_BYTES: u64 = 8 << 20;

/// The windows of all decoders together.
const WINDOWS_BYTES: usize = 512 << 20;

/// How long an upload waits for the windows of others.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(10);

/// Windows are counted in these.
const UNIT_BYTES: u64 = 1 << 10;

/// What those who decode share.
pub(crate) struct Decoders {
    /// As many steps at once as there are processors.
    steps: Arc<Semaphore>,
    windows: Arc<Semaphore>,
}

impl Default for Decoders {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        let windows = WINDOWS_BYTES / usize::try_from(UNIT_BYTES).unwrap_or(usize::MAX);
        Self { steps: Arc::new(Semaphore::new(processors)), windows: Arc::new(Semaphore::new(windows)) }
    }
}

impl Decoders {
    async fn window(&self, size: u64) -> io::Result<OwnedSemaphorePermit> {
        let units = u32::try_from(window_bytes(size).div_ceil(UNIT_BYTES)).map_err(io::Error::other)?;
        let window = timeout(WINDOW_TIMEOUT, Arc::clone(&self.windows).acquire_many_owned(units)).await;
        let window = window.map_err(|_| io::Error::other("too many compressed uploads at once; try again"))?;
        window.map_err(io::Error::other)
    }
}

/// An upload that is being decoded into a file.
pub(crate) struct Decoding {
    core: Arc<Core>,
    /// Away during a step, and for good if that was given up.
    decoder: Option<Box<StreamDecoder<Hashed>>>,
    _window: OwnedSemaphorePermit,
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
    pub(crate) async fn new(core: &Arc<Core>, digest: &Digest, writer: LargeWriter) -> io::Result<Self> {
        let window = core.decoders.window(digest.size_bytes()).await?;
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

//! Decoding of what is uploaded compressed: on threads for waiting, since a small message can become a huge one and costs
//! as much; in steps, so that many uploads share the processors, and one that is given up ends soon.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::{Buf, Bytes};
use gf_digest::{Digest, Hasher};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::core::Core;
use super::large::LargeWriter;
use super::zstandard::{DecodeError, StreamDecoder};

/// So much comes out of a step, about.
const STEP_BYTES: u64 = 8 << 20;

/// Those who may decode at once: as many as there are processors.
pub(crate) fn decoders() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(available_parallelism().map_or(1, usize::from)))
}

/// An upload that is being decoded into a file.
pub(crate) struct Decoding {
    core: Arc<Core>,
    /// Away during a step, and for good if that was given up.
    decoder: Option<Box<StreamDecoder<Hashed>>>,
}

/// A file, and the hash of what was written to it.
pub(crate) struct Hashed {
    pub hasher: Hasher,
    pub writer: LargeWriter,
    /// Goes last: the folder is ours until the file of an upload that was given up has left it.
    _core: Arc<Core>,
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
    pub(crate) fn new(core: &Arc<Core>, digest: &Digest, writer: LargeWriter) -> io::Result<Self> {
        let sink = Hashed { hasher: Hasher::new(digest.function()), writer, _core: Arc::clone(core) };
        let decoder = StreamDecoder::new(sink, digest.size_bytes())?;
        Ok(Self { core: Arc::clone(core), decoder: Some(Box::new(decoder)) })
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
        let permit = Arc::clone(&self.core.decoders).acquire_owned().await.map_err(io::Error::other)?;
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

    /// The file and its hash.
    pub(crate) fn finish(self) -> Result<Hashed, DecodeError> {
        Ok(self.decoder.ok_or_else(given_up)?.into_sink())
    }
}

fn given_up() -> DecodeError {
    DecodeError::Sink(io::Error::other("the upload was given up while it was being decoded"))
}

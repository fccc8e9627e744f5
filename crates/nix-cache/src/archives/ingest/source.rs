//! The bytes of an upload, for a thread that may wait for them.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use gf_digest::{DigestFunction, Hasher};
use tokio::sync::mpsc;

use super::{Halt, IngestError};

/// What the task that reads a body hands over.
pub(super) enum Portion {
    /// The next bytes.
    Bytes(Vec<Bytes>),
    /// The body is over. Without this, it was given up.
    End,
}

/// The receiving end: counts and, where asked to, hashes what is taken.
pub(super) struct Source {
    portions: mpsc::Receiver<Portion>,
    pieces: VecDeque<Bytes>,
    is_over: bool,
    /// What was received, some of it perhaps not taken yet.
    received_bytes: u64,
    limit_bytes: u64,
    hasher: Option<Hasher>,
}

impl Source {
    /// At most `limit_bytes` may come.
    pub(super) const fn new(portions: mpsc::Receiver<Portion>, limit_bytes: u64) -> Self {
        Self { portions, pieces: VecDeque::new(), is_over: false, received_bytes: 0, limit_bytes, hasher: None }
    }

    /// Hashes from now on.
    pub(super) fn hashed(mut self) -> Self {
        self.hasher = Some(Hasher::new(DigestFunction::Sha256));
        self
    }

    /// The next piece, whole; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Halt> {
        self.receive()?;
        Ok(self.pieces.pop_front())
    }

    /// How many bytes came, and their hash if they were hashed. To be asked at the end.
    pub(super) fn finish(self) -> (u64, Option<[u8; 32]>) {
        (self.received_bytes, self.hasher.map(|hasher| *hasher.finish().hash()))
    }

    /// Waits until there is a piece, or the end.
    fn receive(&mut self) -> Result<(), Halt> {
        while self.pieces.is_empty() && !self.is_over {
            match self.portions.blocking_recv() {
                Some(Portion::Bytes(pieces)) => self.take(pieces)?,
                Some(Portion::End) => self.is_over = true,
                None => return Err(Halt::GivenUp),
            }
        }
        Ok(())
    }

    fn take(&mut self, pieces: Vec<Bytes>) -> Result<(), Halt> {
        self.received_bytes += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if self.received_bytes > self.limit_bytes {
            return Err(IngestError::TooLarge { limit_bytes: self.limit_bytes }.into());
        }
        if let Some(hasher) = &mut self.hasher {
            pieces.iter().for_each(|piece| hasher.update(piece));
        }
        self.pieces.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
        Ok(())
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.receive().map_err(io::Error::other)?;
        Ok(self.pieces.front().map_or(&[], |piece| piece))
    }

    fn consume(&mut self, bytes: usize) {
        if let Some(piece) = self.pieces.front_mut() {
            piece.advance(bytes.min(piece.len()));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let bytes = available.read(buffer)?;
        self.consume(bytes);
        Ok(bytes)
    }
}

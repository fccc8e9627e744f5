use bytes::{BufMut as _, Bytes, BytesMut};

use super::grammar::{Grammar, NarLimits};
use super::wire::{
    CLOSE, CONTENTS, DIRECTORY, ENTRY, ENTRY_NODE, EXECUTABLE, MAGIC, NAME, NODE, REGULAR, SYMLINK, TARGET, padding,
};
use super::{NarError, NarEvent};

/// Writes an archive, event by event, as chunks.
///
/// Small things are gathered into chunks of about 64 KiB; contents of 4 KiB and more go out as they came, uncopied.
#[derive(Debug)]
pub struct NarWriter {
    framing: Framing,
    size_bytes: u64,
}

/// Contents below this are copied: a chunk for each small file would cost more than the copy.
const COPY_BELOW: usize = 4 << 10;

/// A chunk goes out when it has reached this.
const CHUNK_BYTES: usize = 64 << 10;

impl NarWriter {
    /// Begins an archive.
    #[must_use]
    pub fn new(limits: NarLimits) -> Self {
        Self { framing: Framing::new(limits), size_bytes: MAGIC.len() as u64 }
    }

    /// Writes one event. Chunks that are ready are appended to `chunks`.
    ///
    /// # Errors
    /// [`NarError`] when the event has no place here, or leads beyond the limits; nothing more may be written then.
    pub fn write(&mut self, event: &NarEvent, chunks: &mut Vec<Bytes>) -> Result<(), NarError> {
        let before = self.framing.buffer.len();
        self.framing.write(event)?;
        self.size_bytes += (self.framing.buffer.len() - before) as u64;
        if let NarEvent::Contents(bytes) = event {
            self.size_bytes += bytes.len() as u64;
            if bytes.len() < COPY_BELOW {
                self.framing.buffer.extend_from_slice(bytes);
            } else {
                self.flush(chunks);
                chunks.push(bytes.clone());
            }
        }
        if self.size_bytes > self.framing.grammar.limits().size_bytes {
            return Err(NarError::TooLarge(self.framing.grammar.limits().size_bytes));
        }
        if self.framing.buffer.len() >= CHUNK_BYTES {
            self.flush(chunks);
        }
        Ok(())
    }

    /// Ends the archive: appends what is left to `chunks` and answers the size of the archive in bytes.
    ///
    /// # Errors
    /// [`NarError::Truncated`] when events are missing.
    pub fn finish(mut self, chunks: &mut Vec<Bytes>) -> Result<u64, NarError> {
        self.flush(chunks);
        if self.framing.grammar.is_complete() { Ok(self.size_bytes) } else { Err(NarError::Truncated(self.size_bytes)) }
    }

    fn flush(&mut self, chunks: &mut Vec<Bytes>) {
        if !self.framing.buffer.is_empty() {
            chunks.push(self.framing.buffer.split().freeze());
        }
    }
}

/// All of an archive but the contents of its files.
#[derive(Debug)]
pub(super) struct Framing {
    pub(super) grammar: Grammar,
    pub(super) buffer: BytesMut,
    /// The size of the file that is open, whose padding is still to come.
    file_size_bytes: u64,
}

impl Framing {
    pub(super) fn new(limits: NarLimits) -> Self {
        Self { grammar: Grammar::new(limits), buffer: BytesMut::from(MAGIC), file_size_bytes: 0 }
    }

    /// Appends what stands around the contents.
    pub(super) fn write(&mut self, event: &NarEvent) -> Result<(), NarError> {
        self.grammar.accept(event)?;
        match event {
            NarEvent::Directory => self.put(&[NODE, DIRECTORY]),
            NarEvent::Entry(name) => {
                self.put(&[ENTRY, NAME]);
                self.put_string(name.as_bytes());
                self.put(&[ENTRY_NODE]);
            }
            NarEvent::File { executable, size_bytes } => {
                let executable: &[u8] = if *executable { EXECUTABLE } else { &[] };
                self.put(&[NODE, REGULAR, executable, CONTENTS]);
                self.buffer.put_u64_le(*size_bytes);
                self.file_size_bytes = *size_bytes;
            }
            NarEvent::Contents(_) => {}
            NarEvent::FileEnd => {
                self.buffer.put_bytes(0, padding(self.file_size_bytes));
                self.close();
            }
            NarEvent::Symlink(target) => {
                self.put(&[NODE, SYMLINK, TARGET]);
                self.put_string(target.as_bytes());
                self.close();
            }
            NarEvent::DirectoryEnd => self.close(),
        }
        Ok(())
    }

    /// Closes a node, and the entry that it belongs to.
    fn close(&mut self) {
        self.put(&[CLOSE]);
        if self.grammar.is_in_directory() {
            self.put(&[CLOSE]);
        }
    }

    fn put(&mut self, words: &[&[u8]]) {
        for word in words {
            self.buffer.extend_from_slice(word);
        }
    }

    fn put_string(&mut self, string: &[u8]) {
        self.buffer.put_u64_le(string.len() as u64);
        self.buffer.extend_from_slice(string);
        self.buffer.put_bytes(0, padding(string.len() as u64));
    }
}

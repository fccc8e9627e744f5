use super::NarEvent;
use super::wire::{
    CLOSE, CONTENTS, DIRECTORY, ENTRY, ENTRY_NODE, EXECUTABLE, MAGIC, NAME, NODE, REGULAR, SYMLINK, TARGET, padding,
};

/// Adds up the size of an archive without writing it: an answer needs its length before its first byte.
///
/// It takes the same events as [`NarWriter`](super::NarWriter); contents may be left out, since files announce their
/// size. It does not check that the events make an archive.
#[derive(Clone, Debug)]
pub struct NarMeter {
    size_bytes: u64,
}

/// A length or a file's size.
const NUMBER: usize = 8;

impl NarMeter {
    /// Begins an archive.
    #[must_use]
    pub const fn new() -> Self {
        Self { size_bytes: MAGIC.len() as u64 }
    }

    /// Takes the next event.
    pub fn add(&mut self, event: &NarEvent) {
        let framing = match event {
            NarEvent::Directory => NODE.len() + DIRECTORY.len(),
            // The end of the entry is counted here, so that the end of a node need not know where it is.
            NarEvent::Entry(name) => {
                ENTRY.len() + NAME.len() + string(name.as_bytes()) + ENTRY_NODE.len() + CLOSE.len()
            }
            NarEvent::DirectoryEnd => CLOSE.len(),
            NarEvent::File { executable, size_bytes } => {
                self.size_bytes = self.size_bytes.saturating_add(*size_bytes);
                let executable = if *executable { EXECUTABLE.len() } else { 0 };
                NODE.len() + REGULAR.len() + executable + CONTENTS.len() + NUMBER + padding(*size_bytes) + CLOSE.len()
            }
            NarEvent::Contents(_) | NarEvent::FileEnd => 0,
            NarEvent::Symlink(target) => {
                NODE.len() + SYMLINK.len() + TARGET.len() + string(target.as_bytes()) + CLOSE.len()
            }
        };
        self.size_bytes = self.size_bytes.saturating_add(framing as u64);
    }

    /// The size of the archive in bytes, once all events were taken.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Default for NarMeter {
    fn default() -> Self {
        Self::new()
    }
}

fn string(string: &[u8]) -> usize {
    NUMBER + string.len() + padding(string.len() as u64)
}

//! Bytes that wait until their digest is known: a few in memory, more in a file without a name.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::task::spawn_blocking;

/// What waits in memory at most.
const MEMORY_BYTES: usize = 8 << 20;

/// What is read back at once.
const PIECE_BYTES: usize = 512 << 10;

/// Bytes being gathered.
pub(super) struct Spool {
    folder: PathBuf,
    pieces: Vec<Bytes>,
    memory_bytes: usize,
    file: Option<File>,
}

impl Spool {
    /// What is too much for memory goes into a file in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), pieces: Vec::new(), memory_bytes: 0, file: None }
    }

    /// Takes the next bytes. May wait for the disk.
    pub(super) fn add(&mut self, bytes: Bytes) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            return file.write_all(&bytes);
        }
        self.memory_bytes += bytes.len();
        self.pieces.push(bytes);
        if self.memory_bytes > MEMORY_BYTES {
            let mut file = tempfile::tempfile_in(&self.folder)?;
            self.pieces.drain(..).try_for_each(|piece| file.write_all(&piece))?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Everything that was added, from the beginning.
    pub(super) fn finish(self) -> io::Result<Spooled> {
        match self.file {
            None => Ok(Spooled::Memory(self.pieces.into_iter())),
            Some(mut file) => {
                file.rewind()?;
                Ok(Spooled::File(Some(file)))
            }
        }
    }
}

/// Bytes that were gathered.
pub(super) enum Spooled {
    /// All of them.
    Memory(std::vec::IntoIter<Bytes>),
    /// The file, but while it is read or after it failed.
    File(Option<File>),
}

impl Spooled {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let slot = match self {
            Self::Memory(pieces) => return Ok(pieces.next()),
            Self::File(slot) => slot,
        };
        let Some(file) = slot.take() else { return Err(io::Error::other("the file failed before")) };
        let read = move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            (&file).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            Ok::<_, io::Error>((file, piece))
        };
        let (file, piece) = spawn_blocking(read).await.map_err(io::Error::other)??;
        *slot = Some(file);
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}

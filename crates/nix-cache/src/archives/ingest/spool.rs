//! Bytes that wait until their digest is known: in memory while there is some for all uploads together, then in a file
//! without a name. What all such files may take is bounded too: they lie outside the store, whose capacity counts none of
//! them.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

/// Memory is claimed in steps of this size.
const CLAIM_BYTES: usize = 1 << 20;

/// What one spool may claim: a part of the whole, so that one large upload does not send all others to the disk.
const SHARE: usize = 4;

/// The memory of all spools.
#[derive(Clone)]
pub(in crate::archives) struct SpoolMemory {
    claims: Arc<Semaphore>,
    claims_of_one: usize,
}

impl SpoolMemory {
    /// So many bytes, rounded down to mebibytes.
    pub(in crate::archives) fn new(bytes: usize) -> Self {
        let claims = (bytes / CLAIM_BYTES).min(Semaphore::MAX_PERMITS);
        Self { claims: Arc::new(Semaphore::new(claims)), claims_of_one: claims / SHARE }
    }

    /// The same for the files of all spools, of which one may have all.
    pub(in crate::archives) fn of_files(bytes: u64) -> Self {
        let claims = usize::try_from(bytes / CLAIM_BYTES as u64).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { claims: Arc::new(Semaphore::new(claims)), claims_of_one: claims }
    }
}

/// What a spool has claimed.
#[derive(Default)]
pub(super) struct Claim {
    permits: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Claim {
    /// Claims enough for `bytes`; whether there was enough.
    pub(super) fn grow(&mut self, memory: &SpoolMemory, bytes: usize) -> bool {
        while self.bytes < bytes {
            let is_too_much = self.bytes / CLAIM_BYTES >= memory.claims_of_one;
            let Ok(permit) = Arc::clone(&memory.claims).try_acquire_owned() else { return false };
            if is_too_much {
                return false;
            }
            self.bytes += CLAIM_BYTES;
            match &mut self.permits {
                Some(permits) => permits.merge(permit),
                none => *none = Some(permit),
            }
        }
        true
    }
}

/// What is read back at once.
const PIECE_BYTES: usize = 512 << 10;

/// Bytes being gathered.
pub(super) struct Spool {
    room: Box<Room>,
    pieces: Vec<Bytes>,
    memory_bytes: usize,
    claim: Claim,
    file: Option<File>,
    file_bytes: usize,
    file_claim: Claim,
}

/// Where spools have room.
#[derive(Clone)]
pub(super) struct Room {
    pub(super) memory: SpoolMemory,
    /// What their files may take.
    pub(super) files: SpoolMemory,
    /// A folder for what is too much for memory.
    pub(super) folder: PathBuf,
}

impl Spool {
    /// Nothing yet.
    pub(super) fn new(room: &Room) -> Self {
        Self {
            room: Box::new(room.clone()),
            pieces: Vec::new(),
            memory_bytes: 0,
            claim: Claim::default(),
            file: None,
            file_bytes: 0,
            file_claim: Claim::default(),
        }
    }

    /// Takes the next bytes. May wait for the disk.
    pub(super) fn add(&mut self, bytes: Bytes) -> io::Result<()> {
        if self.file.is_some() {
            return self.write(&bytes);
        }
        self.memory_bytes += bytes.len();
        self.pieces.push(bytes);
        if !self.claim.grow(&self.room.memory, self.memory_bytes) {
            self.file = Some(tempfile::tempfile_in(&self.room.folder)?);
            let pieces = std::mem::take(&mut self.pieces);
            pieces.iter().try_for_each(|piece| self.write(piece))?;
            self.claim = Claim::default();
        }
        Ok(())
    }

    /// Appends to the file, as far as all files together may grow.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file_bytes += bytes.len();
        if !self.file_claim.grow(&self.room.files, self.file_bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))
    }

    /// Everything that was added, from the beginning.
    pub(super) fn finish(self) -> io::Result<Spooled> {
        match self.file {
            None => Ok(Spooled::Memory(self.pieces.into_iter(), self.claim)),
            Some(mut file) => {
                file.rewind()?;
                Ok(Spooled::File(Some(file), self.file_claim))
            }
        }
    }
}

/// Bytes that were gathered.
pub(super) enum Spooled {
    /// All of them, and the right to keep them.
    Memory(std::vec::IntoIter<Bytes>, #[expect(dead_code, reason = "it is held")] Claim),
    /// The file, but while it is read or after it failed.
    File(Option<File>, #[expect(dead_code, reason = "it is held")] Claim),
}

impl Spooled {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let slot = match self {
            Self::Memory(pieces, _) => return Ok(pieces.next()),
            Self::File(slot, _) => slot,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn room(memory_bytes: usize) -> (Room, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (
            Room {
                memory: SpoolMemory::new(memory_bytes),
                files: SpoolMemory::of_files(4 << 20),
                folder: folder.path().to_owned(),
            },
            folder,
        )
    }

    fn filled(room: &Room, pieces: usize) -> Spooled {
        let mut spool = Spool::new(room);
        for number in 0..pieces {
            spool.add(vec![u8::try_from(number).unwrap(); 700_000].into()).unwrap();
        }
        spool.finish().unwrap()
    }

    #[tokio::test]
    async fn what_memory_has_no_room_for_waits_in_a_file() {
        let (room, _folder) = room(8 << 20);
        // One may have a fourth of it, and four of them all.
        let held: Vec<Spooled> = (0..4).map(|_| filled(&room, 2)).collect();
        assert!(held.iter().all(|spooled| matches!(spooled, Spooled::Memory(..))));
        assert!(matches!(filled(&room, 1), Spooled::File(..)));
        drop(held);
        assert!(matches!(filled(&room, 1), Spooled::Memory(..)));
        let mut large = filled(&room, 4);
        assert!(matches!(large, Spooled::File(..)));
        assert!(matches!(filled(&room, 2), Spooled::Memory(..)));
        let mut bytes = Vec::new();
        while let Some(piece) = large.next().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        let expected: Vec<u8> = (0..4).flat_map(|number| vec![number; 700_000]).collect();
        assert!(bytes == expected);
    }

    #[test]
    fn all_files_together_are_bounded() {
        let (room, _folder) = room(0);
        let piece = || Bytes::from(vec![1; 1 << 20]);
        let mut first = Spool::new(&room);
        (0..3).for_each(|_| first.add(piece()).unwrap());
        let mut second = Spool::new(&room);
        second.add(piece()).unwrap();
        assert_eq!(second.add(piece()).unwrap_err().kind(), io::ErrorKind::StorageFull);
        drop(first.finish().unwrap());
        second.add(piece()).unwrap();
    }
}

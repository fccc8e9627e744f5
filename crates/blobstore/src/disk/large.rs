//! Large blobs: a file each.
//!
//! A file is the blob in blocks of 256 KiB of uncompressed bytes, each held as it is or as a zstd frame of its own,
//! then a table with one entry of 16 bytes a block: bytes at rest (4), 1 if zstd (4), check of the bytes at rest (8),
//! then a record header. The check in the header is that of the table. So any part of a blob can be read and verified
//! alone, and the frames of a compressed blob one after another are a zstd stream of the whole.
//!
//! The header comes last and each block is one write, so that plain blocks lie on the pages and the extents of the
//! file system: writing them takes it a third of the time that it takes for unaligned pieces of a file that grows.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use gf_digest::Digest;

use super::appending::check_of;
use super::cached_read::read_exactly;
use super::file_layer::{FileLayer, StoreFile};
use super::hot_blocks::HotBlocks;
use super::index::IndexKey;
use super::record::{HEADER_BYTES, Position, RecordHeader, RecordKey, RecordKind, array, payload_check};
use super::segments::{ReadFault, lock};
use super::zstandard;
use crate::gathering::Gathering;
use crate::{Encoding, OwnerId};

/// Uncompressed bytes a block.
pub(crate) const BLOCK_BYTES: u64 = BLOCK as u64;
const BLOCK: usize = 256 << 10;
const TABLE_ENTRY_BYTES: usize = 16;

/// A file of unknown size grows in steps of this size. More than a block.
pub(crate) const ALLOCATED_AT_ONCE_BYTES: u64 = 16 << 20;

/// What hot blocks may take of memory.
const HOT_BYTES: usize = 96 << 20;

/// Where the files are.
pub(crate) struct LargeFiles {
    layer: Arc<dyn FileLayer>,
    directory: PathBuf,
    incoming: PathBuf,
    quarantine: PathBuf,
    key: RecordKey,
    next: AtomicU64,
    /// One at a time leaves its folder: of two removals of one file only one removes it.
    removing: Mutex<()>,
    next_incoming: AtomicU64,
    hot: Arc<HotBlocks>,
}

/// The large files of a store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Census {
    /// The epoch of the newest file; 0 when there is none.
    pub last_epoch: u32,
    pub bytes: u64,
}

impl LargeFiles {
    /// Takes over the files in `directory`. New ones are numbered after every file of an earlier epoch. What an earlier
    /// process left in `incoming` is removed.
    pub(crate) fn open(
        layer: Arc<dyn FileLayer>,
        directory: &Path,
        incoming: &Path,
        quarantine: &Path,
        key: RecordKey,
        epoch: u32,
    ) -> io::Result<Self> {
        layer.create_directory(incoming)?;
        for (name, _) in layer.list(incoming)? {
            layer.remove(&incoming.join(name))?;
        }
        for shard in 0..=u8::MAX {
            layer.create_directory(&directory.join(format!("{shard:02x}")))?;
        }
        // A file that is durable in a folder that is not would be lost with it.
        layer.sync_directory(directory)?;
        let (directory, incoming) = (directory.to_owned(), incoming.to_owned());
        let next = AtomicU64::new(u64::from(epoch) << 32);
        Ok(Self {
            layer,
            directory,
            incoming,
            quarantine: quarantine.to_owned(),
            key,
            next,
            removing: Mutex::default(),
            next_incoming: AtomicU64::new(0),
            hot: Arc::new(HotBlocks::new(HOT_BYTES)),
        })
    }

    /// What the names of the files tell without a checkpoint.
    pub(crate) fn census(layer: &dyn FileLayer, directory: &Path) -> io::Result<Census> {
        let mut census = Census::default();
        for shard in 0..=u8::MAX {
            let files = match layer.list(&directory.join(format!("{shard:02x}"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                files => files?,
            };
            for (number, bytes) in numbered(files) {
                census.last_epoch = census.last_epoch.max(u32::try_from(number >> 32).unwrap_or(0));
                census.bytes += bytes;
            }
        }
        Ok(census)
    }

    /// The number that the next file gets.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Takes a number for a file that is finished.
    pub(crate) fn take_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins a file for a blob of `size_bytes`.
    pub(crate) fn create(&self, encoding: Encoding, size_bytes: u64) -> io::Result<LargeWriter> {
        let mut writer = self.create_growing(encoding)?;
        if encoding == Encoding::Identity {
            // How long it will be is known; dropping the writer removes what there is no space for.
            let table_bytes = size_bytes.div_ceil(BLOCK_BYTES) * TABLE_ENTRY_BYTES as u64;
            writer.allocated = size_bytes + table_bytes + HEADER_BYTES as u64;
            writer.file.resize(writer.allocated)?;
        }
        Ok(writer)
    }

    /// Begins a file for a blob of unknown size.
    pub(crate) fn create_growing(&self, encoding: Encoding) -> io::Result<LargeWriter> {
        let number = self.next_incoming.fetch_add(1, Ordering::Relaxed);
        let path = self.incoming.join(format!("{number:016x}"));
        Ok(LargeWriter {
            file: self.layer.create(&path)?,
            path,
            layer: Arc::clone(&self.layer),
            key: self.key,
            encoding,
            allocated: 0,
            end: 0,
            block: Vec::new(),
            pieces: Gathering::default(),
            table: Vec::new(),
            kept: false,
        })
    }

    /// Makes a finished file visible under a number that was taken for it, and returns it for syncing.
    pub(crate) fn keep(&self, mut writer: LargeWriter, number: u64) -> io::Result<Arc<dyn StoreFile>> {
        self.layer.rename(&writer.path, &self.path(number))?;
        writer.kept = true;
        Ok(Arc::clone(&writer.file))
    }

    /// Begins a file with the blocks and the table of another one, or says why that one cannot be read. The header, which is
    /// also returned, is still to be written.
    pub(crate) fn copy(&self, number: u64) -> io::Result<Result<(LargeWriter, RecordHeader), ReadFault>> {
        const PIECE_BYTES: u64 = 1 << 20;
        let (file, header, head_at) = match self.open_waiting(number) {
            Ok(opened) => opened,
            Err(fault) => return Ok(Err(fault)),
        };
        let mut writer = self.create(Encoding::Zstd, header.digest.size_bytes())?;
        writer.encoding = header.encoding;
        while writer.end < header.payload_bytes {
            let piece = match read_all_at(&file, writer.end, PIECE_BYTES.min(header.payload_bytes - writer.end)) {
                Ok(piece) => piece,
                Err(error) => return Ok(Err(ReadFault::Io(error))),
            };
            writer.file.write_at(&piece, writer.end)?;
            writer.end += piece.len() as u64;
        }
        match read_all_at(&file, writer.end, head_at.saturating_sub(writer.end)) {
            Ok(table) => writer.table = table,
            Err(error) => return Ok(Err(ReadFault::Io(error))),
        }
        Ok(Ok((writer, header)))
    }

    /// Opens a file on a thread that may wait: its header, and where that is.
    fn open_waiting(&self, number: u64) -> Result<(Arc<dyn StoreFile>, RecordHeader, u64), ReadFault> {
        let file = match self.layer.open(&self.path(number)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadFault::Gone),
            Err(error) => return Err(ReadFault::Io(error)),
        };
        let size = file.size().map_err(ReadFault::Io)?;
        let head_at = size.checked_sub(HEADER_BYTES as u64).ok_or(ReadFault::Damaged)?;
        let head = read_all_at(&file, head_at, HEADER_BYTES as u64).map_err(ReadFault::Io)?;
        let header = RecordHeader::decode(self.key, Position::File { number }, &head).ok_or(ReadFault::Damaged)?;
        Ok((file, header, head_at))
    }

    /// The header of a file, read on a thread that may wait.
    pub(crate) fn header(&self, number: u64) -> Result<RecordHeader, ReadFault> {
        self.open_waiting(number).map(|(_, header, _)| header)
    }

    /// The size of a file in bytes; 0 when there is none.
    pub(crate) fn size(&self, number: u64) -> io::Result<u64> {
        match self.layer.open(&self.path(number)) {
            Ok(file) => file.size(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Removes a file and returns its size in bytes; 0 when there is none.
    pub(crate) fn remove(&self, number: u64) -> io::Result<u64> {
        let _one_at_a_time = lock(&self.removing);
        let bytes = self.size(number)?;
        self.layer.remove(&self.path(number))?;
        Ok(bytes)
    }

    /// Makes a file durable.
    pub(crate) fn sync(&self, number: u64) -> io::Result<()> {
        self.layer.open(&self.path(number))?.sync()
    }

    /// The folder that holds a file; a new name in it is durable once it is synced.
    pub(crate) fn folder(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{:02x}", number & 0xff))
    }

    /// Numbers and sizes in bytes of the files in one of the 256 folders.
    pub(crate) fn list(&self, shard: u8) -> io::Result<Vec<(u64, u64)>> {
        Ok(numbered(self.layer.list(&self.directory.join(format!("{shard:02x}")))?))
    }

    /// Moves files away, out of reach, for a person to look at. The oldest there go until no more than `limit_bytes` are
    /// left. Returns how many bytes went.
    pub(crate) fn quarantine(&self, numbers: &[u64], limit_bytes: u64) -> io::Result<u64> {
        let _one_at_a_time = lock(&self.removing);
        self.layer.create_directory(&self.quarantine)?;
        for number in numbers {
            match self.layer.rename(&self.path(*number), &self.quarantine.join(format!("{number:016x}"))) {
                // Moved or removed by somebody else meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                moved => moved?,
            }
        }
        let mut files = self.quarantined()?;
        files.sort_unstable();
        let mut left: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        let mut gone = 0;
        for (number, bytes) in files.into_iter().take_while(|(_, bytes)| {
            let goes = left > limit_bytes;
            left = left.saturating_sub(*bytes);
            goes
        }) {
            self.layer.remove(&self.quarantine.join(format!("{number:016x}")))?;
            gone += bytes;
        }
        Ok(gone)
    }

    /// Numbers and sizes in bytes of the files in quarantine.
    pub(crate) fn quarantined(&self) -> io::Result<Vec<(u64, u64)>> {
        match self.layer.list(&self.quarantine) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            files => Ok(numbered(files?)),
        }
    }

    /// Opens a file for reading and checks header and table. `key` is what the caller believes it to hold.
    pub(crate) async fn open_file(&self, number: u64, key: Option<&IndexKey>) -> Result<LargeFile, ReadFault> {
        let file = match self.layer.open(&self.path(number)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadFault::Gone),
            Err(error) => return Err(ReadFault::Io(error)),
        };
        let size = file.size().map_err(ReadFault::Io)?;
        let head_at = size.checked_sub(HEADER_BYTES as u64).ok_or(ReadFault::Damaged)?;
        let head = read_exactly(&file, HEADER_BYTES, head_at).await.map_err(ReadFault::Io)?;
        let header = RecordHeader::decode(self.key, Position::File { number }, &head).ok_or(ReadFault::Damaged)?;
        let blocks = usize::try_from(header.digest.size_bytes().div_ceil(BLOCK_BYTES)).unwrap_or(0);
        let table_at = header.payload_bytes;
        if table_at.checked_add((blocks * TABLE_ENTRY_BYTES) as u64) != Some(head_at) {
            return Err(ReadFault::Damaged);
        }
        let table = read_exactly(&file, blocks * TABLE_ENTRY_BYTES, table_at).await.map_err(ReadFault::Io)?;
        let mut starts = Vec::with_capacity(blocks);
        let mut at = 0;
        for entry in table.chunks_exact(TABLE_ENTRY_BYTES) {
            starts.push(at);
            at += u64::from(u32::from_le_bytes(array(entry, 0)));
        }
        let sound = header.kind == RecordKind::Large
            && key.is_none_or(|key| header.index_key() == *key)
            && payload_check(&table) == header.payload_check
            && at == table_at;
        if sound {
            Ok(LargeFile { number, hot: Arc::clone(&self.hot), file, header, table, starts })
        } else {
            Err(ReadFault::Damaged)
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder(number).join(format!("{number:016x}"))
    }
}

/// Reads exactly so many bytes.
fn read_all_at(file: &Arc<dyn StoreFile>, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    let filled = file.read_at(&mut buffer, offset)?;
    if filled == buffer.len() { Ok(buffer) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Those files of a listing whose names are numbers.
fn numbered(files: Vec<(String, u64)>) -> Vec<(u64, u64)> {
    files.into_iter().filter_map(|(name, bytes)| Some((u64::from_str_radix(&name, 16).ok()?, bytes))).collect()
}

/// A file being written. Dropped before it is kept, it leaves nothing.
pub(crate) struct LargeWriter {
    layer: Arc<dyn FileLayer>,
    path: PathBuf,
    key: RecordKey,
    file: Arc<dyn StoreFile>,
    encoding: Encoding,
    /// The bytes of the file that have their space.
    allocated: u64,
    end: u64,
    /// The block being gathered: what was copied of it,
    block: Vec<u8>,
    /// and what follows and was not.
    pieces: Gathering,
    table: Vec<u8>,
    kept: bool,
}

impl LargeWriter {
    pub(crate) const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Takes the next uncompressed bytes, which are kept until [`Self::own`] or until their block is written, and not copied
    /// where that can be.
    pub(crate) fn write_shared(&mut self, bytes: &Bytes) -> io::Result<()> {
        if self.encoding == Encoding::Zstd {
            return self.write(bytes);
        }
        let mut bytes = bytes.clone();
        while !bytes.is_empty() {
            let lacking = BLOCK - self.block.len() - self.pieces.bytes();
            self.pieces.push(bytes.split_to(bytes.len().min(lacking)));
            if self.block.len() + self.pieces.bytes() == BLOCK {
                self.end_block()?;
            }
        }
        Ok(())
    }

    /// Takes the next uncompressed bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.own();
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at((BLOCK - self.block.len()).min(bytes.len()));
            self.copy_into_block(part);
            if self.block.len() == BLOCK {
                self.end_block()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Keeps no bytes of others, of which a few may keep many in memory.
    pub(crate) fn own(&mut self) {
        self.pieces.take().iter().for_each(|piece| self.copy_into_block(piece));
    }

    fn copy_into_block(&mut self, bytes: &[u8]) {
        if self.block.capacity() == 0 {
            self.block.reserve_exact(BLOCK);
        }
        self.block.extend_from_slice(bytes);
    }

    /// Writes the last block, which may be a short one.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.block.len() + self.pieces.bytes() == 0 { Ok(()) } else { self.end_block() }
    }

    fn end_block(&mut self) -> io::Result<()> {
        match self.encoding {
            Encoding::Identity => self.end_plain_block()?,
            Encoding::Zstd => self.end_compressed_block()?,
        }
        self.block.clear();
        Ok(())
    }

    fn end_plain_block(&mut self) -> io::Result<()> {
        let pieces = self.pieces.take();
        let slices = || [&self.block[..]].into_iter().chain(pieces.iter().map(|piece| &piece[..]));
        let (bytes, check) = (slices().map(<[u8]>::len).sum(), check_of(slices()));
        let mut slices: Vec<IoSlice<'_>> = slices().filter(|slice| !slice.is_empty()).map(IoSlice::new).collect();
        if self.end + bytes as u64 > self.allocated {
            self.file.resize(self.allocated + ALLOCATED_AT_ONCE_BYTES)?;
            self.allocated += ALLOCATED_AT_ONCE_BYTES;
        }
        self.file.write_slices_at(&mut slices, self.end)?;
        self.enter(bytes, Encoding::Identity, check);
        Ok(())
    }

    fn end_compressed_block(&mut self) -> io::Result<()> {
        let frame = Some(zstandard::compress(&self.block)?).filter(|frame| frame.len() < self.block.len());
        let at_rest = frame.as_ref().unwrap_or(&self.block);
        self.file.write_at(at_rest, self.end)?;
        let (bytes, check) = (at_rest.len(), payload_check(at_rest));
        self.enter(bytes, if frame.is_some() { Encoding::Zstd } else { Encoding::Identity }, check);
        Ok(())
    }

    /// Enters a block that was written into the table.
    fn enter(&mut self, bytes: usize, encoding: Encoding, check: u64) {
        self.end += bytes as u64;
        // A block is at most 256 KiB.
        self.table.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
        self.table.extend_from_slice(&u32::from(encoding == Encoding::Zstd).to_le_bytes());
        self.table.extend_from_slice(&check.to_le_bytes());
    }

    /// Writes table and header, for a file that will have this number. Returns the size of the file in bytes.
    pub(crate) fn finish(
        &mut self,
        number: u64,
        owner: OwnerId,
        digest: Digest,
        sequence: u64,
        now: u32,
    ) -> io::Result<u64> {
        let header = RecordHeader {
            payload_bytes: self.end,
            payload_check: payload_check(&self.table),
            sequence,
            written_at: now,
            ..RecordHeader::blob(RecordKind::Large, owner, digest, self.encoding)
        };
        let mut tail = std::mem::take(&mut self.table);
        header.encode(self.key, Position::File { number }, &mut tail);
        let size_bytes = self.end + tail.len() as u64;
        if size_bytes < self.allocated {
            // The header is found by the end of the file.
            self.file.resize(size_bytes)?;
        }
        self.file.write_at(&tail, self.end)?;
        Ok(size_bytes)
    }
}

impl Drop for LargeWriter {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.layer.remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an abandoned upload could not be removed");
        }
    }
}

/// A large blob, open for reading.
pub(crate) struct LargeFile {
    number: u64,
    hot: Arc<HotBlocks>,
    file: Arc<dyn StoreFile>,
    pub(crate) header: RecordHeader,
    table: Vec<u8>,
    starts: Vec<u64>,
}

impl LargeFile {
    pub(crate) const fn blocks(&self) -> usize {
        self.starts.len()
    }

    /// Reads block `number` as it is at rest, verified.
    pub(crate) async fn block_at_rest(&self, number: usize) -> Result<(Bytes, Encoding), ReadFault> {
        let entry = &self.table[number * TABLE_ENTRY_BYTES..][..TABLE_ENTRY_BYTES];
        let bytes = u32::from_le_bytes(array(entry, 0)) as usize;
        let block = read_exactly(&self.file, bytes, self.starts[number]).await.map_err(ReadFault::Io)?;
        if block.len() != bytes || payload_check(&block) != u64::from_le_bytes(array(entry, 8)) {
            return Err(ReadFault::Damaged);
        }
        let encoding = if entry[4] == 1 { Encoding::Zstd } else { Encoding::Identity };
        Ok((block.into(), encoding))
    }

    /// Reads block `number` uncompressed, verified, from the disk.
    pub(crate) async fn block_on_disk(&self, number: usize) -> Result<Bytes, ReadFault> {
        match self.block_at_rest(number).await? {
            (block, Encoding::Identity) => Ok(block),
            (block, Encoding::Zstd) => {
                zstandard::decompress(&block, BLOCK_BYTES).map(Bytes::from).map_err(|_| ReadFault::Damaged)
            }
        }
    }

    /// As [`Self::block_on_disk`], or what was read of it lately.
    pub(crate) async fn block(&self, number: usize) -> Result<Bytes, ReadFault> {
        if let Some(block) = self.hot.get((self.number, number)) {
            return Ok(block);
        }
        let block = self.block_on_disk(number).await?;
        self.hot.put((self.number, number), block.clone());
        Ok(block)
    }
}

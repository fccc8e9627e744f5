//! A file layer that asks a test before each operation: to count them, to let some fail, or to hold one up.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gf_blobstore::{FileLayer, StoreFile};

/// What is about to be done to a file or a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// A file is opened.
    Open,
    /// A file is created.
    Create,
    /// A file gets another name.
    Rename,
    /// A file is removed.
    Remove,
    /// A folder is listed.
    List,
    /// The names in a folder are made durable.
    SyncDirectory,
    /// So many bytes are to be read.
    Read(u64),
    /// Bytes are to be written, and the file grows by so many.
    Write {
        /// Bytes beyond the present end of the file.
        grows_by: u64,
    },
    /// A file is made durable.
    Sync,
}

type Hook = dyn Fn(&Path, FileOperation) -> io::Result<()> + Send + Sync;

/// Another layer with a hook before each operation; what the hook answers as an error is not done.
#[derive(Clone)]
pub struct InterceptedFiles {
    layer: Arc<dyn FileLayer>,
    hook: Arc<Hook>,
}

impl InterceptedFiles {
    /// Puts `hook` before every operation of `layer`.
    pub fn new(
        layer: Arc<dyn FileLayer>,
        hook: impl Fn(&Path, FileOperation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { layer, hook: Arc::new(hook) }
    }

    /// A layer on which files can grow by `room` bytes in all; then it is as full as a disk, until there is more room.
    pub fn with_room(layer: Arc<dyn FileLayer>, room: Arc<AtomicU64>) -> Self {
        Self::new(layer, move |_, operation| match operation {
            FileOperation::Write { grows_by } if grows_by > 0 => {
                let taken = room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| room.checked_sub(grows_by));
                taken.map(drop).map_err(|_| io::Error::from(io::ErrorKind::StorageFull))
            }
            _ => Ok(()),
        })
    }

    fn file(&self, path: &Path, file: Arc<dyn StoreFile>) -> Arc<dyn StoreFile> {
        Arc::new(InterceptedFile { file, path: path.to_owned(), hook: Arc::clone(&self.hook) })
    }
}

impl FileLayer for InterceptedFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn StoreFile>> {
        (self.hook)(path, FileOperation::Open)?;
        Ok(self.file(path, self.layer.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn StoreFile>> {
        (self.hook)(path, FileOperation::Create)?;
        Ok(self.file(path, self.layer.create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.hook)(from, FileOperation::Rename)?;
        self.layer.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.hook)(path, FileOperation::Remove)?;
        self.layer.remove(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.layer.create_directory(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>> {
        (self.hook)(directory, FileOperation::List)?;
        self.layer.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        (self.hook)(directory, FileOperation::SyncDirectory)?;
        self.layer.sync_directory(directory)
    }

    fn boot_id(&self) -> String {
        self.layer.boot_id()
    }

    fn free_bytes(&self, directory: &Path) -> io::Result<u64> {
        self.layer.free_bytes(directory)
    }
}

struct InterceptedFile {
    file: Arc<dyn StoreFile>,
    path: PathBuf,
    hook: Arc<Hook>,
}

impl InterceptedFile {
    fn ask(&self, operation: FileOperation) -> io::Result<()> {
        (self.hook)(&self.path, operation)
    }
}

impl StoreFile for InterceptedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.ask(FileOperation::Read(buffer.len() as u64))?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let grows_by = (offset + bytes.len() as u64).saturating_sub(self.file.size()?);
        match self.ask(FileOperation::Write { grows_by }) {
            // A disk that fills up takes the first part of a write.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
                Err(error)
            }
            Err(error) => Err(error),
            Ok(()) => self.file.write_at(bytes, offset),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.ask(FileOperation::Sync)?;
        self.file.sync()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        let grows_by = size.saturating_sub(self.file.size()?);
        self.ask(FileOperation::Write { grows_by })?;
        self.file.resize(size)
    }
}

use std::fmt;

use bytes::Bytes;

use super::NarError;

/// One step of the walk through an archive.
///
/// A node is a [`File`](Self::File) with its contents and [`FileEnd`](Self::FileEnd), a [`Symlink`](Self::Symlink), or a
/// [`Directory`](Self::Directory) with its entries and [`DirectoryEnd`](Self::DirectoryEnd). An entry is
/// [`Entry`](Self::Entry) with a node after it. An archive is one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NarEvent {
    /// A directory begins.
    Directory,
    /// An entry of the directory that was begun last: its name, after which its node follows.
    Entry(NarName),
    /// The directory that was begun last is over.
    DirectoryEnd,
    /// A file begins.
    File {
        /// Whether it may be executed.
        executable: bool,
        /// How many bytes of contents follow.
        size_bytes: u64,
    },
    /// The next bytes of the file, never none; cut where the chunks were cut.
    Contents(Bytes),
    /// The file is over.
    FileEnd,
    /// A symbolic link.
    Symlink(NarTarget),
}

impl NarEvent {
    /// What messages call it.
    pub(crate) const fn noun(&self) -> &'static str {
        match self {
            Self::Directory => "a directory",
            Self::Entry(_) => "an entry",
            Self::DirectoryEnd => "the end of a directory",
            Self::File { .. } => "a file",
            Self::Contents(_) => "contents",
            Self::FileEnd => "the end of a file",
            Self::Symlink(_) => "a symbolic link",
        }
    }
}

/// The name of an entry: 1 to 255 bytes, not `.` or `..`, no `/`, no NUL. Not always UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarName(Bytes);

/// Where a symbolic link leads: 1 to 4095 bytes, no NUL. Not always UTF-8, and it may lead anywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NarTarget(Bytes);

impl NarName {
    /// The longest name that Linux file systems take, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Checks and takes a name. A slice of a chunk keeps the chunk in memory: see [`Self::detached`].
    ///
    /// # Errors
    /// [`NarError::Name`] when it breaks a rule.
    pub fn new(name: Bytes) -> Result<Self, NarError> {
        let bad = |byte: &u8| matches!(byte, b'/' | 0);
        if matches!(&*name, b"" | b"." | b"..") || name.len() > Self::MAX_BYTES || name.iter().any(bad) {
            return Err(NarError::Name(String::from_utf8_lossy(&name).into_owned()));
        }
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The name as text, unless it is not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The same name with bytes of its own, to keep it longer than the chunk that it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl NarTarget {
    /// The longest target that Linux takes, in bytes.
    pub const MAX_BYTES: usize = 4095;

    /// Checks and takes a target. A slice of a chunk keeps the chunk in memory: see [`Self::detached`].
    ///
    /// # Errors
    /// [`NarError::Target`] when it breaks a rule.
    pub fn new(target: Bytes) -> Result<Self, NarError> {
        if target.is_empty() || target.len() > Self::MAX_BYTES || target.contains(&0) {
            return Err(NarError::Target);
        }
        Ok(Self(target))
    }

    /// The target.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The target as text, unless it is not UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The same target with bytes of its own, to keep it longer than the chunk that it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl fmt::Debug for NarName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for NarTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

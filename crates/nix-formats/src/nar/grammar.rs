//! Which event may follow which, the order of names, and the limits: the same for who reads and who writes.

use super::{NarError, NarEvent, NarName};

/// What an archive may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NarLimits {
    /// Bytes of the archive.
    pub size_bytes: u64,
    /// Entries of all directories together.
    pub entries: u64,
    /// Directories within directories.
    pub depth: usize,
}

impl Default for NarLimits {
    /// 1 TiB, ten million entries, 1024 deep: beyond every real store path, and the parser's own memory stays small.
    fn default() -> Self {
        Self { size_bytes: 1 << 40, entries: 10_000_000, depth: 1024 }
    }
}

/// Accepts the events of one archive, in order.
#[derive(Debug)]
pub(super) struct Grammar {
    limits: NarLimits,
    next: Next,
    /// For every open directory the name of its last entry; empty before the first.
    last_names: Vec<Vec<u8>>,
    entries: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Node,
    EntryOrEnd,
    Contents { left: u64 },
    Nothing,
}

impl Next {
    const fn noun(self) -> &'static str {
        match self {
            Self::Node => "a file, a symbolic link or a directory",
            Self::EntryOrEnd => "an entry or the end of the directory",
            Self::Contents { left: 0 } => "the end of the file",
            Self::Contents { .. } => "contents",
            Self::Nothing => "nothing",
        }
    }
}

impl Grammar {
    pub(super) const fn new(limits: NarLimits) -> Self {
        Self { limits, next: Next::Node, last_names: Vec::new(), entries: 0 }
    }

    /// Whether the one node is over.
    pub(super) fn is_complete(&self) -> bool {
        self.next == Next::Nothing
    }

    /// Whether what was accepted last ended a node that is an entry of a directory.
    pub(super) const fn is_in_directory(&self) -> bool {
        !self.last_names.is_empty()
    }

    pub(super) const fn limits(&self) -> &NarLimits {
        &self.limits
    }

    /// Takes the next event.
    pub(super) fn accept(&mut self, event: &NarEvent) -> Result<(), NarError> {
        match (self.next, event) {
            (Next::Node, NarEvent::Directory) => self.open_directory()?,
            (Next::Node, NarEvent::File { size_bytes, .. }) => self.next = Next::Contents { left: *size_bytes },
            (Next::Node, NarEvent::Symlink(_)) => self.close_node(),
            (Next::EntryOrEnd, NarEvent::Entry(name)) => self.enter(name)?,
            (Next::EntryOrEnd, NarEvent::DirectoryEnd) => {
                self.last_names.pop();
                self.close_node();
            }
            (Next::Contents { left }, NarEvent::Contents(bytes)) => {
                let left = left.checked_sub(bytes.len() as u64).ok_or(NarError::ContentsSize(left))?;
                self.next = Next::Contents { left };
            }
            (Next::Contents { left: 0 }, NarEvent::FileEnd) => self.close_node(),
            (Next::Contents { left }, NarEvent::FileEnd) => return Err(NarError::ContentsSize(left)),
            (next, event) => return Err(NarError::Sequence { event: event.noun(), expected: next.noun() }),
        }
        Ok(())
    }

    /// Takes the contents of a file as seen.
    pub(super) fn skip_contents(&mut self) {
        if let Next::Contents { left } = &mut self.next {
            *left = 0;
        }
    }

    fn open_directory(&mut self) -> Result<(), NarError> {
        if self.last_names.len() == self.limits.depth {
            return Err(NarError::TooDeep(self.limits.depth));
        }
        self.last_names.push(Vec::new());
        self.next = Next::EntryOrEnd;
        Ok(())
    }

    fn enter(&mut self, name: &NarName) -> Result<(), NarError> {
        if self.entries == self.limits.entries {
            return Err(NarError::TooManyEntries(self.limits.entries));
        }
        self.entries += 1;
        if let Some(last) = self.last_names.last_mut() {
            // No name is empty, so the first one comes after the empty one.
            if name.as_bytes() <= last.as_slice() {
                let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
                return Err(NarError::Order { after: text(last), name: text(name.as_bytes()) });
            }
            last.clear();
            last.extend_from_slice(name.as_bytes());
        }
        self.next = Next::Node;
        Ok(())
    }

    fn close_node(&mut self) {
        self.next = if self.last_names.is_empty() { Next::Nothing } else { Next::EntryOrEnd };
    }
}

use bytes::{Buf as _, Bytes};

use super::grammar::{Grammar, NarLimits};
use super::wire::{
    CLOSE, CONTENTS, DIRECTORY, ENTRY, ENTRY_NODE, EXECUTABLE, MAGIC, NAME, NODE, REGULAR, SYMLINK, TARGET, padding,
};
use super::{NarError, NarEvent, NarName, NarTarget};

/// Reads an archive that arrives in chunks of any size.
///
/// The caller owns the input and calls [`next`](Self::next) until it answers nothing; then the chunk is empty and
/// another is needed, or the archive is over. Names, targets and contents are slices of the chunks. What the parser keeps
/// for itself is at most a few kilobytes and one name for every directory that is open.
///
/// ```
/// # use bytes::Bytes;
/// # use gf_nix_formats::nar::{NarError, NarEvent, NarLimits, NarParser};
/// fn count_files(chunks: impl Iterator<Item = Bytes>) -> Result<u64, NarError> {
///     let mut parser = NarParser::new(NarLimits::default());
///     let mut files = 0;
///     for mut chunk in chunks {
///         while let Some(event) = parser.next(&mut chunk)? {
///             files += u64::from(event == NarEvent::FileEnd);
///         }
///     }
///     parser.finish()?;
///     Ok(files)
/// }
/// ```
#[derive(Debug)]
pub struct NarParser {
    grammar: Grammar,
    state: State,
    /// What was taken of a word that goes on in the next chunk; the longest is a target.
    partial: Vec<u8>,
    position: u64,
}

/// What comes next on the wire.
#[derive(Clone, Copy, Debug)]
enum State {
    Magic,
    /// The opening of a node up to its type, 48 bytes.
    Node,
    /// The last 8 bytes of the word `directory`.
    DirectoryTail,
    /// `entry`, or the end of the directory.
    Member,
    /// What stands before the name of an entry, and its length.
    NameHead,
    Name {
        length: usize,
    },
    /// `contents`, or the first 16 bytes of `executable`.
    FileHead,
    /// The rest of `executable`, and `contents`.
    ExecutableTail,
    FileSize {
        executable: bool,
    },
    Contents {
        size_bytes: u64,
        left: u64,
    },
    /// Padding and the end of a file.
    FileTail {
        size_bytes: u64,
    },
    TargetHead,
    Target {
        length: usize,
    },
    /// The `)` after the node of an entry.
    EntryTail,
    Done,
}

impl NarParser {
    /// Begins an archive.
    #[must_use]
    pub const fn new(limits: NarLimits) -> Self {
        Self { grammar: Grammar::new(limits), state: State::Magic, partial: Vec::new(), position: 0 }
    }

    /// Bytes taken so far. After [`NarEvent::File`] this is where its contents begin in the archive.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Takes bytes from the front of `chunk` until an event is complete. Nothing means that the chunk is empty.
    ///
    /// # Errors
    /// [`NarError`] as soon as the bytes cannot begin a canonical archive within the limits. The parser must not be
    /// asked again then.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<NarEvent>, NarError> {
        loop {
            if let State::Contents { size_bytes, left } = self.state
                && left > 0
            {
                return Ok(self.contents(chunk, size_bytes, left));
            }
            if matches!(self.state, State::Done) {
                return if chunk.is_empty() { Ok(None) } else { Err(NarError::TrailingBytes(self.position)) };
            }
            let Some(word) = self.take(chunk, self.state.word_length()) else { return Ok(None) };
            let event = self.step(&word)?;
            self.check_size()?;
            if let Some(event) = event {
                return Ok(Some(event));
            }
        }
    }

    /// Ends the archive; answers its size in bytes.
    ///
    /// # Errors
    /// [`NarError::Truncated`] when the archive is not over.
    pub fn finish(&self) -> Result<u64, NarError> {
        match self.state {
            State::Done => Ok(self.position),
            _ => Err(NarError::Truncated(self.position + self.partial.len() as u64)),
        }
    }

    /// The next piece of a file.
    fn contents(&mut self, chunk: &mut Bytes, size_bytes: u64, left: u64) -> Option<NarEvent> {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        if length == 0 {
            return None;
        }
        let left = left - length as u64;
        self.position += length as u64;
        self.state = if left == 0 { State::FileTail { size_bytes } } else { State::Contents { size_bytes, left } };
        // The grammar sees contents at the end of the file: their sum is right by construction.
        Some(NarEvent::Contents(chunk.split_to(length)))
    }

    /// Takes a word of `length` bytes, if all of it is there; otherwise all there is.
    fn take(&mut self, chunk: &mut Bytes, length: usize) -> Option<Bytes> {
        let word = if self.partial.is_empty() && chunk.len() >= length {
            chunk.split_to(length)
        } else {
            let missing = length - self.partial.len();
            let there = missing.min(chunk.len());
            self.partial.extend_from_slice(&chunk[..there]);
            chunk.advance(there);
            if there < missing {
                return None;
            }
            let word = Bytes::copy_from_slice(&self.partial);
            self.partial.clear();
            word
        };
        self.position += length as u64;
        Some(word)
    }

    /// Reads the word that the state asked for.
    fn step(&mut self, word: &Bytes) -> Result<Option<NarEvent>, NarError> {
        match self.state {
            State::Magic => self.expect(word, MAGIC, "the word `nix-archive-1`", State::Node),
            State::Node => self.node(word),
            State::DirectoryTail => {
                self.expect(word, &DIRECTORY[16..], "the word `directory`", State::Member)?;
                self.accept(NarEvent::Directory)
            }
            State::Member => self.member(word),
            State::NameHead => {
                let length = self.string_length(word, NAME, NarName::MAX_BYTES, "an entry's name of 1 to 255 bytes")?;
                self.go(State::Name { length })
            }
            State::Name { length } => {
                let name = self.string(word, length, ENTRY_NODE, "the word `node`")?;
                self.state = State::Node;
                self.accept(NarEvent::Entry(NarName::new(name)?))
            }
            State::FileHead if **word == *CONTENTS => self.go(State::FileSize { executable: false }),
            State::FileHead => {
                self.expect(word, &EXECUTABLE[..16], "`contents` or `executable`", State::ExecutableTail)
            }
            State::ExecutableTail => {
                let (tail, contents) = word.split_at(16);
                self.expect(tail, &EXECUTABLE[16..], "`executable` with an empty string", self.state)?;
                self.expect(contents, CONTENTS, "the word `contents`", State::FileSize { executable: true })
            }
            State::FileSize { executable } => self.file_size(word, executable),
            State::Contents { size_bytes, .. } | State::FileTail { size_bytes } => self.file_tail(word, size_bytes),
            State::TargetHead => {
                let length = self.string_length(word, TARGET, NarTarget::MAX_BYTES, "a target of 1 to 4095 bytes")?;
                self.go(State::Target { length })
            }
            State::Target { length } => {
                let target = self.string(word, length, CLOSE, "the end of the symbolic link")?;
                self.accept(NarEvent::Symlink(NarTarget::new(target)?))
            }
            State::EntryTail => self.expect(word, CLOSE, "the end of the entry", State::Member),
            State::Done => Ok(None),
        }
    }

    fn node(&mut self, word: &Bytes) -> Result<Option<NarEvent>, NarError> {
        let (open, kind) = word.split_at(NODE.len());
        self.expect(open, NODE, "the beginning of a node", self.state)?;
        match kind {
            kind if *kind == *REGULAR => self.go(State::FileHead),
            kind if *kind == *SYMLINK => self.go(State::TargetHead),
            kind => self.expect(kind, &DIRECTORY[..16], "`regular`, `symlink` or `directory`", State::DirectoryTail),
        }
    }

    fn member(&mut self, word: &Bytes) -> Result<Option<NarEvent>, NarError> {
        if **word == *ENTRY {
            return self.go(State::NameHead);
        }
        self.expect(word, CLOSE, "`entry` or the end of the directory", self.state)?;
        self.accept(NarEvent::DirectoryEnd)
    }

    fn file_size(&mut self, word: &Bytes, executable: bool) -> Result<Option<NarEvent>, NarError> {
        let size_bytes = number(word);
        let limit = self.grammar.limits().size_bytes;
        // Refused before the first byte comes: a small upload may announce an exabyte.
        if size_bytes > limit.saturating_sub(self.position) {
            return Err(NarError::TooLarge(limit));
        }
        self.state = State::Contents { size_bytes, left: size_bytes };
        self.accept(NarEvent::File { executable, size_bytes })
    }

    fn file_tail(&mut self, word: &Bytes, size_bytes: u64) -> Result<Option<NarEvent>, NarError> {
        let (zeros, close) = word.split_at(padding(size_bytes));
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(NarError::Padding(self.position));
        }
        self.expect(close, CLOSE, "the end of the file", self.state)?;
        self.grammar.skip_contents();
        self.accept(NarEvent::FileEnd)
    }

    /// Hands an event to the grammar, and goes on where the end of a node leads.
    fn accept(&mut self, event: NarEvent) -> Result<Option<NarEvent>, NarError> {
        self.grammar.accept(&event)?;
        if matches!(event, NarEvent::DirectoryEnd | NarEvent::FileEnd | NarEvent::Symlink(_)) {
            self.state = if self.grammar.is_in_directory() { State::EntryTail } else { State::Done };
        }
        Ok(Some(event))
    }

    fn go(&mut self, next: State) -> Result<Option<NarEvent>, NarError> {
        self.state = next;
        Ok(None)
    }

    fn expect(
        &mut self,
        word: &[u8],
        right: &[u8],
        expected: &'static str,
        next: State,
    ) -> Result<Option<NarEvent>, NarError> {
        if word != right {
            return Err(self.unexpected(expected));
        }
        self.go(next)
    }

    /// Reads `right` and the length of the string after it.
    fn string_length(&self, word: &[u8], right: &[u8], max: usize, expected: &'static str) -> Result<usize, NarError> {
        let (head, length) = word.split_at(right.len());
        let length = usize::try_from(number(length)).unwrap_or(usize::MAX);
        if head != right || length == 0 || length > max {
            return Err(self.unexpected(expected));
        }
        Ok(length)
    }

    /// Reads a string of `length` bytes, its padding, and `right` after it.
    fn string(&self, word: &Bytes, length: usize, right: &[u8], expected: &'static str) -> Result<Bytes, NarError> {
        let (string, right_at) = (word.slice(..length), word.len() - right.len());
        if word[length..right_at].iter().any(|byte| *byte != 0) {
            return Err(NarError::Padding(self.position));
        }
        if word[right_at..] != *right {
            return Err(self.unexpected(expected));
        }
        Ok(string)
    }

    fn unexpected(&self, expected: &'static str) -> NarError {
        let length = self.state.word_length() as u64;
        NarError::Unexpected { at: self.position.saturating_sub(length), expected }
    }

    fn check_size(&self) -> Result<(), NarError> {
        let limit = self.grammar.limits().size_bytes;
        if self.position > limit { Err(NarError::TooLarge(limit)) } else { Ok(()) }
    }
}

impl State {
    /// How many bytes are read at once.
    const fn word_length(self) -> usize {
        match self {
            Self::Magic => MAGIC.len(),
            Self::Node => NODE.len() + REGULAR.len(),
            Self::DirectoryTail | Self::FileSize { .. } => 8,
            Self::Member | Self::FileHead | Self::EntryTail => 16,
            Self::NameHead => NAME.len() + 8,
            Self::Name { length } => length + padding(length as u64) + ENTRY_NODE.len(),
            Self::ExecutableTail => 16 + CONTENTS.len(),
            Self::Contents { size_bytes, .. } | Self::FileTail { size_bytes } => padding(size_bytes) + CLOSE.len(),
            Self::TargetHead => TARGET.len() + 8,
            Self::Target { length } => length + padding(length as u64) + CLOSE.len(),
            Self::Done => 0,
        }
    }
}

fn number(word: &[u8]) -> u64 {
    word.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

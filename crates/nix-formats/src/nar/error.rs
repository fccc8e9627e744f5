use thiserror::Error;

/// Why bytes are not an archive, or events do not make one. All are the fault of who sent them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NarError {
    /// The bytes end before the archive does.
    #[error("the archive ends early, after {0} bytes")]
    Truncated(u64),
    /// There are bytes after the archive.
    #[error("there are bytes after the end of the archive, at {0}")]
    TrailingBytes(u64),
    /// Other bytes than the format has there.
    #[error("at byte {at} the archive should have {expected}")]
    Unexpected {
        /// Where, counted from the start of the archive; the fault is at most 48 bytes further.
        at: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// A string is not padded with zeros.
    #[error("the padding before byte {0} is not zero")]
    Padding(u64),
    /// A name that would lead elsewhere, or nowhere.
    #[error(
        "{0:?} cannot be the name of an entry: it must not be empty, `.`, `..`, over 255 bytes, or hold `/` or NUL"
    )]
    Name(String),
    /// The link leads nowhere.
    #[error("the target of a symbolic link must not be empty, over 4095 bytes, or hold NUL")]
    Target,
    /// Entries are not sorted, or two have one name.
    #[error("{name:?} does not come after {after:?}: entries must be sorted by name")]
    Order {
        /// The entry before.
        after: String,
        /// The entry that should have come earlier.
        name: String,
    },
    /// Directories within directories, beyond the limit.
    #[error("directories are nested deeper than {0}")]
    TooDeep(usize),
    /// Entries beyond the limit.
    #[error("the archive has more than {0} entries")]
    TooManyEntries(u64),
    /// A size that leads beyond the limit; found before the bytes come.
    #[error("the archive is larger than {0} bytes")]
    TooLarge(u64),
    /// An event that has no place where it came.
    #[error("{event} has no place here: {expected} must come next")]
    Sequence {
        /// The event.
        event: &'static str,
        /// What would have been right.
        expected: &'static str,
    },
    /// More or less contents than were announced.
    #[error("the contents of a file have not the size that was announced; {0} bytes were still to come")]
    ContentsSize(u64),
}

//! In which steps an archive is read.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use gf_digest::Digest;
use gf_nix_formats::nar::NarPart;

use crate::archives::layout::Layout;

/// Small parts are gathered up to this size, and so many of them.
const GATHERED_BYTES: u64 = 512 << 10;
const GATHERED_COUNT: usize = 512;

/// Files from this size on are handed out as the store gives them, uncopied; smaller ones are read whole.
const LARGE_BYTES: u64 = 256 << 10;

/// One step.
pub(super) enum Section {
    /// Many small parts, which become one piece of so many bytes.
    Gathered(Vec<Part>, usize),
    /// A part of a large file, or of an opaque archive.
    Large {
        /// The blob.
        digest: Digest,
        /// Where in it.
        range: Range<u64>,
    },
}

/// A small part.
pub(super) enum Part {
    /// Bytes that stand around contents.
    Framing(Bytes),
    /// Bytes of a small file.
    File(Digest, Range<u64>),
}

/// The sections of a part of an archive, found one by one.
pub(super) struct Plan {
    form: Form,
    left: Range<u64>,
}

enum Form {
    Tree(Arc<Layout>),
    Blob(Digest),
}

impl Plan {
    /// Reads `range` of an archive.
    pub(super) const fn of_tree(layout: Arc<Layout>, range: Range<u64>) -> Self {
        Self { form: Form::Tree(layout), left: range }
    }

    /// Reads `range` of an archive that is a blob.
    pub(super) const fn of_blob(digest: Digest, range: Range<u64>) -> Self {
        Self { form: Form::Blob(digest), left: range }
    }
}

impl Iterator for Plan {
    type Item = Section;

    fn next(&mut self) -> Option<Section> {
        if self.left.is_empty() {
            return None;
        }
        match &self.form {
            Form::Blob(digest) => {
                let range = std::mem::replace(&mut self.left, 0..0);
                Some(Section::Large { digest: *digest, range })
            }
            Form::Tree(layout) => {
                let (section, bytes) = next_section(layout, self.left.clone())?;
                self.left.start += bytes;
                Some(section)
            }
        }
    }
}

/// The first section of a part of an archive, and its length in bytes.
fn next_section(layout: &Layout, range: Range<u64>) -> Option<(Section, u64)> {
    let mut gathered = Vec::new();
    let mut bytes = 0;
    for part in layout.nar.parts(range) {
        let (part, length) = match part {
            NarPart::Framing(framing) => {
                let length = framing.len() as u64;
                (Part::Framing(framing), length)
            }
            NarPart::Contents { file, range } => {
                let (digest, length) = (layout.file(file)?, range.end - range.start);
                match digest.size_bytes() {
                    // What stands before it goes first.
                    LARGE_BYTES.. if gathered.is_empty() => return Some((Section::Large { digest, range }, length)),
                    LARGE_BYTES.. => break,
                    _ => (Part::File(digest, range), length),
                }
            }
        };
        let is_too_much = bytes + length > GATHERED_BYTES || gathered.len() == GATHERED_COUNT;
        if is_too_much && !gathered.is_empty() {
            break;
        }
        bytes += length;
        gathered.push(part);
    }
    let length = usize::try_from(bytes).ok()?;
    (!gathered.is_empty()).then_some((Section::Gathered(gathered, length), bytes))
}

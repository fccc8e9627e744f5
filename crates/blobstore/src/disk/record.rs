//! The record: what a segment is made of, and the head of every large file.
//!
//! A record describes itself, so that the index can be built from records alone. Layout, little endian:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic `GFR2` |
//! | 4 | check of the header: xxh3, seeded by the store's key and the record's [`Position`], of all header bytes after this field and of the instance name, low 32 bits |
//! | 1 | kind |
//! | 1 | digest function, by REAPI's number |
//! | 1 | encoding of the payload: 0 identity, 1 zstd |
//! | 1 | entry table, 0 for blobs |
//! | 4 | owner |
//! | 32 | hash |
//! | 8 | size of the blob in bytes, uncompressed; of an entry: the size in the digest of its key |
//! | 8 | bytes of payload |
//! | 8 | sequence number; a copy of a record keeps it, and so does a blob that gets another form, so that it tells when the blob came |
//! | 8 | check of the payload: xxh3 |
//! | 4 | when written, seconds since 1970 |
//! | 2 | bytes of instance name, which follows the header; 0 for blobs |
//! | 2 | zero |
//! | 8 | zero |
//!
//! then the instance name, then the payload.
//!
//! The check of the header is keyed, since payloads are bytes from outside: a blob that looks like a record must not
//! become one when a walk resumes in the middle of it, past damage. It is keyed by the position too, since a blob may be
//! a copy of our own records (somebody's backup of the data folder): a header reads back only where it was written.

use gf_digest::{Digest, DigestFunction};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::index::IndexKey;
use crate::{Encoding, EntryKey, OwnerId};

pub(crate) const HEADER_BYTES: usize = 96;
const MAGIC: [u8; 4] = *b"GFR2";

/// The store's own secret number, without which nobody can make a header that reads back.
#[derive(Clone, Copy)]
pub(crate) struct RecordKey(pub u64);

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// So many bytes into a segment.
    Segment { segment: u32, offset: u32 },
    /// At the end of a large file.
    File { number: u64 },
}

impl RecordKey {
    /// The seed of the check of a header at `position`.
    fn seed_at(self, position: Position) -> u64 {
        let (tag, place) = match position {
            Position::Segment { segment, offset } => (1, u64::from(segment) << 32 | u64::from(offset)),
            Position::File { number } => (2, number),
        };
        let mut name = [tag; 9];
        name[1..].copy_from_slice(&place.to_le_bytes());
        xxh3_64_with_seed(&name, self.0)
    }
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    /// The bytes of a blob.
    Blob = 1,
    /// An entry.
    Entry = 2,
    /// The entry of this key was removed.
    EntryRemoved = 3,
    /// The blob is in the large file whose number is the payload.
    Large = 4,
    /// The blob is a part of another one, named in the payload.
    View = 5,
    /// The blob is the concatenation of others, listed in the payload.
    Recipe = 6,
    /// A further owner of a blob. The payload is the number of the sharing that the grant hangs on.
    Grant = 7,
    /// The blob has further owners. The payload is a number that no earlier sharing of the blob had.
    Sharing = 8,
    /// A blob is promised to an owner. The payload is the second, since 1970, until which; 0 when it was let go. Of several
    /// the last one counts.
    Promise = 9,
}

impl RecordKind {
    const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Blob,
            2 => Self::Entry,
            3 => Self::EntryRemoved,
            4 => Self::Large,
            5 => Self::View,
            6 => Self::Recipe,
            7 => Self::Grant,
            8 => Self::Sharing,
            9 => Self::Promise,
            _ => return None,
        })
    }
}

/// The header of a record, and the instance name of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub kind: RecordKind,
    pub encoding: Encoding,
    pub table: u8,
    pub owner: OwnerId,
    pub digest: Digest,
    pub payload_bytes: u64,
    pub sequence: u64,
    pub payload_check: u64,
    pub written_at: u32,
    pub instance: String,
}

impl RecordHeader {
    /// A header for a record about a blob; sequence and check are filled in when it is appended.
    pub(crate) fn blob(kind: RecordKind, owner: OwnerId, digest: Digest, encoding: Encoding) -> Self {
        Self {
            kind,
            encoding,
            table: 0,
            owner,
            digest,
            payload_bytes: 0,
            sequence: 0,
            payload_check: 0,
            written_at: 0,
            instance: String::new(),
        }
    }

    /// A header for an entry, or its removal.
    pub(crate) fn entry(kind: RecordKind, key: &EntryKey) -> Self {
        let mut header = Self::blob(kind, key.owner, key.digest, Encoding::Identity);
        header.table = key.table as u8;
        header.instance = key.instance.as_str().to_owned();
        header
    }

    /// The key of the index slot that points to this record.
    pub(crate) fn index_key(&self) -> IndexKey {
        match self.kind {
            RecordKind::Blob | RecordKind::Large | RecordKind::View | RecordKind::Recipe => {
                IndexKey::blob(&self.digest)
            }
            RecordKind::Grant => IndexKey::grant(self.owner, &self.digest),
            RecordKind::Sharing => IndexKey::sharing(&self.digest),
            RecordKind::Promise => IndexKey::promise(self.owner, &self.digest),
            RecordKind::Entry | RecordKind::EntryRemoved => {
                IndexKey::entry(self.table, self.owner, &self.instance, &self.digest)
            }
        }
    }

    /// What the index slot of this record says in place of a size.
    pub(crate) fn slot_size(&self, payload: &[u8]) -> u64 {
        match self.kind {
            RecordKind::Blob | RecordKind::Large | RecordKind::View | RecordKind::Recipe => self.digest.size_bytes(),
            RecordKind::Entry | RecordKind::EntryRemoved => payload.len() as u64,
            RecordKind::Grant | RecordKind::Sharing | RecordKind::Promise => u64::from_le_bytes(array(payload, 0)),
        }
    }

    /// Whether the record says where the bytes of a blob are.
    pub(crate) const fn is_of_blob(&self) -> bool {
        matches!(self.kind, RecordKind::Blob | RecordKind::Large | RecordKind::View | RecordKind::Recipe)
    }

    /// Bytes of the header and the instance name: where the payload begins.
    pub(crate) fn head_bytes(&self) -> usize {
        HEADER_BYTES + self.instance.len()
    }

    /// Bytes of the whole record.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.head_bytes() as u64 + self.payload_bytes
    }

    /// Appends header and instance name to `out`.
    pub(crate) fn encode(&self, key: RecordKey, position: Position, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        let encoding = u8::from(self.encoding == Encoding::Zstd);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the numbers are 1 and 9")]
        let function = self.digest.function().number() as u8;
        out.extend_from_slice(&[self.kind as u8, function, encoding, self.table]);
        out.extend_from_slice(&self.owner.0.to_le_bytes());
        out.extend_from_slice(self.digest.hash());
        out.extend_from_slice(&self.digest.size_bytes().to_le_bytes());
        out.extend_from_slice(&self.payload_bytes.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.payload_check.to_le_bytes());
        out.extend_from_slice(&self.written_at.to_le_bytes());
        // Instance names are at most 256 bytes.
        out.extend_from_slice(&u16::try_from(self.instance.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&[0; 10]);
        debug_assert_eq!(out.len() - start, HEADER_BYTES);
        out.extend_from_slice(self.instance.as_bytes());
        let check = header_check(key.seed_at(position), &out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&check.to_le_bytes());
    }

    /// How many bytes of instance name follow a header; `None` when `head` is no header.
    pub(crate) fn instance_bytes(head: &[u8]) -> Option<usize> {
        let head = head.get(..HEADER_BYTES)?;
        (head[..4] == MAGIC).then(|| usize::from(u16::from_le_bytes([head[84], head[85]])))
    }

    /// Reads a header and instance name from the start of `head`; `None` unless everything is right, the position
    /// included.
    pub(crate) fn decode(key: RecordKey, position: Position, head: &[u8]) -> Option<Self> {
        let instance_bytes = Self::instance_bytes(head)?;
        let head = head.get(..HEADER_BYTES + instance_bytes)?;
        if header_check(key.seed_at(position), &head[8..]) != u32::from_le_bytes(array(head, 4)) {
            return None;
        }
        let function = DigestFunction::from_number(i32::from(head[9]))?;
        Some(Self {
            kind: RecordKind::from_number(head[8])?,
            encoding: if head[10] == 1 { Encoding::Zstd } else { Encoding::Identity },
            table: head[11],
            owner: OwnerId(u32::from_le_bytes(array(head, 12))),
            digest: Digest::new(function, array(head, 16), u64::from_le_bytes(array(head, 48))),
            payload_bytes: u64::from_le_bytes(array(head, 56)),
            sequence: u64::from_le_bytes(array(head, 64)),
            payload_check: u64::from_le_bytes(array(head, 72)),
            written_at: u32::from_le_bytes(array(head, 80)),
            instance: String::from_utf8(head[HEADER_BYTES..].to_vec()).ok()?,
        })
    }
}

/// The check of a payload.
pub(crate) fn payload_check(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is the check")]
fn header_check(seed: u64, bytes: &[u8]) -> u32 {
    xxh3_64_with_seed(bytes, seed) as u32
}

/// `N` bytes of `bytes` from `at`; zeros past the end, which no caller reaches.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use gf_digest::InstanceName;

    use super::*;
    use crate::EntryTable;

    const KEY: RecordKey = RecordKey(0x1234_5678_9abc_def0);
    const HERE: Position = Position::Segment { segment: 3, offset: 4096 };

    #[test]
    fn with_another_key_or_elsewhere_nothing_reads_back() {
        let mut bytes = Vec::new();
        header().encode(KEY, HERE, &mut bytes);
        assert_eq!(RecordHeader::decode(RecordKey(1), HERE, &bytes), None);
        for position in [
            Position::Segment { segment: 3, offset: 4097 },
            Position::Segment { segment: 4, offset: 4096 },
            Position::File { number: 3 << 32 | 4096 },
        ] {
            assert_eq!(RecordHeader::decode(KEY, position, &bytes), None, "{position:?}");
        }
    }

    fn header() -> RecordHeader {
        let key = EntryKey {
            table: EntryTable::ActionResult,
            owner: OwnerId(7),
            instance: InstanceName::new("spoke-x/y").unwrap(),
            digest: Digest::of(DigestFunction::Blake3, b"action"),
        };
        RecordHeader {
            payload_bytes: 99,
            sequence: 1 << 40,
            payload_check: u64::MAX,
            written_at: 5,
            ..RecordHeader::entry(RecordKind::Entry, &key)
        }
    }

    #[test]
    fn a_header_reads_back() {
        let mut bytes = Vec::new();
        header().encode(KEY, HERE, &mut bytes);
        assert_eq!(bytes.len(), header().head_bytes());
        assert_eq!(RecordHeader::decode(KEY, HERE, &bytes), Some(header()));
    }

    #[test]
    fn no_flipped_bit_goes_unseen() {
        let mut bytes = Vec::new();
        header().encode(KEY, HERE, &mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(KEY, HERE, &damaged), None, "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(RecordHeader::decode(KEY, HERE, &bytes[..cut]), None, "cut at {cut}");
        }
    }
}

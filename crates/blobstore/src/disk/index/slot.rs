//! One slot, and the key that finds it.

use gf_digest::{Digest, DigestFunction};
use xxhash_rust::xxh3::xxh3_64;

use super::SHARDS;
use crate::disk::record::array;
use crate::{Encoding, OwnerId};

pub(crate) const SLOT_BYTES: usize = 64;
const EMPTY: u8 = 0;
const REMOVED: u8 = 0xff;

/// What a key is about. The number is part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum KeyClass {
    Sha256Blob = 1,
    Blake3Blob = 2,
    Entry = 3,
    Grant = 4,
    Sharing = 5,
    Sha256Promise = 6,
    Blake3Promise = 7,
}

/// The key of a slot: for a blob its own hash, for the rest a hash of all that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IndexKey {
    class: KeyClass,
    bytes: [u8; 32],
}

/// Where a key stands among all keys.
pub(crate) type KeyOrder = ([u8; 32], u8);

impl IndexKey {
    pub(crate) const fn order(&self) -> KeyOrder {
        (self.bytes, self.class as u8)
    }

    pub(crate) fn blob(digest: &Digest) -> Self {
        let class = match digest.function() {
            DigestFunction::Sha256 => KeyClass::Sha256Blob,
            DigestFunction::Blake3 => KeyClass::Blake3Blob,
        };
        Self { class, bytes: *digest.hash() }
    }

    pub(crate) fn grant(owner: OwnerId, digest: &Digest) -> Self {
        Self { class: KeyClass::Grant, bytes: name_hash(0, owner, "", digest) }
    }

    pub(crate) fn entry(table: u8, owner: OwnerId, instance: &str, digest: &Digest) -> Self {
        Self { class: KeyClass::Entry, bytes: name_hash(table, owner, instance, digest) }
    }

    /// The key of what the grants of a blob hang on. It lies beside the blob's own, in the same shard.
    pub(crate) const fn sharing(digest: &Digest) -> Self {
        Self { class: KeyClass::Sharing, bytes: *digest.hash() }
    }

    /// As [`Self::sharing`], of a blob's key.
    pub(crate) const fn sharing_of(&self) -> Self {
        Self { class: KeyClass::Sharing, bytes: self.bytes }
    }

    /// The key of what an owner was promised about a blob. It lies in the same shard as the blob's own, and leads back to it.
    pub(crate) fn promise(owner: OwnerId, digest: &Digest) -> Self {
        let class = match digest.function() {
            DigestFunction::Sha256 => KeyClass::Sha256Promise,
            DigestFunction::Blake3 => KeyClass::Blake3Promise,
        };
        Self { class, bytes: mixed(*digest.hash(), owner) }
    }

    /// The key of the blob that a promise to `owner` is about; `None` for the other classes.
    pub(crate) fn promised_blob(&self, owner: OwnerId) -> Option<Self> {
        let class = match self.class {
            KeyClass::Sha256Promise => KeyClass::Sha256Blob,
            KeyClass::Blake3Promise => KeyClass::Blake3Blob,
            _ => return None,
        };
        Some(Self { class, bytes: mixed(self.bytes, owner) })
    }

    #[cfg(test)]
    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// The digest of a blob's key; `None` for the other classes.
    pub(crate) const fn digest(&self, size_bytes: u64) -> Option<Digest> {
        match self.class {
            KeyClass::Sha256Blob => Some(Digest::new(DigestFunction::Sha256, self.bytes, size_bytes)),
            KeyClass::Blake3Blob => Some(Digest::new(DigestFunction::Blake3, self.bytes, size_bytes)),
            _ => None,
        }
    }

    /// The shard that holds this key.
    pub(crate) fn shard(&self) -> usize {
        // The last byte: the first ones place the key within its shard.
        usize::from(self.bytes[31]) % SHARDS
    }

    /// Where in a table of `capacity` slots the search begins. The seed is the store's own secret, so that nobody
    /// can choose blobs that all begin at one place.
    pub(crate) fn start(&self, seed: u64, capacity: usize) -> usize {
        let head = u64::from_le_bytes(array(&self.bytes, 0)) ^ seed;
        let tail = u64::from_le_bytes(array(&self.bytes, 8)) ^ seed.rotate_left(32);
        let mixed = u128::from(head | 1) * u128::from(tail ^ 0x9e37_79b9_7f4a_7c15);
        #[expect(clippy::cast_possible_truncation, reason = "folds 128 bits to 64")]
        let folded = (mixed as u64) ^ ((mixed >> 64) as u64);
        #[expect(clippy::cast_possible_truncation, reason = "the product is below capacity")]
        let place = ((u128::from(folded) * capacity as u128) >> 64) as usize;
        place
    }
}

/// A hash with an owner mixed in; the same again takes it out. The last byte, which chooses the shard, stays.
fn mixed(mut hash: [u8; 32], owner: OwnerId) -> [u8; 32] {
    hash.iter_mut().zip(owner.0.to_le_bytes()).for_each(|(byte, mask)| *byte ^= mask);
    hash
}

/// BLAKE3 over everything that names an entry or a grant.
fn name_hash(table: u8, owner: OwnerId, instance: &str, digest: &Digest) -> [u8; 32] {
    let mut name = Vec::with_capacity(64 + instance.len());
    name.push(table);
    name.extend_from_slice(&owner.0.to_le_bytes());
    name.extend_from_slice(&digest.function().number().to_le_bytes());
    name.extend_from_slice(digest.hash());
    name.extend_from_slice(&digest.size_bytes().to_le_bytes());
    name.extend_from_slice(instance.as_bytes());
    *Digest::of(DigestFunction::Blake3, &name).hash()
}

/// Where the bytes of a key are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a record of a segment that holds them.
    Segment { segment: u32, offset: u32, bytes: u32, encoding: Encoding },
    /// In a large file, which takes so many KiB, rounded up.
    Large { file: u64, encoding: Encoding, kib: u32 },
    /// In a part of another blob, which the record names.
    View { segment: u32, offset: u32, bytes: u32 },
    /// In other blobs, which the record lists.
    Recipe { segment: u32, offset: u32, bytes: u32 },
}

impl Place {
    /// The place of what is in a large file of so many bytes.
    pub(crate) fn large(file: u64, encoding: Encoding, file_bytes: u64) -> Self {
        Self::Large { file, encoding, kib: u32::try_from(file_bytes.div_ceil(1024)).unwrap_or(u32::MAX) }
    }

    /// The segment that holds the record, if it is in one.
    pub(crate) const fn segment(&self) -> Option<u32> {
        match *self {
            Self::Segment { segment, .. } | Self::View { segment, .. } | Self::Recipe { segment, .. } => Some(segment),
            Self::Large { .. } => None,
        }
    }

    /// Segment, offset and payload bytes of the record, if it is in a segment.
    pub(crate) const fn record(&self) -> Option<(u32, u32, u32)> {
        match *self {
            Self::Segment { segment, offset, bytes, .. }
            | Self::View { segment, offset, bytes }
            | Self::Recipe { segment, offset, bytes } => Some((segment, offset, bytes)),
            Self::Large { .. } => None,
        }
    }

    /// Whether reading it depends on other blobs.
    pub(crate) const fn has_dependencies(&self) -> bool {
        matches!(self, Self::View { .. } | Self::Recipe { .. })
    }

    const fn form(&self) -> u8 {
        match self {
            Self::Segment { encoding: Encoding::Identity, .. } => 1,
            Self::Segment { encoding: Encoding::Zstd, .. } => 2,
            Self::Large { encoding: Encoding::Identity, .. } => 3,
            Self::Large { encoding: Encoding::Zstd, .. } => 4,
            Self::View { .. } => 5,
            Self::Recipe { .. } => 6,
        }
    }
}

/// What the index keeps of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub key: IndexKey,
    pub place: Place,
    /// Of a blob: its size. Of an entry: the payload's size. Of a sharing, and of a grant: the number of the sharing. Of a
    /// promise: the second until which it holds; 0 for one that was let go.
    pub size_bytes: u64,
    /// Seconds since 1970 of the last touch, at most [`crate::disk::lease`]'s grain too old.
    pub touched: u32,
    pub owner: OwnerId,
}

/// How a slot is written in the table: 32 bytes of key, class, form, segment (4), offset (4), bytes (4), size (6),
/// touched (4), owner (4), check (4). In place of segment, offset and bytes: file (8), KiB at rest (4).
pub(crate) type RawSlot = [u8; SLOT_BYTES];

/// A slot as found in a table.
pub(crate) enum Cell {
    Empty,
    Removed,
    Taken,
}

/// What nothing was written to: an empty slot of the first layout. In all later ones it is damage.
pub(crate) const UNWRITTEN: RawSlot = [0; SLOT_BYTES];

/// A slot that holds nothing. It has a check like the others: what the disk gives back as zeros must not read as absence.
pub(crate) fn empty_slot() -> RawSlot {
    let mut raw = UNWRITTEN;
    seal(&mut raw);
    raw
}

pub(crate) fn cell(raw: &RawSlot) -> Cell {
    match raw[32] {
        EMPTY => Cell::Empty,
        REMOVED => Cell::Removed,
        _ => Cell::Taken,
    }
}

/// What is left in place of a slot that was removed: searches go on past it.
pub(crate) fn removed_slot() -> RawSlot {
    let mut raw = UNWRITTEN;
    raw[32] = REMOVED;
    seal(&mut raw);
    raw
}

/// Whether a taken slot has this key.
pub(crate) fn holds(raw: &RawSlot, key: &IndexKey) -> bool {
    raw[..32] == key.bytes && raw[32] == key.class as u8
}

/// Whether a slot is as it was written.
pub(crate) fn is_sound(raw: &RawSlot) -> bool {
    match cell(raw) {
        Cell::Empty => *raw == empty_slot(),
        Cell::Removed => *raw == removed_slot(),
        Cell::Taken => u32::from_le_bytes(array(raw, 60)) == check(raw) && decode(raw).is_some(),
    }
}

pub(crate) fn encode(slot: &Slot) -> RawSlot {
    let mut raw = UNWRITTEN;
    raw[..32].copy_from_slice(&slot.key.bytes);
    raw[32] = slot.key.class as u8;
    raw[33] = slot.place.form();
    match slot.place {
        Place::Segment { segment, offset, bytes, .. }
        | Place::View { segment, offset, bytes }
        | Place::Recipe { segment, offset, bytes } => {
            raw[34..38].copy_from_slice(&segment.to_le_bytes());
            raw[38..42].copy_from_slice(&offset.to_le_bytes());
            raw[42..46].copy_from_slice(&bytes.to_le_bytes());
        }
        Place::Large { file, kib, .. } => {
            raw[34..42].copy_from_slice(&file.to_le_bytes());
            raw[42..46].copy_from_slice(&kib.to_le_bytes());
        }
    }
    raw[46..52].copy_from_slice(&slot.size_bytes.to_le_bytes()[..6]);
    raw[52..56].copy_from_slice(&slot.touched.to_le_bytes());
    raw[56..60].copy_from_slice(&slot.owner.0.to_le_bytes());
    seal(&mut raw);
    raw
}

/// Reads a taken slot; `None` when class or form is none that we write.
pub(crate) fn decode(raw: &RawSlot) -> Option<Slot> {
    let class = match raw[32] {
        1 => KeyClass::Sha256Blob,
        2 => KeyClass::Blake3Blob,
        3 => KeyClass::Entry,
        4 => KeyClass::Grant,
        5 => KeyClass::Sharing,
        6 => KeyClass::Sha256Promise,
        7 => KeyClass::Blake3Promise,
        _ => return None,
    };
    let segment = u32::from_le_bytes(array(raw, 34));
    let offset = u32::from_le_bytes(array(raw, 38));
    let bytes = u32::from_le_bytes(array(raw, 42));
    let file = u64::from_le_bytes(array(raw, 34));
    let place = match raw[33] {
        1 => Place::Segment { segment, offset, bytes, encoding: Encoding::Identity },
        2 => Place::Segment { segment, offset, bytes, encoding: Encoding::Zstd },
        3 => Place::Large { file, encoding: Encoding::Identity, kib: bytes },
        4 => Place::Large { file, encoding: Encoding::Zstd, kib: bytes },
        5 => Place::View { segment, offset, bytes },
        6 => Place::Recipe { segment, offset, bytes },
        _ => return None,
    };
    let mut size = [0; 8];
    size[..6].copy_from_slice(&raw[46..52]);
    Some(Slot {
        key: IndexKey { class, bytes: array(raw, 0) },
        place,
        size_bytes: u64::from_le_bytes(size),
        touched: u32::from_le_bytes(array(raw, 52)),
        owner: OwnerId(u32::from_le_bytes(array(raw, 56))),
    })
}

fn seal(raw: &mut RawSlot) {
    let check = check(raw);
    raw[60..64].copy_from_slice(&check.to_le_bytes());
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is the check")]
fn check(raw: &RawSlot) -> u32 {
    xxh3_64(&raw[..60]) as u32
}

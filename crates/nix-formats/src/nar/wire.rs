//! The words of the format. Every string is its length (8 bytes, little end first), its bytes, and zeros up to a
//! multiple of 8; an archive is nothing but strings, so everything starts at a multiple of 8.

pub(super) const MAGIC: &[u8] = b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0";
/// The beginning of every node; its type follows.
pub(super) const NODE: &[u8] = b"\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0type\0\0\0\0";
pub(super) const REGULAR: &[u8] = b"\x07\0\0\0\0\0\0\0regular\0";
pub(super) const SYMLINK: &[u8] = b"\x07\0\0\0\0\0\0\0symlink\0";
pub(super) const DIRECTORY: &[u8] = b"\x09\0\0\0\0\0\0\0directory\0\0\0\0\0\0\0";
pub(super) const CONTENTS: &[u8] = b"\x08\0\0\0\0\0\0\0contents";
/// With the empty string that is its value.
pub(super) const EXECUTABLE: &[u8] = b"\x0a\0\0\0\0\0\0\0executable\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
pub(super) const TARGET: &[u8] = b"\x06\0\0\0\0\0\0\0target\0\0";
pub(super) const ENTRY: &[u8] = b"\x05\0\0\0\0\0\0\0entry\0\0\0";
/// What stands before the name of an entry.
pub(super) const NAME: &[u8] = b"\x01\0\0\0\0\0\0\0(\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0name\0\0\0\0";
pub(super) const ENTRY_NODE: &[u8] = b"\x04\0\0\0\0\0\0\0node\0\0\0\0";
/// The end of a node, and of an entry.
pub(super) const CLOSE: &[u8] = b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0";

/// Zeros after a string or the contents of a file of `length` bytes.
pub(super) const fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}

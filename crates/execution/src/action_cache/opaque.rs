//! How bytes that are no action result are kept: as a blob, under an entry that names it.
//!
//! ```text
//! byte 0       version: 1
//! byte 1       the number of the digest function
//! bytes 2-33   the hash
//! bytes 34-41  the size, little-endian
//! ```
//!
//! They may be large (ccache keeps object files so), and entries are meant to be small.

use bytes::{BufMut, Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction};

const VERSION: u8 = 1;
const ENTRY_BYTES: usize = 42;

pub(super) fn write(digest: Digest) -> Bytes {
    let mut value = BytesMut::with_capacity(ENTRY_BYTES);
    value.put_u8(VERSION);
    value.put_u8(digest.function() as u8);
    value.put_slice(digest.hash());
    value.put_u64_le(digest.size_bytes());
    value.freeze()
}

/// `None` for a value of another version, which is as good as none.
pub(super) fn read(value: &[u8]) -> Option<Digest> {
    let [VERSION, function, rest @ ..] = value else { return None };
    let function = DigestFunction::from_number(i32::from(*function))?;
    let (hash, size) = rest.split_first_chunk::<32>()?;
    Some(Digest::new(function, *hash, u64::from_le_bytes(size.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let digest = Digest::of(DigestFunction::Blake3, b"opaque");
        let value = write(digest);
        assert_eq!((value.len(), read(&value)), (ENTRY_BYTES, Some(digest)));
        assert_eq!(read(&value[..41]), None);
        assert_eq!(read(&[2; ENTRY_BYTES]), None);
    }
}

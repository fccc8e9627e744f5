//! How bytes that are no action result are kept: as a blob, under an entry that names it.
//!
//! ```text
//! byte 0       version: 2
//! byte 1       the number of the digest function
//! bytes 2-33   the hash
//! bytes 34-41  the size, little-endian
//! then         who wrote it: not in version 1
//! ```
//!
//! They may be large (ccache keeps object files so), and entries are meant to be small.

use bytes::{BufMut, Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction};

use super::Provenance;

const NAMELESS: u8 = 1;
const VERSION: u8 = 2;
const ENTRY_BYTES: usize = 42;

pub(crate) fn write(digest: Digest, provenance: &Provenance) -> Bytes {
    let mut value = BytesMut::with_capacity(ENTRY_BYTES + provenance.encoded_len());
    value.put_u8(VERSION);
    value.put_u8(digest.function() as u8);
    value.put_slice(digest.hash());
    value.put_u64_le(digest.size_bytes());
    provenance.encode(&mut value);
    value.freeze()
}

/// `None` for a value of another version, which is as good as none.
pub(crate) fn read(value: &[u8]) -> Option<Digest> {
    let [NAMELESS | VERSION, function, rest @ ..] = value else { return None };
    let function = DigestFunction::from_number(i32::from(*function))?;
    let (hash, rest) = rest.split_first_chunk::<32>()?;
    let (size, _) = rest.split_first_chunk::<8>()?;
    Some(Digest::new(function, *hash, u64::from_le_bytes(*size)))
}

/// Who wrote it; `None` when that was not kept yet.
pub(crate) fn provenance(value: &Bytes) -> Option<Provenance> {
    (value.first() == Some(&VERSION) && value.len() > ENTRY_BYTES)
        .then(|| Provenance::decode(&value.slice(ENTRY_BYTES..)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let digest = Digest::of(DigestFunction::Blake3, b"opaque");
        let written = Provenance { written_ms: 7, principal: "token:7".to_owned(), ..Provenance::default() };
        let value = write(digest, &written);
        assert_eq!((read(&value), provenance(&value)), (Some(digest), Some(written)));
        assert_eq!(read(&value[..41]), None);
        assert_eq!(read(&[3; ENTRY_BYTES]), None);
        let nameless = [&[NAMELESS], &value[1..ENTRY_BYTES]].concat();
        assert_eq!((read(&nameless), provenance(&nameless.into())), (Some(digest), None));
    }
}

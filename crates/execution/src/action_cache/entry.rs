//! How an action result is kept: with the digests that must be there for it to be shown.
//!
//! ```text
//! byte 0       version: 1
//! byte 1       flags: bit 0, the closure is known; bit 1, the size of the action is known
//! bytes 2-3    zero
//! bytes 4-7    n, the number of digests in the closure, little-endian
//! bytes 8-15   the size of the action in bytes, little-endian
//! n x 40       the closure: 32 bytes of hash, 8 of size, little-endian; all of the action's digest function
//! the rest     the encoded ActionResult
//! ```
//!
//! A hit needs no protobuf: the closure is asked for as it stands, and the result is sent as it stands.

use bytes::{BufMut, Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::ActionResult;
use prost::Message;

const VERSION: u8 = 1;
const CLOSURE_KNOWN: u8 = 1;
const ACTION_SIZE_KNOWN: u8 = 2;
const HEADER_BYTES: usize = 16;
const DIGEST_BYTES: usize = 40;

/// A closure of more digests is not kept but found anew at every look-up: an entry is meant to be small.
const MAX_CLOSURE: usize = 16 * 1024;

/// An action result as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The encoded `ActionResult`.
    pub(super) result: Bytes,
    /// The size of the action; unknown when the result came without it.
    pub(super) action_size_bytes: Option<u64>,
    /// The bytes of the closure, as they stand.
    closure: Option<Bytes>,
}

impl Entry {
    /// Takes a stored value apart; `None` for one of another version, which is as good as none.
    pub(super) fn read(value: &Bytes) -> Option<Self> {
        let header = value.first_chunk::<HEADER_BYTES>()?;
        let [version, flags, _, _, n0, n1, n2, n3, size @ ..] = *header;
        if version != VERSION {
            return None;
        }
        let count = usize::try_from(u32::from_le_bytes([n0, n1, n2, n3])).ok()?;
        let result_at = HEADER_BYTES.checked_add(count.checked_mul(DIGEST_BYTES)?)?;
        if result_at > value.len() {
            return None;
        }
        let closure = (flags & CLOSURE_KNOWN != 0).then(|| value.slice(HEADER_BYTES..result_at));
        let action_size_bytes = (flags & ACTION_SIZE_KNOWN != 0).then_some(u64::from_le_bytes(size));
        Some(Self { result: value.slice(result_at..), action_size_bytes, closure })
    }

    /// The digests that must be there; `None` when they are not known yet.
    pub(super) fn closure(&self, function: DigestFunction) -> Option<Vec<Digest>> {
        let bytes = self.closure.as_ref()?;
        let (digests, _) = bytes.as_chunks::<DIGEST_BYTES>();
        Some(digests.iter().map(|bytes| read_digest(function, bytes)).collect())
    }

    /// The stored value of a result; the result itself is the last bytes of it.
    pub(super) fn write(action_size_bytes: Option<u64>, closure: Option<&[Digest]>, result: &ActionResult) -> Value {
        let result_bytes = result.encoded_len();
        let mut value = begin(action_size_bytes, closure, result_bytes);
        let result_at = value.len();
        // The buffer grows as needed, so that encoding cannot run out of space.
        result.encode_raw(&mut value);
        Value { bytes: value.freeze(), result_at }
    }

    /// The stored value of this entry with a closure.
    pub(super) fn with_closure(&self, closure: &[Digest]) -> Bytes {
        let mut value = begin(self.action_size_bytes, Some(closure), self.result.len());
        value.extend_from_slice(&self.result);
        value.freeze()
    }
}

/// A stored value that was just written.
pub(super) struct Value {
    pub(super) bytes: Bytes,
    result_at: usize,
}

impl Value {
    /// The encoded `ActionResult` in it.
    pub(super) fn result(&self) -> Bytes {
        self.bytes.slice(self.result_at..)
    }
}

fn begin(action_size_bytes: Option<u64>, closure: Option<&[Digest]>, result_bytes: usize) -> BytesMut {
    let closure = closure.filter(|closure| closure.len() <= MAX_CLOSURE);
    let digests = closure.unwrap_or_default();
    let mut value = BytesMut::with_capacity(HEADER_BYTES + digests.len() * DIGEST_BYTES + result_bytes);
    let known = |is_known, flag| if is_known { flag } else { 0 };
    value.put_u8(VERSION);
    value.put_u8(known(closure.is_some(), CLOSURE_KNOWN) | known(action_size_bytes.is_some(), ACTION_SIZE_KNOWN));
    value.put_u16_le(0);
    value.put_u32_le(u32::try_from(digests.len()).unwrap_or_default());
    value.put_u64_le(action_size_bytes.unwrap_or_default());
    for digest in digests {
        value.put_slice(digest.hash());
        value.put_u64_le(digest.size_bytes());
    }
    value
}

fn read_digest(function: DigestFunction, bytes: &[u8; DIGEST_BYTES]) -> Digest {
    let [hash @ .., s0, s1, s2, s3, s4, s5, s6, s7] = *bytes;
    Digest::new(function, hash, u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: DigestFunction = DigestFunction::Blake3;

    fn digests(count: usize) -> Vec<Digest> {
        (0..count).map(|at| Digest::of(FUNCTION, &at.to_le_bytes())).collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let result = ActionResult { exit_code: 7, ..ActionResult::default() };
        for (size, closure) in [(None, None), (Some(142), Some(digests(3))), (Some(0), Some(Vec::new()))] {
            let value = Entry::write(size, closure.as_deref(), &result);
            let entry = Entry::read(&value.bytes).unwrap();
            assert_eq!(entry.result, result.encode_to_vec());
            assert_eq!(entry.result, value.result());
            assert_eq!(entry.action_size_bytes, size);
            assert_eq!(entry.closure(FUNCTION), closure);
        }
    }

    #[test]
    fn a_closure_is_added_later_unless_it_is_large() {
        let value = Entry::write(Some(9), None, &ActionResult { exit_code: 1, ..ActionResult::default() });
        let entry = Entry::read(&value.bytes).unwrap();
        let filled = Entry::read(&entry.with_closure(&digests(2))).unwrap();
        assert_eq!(filled.closure(FUNCTION), Some(digests(2)));
        assert_eq!((filled.result, filled.action_size_bytes), (entry.result.clone(), Some(9)));
        let large = Entry::read(&entry.with_closure(&digests(MAX_CLOSURE + 1))).unwrap();
        assert_eq!(large.closure(FUNCTION), None);
    }

    #[test]
    fn a_torn_or_newer_value_is_none() {
        let value = Entry::write(None, Some(&digests(2)), &ActionResult::default()).bytes;
        for cut in [0, 1, 15, 16, 95] {
            assert_eq!(Entry::read(&value.slice(..cut)), None, "{cut}");
        }
        let mut newer = value.to_vec();
        newer[0] = 2;
        assert_eq!(Entry::read(&newer.into()), None);
    }
}

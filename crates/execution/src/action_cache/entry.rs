//! How an action result is kept: with the digests that must be there for it to be shown.
//!
//! ```text
//! byte 0       version: 2; 1 is the same without provenance
//! byte 1       flags: bit 0, the closure is known; bit 1, the size of the action is known
//! bytes 2-3    p, the length of the provenance in bytes, little-endian
//! bytes 4-7    n, the number of digests in the closure, little-endian
//! bytes 8-15   the size of the action in bytes, little-endian
//! n x 40       the closure: 32 bytes of hash, 8 of size, little-endian; all of the action's digest function
//! p bytes      who wrote it: see [`super::provenance`]
//! the rest     the encoded ActionResult
//! ```
//!
//! A hit needs no protobuf: the closure is asked for as it stands, and the result is sent as it stands.

use bytes::{BufMut, Bytes, BytesMut};
use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::ActionResult;
use prost::Message;

use super::provenance::Provenance;

const VERSION: u8 = 2;
const WITHOUT_PROVENANCE: u8 = 1;
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
    /// Who wrote it, as it stands.
    provenance: Bytes,
}

impl Entry {
    /// Takes a stored value apart; `None` for one of another version, which is as good as none.
    pub(super) fn read(value: &Bytes) -> Option<Self> {
        let header = value.first_chunk::<HEADER_BYTES>()?;
        let [version, flags, p0, p1, n0, n1, n2, n3, size @ ..] = *header;
        let provenance_bytes = match version {
            VERSION => usize::from(u16::from_le_bytes([p0, p1])),
            WITHOUT_PROVENANCE => 0,
            _ => return None,
        };
        let count = usize::try_from(u32::from_le_bytes([n0, n1, n2, n3])).ok()?;
        let provenance_at = HEADER_BYTES.checked_add(count.checked_mul(DIGEST_BYTES)?)?;
        let result_at = provenance_at.checked_add(provenance_bytes)?;
        if result_at > value.len() {
            return None;
        }
        let closure = (flags & CLOSURE_KNOWN != 0).then(|| value.slice(HEADER_BYTES..provenance_at));
        let action_size_bytes = (flags & ACTION_SIZE_KNOWN != 0).then_some(u64::from_le_bytes(size));
        let provenance = value.slice(provenance_at..result_at);
        Some(Self { result: value.slice(result_at..), action_size_bytes, closure, provenance })
    }

    /// Who wrote it; `None` for one that was written before this was kept.
    pub(super) fn provenance(&self) -> Option<Provenance> {
        Provenance::decode(&self.provenance)
    }

    /// The digests that must be there; `None` when they are not known yet.
    pub(super) fn closure(&self, function: DigestFunction) -> Option<Vec<Digest>> {
        let bytes = self.closure.as_ref()?;
        let (digests, _) = bytes.as_chunks::<DIGEST_BYTES>();
        Some(digests.iter().map(|bytes| read_digest(function, bytes)).collect())
    }

    /// The stored value of a result; the result itself is the last bytes of it.
    pub(super) fn write(
        action_size_bytes: Option<u64>,
        closure: Option<&[Digest]>,
        provenance: &Provenance,
        result: &ActionResult,
    ) -> Value {
        let (provenance_bytes, result_bytes) = (provenance.encoded_len(), result.encoded_len());
        let mut value = begin(action_size_bytes, closure, provenance_bytes, result_bytes);
        provenance.encode(&mut value);
        let result_at = value.len();
        // The buffer grows as needed, so that encoding cannot run out of space.
        result.encode_raw(&mut value);
        Value { bytes: value.freeze(), result_at }
    }

    /// The stored value of this entry with a closure.
    pub(super) fn with_closure(&self, closure: &[Digest]) -> Bytes {
        let mut value = begin(self.action_size_bytes, Some(closure), self.provenance.len(), self.result.len());
        value.extend_from_slice(&self.provenance);
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

fn begin(
    action_size_bytes: Option<u64>,
    closure: Option<&[Digest]>,
    provenance_bytes: usize,
    result_bytes: usize,
) -> BytesMut {
    let closure = closure.filter(|closure| closure.len() <= MAX_CLOSURE);
    let digests = closure.unwrap_or_default();
    let bytes = HEADER_BYTES + digests.len() * DIGEST_BYTES + provenance_bytes + result_bytes;
    let mut value = BytesMut::with_capacity(bytes);
    let known = |is_known, flag| if is_known { flag } else { 0 };
    value.put_u8(VERSION);
    value.put_u8(known(closure.is_some(), CLOSURE_KNOWN) | known(action_size_bytes.is_some(), ACTION_SIZE_KNOWN));
    value.put_u16_le(u16::try_from(provenance_bytes).unwrap_or_default());
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
            let provenance = Provenance { principal: "token:7".to_owned(), written_ms: 5, ..Provenance::default() };
            let value = Entry::write(size, closure.as_deref(), &provenance, &result);
            let entry = Entry::read(&value.bytes).unwrap();
            assert_eq!(entry.result, result.encode_to_vec());
            assert_eq!(entry.result, value.result());
            assert_eq!(entry.action_size_bytes, size);
            assert_eq!(entry.closure(FUNCTION), closure);
            assert_eq!(entry.provenance(), Some(provenance));
        }
    }

    /// A server that was upgraded has these.
    #[test]
    fn a_value_of_the_first_version_is_still_read() {
        let result = ActionResult { exit_code: 7, ..ActionResult::default() }.encode_to_vec();
        let header = [1, 3, 0, 0, 1, 0, 0, 0, 142, 0, 0, 0, 0, 0, 0, 0];
        let digest = digests(1)[0];
        let size = digest.size_bytes().to_le_bytes();
        let value = Bytes::from([&header[..], digest.hash(), &size, &result].concat());
        let entry = Entry::read(&value).unwrap();
        assert_eq!((entry.action_size_bytes, entry.closure(FUNCTION)), (Some(142), Some(vec![digest])));
        assert_eq!((entry.provenance(), entry.result), (None, Bytes::from(result)));
    }

    #[test]
    fn a_closure_is_added_later_unless_it_is_large() {
        let provenance = Provenance { worker: "w".to_owned(), ..Provenance::default() };
        let value = Entry::write(Some(9), None, &provenance, &ActionResult { exit_code: 1, ..ActionResult::default() });
        let entry = Entry::read(&value.bytes).unwrap();
        let filled = Entry::read(&entry.with_closure(&digests(2))).unwrap();
        assert_eq!(filled.closure(FUNCTION), Some(digests(2)));
        assert_eq!((&filled.result, filled.action_size_bytes), (&entry.result, Some(9)));
        assert_eq!(filled.provenance(), Some(provenance));
        let large = Entry::read(&entry.with_closure(&digests(MAX_CLOSURE + 1))).unwrap();
        assert_eq!(large.closure(FUNCTION), None);
    }

    #[test]
    fn a_torn_or_newer_value_is_none() {
        let value = Entry::write(None, Some(&digests(2)), &Provenance::default(), &ActionResult::default()).bytes;
        for cut in [0, 1, 15, 16, 95, 106] {
            assert_eq!(Entry::read(&value.slice(..cut)), None, "{cut}");
        }
        let mut newer = value.to_vec();
        newer[0] = 3;
        assert_eq!(Entry::read(&newer.into()), None);
    }
}

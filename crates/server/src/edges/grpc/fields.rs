//! Counting the fields of a message before it is decoded.
//!
//! An empty entry of a list takes two bytes on the wire and a hundred in memory, so a message within the limit of its
//! size could decode to gigabytes. Real entries (a digest, a blob, an output) take 48 bytes and more.

use bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// So many fields are always allowed.
const FREE: usize = 1024;

/// Beyond them, one for so many bytes.
const BYTES_A_FIELD: usize = 48;

/// Whether a message has no more fields than its size justifies. Those of the message in the field `nested` count too.
/// What cannot be read is left to the decoder, which says what is wrong.
pub(in crate::edges) fn are_few(message: &[u8], nested: Option<u32>) -> bool {
    let allowed = FREE + message.len() / BYTES_A_FIELD;
    message.len() < FREE || count(message, nested, allowed).is_none_or(|count| count <= allowed)
}

/// Counts, at most to just over `allowed`; `None` when the message is malformed.
fn count(mut message: &[u8], nested: Option<u32>, allowed: usize) -> Option<usize> {
    let mut count = 0;
    while message.has_remaining() && count <= allowed {
        count += 1;
        let (tag, wire_type) = decode_key(&mut message).ok()?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut message).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut message).ok()?).ok()?,
            // Groups are none of ours; the decoder bounds how deep it follows them.
            WireType::StartGroup | WireType::EndGroup => 0,
        };
        let content = message.get(..length)?;
        if nested == Some(tag) {
            count += self::count(content, None, allowed)?;
        }
        message.advance(length);
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use gf_digest::{Digest, DigestFunction};
    use gf_reapi::execution::{ActionResult, FindMissingBlobsRequest, OutputFile, UpdateActionResultRequest};
    use prost::Message;

    use super::*;

    #[test]
    fn real_lists_are_few_and_empty_entries_are_not() {
        let digest = || Digest::of(DigestFunction::Sha256, b"x").into();
        let real = FindMissingBlobsRequest {
            blob_digests: (0..50_000).map(|_| digest()).collect(),
            ..FindMissingBlobsRequest::default()
        };
        assert!(are_few(&real.encode_to_vec(), None));
        assert!(!are_few(&[0x12, 0].repeat(1 << 20), None));
        // A large blob of such bytes is one field.
        let blob = gf_reapi::bytestream::WriteRequest {
            data: [0x12, 0].repeat(1 << 20).into(),
            ..gf_reapi::bytestream::WriteRequest::default()
        };
        assert!(are_few(&blob.encode_to_vec(), Some(3)));
    }

    #[test]
    fn lists_within_an_action_result_count() {
        let update = |output: OutputFile| {
            let output_files = vec![output; 20_000];
            let action_result = Some(ActionResult { output_files, ..ActionResult::default() });
            UpdateActionResultRequest { action_result, ..UpdateActionResultRequest::default() }.encode_to_vec()
        };
        let digest = Some(Digest::of(DigestFunction::Sha256, b"x").into());
        assert!(are_few(&update(OutputFile { path: "a".into(), digest, ..OutputFile::default() }), Some(3)));
        assert!(!are_few(&update(OutputFile::default()), Some(3)));
    }
}

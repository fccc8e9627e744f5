//! Counting the fields of a message before it is decoded.
//!
//! An empty entry of a list takes two bytes on the wire and a hundred in memory, so a message within the limit of its
//! size could decode to gigabytes. Real entries (a digest, a blob, an output) take 48 bytes and more.

use bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// So many fields are always allowed: entries may be short, such as links.
const FREE: usize = 16 * 1024;

/// Beyond them, one for so many bytes.
const BYTES_A_FIELD: usize = 48;

/// What of a message counts, and which fields hold messages that have lists, too.
#[derive(Clone, Copy, Debug)]
pub(in crate::edges) struct Lists {
    has_own: bool,
    within: &'static [(u32, Self)],
}

impl Lists {
    /// A message whose lists hold none that have lists.
    pub(in crate::edges) const FLAT: Self = Self::with(&[]);

    /// A message with lists, of which the messages in these fields have some as well.
    pub(in crate::edges) const fn with(within: &'static [(u32, Self)]) -> Self {
        Self { has_own: true, within }
    }

    /// A message without lists, so that its fields are few by nature, but for those of the messages in these fields.
    pub(in crate::edges) const fn only_within(within: &'static [(u32, Self)]) -> Self {
        Self { has_own: false, within }
    }
}

/// Whether a message has no more fields than its size justifies. What cannot be read is left to the decoder, which says
/// what is wrong.
pub(in crate::edges) fn are_few(message: &[u8], lists: Lists) -> bool {
    let allowed = FREE + message.len() / BYTES_A_FIELD;
    message.len() < FREE || count(message, lists, allowed).is_none_or(|count| count <= allowed)
}

/// Counts, at most to just over `allowed`; `None` when the message is malformed.
fn count(mut message: &[u8], lists: Lists, allowed: usize) -> Option<usize> {
    let mut count = 0;
    while message.has_remaining() && count <= allowed {
        count += usize::from(lists.has_own);
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
        if let Some((_, inner)) = lists.within.iter().find(|(field, _)| *field == tag) {
            count += self::count(content, *inner, allowed)?;
        }
        message.advance(length);
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use gf_digest::{Digest, DigestFunction};
    use gf_reapi::execution::{
        ActionResult, FindMissingBlobsRequest, NodeProperties, NodeProperty, OutputFile, UpdateActionResultRequest,
    };
    use prost::Message;

    use super::*;

    const FILE: Lists = Lists::only_within(&[(7, Lists::FLAT)]);
    const UPDATE: Lists = Lists::with(&[(3, Lists::with(&[(2, FILE)]))]);

    #[test]
    fn real_lists_are_few_and_empty_entries_are_not() {
        let digest = || Digest::of(DigestFunction::Sha256, b"x").into();
        let real = FindMissingBlobsRequest {
            blob_digests: (0..50_000).map(|_| digest()).collect(),
            ..FindMissingBlobsRequest::default()
        };
        assert!(are_few(&real.encode_to_vec(), Lists::FLAT));
        assert!(!are_few(&[0x12, 0].repeat(1 << 20), Lists::FLAT));
        // A large blob of such bytes is one field.
        let blob = gf_reapi::bytestream::WriteRequest {
            data: [0x12, 0].repeat(1 << 20).into(),
            ..gf_reapi::bytestream::WriteRequest::default()
        };
        assert!(are_few(&blob.encode_to_vec(), UPDATE));
    }

    #[test]
    fn lists_within_an_action_result_count() {
        let update = |output: OutputFile| {
            let output_files = vec![output; 20_000];
            let action_result = Some(ActionResult { output_files, ..ActionResult::default() });
            UpdateActionResultRequest { action_result, ..UpdateActionResultRequest::default() }.encode_to_vec()
        };
        let digest = Some(Digest::of(DigestFunction::Sha256, b"x").into());
        assert!(are_few(&update(OutputFile { path: "a".into(), digest, ..OutputFile::default() }), UPDATE));
        assert!(!are_few(&update(OutputFile::default()), UPDATE));
        // Deeper, too: the one list of a message that counts for nothing by itself.
        let properties = vec![NodeProperty::default(); 20_000];
        let node_properties = Some(NodeProperties { properties, ..NodeProperties::default() });
        let result = ActionResult {
            output_files: vec![OutputFile { node_properties, ..OutputFile::default() }],
            ..ActionResult::default()
        };
        let update = UpdateActionResultRequest { action_result: Some(result), ..UpdateActionResultRequest::default() };
        assert!(!are_few(&update.encode_to_vec(), UPDATE));
    }
}

//! A digest as a message carries it: not yet checked, and without an allocation for every hash.

use std::fmt;
use std::hash::{Hash, Hasher};

use bytes::{Buf, BufMut};
use gf_digest::{Digest, DigestError, DigestFunction};
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_varint, encode_key, encode_varint, encoded_len_varint, int64,
    key_len, skip_field,
};
use prost::{DecodeError, Message, Name};

/// The message `build.bazel.remote.execution.v2.Digest`, holding whatever text a peer sent as the hash.
///
/// Written by hand because a server decodes hundreds of them in one call: a hash of up to 64 bytes, which every
/// well-formed one of the served functions is, lies in the value itself. A longer one is kept on the heap, and one
/// beyond [`WireDigest::MAX_HASH_BYTES`] makes the whole message undecodable.
#[derive(Clone, Default)]
pub struct WireDigest {
    hash: HashText,
    /// Size of the blob as the peer gave it; may be negative.
    pub size_bytes: i64,
}

const INLINE_BYTES: usize = 64;

/// UTF-8 text; both variants are checked when they are made. A text that fits is always inline.
#[derive(Clone)]
enum HashText {
    Inline { length: u8, bytes: [u8; INLINE_BYTES] },
    Long(Box<str>),
}

impl WireDigest {
    /// The longest hash that is decoded, in bytes. The longest hash of the specification has 128.
    pub const MAX_HASH_BYTES: usize = 1024;

    /// A digest of any text and number, right or wrong.
    #[must_use]
    pub fn from_text(hash: &str, size_bytes: i64) -> Self {
        Self { hash: HashText::new(hash), size_bytes }
    }

    /// The hash as the peer wrote it.
    #[must_use]
    pub fn hash(&self) -> &str {
        self.hash.as_str()
    }

    /// Checks hash and size.
    ///
    /// # Errors
    /// [`DigestError`] when the hash is not one of `function`, or the size is negative.
    pub fn to_digest(&self, function: DigestFunction) -> Result<Digest, DigestError> {
        Digest::parse(function, self.hash(), self.size_bytes)
    }
}

impl HashText {
    fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(target), Ok(length)) => {
                target.copy_from_slice(text.as_bytes());
                Self::Inline { length, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(text) => text.as_bytes(),
        }
    }

    fn as_str(&self) -> &str {
        // Checked when it was made, so this is never the fallback.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn decode(buffer: &mut impl Buf) -> Result<Self, DecodeError> {
        let announced = decode_varint(buffer)?;
        if announced > buffer.remaining() as u64 {
            return Err(refuse("the hash of a digest ends before its announced length"));
        }
        let length = match usize::try_from(announced) {
            Ok(length) if length <= WireDigest::MAX_HASH_BYTES => length,
            _ => return Err(refuse("the hash of a digest is longer than 1024 bytes")),
        };
        let mut bytes = [0; INLINE_BYTES];
        let (Some(target), Ok(short)) = (bytes.get_mut(..length), u8::try_from(length)) else {
            return Self::decode_long(length, buffer);
        };
        buffer.copy_to_slice(target);
        match std::str::from_utf8(target) {
            Ok(_) => Ok(Self::Inline { length: short, bytes }),
            Err(_) => Err(refuse("the hash of a digest is not UTF-8")),
        }
    }

    #[cold]
    fn decode_long(length: usize, buffer: &mut impl Buf) -> Result<Self, DecodeError> {
        let mut bytes = vec![0; length];
        buffer.copy_to_slice(&mut bytes);
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::Long(text.into_boxed_str())),
            Err(_) => Err(refuse("the hash of a digest is not UTF-8")),
        }
    }
}

impl Default for HashText {
    fn default() -> Self {
        Self::Inline { length: 0, bytes: [0; INLINE_BYTES] }
    }
}

/// The library offers a hand-written message no other way to say why it refuses its bytes.
#[cold]
#[expect(deprecated, reason = "the only public constructor of a decoding error")]
fn refuse(reason: &'static str) -> DecodeError {
    DecodeError::new(reason)
}

const HASH_TAG: u32 = 1;
const SIZE_BYTES_TAG: u32 = 2;

impl Message for WireDigest {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        let hash = self.hash.as_bytes();
        if !hash.is_empty() {
            encode_key(HASH_TAG, WireType::LengthDelimited, buffer);
            encode_varint(hash.len() as u64, buffer);
            buffer.put_slice(hash);
        }
        if self.size_bytes != 0 {
            int64::encode(SIZE_BYTES_TAG, &self.size_bytes, buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            HASH_TAG => check_wire_type(WireType::LengthDelimited, wire_type)
                .and_then(|()| HashText::decode(buffer))
                .map(|hash| self.hash = hash)
                .map_err(|error| in_field(error, "hash")),
            SIZE_BYTES_TAG => int64::merge(wire_type, &mut self.size_bytes, buffer, context)
                .map_err(|error| in_field(error, "size_bytes")),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let hash = match self.hash.as_bytes().len() {
            0 => 0,
            length => key_len(HASH_TAG) + encoded_len_varint(length as u64) + length,
        };
        let size = if self.size_bytes == 0 { 0 } else { int64::encoded_len(SIZE_BYTES_TAG, &self.size_bytes) };
        hash + size
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn in_field(mut error: DecodeError, field: &'static str) -> DecodeError {
    error.push("Digest", field);
    error
}

impl Name for WireDigest {
    const NAME: &'static str = "Digest";
    const PACKAGE: &'static str = "build.bazel.remote.execution.v2";

    fn type_url() -> String {
        format!("type.googleapis.com/{}", Self::full_name())
    }
}

impl From<&Digest> for WireDigest {
    fn from(digest: &Digest) -> Self {
        Self {
            hash: HashText::Inline { length: 64, bytes: *digest.hash_hex().as_bytes() },
            size_bytes: i64::try_from(digest.size_bytes()).unwrap_or(i64::MAX),
        }
    }
}

impl From<Digest> for WireDigest {
    fn from(digest: Digest) -> Self {
        Self::from(&digest)
    }
}

impl PartialEq for WireDigest {
    fn eq(&self, other: &Self) -> bool {
        self.size_bytes == other.size_bytes && self.hash.as_bytes() == other.hash.as_bytes()
    }
}

impl Eq for WireDigest {}

impl Hash for WireDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.as_bytes().hash(state);
        self.size_bytes.hash(state);
    }
}

/// `<hash>/<size>`, quoted, since the hash may be any text.
impl fmt::Debug for WireDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.hash(), self.size_bytes)
    }
}

impl fmt::Display for WireDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hash().escape_debug(), self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// The same message as the generator would write it.
    #[derive(Clone, PartialEq, Message)]
    struct Plain {
        #[prost(string, tag = "1")]
        hash: String,
        #[prost(int64, tag = "2")]
        size_bytes: i64,
    }

    /// It and a later version of it, with fields that we do not know.
    #[derive(Clone, PartialEq, Message)]
    struct Later {
        #[prost(uint32, tag = "3")]
        number: u32,
        #[prost(string, tag = "1")]
        hash: String,
        #[prost(int64, tag = "2")]
        size_bytes: i64,
        #[prost(bytes = "bytes", tag = "1000")]
        more: Bytes,
    }

    /// A message that holds digests, as most do.
    #[derive(Clone, PartialEq, Message)]
    struct Holder<D: Message + Default + fmt::Debug> {
        #[prost(message, repeated, tag = "2")]
        digests: Vec<D>,
        #[prost(int32, tag = "3")]
        function: i32,
    }

    proptest! {
        #[test]
        fn encodes_and_decodes_as_the_plain_message(hash in "\\PC{0,200}", size_bytes: i64) {
            let plain = Plain { hash: hash.clone(), size_bytes };
            let wire = WireDigest::from_text(&hash, size_bytes);
            prop_assert_eq!(wire.encode_to_vec(), plain.encode_to_vec());
            prop_assert_eq!(wire.encoded_len(), plain.encoded_len());
            prop_assert_eq!(WireDigest::decode(&*plain.encode_to_vec()).unwrap(), wire);
        }

        #[test]
        fn unknown_fields_are_skipped(hash in "[0-9a-f]{0,64}", size_bytes: i64, number: u32, more: Vec<u8>) {
            let later = Later { number, hash: hash.clone(), size_bytes, more: more.into() };
            let wire = WireDigest::decode(&*later.encode_to_vec()).unwrap();
            prop_assert_eq!(wire, WireDigest::from_text(&hash, size_bytes));
        }

        #[test]
        fn agrees_with_the_plain_message_on_arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let wire = WireDigest::decode(&*bytes);
            match Plain::decode(&*bytes) {
                Ok(plain) => prop_assert_eq!(wire.unwrap(), WireDigest::from_text(&plain.hash, plain.size_bytes)),
                Err(_) => prop_assert!(wire.is_err()),
            }
        }

        #[test]
        fn digests_survive(hash: [u8; 32], size in 0..i64::MAX) {
            let digest = Digest::new(DigestFunction::Sha256, hash, size.unsigned_abs());
            let bytes = WireDigest::from(digest).encode_to_vec();
            let back = WireDigest::decode(&*bytes).unwrap().to_digest(DigestFunction::Sha256);
            prop_assert_eq!(back, Ok(digest));
        }
    }

    #[test]
    fn wrong_wire_types_and_text_are_refused() {
        let check = |bytes: &[u8], reason: &str| {
            assert!(Plain::decode(bytes).is_err(), "{bytes:?}");
            let error = WireDigest::decode(bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        check(&[0x08, 1], "invalid wire type");
        check(&[0x12, 1, b'a'], "invalid wire type");
        check(&[0x0a, 2, 0xff, 0xff], "not UTF-8");
        check(&[0x0a, 5, b'a'], "ends before its announced length");
        check(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f], "ends before its announced length");
        check(&[&[0x0a, 100][..], &[0xff; 100]].concat(), "not UTF-8");
    }

    #[test]
    fn long_hashes_are_bounded() {
        let at_the_limit = WireDigest::from_text(&"a".repeat(WireDigest::MAX_HASH_BYTES), 1);
        assert_eq!(WireDigest::decode(&*at_the_limit.encode_to_vec()).unwrap(), at_the_limit);
        let beyond = WireDigest::from_text(&"a".repeat(WireDigest::MAX_HASH_BYTES + 1), 1);
        assert!(WireDigest::decode(&*beyond.encode_to_vec()).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn works_inside_other_messages() {
        let hash = "0f".repeat(32);
        let plain = Holder { digests: vec![Plain { hash: hash.clone(), size_bytes: 7 }; 3], function: 9 };
        let wire = Holder { digests: vec![WireDigest::from_text(&hash, 7); 3], function: 9 };
        let bytes = plain.encode_to_vec();
        assert_eq!(wire.encode_to_vec(), bytes);
        assert_eq!(Holder::<WireDigest>::decode(&*bytes).unwrap(), wire);
        // A digest that claims more than the message around it has left.
        let mut torn = bytes;
        torn[1] = 3;
        assert!(Holder::<WireDigest>::decode(&*torn).is_err());
    }

    #[test]
    fn repeated_fields_keep_the_last() {
        let (long, short) = (WireDigest::from_text(&"a".repeat(100), 1), WireDigest::from_text("b", 2));
        let bytes = [long.encode_to_vec(), short.encode_to_vec()].concat();
        assert_eq!(WireDigest::decode(&*bytes).unwrap(), short);
    }
}

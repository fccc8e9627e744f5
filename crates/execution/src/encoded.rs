//! What encoded directories and trees name, read without building the messages.
//!
//! They come from clients and are large: an entry of two bytes would become a structure of two hundred. Here nothing
//! is allocated, so that looking into a blob takes no more memory than the blob.
//!
//! What always holds: a digest is reported if and only if a reader of the message would find it. Where readers may
//! differ, which is a field that must not repeat and does, the message counts as malformed.

use bytes::Buf;
use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use thiserror::Error;

/// `Tree.root` and `Tree.children`.
const TREE_DIRECTORIES: [u32; 2] = [1, 2];
/// `Directory.files` and `Directory.directories`.
const FILES: u32 = 1;
const DIRECTORIES: u32 = 2;
/// `FileNode.digest` and `DirectoryNode.digest`.
const DIGEST: u32 = 2;

/// Why bytes are not the message that they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Malformed {
    /// No encoded message.
    #[error("its encoding is broken")]
    Encoding,
    /// A file or directory in it has no digest, or several.
    #[error("an entry in it does not have one digest")]
    NotOneDigest,
    /// A digest in it is none.
    #[error("a digest in it is wrong: {0}")]
    Digest(#[from] gf_digest::DigestError),
}

/// What a directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Digest),
    Directory(Digest),
}

/// The files and directories of an encoded `Directory`, in the order in which they stand.
pub(crate) fn entries(directory: &[u8], function: DigestFunction) -> impl Iterator<Item = Result<Entry, Malformed>> {
    Fields(directory).filter_map(move |field| match field {
        Ok((FILES, node)) => Some(digest(node, function).map(Entry::File)),
        Ok((DIRECTORIES, node)) => Some(digest(node, function).map(Entry::Directory)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// How many fields of bytes a message has, and those that it contains as far as `depth`: what decoding it would build.
/// Fields that hold text are looked into as well, where they read as messages; they count for little.
pub(crate) fn count_fields(message: &[u8], depth: u32) -> usize {
    let fields = Fields(message).map_while(Result::ok);
    fields.map(|(_, value)| 1 + if depth > 1 { count_fields(value, depth - 1) } else { 0 }).sum()
}

/// The encoded directories of an encoded `Tree`.
pub(crate) fn directories(tree: &[u8]) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    Fields(tree).filter_map(|field| match field {
        Ok((tag, directory)) => TREE_DIRECTORIES.contains(&tag).then_some(Ok(directory)),
        Err(error) => Some(Err(error)),
    })
}

fn digest(node: &[u8], function: DigestFunction) -> Result<Digest, Malformed> {
    let mut found = None;
    for field in Fields(node) {
        let (tag, value) = field?;
        if tag == DIGEST && found.replace(value).is_some() {
            return Err(Malformed::NotOneDigest);
        }
    }
    let wire = WireDigest::decode(found.ok_or(Malformed::NotOneDigest)?).map_err(|_| Malformed::Encoding)?;
    Ok(wire.to_digest(function)?)
}

/// The fields of an encoded message that hold bytes; all others are passed over.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The next field of bytes; `None` at the end.
    fn read(&mut self) -> Result<Option<(u32, &'a [u8])>, Malformed> {
        while !self.0.is_empty() {
            let (tag, wire_type) = decode_key(&mut self.0).map_err(|_| Malformed::Encoding)?;
            let skipped = match wire_type {
                WireType::LengthDelimited => return self.take_bytes().map(|bytes| Some((tag, bytes))),
                WireType::Varint => decode_varint(&mut self.0).map(|_| 0).map_err(|_| Malformed::Encoding)?,
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                WireType::StartGroup | WireType::EndGroup => return Err(Malformed::Encoding),
            };
            if skipped > self.0.len() {
                return Err(Malformed::Encoding);
            }
            self.0.advance(skipped);
        }
        Ok(None)
    }

    fn take_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = decode_varint(&mut self.0).map_err(|_| Malformed::Encoding)?;
        let length = usize::try_from(length).map_err(|_| Malformed::Encoding)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed::Encoding)?;
        self.0 = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        field.transpose()
    }
}

#[cfg(test)]
mod tests {
    use gf_reapi::execution::{Directory, DirectoryNode, FileNode, NodeProperties, SymlinkNode, Tree};

    use super::*;

    const FUNCTION: DigestFunction = DigestFunction::Sha256;

    fn named(name: &str) -> Digest {
        Digest::of(FUNCTION, name.as_bytes())
    }

    fn directory() -> Directory {
        let file = |name: &str| FileNode {
            name: name.to_owned(),
            digest: Some(named(name).into()),
            is_executable: true,
            node_properties: Some(NodeProperties { unix_mode: Some(0o755), ..NodeProperties::default() }),
        };
        Directory {
            files: vec![file("a"), file("b")],
            directories: vec![DirectoryNode { name: "c".to_owned(), digest: Some(named("c").into()) }],
            symlinks: vec![SymlinkNode { name: "d".to_owned(), target: "a".to_owned(), node_properties: None }],
            node_properties: None,
        }
    }

    fn all(directory: &[u8]) -> Result<Vec<Entry>, Malformed> {
        entries(directory, FUNCTION).collect()
    }

    #[test]
    fn what_a_directory_names() {
        let expected = vec![Entry::File(named("a")), Entry::File(named("b")), Entry::Directory(named("c"))];
        assert_eq!(all(&directory().encode_to_vec()), Ok(expected.clone()));
        assert_eq!(all(&[]), Ok(Vec::new()));
        let tree = Tree { root: Some(directory()), children: vec![Directory::default(), directory()] }.encode_to_vec();
        let found: Vec<Entry> = directories(&tree).flat_map(|directory| all(directory.unwrap()).unwrap()).collect();
        assert_eq!(found, [expected.clone(), expected].concat());
    }

    #[test]
    fn what_is_broken_is_malformed() {
        let good = directory().encode_to_vec();
        // A cut may fall between two entries; then fewer are named.
        for cut in 0..good.len() {
            match all(&good[..cut]) {
                Ok(entries) => assert!(entries.len() <= 3, "{cut}"),
                Err(error) => assert_eq!(error, Malformed::Encoding, "{cut}"),
            }
        }
        assert_eq!(all(b"this is text"), Err(Malformed::Encoding));
        let without = Directory { files: vec![FileNode::default()], ..Directory::default() };
        assert_eq!(all(&without.encode_to_vec()), Err(Malformed::NotOneDigest));
        // The same node again behind itself: one node with two digests.
        let once = DirectoryNode { name: String::new(), digest: Some(named("x").into()) }.encode_to_vec();
        let mut twice = vec![0x12];
        prost::encoding::encode_varint(2 * once.len() as u64, &mut twice);
        twice.extend_from_slice(&once);
        twice.extend_from_slice(&once);
        assert_eq!(all(&twice), Err(Malformed::NotOneDigest));
        let mut negative = directory();
        negative.files[0].digest = Some(WireDigest::from_text(named("a").hash_hex().as_str(), -1));
        assert!(matches!(all(&negative.encode_to_vec()), Err(Malformed::Digest(_))));
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_the_generated_reader(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
            if let (Ok(directory), Ok(entries)) = (Directory::decode(&*bytes), all(&bytes)) {
                proptest::prop_assert_eq!(directory.files.len() + directory.directories.len(), entries.len());
            }
        }
    }
}

//! Trees made of numbers, as archives.

use std::collections::BTreeMap;

use bytes::Bytes;
use gf_nix_formats::nar::{NarEvent, NarLimits, NarName, NarTarget, NarWriter};

/// Numbers that follow from a seed.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// SplitMix64.
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// A node of a tree.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(Vec<u8>, bool),
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Node>),
}

/// A tree of up to `entries` entries or a few more.
pub(crate) fn tree(numbers: &mut Numbers, entries: usize, depth: usize) -> Node {
    match numbers.below(8) {
        0 | 1 if depth > 0 => file(numbers),
        2 if depth > 0 => {
            Node::Symlink(numbers.pick(&[&b"../x"[..], b"/nix/store/y", b".", b"a b\n\"'", "zürich".as_bytes()]))
        }
        _ if entries == 0 => file(numbers),
        _ => {
            let count = numbers.below(entries.min(12) + 1);
            let children = (0..count).map(|_| (name(numbers), tree(numbers, entries / (count + 1), depth + 1)));
            Node::Directory(children.collect())
        }
    }
}

impl Numbers {
    fn pick(&mut self, choices: &[&[u8]]) -> Vec<u8> {
        choices[self.below(choices.len())].to_vec()
    }
}

fn file(numbers: &mut Numbers) -> Node {
    let length = match numbers.below(20) {
        0..=3 => 0,
        4..=15 => numbers.below(100),
        16..=18 => numbers.below(5000),
        _ => numbers.below(40_000),
    };
    // Some contents occur again and again.
    let contents = if numbers.below(4) == 0 { vec![b'x'; length / 50] } else { numbers.bytes(length) };
    Node::File(contents, numbers.below(2) == 0)
}

/// Names that are sorted in odd ways, and some that are no pleasure to type.
fn name(numbers: &mut Numbers) -> Vec<u8> {
    match numbers.below(8) {
        0 => numbers.pick(&[b"-", b"a", b"a.b", b"a-b", b"a/".split_last().unwrap().1, b"...", b" ", b"~"]),
        1 => format!("new\nline \"{}\"", numbers.below(50)).into_bytes(),
        2 => format!("grüße-{}-\u{10ffff}", numbers.below(50)).into_bytes(),
        3 => vec![b'n'; 1 + numbers.below(255)],
        _ => format!("file{}", numbers.below(1000)).into_bytes(),
    }
}

/// The archive of a tree.
pub(crate) fn nar(root: &Node) -> Vec<u8> {
    let mut writer = NarWriter::new(NarLimits::default());
    let mut chunks = Vec::new();
    write(root, &mut |event| writer.write(&event, &mut chunks).unwrap());
    writer.finish(&mut chunks).unwrap();
    chunks.concat()
}

fn write(node: &Node, write_event: &mut dyn FnMut(NarEvent)) {
    match node {
        Node::File(contents, executable) => {
            write_event(NarEvent::File { executable: *executable, size_bytes: contents.len() as u64 });
            if !contents.is_empty() {
                write_event(NarEvent::Contents(Bytes::copy_from_slice(contents)));
            }
            write_event(NarEvent::FileEnd);
        }
        Node::Symlink(target) => {
            write_event(NarEvent::Symlink(NarTarget::new(Bytes::copy_from_slice(target)).unwrap()));
        }
        Node::Directory(children) => {
            write_event(NarEvent::Directory);
            for (name, child) in children {
                write_event(NarEvent::Entry(NarName::new(Bytes::copy_from_slice(name)).unwrap()));
                write(child, write_event);
            }
            write_event(NarEvent::DirectoryEnd);
        }
    }
}

/// A directory of these entries.
pub(crate) fn directory<const N: usize>(entries: [(&[u8], Node); N]) -> Node {
    Node::Directory(entries.into_iter().map(|(name, node)| (name.to_vec(), node)).collect())
}

/// A file of these bytes that cannot be run.
pub(crate) fn plain(contents: &[u8]) -> Node {
    Node::File(contents.to_vec(), false)
}

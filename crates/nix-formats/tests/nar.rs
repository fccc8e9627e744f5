//! Archives through the public interface: those of real Nix, generated ones, damaged ones, and the limits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bytes::Bytes;
use gf_nix_formats::nar::{
    NarError, NarEvent, NarLayout, NarLayoutBuilder, NarLimits, NarMeter, NarName, NarParser, NarPart, NarTarget,
    NarWriter,
};
use gf_nix_formats::{Listing, ListingBuilder, ListingNode, NotUtf8};
use proptest::prelude::*;

/// Written by `nix-store --dump`; 2.8.0 and 2.34.8 wrote the same bytes.
const TREE: &[u8] = include_bytes!("golden/nar/tree.nar");
const FILE: &[u8] = include_bytes!("golden/nar/file.nar");
const LINK: &[u8] = include_bytes!("golden/nar/link.nar");
const EMPTY_DIRECTORY: &[u8] = include_bytes!("golden/nar/emptydir.nar");
/// Names with a new line, quotes and a byte that is not UTF-8, a target with a control character.
const ODD: &[u8] = include_bytes!("golden/nar/odd.nar");
const GOLDEN: [&[u8]; 5] = [TREE, FILE, LINK, EMPTY_DIRECTORY, ODD];

/// What a walk through an archive gave.
#[derive(Debug)]
struct Read {
    events: Vec<NarEvent>,
    listing: Listing,
}

fn read_in(nar: &[u8], chunk_bytes: usize, limits: NarLimits) -> Result<Read, NarError> {
    let mut parser = NarParser::new(limits);
    let mut listing = ListingBuilder::new();
    let mut events = Vec::new();
    for chunk in nar.chunks(chunk_bytes.max(1)) {
        let mut chunk = Bytes::copy_from_slice(chunk);
        while let Some(event) = parser.next(&mut chunk)? {
            listing.add(&event, parser.position());
            events.push(event);
        }
        assert!(chunk.is_empty());
    }
    assert_eq!(parser.finish()?, nar.len() as u64);
    Ok(Read { events, listing: listing.finish()? })
}

fn read(nar: &[u8]) -> Result<Read, NarError> {
    read_in(nar, usize::MAX, NarLimits::default())
}

fn write(events: &[NarEvent]) -> Result<Vec<u8>, NarError> {
    let mut writer = NarWriter::new(NarLimits::default());
    let mut chunks = Vec::new();
    for event in events {
        writer.write(event, &mut chunks)?;
    }
    let size = writer.finish(&mut chunks)?;
    let nar = chunks.concat();
    assert_eq!(size, nar.len() as u64);
    Ok(nar)
}

fn measure(events: &[NarEvent]) -> u64 {
    let mut meter = NarMeter::new();
    for event in events.iter().filter(|event| !matches!(event, NarEvent::Contents(_))) {
        meter.add(event);
    }
    meter.size_bytes()
}

/// The layout of the events, without their contents.
fn lay_out(events: &[NarEvent]) -> Result<NarLayout, NarError> {
    let mut layout = NarLayoutBuilder::new(NarLimits::default());
    for event in events.iter().filter(|event| !matches!(event, NarEvent::Contents(_))) {
        layout.add(event)?;
    }
    layout.finish()
}

/// The archive's bytes of a range, by way of the layout.
fn read_range(layout: &NarLayout, nar: &[u8], range: std::ops::Range<u64>) -> Vec<u8> {
    let at = |offset: u64| usize::try_from(offset).unwrap();
    let places: Vec<_> = layout.contents().collect();
    let mut bytes = Vec::new();
    for part in layout.parts(range) {
        match part {
            NarPart::Framing(framing) => {
                assert!(!framing.is_empty());
                bytes.extend_from_slice(&framing);
            }
            NarPart::Contents { file, range } => {
                assert!(!range.is_empty());
                let start = places[file].start;
                bytes.extend_from_slice(&nar[at(start + range.start)..at(start + range.end)]);
            }
        }
    }
    bytes
}

fn name(name: &[u8]) -> NarEvent {
    NarEvent::Entry(NarName::new(Bytes::copy_from_slice(name)).unwrap())
}

fn link(target: &[u8]) -> NarEvent {
    NarEvent::Symlink(NarTarget::new(Bytes::copy_from_slice(target)).unwrap())
}

#[test]
fn archives_of_nix_round_trip_in_chunks_of_any_size() {
    for nar in GOLDEN {
        for chunk_bytes in [1, 2, 7, 8, 13, 64, 1000, nar.len()] {
            let read = read_in(nar, chunk_bytes, NarLimits::default()).unwrap();
            assert_eq!(write(&read.events).unwrap(), nar);
            assert_eq!(measure(&read.events), nar.len() as u64);
        }
    }
    assert_eq!(read(LINK).unwrap().events, [link(b"target-of-link")]);
    assert_eq!(read(EMPTY_DIRECTORY).unwrap().events, [NarEvent::Directory, NarEvent::DirectoryEnd]);
    let contents = NarEvent::Contents(Bytes::from_static(b"flat file\n"));
    let file = NarEvent::File { executable: false, size_bytes: 10 };
    assert_eq!(read(FILE).unwrap().events, [file, contents, NarEvent::FileEnd]);
}

#[test]
fn listings_are_those_of_nix() {
    // Written by `nix copy --to 'file://…?write-nar-listing=1'`.
    let tree = read(TREE).unwrap().listing;
    assert_eq!(tree.to_json().unwrap(), include_str!("golden/ls/tree-2.34.json"));
    assert_eq!(read(FILE).unwrap().listing.to_json().unwrap(), include_str!("golden/ls/file-2.34.json"));
    // 2.8.0 has another order of keys and says the same.
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(value(&tree.to_json().unwrap()), value(include_str!("golden/ls/tree-2.8.json")));
    assert_eq!(read(ODD).unwrap().listing.to_json(), Err(NotUtf8));

    let Some(ListingNode::File { executable: false, size_bytes: 8, nar_offset }) = tree.find(b"dir/eight") else {
        panic!("dir/eight is a file of 8 bytes")
    };
    let offset = usize::try_from(*nar_offset).unwrap();
    assert_eq!(&TREE[offset..offset + 8], b"eight by");
    assert_eq!(tree.find(b""), Some(&tree.root));
    for absent in [&b"dir/absent"[..], b"hello/x", b"dir/link/x", b".."] {
        assert_eq!(tree.find(absent), None);
    }
}

#[test]
fn every_cut_is_noticed_and_so_is_every_byte_too_many() {
    for nar in GOLDEN {
        for length in 0..nar.len() {
            assert_eq!(read(&nar[..length]).unwrap_err(), NarError::Truncated(length as u64));
        }
        let more = [nar, b"\0"].concat();
        assert_eq!(read(&more).unwrap_err(), NarError::TrailingBytes(nar.len() as u64));
    }
}

#[test]
fn every_other_byte_is_refused_or_read_as_it_is() {
    for nar in GOLDEN {
        for at in 0..nar.len() {
            for bit in 0..8 {
                let mut damaged = nar.to_vec();
                damaged[at] ^= 1 << bit;
                if let Ok(read) = read(&damaged) {
                    assert_eq!(write(&read.events).unwrap(), damaged, "byte {at}, bit {bit}");
                }
            }
        }
    }
}

/// Replaces the first `from` in the archive of one directory with entries `aa` and `bb`.
fn replaced(from: &[u8], to: &[u8]) -> Result<Read, NarError> {
    let events = [NarEvent::Directory, name(b"aa"), link(b"x"), name(b"bb"), link(b"y"), NarEvent::DirectoryEnd];
    let nar = write(&events).unwrap();
    let at = nar.windows(from.len()).position(|window| window == from).unwrap();
    read(&[&nar[..at], to, &nar[at + from.len()..]].concat())
}

#[test]
fn names_and_their_order_are_checked() {
    assert!(replaced(b"aa\0", b"aa\0").is_ok());
    for (from, to) in [("aa", "bb"), ("bb", "aa"), ("aa", "bc"), ("bb", "a!")] {
        assert!(matches!(replaced(from.as_bytes(), to.as_bytes()), Err(NarError::Order { .. })), "{from} {to}");
    }
    for bad in [&b"a/"[..], b"..", b"a\0"] {
        assert!(matches!(replaced(b"aa", bad), Err(NarError::Name(_))), "{bad:?}");
    }
    assert!(matches!(replaced(b"aa\0", b"aa\x01"), Err(NarError::Padding(_))));
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        assert!(NarName::new(Bytes::copy_from_slice(bad)).is_err());
    }
    for bad in [&b""[..], b"a\0b", &[b'x'; 4096]] {
        assert!(NarTarget::new(Bytes::copy_from_slice(bad)).is_err());
    }
}

#[test]
fn limits_hold() {
    let limits = NarLimits { size_bytes: 2568, entries: 13, depth: 3 };
    assert!(read_in(TREE, 100, limits).is_ok());
    let refused = |limits| read_in(TREE, 100, limits).unwrap_err();
    assert_eq!(refused(NarLimits { size_bytes: 2567, ..limits }), NarError::TooLarge(2567));
    assert_eq!(refused(NarLimits { entries: 12, ..limits }), NarError::TooManyEntries(12));
    assert_eq!(refused(NarLimits { depth: 2, ..limits }), NarError::TooDeep(2));
}

#[test]
fn a_file_that_is_announced_too_large_is_refused_before_it_comes() {
    for size_bytes in [1 << 40, 1 << 63, u64::MAX] {
        let mut head = FILE[..88].to_vec();
        head.extend_from_slice(&u64::to_le_bytes(size_bytes));
        assert!(matches!(read(&head).unwrap_err(), NarError::TooLarge(_)));
    }
    // A name that is announced too long is not waited for either.
    let mut head = EMPTY_DIRECTORY[..80].to_vec();
    head.extend_from_slice(&TREE[80..128]);
    head.extend_from_slice(&u64::to_le_bytes(1 << 30));
    assert!(matches!(read(&head).unwrap_err(), NarError::Unexpected { .. }));
}

#[test]
fn events_out_of_place_are_not_written() {
    let file = NarEvent::File { executable: false, size_bytes: 2 };
    let contents = |bytes: &'static [u8]| NarEvent::Contents(Bytes::from_static(bytes));
    let sequences: [&[NarEvent]; 10] = [
        &[NarEvent::DirectoryEnd],
        &[name(b"a")],
        &[contents(b"a")],
        &[link(b"a"), link(b"a")],
        &[NarEvent::Directory, link(b"a")],
        &[NarEvent::Directory, name(b"a"), NarEvent::DirectoryEnd],
        &[NarEvent::Directory, name(b"b"), link(b"x"), name(b"b")],
        &[file.clone(), NarEvent::FileEnd],
        &[file.clone(), contents(b"abc")],
        &[file.clone(), contents(b"ab"), NarEvent::Directory],
    ];
    for events in sequences {
        assert!(!matches!(write(events), Ok(_) | Err(NarError::Truncated(_))), "{events:?}");
    }
    for events in [&[][..], &[NarEvent::Directory], &[file, contents(b"a")]] {
        assert!(matches!(write(events), Err(NarError::Truncated(_))), "{events:?}");
    }
}

#[test]
fn large_contents_are_not_copied() {
    let contents = Bytes::from(vec![7; 1 << 20]);
    let file = NarEvent::File { executable: true, size_bytes: 1 << 20 };
    let nar = Bytes::from(write(&[file, NarEvent::Contents(contents), NarEvent::FileEnd]).unwrap());
    let mut parser = NarParser::new(NarLimits::default());
    let mut writer = NarWriter::new(NarLimits::default());
    let (mut input, mut chunks) = (nar.clone(), Vec::new());
    while let Some(event) = parser.next(&mut input).unwrap() {
        writer.write(&event, &mut chunks).unwrap();
    }
    writer.finish(&mut chunks).unwrap();
    assert!(chunks.iter().any(|chunk| nar.as_ptr_range().contains(&chunk.as_ptr()) && chunk.len() == 1 << 20));
}

#[test]
fn deep_and_wide_trees_round_trip() {
    let depth = 1000;
    let mut deep: Vec<NarEvent> = (1..depth).flat_map(|_| [NarEvent::Directory, name(b"d")]).collect();
    deep.push(NarEvent::Directory);
    deep.extend((0..depth).map(|_| NarEvent::DirectoryEnd));
    let mut wide = vec![NarEvent::Directory];
    for entry in 0..100_000 {
        wide.extend([
            name(format!("{entry:06}").as_bytes()),
            NarEvent::File { executable: false, size_bytes: 0 },
            NarEvent::FileEnd,
        ]);
    }
    wide.push(NarEvent::DirectoryEnd);
    for events in [deep, wide] {
        let nar = write(&events).unwrap();
        let read = read_in(&nar, 64 << 10, NarLimits::default()).unwrap();
        assert_eq!(read.events, events);
        assert!(read.listing.to_json().is_ok());
    }
}

/// A tree to make archives of.
#[derive(Clone, Debug)]
enum Tree {
    File(bool, Vec<u8>),
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

impl Tree {
    fn events(&self, events: &mut Vec<NarEvent>) {
        match self {
            Self::File(executable, contents) => {
                events.push(NarEvent::File { executable: *executable, size_bytes: contents.len() as u64 });
                if !contents.is_empty() {
                    events.push(NarEvent::Contents(Bytes::copy_from_slice(contents)));
                }
                events.push(NarEvent::FileEnd);
            }
            Self::Link(target) => events.push(link(target)),
            Self::Directory(entries) => {
                events.push(NarEvent::Directory);
                for (entry, node) in entries {
                    events.push(name(entry));
                    node.events(events);
                }
                events.push(NarEvent::DirectoryEnd);
            }
        }
    }
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("neither NUL nor /", |byte| !matches!(byte, 0 | b'/'));
    prop::collection::vec(byte, 1..20).prop_filter("not . or ..", |name| !matches!(&name[..], b"." | b".."))
}

fn trees() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(run, bytes)| Tree::File(run, bytes)),
        (any::<bool>(), 0..12_000_usize).prop_map(|(run, length)| Tree::File(run, vec![b'x'; length])),
        names().prop_map(Tree::Link),
    ];
    leaf.prop_recursive(5, 40, 8, |node| prop::collection::btree_map(names(), node, 0..8).prop_map(Tree::Directory))
}

/// Contents that were cut by chunks, in one piece again.
fn joined(events: Vec<NarEvent>) -> Vec<NarEvent> {
    let mut joined: Vec<NarEvent> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(NarEvent::Contents(first)), NarEvent::Contents(second)) => {
                *first = [first.as_ref(), second.as_ref()].concat().into();
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn trees_round_trip(tree in trees(), chunk_bytes in 1..3000_usize, one: prop::sample::Index, other: prop::sample::Index) {
        let mut events = Vec::new();
        tree.events(&mut events);
        let nar = write(&events).unwrap();
        prop_assert_eq!(measure(&events), nar.len() as u64);
        let read = read_in(&nar, chunk_bytes, NarLimits::default()).unwrap();
        prop_assert_eq!(joined(read.events), events.clone());

        let layout = lay_out(&events).unwrap();
        prop_assert_eq!(layout.size_bytes(), nar.len() as u64);
        let (one, other) = (one.index(nar.len() + 1), other.index(nar.len() + 1));
        let range = one.min(other)..one.max(other);
        let part = read_range(&layout, &nar, range.start as u64..range.end as u64);
        prop_assert_eq!(part, &nar[range]);
        prop_assert_eq!(read_range(&layout, &nar, 0..u64::MAX), nar);
    }

    /// There is no second spelling: what is read after damage is written as it was.
    #[test]
    fn damaged_archives_are_refused_or_canonical(
        tree in trees(),
        at: prop::sample::Index,
        words in prop::collection::vec(any::<[u8; 8]>(), 0..3),
        removed in 0..24_usize,
    ) {
        let mut events = Vec::new();
        tree.events(&mut events);
        let mut nar = write(&events).unwrap();
        let at = at.index(nar.len());
        let end = nar.len().min(at + removed);
        nar.splice(at..end, words.concat());
        if let Ok(read) = read(&nar) {
            prop_assert_eq!(write(&read.events).unwrap(), nar);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>, kept in 0..200_usize) {
        let nar = [&TREE[..kept], &bytes[..]].concat();
        if let Ok(read) = read_in(&nar, 9, NarLimits::default()) {
            prop_assert_eq!(write(&read.events).unwrap(), nar);
        }
    }
}

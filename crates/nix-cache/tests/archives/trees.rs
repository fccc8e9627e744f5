//! What was taken in comes back.

use bytes::Bytes;
use futures::TryStreamExt as _;
use gf_blobstore::{BlobStore as _, ByteRange, Encoding, OwnerId};
use gf_digest::{Digest, DigestFunction};
use gf_nix_cache::archives::{Ingested, ReadError, Root};
use gf_nix_formats::ListingBuilder;
use gf_nix_formats::nar::{NarLimits, NarParser};

use crate::fixture::{Fixture, OWNER, part, read, sorted};
use crate::generated::{Node, Numbers, directory, nar, plain, tree};

/// Written by `nix-store --dump`.
const GOLDEN: [&[u8]; 4] = [
    include_bytes!("../../../nix-formats/tests/golden/nar/tree.nar"),
    include_bytes!("../../../nix-formats/tests/golden/nar/file.nar"),
    include_bytes!("../../../nix-formats/tests/golden/nar/link.nar"),
    include_bytes!("../../../nix-formats/tests/golden/nar/emptydir.nar"),
];

/// Everything that can be asked of an archive that was kept.
async fn check_all(fixture: &Fixture, ingested: &Ingested, nar: &[u8]) {
    fixture.check(ingested, nar).await;
    let listed = fixture.archives.read_blob_list(OWNER, ingested.blobs).await.unwrap();
    let found = fixture.archives.blobs(OWNER, &ingested.root).await.unwrap();
    assert_eq!(sorted(listed.clone()), sorted(found));
    assert!(fixture.store.find_missing(OWNER, &listed).await.unwrap().is_empty());
    let listing = fixture.archives.list(OWNER, &ingested.root).await.unwrap();
    assert_eq!(listing.to_json().unwrap(), listing_of(nar));
}

/// The `.ls` of an archive that is at hand.
fn listing_of(nar: &[u8]) -> String {
    let mut parser = NarParser::new(NarLimits::default());
    let mut listing = ListingBuilder::new();
    let mut nar = Bytes::copy_from_slice(nar);
    while let Some(event) = parser.next(&mut nar).unwrap() {
        listing.add(&event, parser.position());
    }
    listing.finish().unwrap().to_json().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_generated_trees_come_back() {
    let fixture = Fixture::new().await;
    for seed in 0..2000 {
        let mut numbers = Numbers::new(seed);
        let nar = nar(&tree(&mut numbers, 60, 0));
        let ingested = fixture.keep(&nar).await;
        check_all(&fixture, &ingested, &nar).await;
        let archive = fixture.open(&ingested).await;
        for _ in 0..4 {
            let range = ByteRange {
                offset: numbers.below(nar.len() + 1) as u64,
                limit: (numbers.below(5) > 0).then(|| numbers.below(nar.len()) as u64),
            };
            assert!(read(&archive, range).await.unwrap() == part(&nar, range), "seed {seed}, {range:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_nix_come_back_in_every_range() {
    let fixture = Fixture::new().await;
    for nar in GOLDEN {
        let ingested = fixture.keep(nar).await;
        check_all(&fixture, &ingested, nar).await;
        let archive = fixture.open(&ingested).await;
        // Every start with a few lengths: framing, contents and padding begin and end everywhere.
        for start in 0..=nar.len() {
            for limit in [Some(0), Some(1), Some(9), Some(200), None] {
                let range = ByteRange { offset: start as u64, limit };
                assert_eq!(read(&archive, range).await.unwrap(), part(nar, range), "{range:?}");
            }
        }
        let beyond = ByteRange { offset: nar.len() as u64 + 1, limit: None };
        assert!(matches!(archive.read(beyond), Err(ReadError::OutOfRange { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_root_is_told_apart() {
    let fixture = Fixture::new().await;
    let file = fixture.keep(&nar(&Node::File(b"run".to_vec(), true))).await;
    assert!(matches!(file.root, Root::File { executable: true, .. }));
    let empty = fixture.keep(&nar(&plain(b""))).await;
    assert!(matches!(empty.root, Root::File { executable: false, digest } if digest.is_empty()));
    assert_eq!(fixture.archives.read_blob_list(OWNER, empty.blobs).await.unwrap(), []);
    check_all(&fixture, &empty, &nar(&plain(b""))).await;
    let link = fixture.keep(&nar(&Node::Symlink(b"there".to_vec()))).await;
    assert_eq!(link.root, Root::Symlink { target: "there".to_owned() });
    assert!(matches!(fixture.keep(&nar(&directory([]))).await.root, Root::Directory(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_come_back() {
    let fixture = Fixture::new().await;
    let mut numbers = Numbers::new(1);
    // One that is nearly small, some that the store takes as they come, one that occurs twice.
    let sizes = [1 << 20, (1 << 20) + 1, 5_000_000, 9_000_001];
    let [small, larger, memory, file] = sizes.map(|bytes| plain(&numbers.bytes(bytes)));
    let twice = file.clone();
    let tree = directory([
        (b"a", small),
        (b"b", larger),
        (b"c", memory),
        (b"d", plain(b"")),
        (b"e", file),
        (b"f", twice),
        (b"g", plain(b"end")),
    ]);
    let nar = nar(&tree);
    let ingested = fixture.keep(&nar).await;
    check_all(&fixture, &ingested, &nar).await;
    let archive = fixture.open(&ingested).await;
    for _ in 0..50 {
        let range = ByteRange { offset: numbers.below(nar.len()) as u64, limit: Some(numbers.below(3_000_000) as u64) };
        assert!(read(&archive, range).await.unwrap() == part(&nar, range), "{range:?}");
    }
    // Nothing is left over, and nothing was kept that is not needed.
    for folder in ["scratch", "store/incoming"] {
        assert_eq!(std::fs::read_dir(fixture.folder.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
    assert_eq!(fixture.store.stats().reserved_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_tree_comes_back() {
    let fixture = Fixture::new().await;
    let mut node = directory([(b"bottom", plain(b"deep"))]);
    for level in 0..200 {
        node = directory([(b"down", node), (b"side", plain(format!("level {level}").as_bytes()))]);
    }
    let nar = nar(&node);
    let ingested = fixture.keep(&nar).await;
    check_all(&fixture, &ingested, &nar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_entries_come_back() {
    let fixture = Fixture::new().await;
    // Half of them in one directory, half in a thousand.
    let files = |count: usize, seed: usize| {
        let file = |number: usize| {
            let contents = format!("{} {}", seed, number % 20_000);
            (
                format!("a-name-of-some-length-{number:06}").into_bytes(),
                Node::File(contents.into(), number.is_multiple_of(7)),
            )
        };
        Node::Directory((0..count).map(file).collect())
    };
    let spread = (0..1000).map(|number| (format!("{number}").into_bytes(), files(50, number))).collect();
    let tree = directory([(b"one", files(50_000, 0)), (b"spread", Node::Directory(spread))]);
    let nar = nar(&tree);
    let ingested = fixture.keep(&nar).await;
    check_all(&fixture, &ingested, &nar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_same_is_stored_once() {
    let fixture = Fixture::new().await;
    let mut numbers = Numbers::new(2);
    let contents: Vec<Node> = (0..40).map(|_| plain(&numbers.bytes(50_000))).collect();
    let entries = |names: &str| {
        let entry = |(number, node): (usize, &Node)| (format!("{names}{number}").into(), node.clone());
        Node::Directory(contents.iter().enumerate().map(entry).collect())
    };
    let first = nar(&entries("a"));
    let renamed = nar(&entries("b"));
    fixture.keep(&first).await;
    let used = fixture.store.stats().used_bytes;
    let again = fixture.keep(&first).await;
    assert_eq!(fixture.store.stats().used_bytes, used);
    fixture.keep(&renamed).await;
    let grown = fixture.store.stats().used_bytes - used;
    assert!(grown < 20_000, "{grown} bytes for other names");
    // Nobody else sees any of it.
    let theirs = fixture.archives.open(OwnerId(8), &again.root, again.nar_size).await;
    assert!(matches!(theirs, Err(ReadError::Store(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_goes_out_as_zstd() {
    let fixture = Fixture::new().await;
    let mut numbers = Numbers::new(5);
    // One file that the store holds compressed, one that it does not, and both forms of the whole.
    let text = b"the same words ".repeat(200_000);
    let digest = Digest::of(DigestFunction::Sha256, &text);
    let mut upload = fixture.store.upload(OWNER, digest, Encoding::Zstd).await.unwrap();
    upload.write(zstd::encode_all(&text[..], 3).unwrap().into()).await.unwrap();
    upload.finish().await.unwrap();
    let mut roots = Vec::new();
    for last in [&b"z"[..], b"\xff"] {
        let file = plain(&text);
        let tree = directory([(b"a", file), (b"b", plain(&numbers.bytes(700_000))), (last, plain(b"small"))]);
        let nar = nar(&tree);
        let ingested = fixture.keep(&nar).await;
        let frames: Vec<Bytes> = fixture.open(&ingested).await.read_zstd().try_collect().await.unwrap();
        assert!(frames.iter().all(|piece| !piece.is_empty() && piece.len() <= 1 << 20));
        assert!(frames.iter().map(Bytes::len).sum::<usize>() < 800_000);
        assert!(zstd::decode_all(&frames.concat()[..]).unwrap() == nar);
        roots.push(ingested.root);
    }
    assert!(matches!(roots[..], [Root::Directory(_), Root::Opaque(_)]));
}

//! Archives that no directory can hold.

use gf_blobstore::ByteRange;
use gf_digest::{Digest, DigestFunction};
use gf_nix_cache::archives::{ArchiveLimits, Root};
use gf_nix_formats::Compression;

use crate::fixture::{Fixture, OWNER, part, read};
use crate::generated::{Node, Numbers, directory, nar, plain};

/// Written by `nix-store --dump`: one of its names is not UTF-8.
const ODD: &[u8] = include_bytes!("../../../nix-formats/tests/golden/nar/odd.nar");

async fn check_opaque(nar: &[u8]) {
    // Little memory: what is large waits on the disk.
    let limits = ArchiveLimits { spool_bytes: 24 << 20, ..ArchiveLimits::default() };
    let fixture = Fixture::with(limits).await;
    let ingested = fixture.keep(nar).await;
    let whole = Digest::of(DigestFunction::Sha256, nar);
    assert_eq!(ingested.root, Root::Opaque(whole));
    assert_eq!(fixture.archives.read_blob_list(OWNER, ingested.blobs).await.unwrap(), [whole]);
    assert_eq!(fixture.archives.blobs(OWNER, &ingested.root).await.unwrap(), [whole]);
    fixture.check(&ingested, nar).await;
    let listing = fixture.archives.list(OWNER, &ingested.root).await.unwrap();
    assert!(listing.find(b"").is_some());
    let archive = fixture.open(&ingested).await;
    for offset in [0, 1, nar.len() as u64 / 2, nar.len() as u64] {
        let range = ByteRange { offset, limit: Some(100) };
        assert_eq!(read(&archive, range).await.unwrap(), part(nar, range));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf_8() {
    check_opaque(ODD).await;
    // First, last, deep down, and after files of every size.
    check_opaque(&nar(&directory([(b"\xff", plain(b"x"))]))).await;
    let mut numbers = Numbers::new(3);
    let deep = |name: &[u8]| {
        directory([(b"sub", directory([(b"a", plain(b"a")), (name, plain(b"odd"))])), (b"z", plain(b"z"))])
    };
    let tree = directory([
        (b"empty", directory([])),
        (b"file", plain(&numbers.bytes(9_000_000))),
        (b"link", Node::Symlink(b"file".to_vec())),
        (b"more", directory([(b"run", Node::File(b"#!".to_vec(), true)), (b"same", plain(b""))])),
        (b"one", deep(b"b\xfe")),
        (b"two", directory([(b"x", plain(&numbers.bytes(2_000_000)))])),
    ]);
    check_opaque(&nar(&tree)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_are_not_utf_8() {
    check_opaque(&nar(&Node::Symlink(b"\x80".to_vec()))).await;
    let tree = directory([
        (b"a", plain(b"before")),
        (b"b", directory([(b"c", Node::Symlink(b"../\xc3".to_vec())), (b"d", plain(b"after"))])),
        (b"e", Node::Symlink(b"\xff".to_vec())),
    ]);
    check_opaque(&nar(&tree)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_no_action_could_have_as_an_input() {
    let entry = |number: usize| (format!("{number:0255}").into_bytes(), plain(format!("{}", number % 100).as_bytes()));
    let large = Node::Directory((0..55_000).map(entry).collect());
    check_opaque(&nar(&directory([(b"a", plain(b"a")), (b"large", large), (b"z", plain(b"z"))]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_does_not_depend_on_the_compression() {
    let fixture = Fixture::new().await;
    let compressed = zstd::encode_all(ODD, 3).unwrap();
    let ingested = fixture.take(&compressed, Compression::Zstd).await.unwrap();
    assert!(matches!(ingested.root, Root::Opaque(_)));
    fixture.check(&ingested, ODD).await;
}

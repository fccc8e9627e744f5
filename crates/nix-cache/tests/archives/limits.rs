//! Bombs, and archives that are too much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use gf_nix_cache::archives::{ArchiveLimits, Expected, IngestError};
use gf_nix_formats::Compression;
use gf_nix_formats::nar::NarError;

use crate::compressions::compress;
use crate::fixture::{Fixture, OWNER, body};
use crate::generated::{Node, directory, nar, plain};

/// The beginning of an archive of one file of `size` bytes.
fn file_head(size: u64) -> Vec<u8> {
    let mut head = nar(&plain(b""));
    // Without the end of the file, and with another size.
    head.truncate(head.len() - 24);
    head.extend_from_slice(&size.to_le_bytes());
    head
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_beyond_the_limit_is_refused_before_it_comes() {
    let fixture = Fixture::new().await;
    let huge = file_head(1 << 40);
    for compression in [Compression::None, Compression::Xz, Compression::Gzip] {
        let taken = fixture.take(&compress(&huge, compression), compression).await;
        assert!(matches!(taken, Err(IngestError::Archive(NarError::TooLarge(_)))), "{taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expands_stops_at_the_size_announced() {
    let fixture = Fixture::new().await;
    // 16 MiB of a file that announces 60 GiB, in a few kilobytes.
    let mut bomb = file_head(60 << 30);
    bomb.resize(16 << 20, 0);
    for compression in [Compression::Zstd, Compression::Xz, Compression::Bzip2, Compression::Gzip] {
        let file = compress(&bomb, compression);
        assert!(file.len() < 100_000, "{} bytes of {}", file.len(), compression.name());
        let expected = Expected { nar_size: Some(1 << 20), ..Expected::default() };
        let taken = fixture.archives.ingest(OWNER, compression, body(&file, 4096), expected).await;
        assert!(matches!(taken, Err(IngestError::Archive(NarError::TooLarge(1_048_576)))), "{taken:?}");
        // Nobody announced anything, and it ends early.
        let taken = fixture.take(&file, compression).await;
        assert!(matches!(taken, Err(IngestError::Archive(NarError::Truncated(_)))), "{taken:?}");
    }
    assert_eq!(fixture.store.stats().keys, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept() {
    let limits =
        ArchiveLimits { size_bytes: 100_000, entries: 20, depth: 4, framing_bytes: 8_000, ..ArchiveLimits::default() };
    let fixture = Fixture::with(limits).await;
    let entries = |count: usize, name_bytes: usize| {
        let entry = |number: usize| (format!("{number:0name_bytes$}").into_bytes(), plain(b"x"));
        nar(&Node::Directory((0..count).map(entry).collect()))
    };
    assert!(fixture.take(&entries(20, 4), Compression::None).await.is_ok());
    let taken = fixture.take(&entries(21, 4), Compression::None).await;
    assert!(matches!(taken, Err(IngestError::Archive(NarError::TooManyEntries(20)))), "{taken:?}");
    let taken = fixture.take(&entries(20, 250), Compression::None).await;
    assert!(matches!(taken, Err(IngestError::TooManyNames { limit_bytes: 8_000 })), "{taken:?}");
    let mut deep = directory([]);
    for _ in 0..4 {
        deep = directory([(b"d", deep)]);
    }
    let taken = fixture.take(&nar(&deep), Compression::None).await;
    assert!(matches!(taken, Err(IngestError::Archive(NarError::TooDeep(4)))), "{taken:?}");
    let large = nar(&plain(&[7; 100_000]));
    let taken = fixture.take(&large, Compression::None).await;
    assert!(matches!(taken, Err(IngestError::TooLarge { .. } | IngestError::Archive(NarError::TooLarge(_)))));
    let taken = fixture.take(&compress(&large, Compression::Xz), Compression::Xz).await;
    assert!(matches!(taken, Err(IngestError::Archive(NarError::TooLarge(100_000)))), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_not_read_to_its_end() {
    let fixture = Fixture::new().await;
    let pulled = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&pulled);
    let endless = stream::repeat_with(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&[0; 65_536]))
    });
    let taken = fixture.archives.ingest(OWNER, Compression::None, endless, Expected::default()).await;
    assert!(matches!(taken, Err(IngestError::Archive(_))));
    assert!(pulled.load(Ordering::Relaxed) < 1000, "{} pieces were read", pulled.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_dropped_gives_its_place_back() {
    let limits = ArchiveLimits { concurrent_ingests: 1, ..ArchiveLimits::default() };
    let fixture = Fixture::with(limits).await;
    let archive = nar(&plain(b"x"));
    for _ in 0..3 {
        let stalled = stream::pending::<Result<Bytes, std::io::Error>>();
        let taking = fixture.archives.ingest(OWNER, Compression::None, stalled, Expected::default());
        assert!(tokio::time::timeout(Duration::from_millis(20), taking).await.is_err());
    }
    let taking = fixture.take(&archive, Compression::None);
    let ingested = tokio::time::timeout(Duration::from_secs(20), taking).await.unwrap().unwrap();
    fixture.check(&ingested, &archive).await;
}

/// However many send nothing, who sends has its turn; who is alone may be as slow as it likes.
#[tokio::test(flavor = "multi_thread")]
async fn who_sends_slowly_gives_way_to_who_waits() {
    let patience = Duration::from_millis(300);
    let fixture = Fixture::with(ArchiveLimits { concurrent_ingests: 2, patience, ..ArchiveLimits::default() }).await;
    let Fixture { archives, store: _store, folder: _folder } = fixture;
    let archives = Arc::new(archives);
    let whole = nar(&plain(b"contents"));
    let silent = |whole: &[u8]| {
        let (archives, first) = (Arc::clone(&archives), Ok::<_, std::io::Error>(Bytes::copy_from_slice(&whole[..50])));
        let body = futures::StreamExt::chain(stream::iter([first]), stream::pending());
        tokio::spawn(async move { archives.ingest(OWNER, Compression::None, body, Expected::default()).await })
    };
    let (mut first, second) = (silent(&whole), silent(&whole));
    let alone = tokio::time::timeout(3 * patience, &mut first).await;
    assert!(alone.is_err(), "nobody waits for its turn");
    let quick = archives.ingest(OWNER, Compression::None, body(&whole, 100), Expected::default());
    assert!(tokio::time::timeout(100 * patience, quick).await.unwrap().is_ok());
    // One gave way at least; the other may have gone on.
    let given_up = futures::future::select(first, second).await.factor_first().0;
    assert!(matches!(given_up.unwrap(), Err(IngestError::TooSlow)));
}

/// Names of all archives under way share a bound.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_all_archives_together_are_bounded() {
    let fixture = Fixture::with(ArchiveLimits { names_bytes: 8 << 20, ..ArchiveLimits::default() }).await;
    let names = |count: usize| {
        let entry = |number: usize| (format!("{number:0>200}").into_bytes(), plain(b""));
        nar(&Node::Directory((0..count).map(entry).collect()))
    };
    assert!(fixture.take(&names(2000), Compression::None).await.is_ok());
    let taken = fixture.take(&names(20_000), Compression::None).await;
    assert!(matches!(taken, Err(IngestError::Busy)), "{taken:?}");
    // Nothing of it is held any more.
    assert!(fixture.take(&names(2000), Compression::None).await.is_ok());
}

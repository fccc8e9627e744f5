//! What is not what it should be, is refused.

use gf_blobstore::ErrorKind;
use gf_nix_cache::archives::{Expected, IngestError};
use gf_nix_formats::nar::NarError;
use gf_nix_formats::{Compression, NarHash};

use crate::compressions::{ALL, compress};
use crate::fixture::{Fixture, OWNER, body, broken_body};
use crate::generated::{Numbers, nar, tree};

#[tokio::test(flavor = "multi_thread")]
async fn truncated_archives() {
    let fixture = Fixture::new().await;
    let nar = nar(&tree(&mut Numbers::new(21), 40, 0));
    for compression in ALL {
        let file = compress(&nar, compression);
        for kept in (0..file.len()).step_by(1 + file.len() / 60).chain([file.len() - 1]) {
            let taken = fixture.take(&file[..kept], compression).await;
            let error = taken.expect_err(&format!("{kept} of {} bytes of {}", file.len(), compression.name()));
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_bytes() {
    let fixture = Fixture::new().await;
    let nar = nar(&tree(&mut Numbers::new(22), 40, 0));
    let expected = Expected { nar_hash: Some(NarHash::of(&nar)), ..Expected::default() };
    for compression in ALL {
        let file = compress(&nar, compression);
        for at in (0..file.len()).step_by(1 + file.len() / 60) {
            let mut changed = file.clone();
            changed[at] ^= 0x10;
            let taken = fixture.archives.ingest(OWNER, compression, body(&changed, 5000), expected).await;
            // A byte that nothing checks may decode to the same archive: then that is what was announced.
            if let Ok(ingested) = taken {
                fixture.check(&ingested, &nar).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_after_the_end() {
    let fixture = Fixture::new().await;
    let nar = nar(&tree(&mut Numbers::new(23), 40, 0));
    for compression in ALL {
        let mut file = compress(&nar, compression);
        // More than any decoder reads at once.
        file.extend_from_slice(&[1; 100_000]);
        let error = fixture.take(&file, compression).await.expect_err(compression.name());
        let is_told = match compression {
            Compression::None => matches!(error, IngestError::Archive(NarError::TrailingBytes(_))),
            _ => matches!(error, IngestError::Undecodable { .. }),
        };
        assert!(is_told, "{}: {error}", compression.name());
    }
    let mut longer = nar.clone();
    longer.extend_from_slice(&nar);
    let taken = fixture.take(&compress(&longer, Compression::Zstd), Compression::Zstd).await;
    assert!(matches!(taken, Err(IngestError::Archive(NarError::TrailingBytes(_)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_archive() {
    let fixture = Fixture::new().await;
    for bytes in [&b""[..], b"hello", &[0; 100_000], b"\x7fELF"] {
        let taken = fixture.take(bytes, Compression::None).await;
        assert!(matches!(taken, Err(IngestError::Archive(_))));
        let taken = fixture.take(&compress(bytes, Compression::Xz), Compression::Xz).await;
        assert!(matches!(taken, Err(IngestError::Archive(_))));
        let taken = fixture.take(bytes, Compression::Xz).await;
        assert!(matches!(taken, Err(IngestError::Undecodable { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hashes_and_sizes_than_announced() {
    let fixture = Fixture::new().await;
    let nar = nar(&tree(&mut Numbers::new(24), 40, 0));
    let none = Expected::default();
    let (other, size) = (NarHash::of(b"other"), nar.len() as u64);
    for compression in [Compression::None, Compression::Zstd] {
        let file = compress(&nar, compression);
        let file_size = file.len() as u64;
        for expected in [
            Expected { nar_hash: Some(other), ..none },
            Expected { file_hash: Some(*other.as_bytes()), ..none },
            Expected { nar_size: Some(size - 1), ..none },
            Expected { nar_size: Some(size + 1), ..none },
            Expected { file_size: Some(file_size - 1), ..none },
            Expected { file_size: Some(file_size + 1), ..none },
        ] {
            let taken = fixture.archives.ingest(OWNER, compression, body(&file, 3000), expected).await;
            let error = taken.expect_err(&format!("{expected:?}"));
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_not_an_archive_that_ends_early() {
    let fixture = Fixture::new().await;
    let nar = nar(&tree(&mut Numbers::new(25), 400, 0));
    let broken = broken_body(&nar[..nar.len() / 2]);
    let taken = fixture.archives.ingest(OWNER, Compression::None, broken, Expected::default()).await;
    assert!(matches!(taken, Err(IngestError::Body(_))));
    let broken = broken_body(&nar);
    let taken = fixture.archives.ingest(OWNER, Compression::None, broken, Expected::default()).await;
    assert!(matches!(taken, Err(IngestError::Body(_))));
}

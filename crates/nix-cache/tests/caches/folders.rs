use gf_nix_cache::{Export, Settings};
use gf_nix_formats::{Compression, NarInfo, StoreDir};
use gf_tenancy::{NixPull, NixPush};

use crate::fixture::{Fixture, OURS, Sample};

#[tokio::test]
async fn a_cache_goes_out_as_a_folder_and_comes_back_in() {
    let fixture = Fixture::sqlite().await;
    let a = Sample::new("a", &[]);
    let b = Sample::new("b", &[&a]);
    fixture.push(&a).await;
    fixture.push(&b).await;
    let folder = tempfile::tempdir().unwrap();
    let export = fixture.caches.export(&fixture.grant("main"), folder.path()).await.unwrap();
    let nar_bytes = (a.nar.len() + b.nar.len()) as u64;
    assert_eq!(export, Export { paths: 2, known: 0, missing: 0, nar_bytes });
    let again = fixture.caches.export(&fixture.grant("main"), folder.path()).await.unwrap();
    assert_eq!((again.paths, again.known), (0, 2));

    let text = std::fs::read(folder.path().join(format!("{}.narinfo", b.path.hash()))).unwrap();
    let narinfo = NarInfo::parse(&StoreDir::default(), &text).unwrap();
    let file = std::fs::read(folder.path().join(narinfo.url.as_str())).unwrap();
    assert_eq!((narinfo.compression, zstd::decode_all(&*file).unwrap()), (Compression::Zstd, b.nar.clone()));
    let key = fixture.caches.all().await.unwrap()[0].public_key();
    let fingerprint = narinfo.fingerprint(&StoreDir::default());
    assert!(narinfo.signatures.verified_by(fingerprint.as_bytes(), &[key]).is_some());

    let mut other = Fixture::sqlite().await;
    let push = other.grant::<NixPush>("main");
    let import = other.caches.import(&push, folder.path()).await.unwrap();
    assert_eq!((import.paths, import.waiting, import.refused_count), (2, 0, 0), "{import:?}");
    other.restart().await;
    assert!(other.is_visible(&a.path).await && other.is_visible(&b.path).await);
    assert_eq!(other.caches.import(&push, folder.path()).await.unwrap().known, 2);
}

#[tokio::test]
async fn what_is_wrong_in_a_folder_is_refused_and_the_rest_is_taken() {
    let fixture = Fixture::sqlite().await;
    let (a, b) = (Sample::new("a", &[]), Sample::new("b", &[]));
    fixture.push(&a).await;
    fixture.push(&b).await;
    let folder = tempfile::tempdir().unwrap();
    fixture.caches.export(&fixture.grant::<NixPull>("main"), folder.path()).await.unwrap();
    let narinfo = folder.path().join(format!("{}.narinfo", b.path.hash()));
    let text = std::fs::read_to_string(&narinfo).unwrap();
    let lines = text.lines().map(|line| if line.starts_with("URL: ") { "URL: ../../secret" } else { line });
    std::fs::write(&narinfo, lines.fold(String::new(), |text, line| text + line + "\n")).unwrap();
    fixture.create(crate::fixture::THEIRS, "theirs", Settings::default()).await;
    let push = fixture.grant_of::<NixPush>(crate::fixture::THEIRS, "theirs");
    let import = fixture.caches.import(&push, folder.path()).await.unwrap();
    assert_eq!((import.paths, import.refused_count), (1, 1), "{import:?}");
    assert!(import.refused[0].1.contains("leads out"), "{import:?}");
    fixture
        .create(OURS, "elsewhere", Settings { store_dir: StoreDir::new("/other").unwrap(), ..Settings::default() })
        .await;
    assert!(fixture.caches.import(&fixture.grant("elsewhere"), folder.path()).await.is_err());
}

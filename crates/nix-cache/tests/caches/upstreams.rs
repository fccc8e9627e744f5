use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use futures::future::join_all;
use gf_blobstore::ErrorKind;
use gf_nix_cache::{ArchiveName, Link, Lookup, Publication, SettingsChange, UpstreamSettings};
use gf_nix_formats::{Compression, KeyName, NarInfo, SecretKey, StoreDir};
use gf_tenancy::{NixConfigureCache, NixPull};

use crate::fixture::{Fixture, Sample};

/// A binary cache that is a folder, behind HTTP.
#[derive(Clone)]
struct Folder {
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    asked: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
    key: Arc<SecretKey>,
    address: SocketAddr,
}

impl Folder {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = SecretKey::from_seed(KeyName::new("upstream-1").unwrap(), [3; 32]).unwrap();
        let folder = Self {
            files: Arc::default(),
            asked: Arc::default(),
            is_down: Arc::default(),
            key: Arc::new(key),
            address: listener.local_addr().unwrap(),
        };
        let served = folder.clone();
        let router = Router::new().fallback(async move |request: Request| served.answer(request.uri().path()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        folder
    }

    fn answer(&self, path: &str) -> (StatusCode, Vec<u8>) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return (StatusCode::SERVICE_UNAVAILABLE, Vec::new());
        }
        let file = self.files.lock().unwrap().get(path.trim_start_matches('/')).cloned();
        file.map_or((StatusCode::NOT_FOUND, Vec::new()), |file| (StatusCode::OK, file))
    }

    fn put(&self, narinfo: &NarInfo, sample: &Sample) {
        let mut files = self.files.lock().unwrap();
        files.insert(narinfo.url.as_str().to_owned(), sample.file(narinfo.compression).bytes);
        let text = narinfo.format(&StoreDir::default());
        files.insert(format!("{}.narinfo", sample.path.hash()), text.into_bytes());
    }

    fn add(&self, sample: &Sample) {
        let mut narinfo = sample.narinfo(Compression::Zstd);
        narinfo.sign(&StoreDir::default(), &self.key).unwrap();
        self.put(&narinfo, sample);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn with_upstream() -> (Fixture, Folder) {
    let (fixture, folder) = (Fixture::sqlite().await, Folder::start().await);
    let upstream = UpstreamSettings { url: format!("http://{}/", folder.address), keys: vec![folder.key.public()] };
    let change = SettingsChange { upstreams: Some(vec![upstream]), ..SettingsChange::default() };
    fixture.caches.configure(&fixture.grant::<NixConfigureCache>("main"), change, None).await.unwrap();
    (fixture, folder)
}

#[tokio::test]
async fn what_an_upstream_has_is_served_signed_fetched_once_and_stays() {
    let (mut fixture, folder) = with_upstream().await;
    let sample = Sample::new("a", &[]);
    folder.add(&sample);
    let pull = fixture.grant::<NixPull>("main");
    let answers = join_all((0..16).map(|_| fixture.caches.lookup(&pull, sample.path.hash()))).await;
    assert!(answers.into_iter().all(|answer| matches!(answer, Ok(Lookup::Present(_)))));
    assert_eq!(folder.asked(), 1);
    let narinfo = fixture.narinfo(&sample.path).await.unwrap();
    assert_eq!((narinfo.compression, narinfo.signatures.len()), (Compression::None, 2));

    // The narinfo was served, so the archive is served after a restart too.
    fixture.restart().await;
    let name = ArchiveName::Nar(sample.nar_hash());
    let reads = join_all((0..8).map(|_| fixture.read(name))).await;
    assert!(reads.into_iter().all(|read| read.as_ref() == Some(&sample.nar)));
    assert_eq!(folder.asked(), 2);
    folder.is_down.store(true, Ordering::SeqCst);
    assert!(fixture.read(name).await.is_some() && fixture.is_visible(&sample.path).await);
    let report = fixture.caches.show(&pull).await.unwrap();
    assert_eq!((report.paths, report.upstreams.len(), report.upstreams[0].paths), (1, 1, 1));
}

#[tokio::test]
async fn what_is_not_there_is_not_asked_for_again_for_a_while() {
    let (fixture, folder) = with_upstream().await;
    let sample = Sample::new("a", &[]);
    for _ in 0..5 {
        assert!(!fixture.is_visible(&sample.path).await);
    }
    assert_eq!(folder.asked(), 1);
    folder.add(&sample);
    fixture.time.advance(60);
    assert!(fixture.is_visible(&sample.path).await);
}

#[tokio::test]
async fn an_upstream_that_cannot_say_is_not_taken_for_a_no() {
    let (fixture, folder) = with_upstream().await;
    folder.is_down.store(true, Ordering::SeqCst);
    let sample = Sample::new("a", &[]);
    let error = fixture.caches.lookup(&fixture.grant("main"), sample.path.hash()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let why = fixture.caches.why(&fixture.grant("main"), sample.path.hash()).await.unwrap();
    assert!(matches!(why.broken(), Some(Link::Unknown { .. })), "{why:?}");
    // What is here is served all the same.
    folder.is_down.store(false, Ordering::SeqCst);
    fixture.push(&sample).await;
    folder.is_down.store(true, Ordering::SeqCst);
    assert!(fixture.is_visible(&sample.path).await);
}

#[tokio::test]
async fn nothing_is_taken_that_no_key_of_the_upstream_signed() {
    let (fixture, folder) = with_upstream().await;
    let (unsigned, forged, moved, damaged) =
        (Sample::new("a", &[]), Sample::new("b", &[]), Sample::new("c", &[]), Sample::new("d", &[]));
    folder.put(&unsigned.narinfo(Compression::None), &unsigned);
    let stranger = SecretKey::from_seed(KeyName::new("upstream-1").unwrap(), [4; 32]).unwrap();
    let mut narinfo = forged.narinfo(Compression::None);
    narinfo.sign(&StoreDir::default(), &stranger).unwrap();
    folder.put(&narinfo, &forged);
    let mut narinfo = unsigned.narinfo(Compression::None);
    narinfo.sign(&StoreDir::default(), &folder.key).unwrap();
    let text = narinfo.format(&StoreDir::default()).into_bytes();
    folder.files.lock().unwrap().insert(format!("{}.narinfo", moved.path.hash()), text);
    for sample in [&unsigned, &forged, &moved] {
        assert!(!fixture.is_visible(&sample.path).await, "{}", sample.path);
    }
    // A right narinfo, and other bytes behind it.
    folder.add(&damaged);
    let url = damaged.narinfo(Compression::Zstd).url.as_str().to_owned();
    folder.files.lock().unwrap().insert(url, unsigned.file(Compression::Zstd).bytes);
    assert!(fixture.is_visible(&damaged.path).await);
    let name = ArchiveName::Nar(damaged.nar_hash());
    let error = fixture.caches.open_archive(&fixture.grant("main"), name).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn references_may_be_in_an_upstream() {
    let (fixture, folder) = with_upstream().await;
    let library = Sample::new("library", &[]);
    let program = Sample::new("program", &[&library]);
    folder.add(&library);
    fixture.upload(&program, Compression::None).await.unwrap();
    assert_eq!(fixture.publish(&program).await.unwrap(), Publication::New);
    let closure = fixture.caches.closure(&fixture.execute(), std::slice::from_ref(&program.path)).await.unwrap();
    assert_eq!((closure.paths.len(), closure.is_complete()), (2, true));
}

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use gf_blobstore::ErrorKind;
use gf_nix_cache::{ArchiveName, Link, Lookup, Publication, Reading, Settings, SettingsChange, UpstreamSettings};
use gf_nix_formats::{Compression, KeyName, NarInfo, SecretKey, StoreDir};
use gf_tenancy::{NixConfigureCache, NixPull};
use gf_testkit::blob_store_suite::noise;
use tokio::sync::Notify;

use crate::fixture::{Fixture, OURS, Sample, body};

/// A binary cache that is a folder, behind HTTP.
#[derive(Clone)]
struct Folder {
    files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    asked: Arc<AtomicUsize>,
    is_down: Arc<AtomicBool>,
    /// A file of which the first answer ends after so many bytes, once it is told to.
    cut: Arc<Mutex<Option<Cut>>>,
    gives_parts: Arc<AtomicBool>,
    /// Parts that were given.
    parts: Arc<AtomicUsize>,
    key: Arc<SecretKey>,
    address: SocketAddr,
}

struct Cut {
    file: String,
    after: usize,
    gate: Arc<Notify>,
}

impl Folder {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = SecretKey::from_seed(KeyName::new("upstream-1").unwrap(), [3; 32]).unwrap();
        let folder = Self {
            files: Arc::default(),
            asked: Arc::default(),
            is_down: Arc::default(),
            cut: Arc::default(),
            gives_parts: Arc::default(),
            parts: Arc::default(),
            key: Arc::new(key),
            address: listener.local_addr().unwrap(),
        };
        let served = folder.clone();
        let router = Router::new().fallback(async move |request: Request| {
            let range = request.headers().get("range").map(|range| range.to_str().unwrap().to_owned());
            served.answer(request.uri().path(), range.as_deref())
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        folder
    }

    fn answer(&self, path: &str, range: Option<&str>) -> Response<Body> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let status = |status: StatusCode, body: Body| Response::builder().status(status).body(body).unwrap();
        if self.is_down.load(Ordering::SeqCst) {
            return status(StatusCode::SERVICE_UNAVAILABLE, Body::empty());
        }
        let path = path.trim_start_matches('/');
        let Some(file) = self.files.lock().unwrap().get(path).cloned() else {
            return status(StatusCode::NOT_FOUND, Body::empty());
        };
        let mut cut = self.cut.lock().unwrap();
        if let Some(Cut { after, gate, .. }) = cut.take_if(|cut| cut.file == path) {
            let first = Bytes::from(file[..after].to_vec());
            let rest = async move {
                gate.notified().await;
                Err(std::io::Error::other("cut"))
            };
            let body = futures::stream::iter([Ok(first)]).chain(futures::stream::once(rest));
            return Response::builder().header("content-length", file.len()).body(Body::from_stream(body)).unwrap();
        }
        let first = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        match first.filter(|_| self.gives_parts.load(Ordering::SeqCst)) {
            Some(first) => {
                self.parts.fetch_add(1, Ordering::SeqCst);
                let range = format!("bytes {first}-{}/{}", file.len() - 1, file.len());
                let answer = Response::builder().status(StatusCode::PARTIAL_CONTENT).header("content-range", range);
                answer.body(Body::from(file[first..].to_vec())).unwrap()
            }
            None => status(StatusCode::OK, Body::from(file)),
        }
    }

    /// Has the next answer with a file end early, when the gate is opened.
    fn cut(&self, file: &str, after: usize, gives_parts: bool) -> Arc<Notify> {
        let gate = Arc::new(Notify::new());
        *self.cut.lock().unwrap() = Some(Cut { file: file.to_owned(), after, gate: Arc::clone(&gate) });
        self.gives_parts.store(gives_parts, Ordering::SeqCst);
        gate
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
async fn an_upstream_is_where_the_operator_lets_it_be() {
    let fixture = Fixture::sqlite().await;
    let configure = async |url: &str| {
        let upstream = UpstreamSettings { url: url.to_owned(), keys: Vec::new() };
        let change = SettingsChange { upstreams: Some(vec![upstream]), ..SettingsChange::default() };
        fixture.caches.configure(&fixture.grant::<NixConfigureCache>("main"), change, None).await
    };
    for url in ["http://10.0.0.5:9200", "http://169.254.169.254/latest", "http://[fd00::1]/"] {
        let refused = configure(url).await.unwrap_err().to_string();
        assert!(refused.contains("upstream_networks"), "{refused}");
    }
    for url in ["http://127.0.0.1:1", "https://cache.example"] {
        configure(url).await.unwrap();
    }
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

/// A second upstream, asked after the first.
async fn with_two_upstreams() -> (Fixture, Folder, Folder) {
    let (fixture, first, second) = (Fixture::sqlite().await, Folder::start().await, Folder::start().await);
    let settings = |folder: &Folder| UpstreamSettings {
        url: format!("http://{}/", folder.address),
        keys: vec![folder.key.public()],
    };
    let change = SettingsChange { upstreams: Some(vec![settings(&first), settings(&second)]), ..Default::default() };
    fixture.caches.configure(&fixture.grant::<NixConfigureCache>("main"), change, None).await.unwrap();
    (fixture, first, second)
}

#[tokio::test]
async fn a_failing_upstream_is_left_alone_and_holds_up_no_other() {
    let (fixture, dead, other) = with_two_upstreams().await;
    dead.is_down.store(true, Ordering::SeqCst);
    let samples: Vec<Sample> = (0..50).map(|number| Sample::new(&format!("s{number}"), &[])).collect();
    for sample in &samples {
        other.add(sample);
        assert!(fixture.is_visible(&sample.path).await);
    }
    assert_eq!(dead.asked(), 1, "it was asked again and again");
    // Once it is back, it is found out.
    dead.is_down.store(false, Ordering::SeqCst);
    fixture.time.advance(60);
    let late = Sample::new("late", &[]);
    dead.add(&late);
    assert!(fixture.is_visible(&late.path).await);
}

#[tokio::test]
async fn what_one_upstream_fails_to_give_another_gives() {
    let (fixture, first, second) = with_two_upstreams().await;
    let library = Sample::new("library", &[]);
    let program = Sample::new("program", &[&library]);
    for sample in [&library, &program] {
        first.add(sample);
        second.add(sample);
    }
    assert!(fixture.is_visible(&program.path).await);
    // Its archive is still only there, where it came from.
    first.is_down.store(true, Ordering::SeqCst);
    let closure = fixture.caches.closure(&fixture.execute(), std::slice::from_ref(&program.path)).await.unwrap();
    assert_eq!((closure.paths.len(), closure.is_complete()), (2, true));
    // What nobody has and somebody may is unknown, not missing.
    let nowhere = Sample::new("nowhere", &[]).path;
    let error = fixture.caches.closure(&fixture.execute(), &[nowhere]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn what_waits_here_is_complete_when_an_upstream_has_it() {
    let (fixture, folder) = with_upstream().await;
    let (missing, base) = (Sample::new("missing", &[]), Sample::new("base", &[]));
    let hidden = Sample::new("hidden", &[&missing]);
    let above = Sample::new("above", &[&hidden, &base]);
    fixture.push(&base).await;
    for sample in [&hidden, &above] {
        let uploaded = fixture.caches.upload_path(&fixture.grant("main"), sample.uploaded(), body(&sample.nar)).await;
        assert!(matches!(uploaded.unwrap().publication, Publication::Waiting(_)));
    }
    fixture.time.advance(120);
    folder.add(&hidden);
    fixture.caches.tend().await.unwrap();
    assert!(fixture.is_visible(&hidden.path).await && fixture.is_visible(&above.path).await);
    assert_eq!(fixture.read(ArchiveName::Path(hidden.path.hash())).await.as_ref(), Some(&hidden.nar));
}

/// However many wait in front of it, each has its turn.
#[tokio::test]
async fn every_path_that_waits_is_looked_for() {
    let (fixture, folder) = with_upstream().await;
    let upload = async |sample: &Sample| {
        let uploaded = fixture.caches.upload_path(&fixture.grant("main"), sample.uploaded(), body(&sample.nar)).await;
        assert!(matches!(uploaded.unwrap().publication, Publication::Waiting(_)));
    };
    let (never, comes) = (Sample::new("never", &[]), Sample::new("comes", &[]));
    let late = Sample::new("late", &[&comes]);
    upload(&late).await;
    for number in 0..150 {
        upload(&Sample::new(&format!("stuck-{number}"), &[&never])).await;
    }
    folder.add(&comes);
    fixture.time.advance(120);
    for _ in 0..3 {
        fixture.caches.tend().await.unwrap();
    }
    assert!(fixture.is_visible(&late.path).await);
}

#[tokio::test]
async fn only_caches_that_give_toolchains_are_looked_into() {
    let fixture = Fixture::sqlite().await;
    fixture.create(OURS, "others", Settings::default()).await;
    let sample = Sample::new("tool", &[]);
    let push = fixture.grant("others");
    fixture.caches.upload_path(&push, sample.uploaded(), body(&sample.nar)).await.unwrap();
    let asked = std::slice::from_ref(&sample.path);
    let closure = fixture.caches.closure(&fixture.execute(), asked).await.unwrap();
    assert_eq!(closure.missing, asked);
    let change = SettingsChange { gives_toolchains: Some(true), ..SettingsChange::default() };
    fixture.caches.configure(&fixture.grant::<NixConfigureCache>("others"), change, None).await.unwrap();
    assert!(fixture.caches.closure(&fixture.execute(), asked).await.unwrap().is_complete());
}

#[tokio::test]
async fn an_archive_goes_on_to_its_reader_while_it_comes_and_after_a_cut() {
    for gives_parts in [true, false] {
        let (fixture, folder) = with_upstream().await;
        let sample = Sample::with_contents("large", &noise(7, 3 << 20), &[]);
        let mut narinfo = sample.narinfo(Compression::None);
        narinfo.sign(&StoreDir::default(), &folder.key).unwrap();
        folder.put(&narinfo, &sample);
        assert!(fixture.is_visible(&sample.path).await);
        let gate = folder.cut(narinfo.url.as_str(), 2 << 20, gives_parts);
        let pull = fixture.grant::<NixPull>("main");
        let name = ArchiveName::Nar(sample.nar_hash());
        let Some(Reading::Coming(coming)) = fixture.caches.read_archive(&pull, name).await.unwrap() else {
            panic!("it does not come");
        };
        let mut pieces = Box::pin(coming.into_stream());
        // The upstream holds back the rest, and the first pieces are here.
        let mut read = pieces.next().await.unwrap().unwrap().to_vec();
        assert!(sample.nar.starts_with(&read));
        gate.notify_one();
        while let Some(piece) = pieces.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
        assert!(read == sample.nar, "{} of {} bytes", read.len(), sample.nar.len());
        assert_eq!(folder.parts.load(Ordering::SeqCst), usize::from(gives_parts));
        assert!(fixture.read(name).await.is_some());
    }
}

/// What is not what its narinfo says never comes to its end.
#[tokio::test]
async fn a_wrong_archive_is_cut_off_before_its_end() {
    let (fixture, folder) = with_upstream().await;
    let sample = Sample::with_contents("large", &noise(8, 1 << 20), &[]);
    let mut narinfo = sample.narinfo(Compression::None);
    narinfo.sign(&StoreDir::default(), &folder.key).unwrap();
    folder.put(&narinfo, &sample);
    assert!(fixture.is_visible(&sample.path).await);
    let mut contents = noise(8, 1 << 20);
    *contents.last_mut().unwrap() ^= 1;
    let wrong = Sample::with_contents("large", &contents, &[]);
    folder.files.lock().unwrap().insert(narinfo.url.as_str().to_owned(), wrong.nar);
    let name = ArchiveName::Nar(sample.nar_hash());
    let reading = fixture.caches.read_archive(&fixture.grant("main"), name).await;
    let mut length = 0;
    if let Ok(Some(Reading::Coming(coming))) = reading {
        let mut pieces = Box::pin(coming.into_stream());
        let error = loop {
            match pieces.next().await {
                Some(Ok(piece)) => length += piece.len(),
                Some(Err(error)) => break error,
                None => panic!("it came to its end"),
            }
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    }
    assert!(length < sample.nar.len());
}

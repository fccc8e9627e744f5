//! The program is killed again and again while clients push, and started again: a path that was acknowledged is complete,
//! signed and served byte for byte, and an archive that was acknowledged waits for its narinfo.
//!
//! Two hundred rounds in which the program itself is killed; what a power cut takes is proved in the store's own crate.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gf_nix_formats::nar::{NarEvent, NarLimits, NarWriter};
use gf_nix_formats::{
    Compression, NarHash, NarInfo, NarUrl, PublicKey, Signatures, StoreDir, StorePath, StorePathHash,
};
use gf_tests::GfServer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{http, public_key};

const ROUNDS: u64 = 200;
const CLIENTS: u64 = 3;

/// Paths of one closure: each refers to the one before it.
const CHAIN: usize = 3;

/// A path that a client pushes.
#[derive(Clone)]
struct Pushed {
    narinfo: NarInfo,
    nar: Vec<u8>,
}

/// What the server acknowledged.
#[derive(Default)]
struct Acknowledged {
    /// Archives whose narinfo was not acknowledged.
    archives: Vec<Pushed>,
    paths: Vec<Pushed>,
}

impl Pushed {
    fn new(random: &mut StdRng, references: &[StorePath]) -> Self {
        let size = if random.random_bool(0.1) { 1_200_000 } else { random.random_range(0..20_000) };
        let mut contents = vec![0; size];
        random.fill(&mut contents[..]);
        let nar = nar(contents.into());
        let hash = NarHash::of(&nar);
        let narinfo = NarInfo {
            store_path: StorePath::new(StorePathHash::new(random.random()), "pushed").unwrap(),
            url: NarUrl::new(&format!("nar/{}.nar", hash.base32())).unwrap(),
            compression: Compression::None,
            file_hash: Some(hash.into()),
            file_size: Some(nar.len() as u64),
            nar_hash: hash,
            nar_size: nar.len() as u64,
            references: references.iter().cloned().collect(),
            deriver: None,
            system: None,
            signatures: Signatures::default(),
            content_address: None,
        };
        Self { narinfo, nar }
    }

    fn nar_url(&self) -> String {
        format!("/nix/main/{}", self.narinfo.url.as_str())
    }

    fn narinfo_url(&self) -> String {
        narinfo_url(&self.narinfo.store_path)
    }

    /// Whether it was acknowledged; `None` when the server is gone.
    fn put_narinfo(&self, address: &str) -> Option<()> {
        let text = self.narinfo.format(&StoreDir::default());
        let answer = http::try_request(address, "PUT", &self.narinfo_url(), &[], text.as_bytes()).ok()?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Some(())
    }
}

fn narinfo_url(path: &StorePath) -> String {
    format!("/nix/main/{}.narinfo", path.hash())
}

/// The archive of one file.
fn nar(contents: Bytes) -> Vec<u8> {
    let mut writer = NarWriter::new(NarLimits { size_bytes: 1 << 30, entries: 1, depth: 1 });
    let mut chunks = Vec::new();
    let mut events = vec![NarEvent::File { executable: false, size_bytes: contents.len() as u64 }];
    events.extend((!contents.is_empty()).then_some(NarEvent::Contents(contents)));
    events.push(NarEvent::FileEnd);
    for event in &events {
        writer.write(event, &mut chunks).unwrap();
    }
    writer.finish(&mut chunks).unwrap();
    chunks.concat()
}

/// Pushes closures as `nix copy` does, until the server is gone.
fn push(address: &str, seed: u64, acknowledged: &Mutex<Acknowledged>) -> Option<()> {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let mut references = Vec::new();
        for _ in 0..CHAIN {
            let pushed = Pushed::new(&mut random, &references);
            let answer = http::try_request(address, "PUT", &pushed.nar_url(), &[], &pushed.nar).ok()?;
            assert_eq!(answer.status, 200, "{}", answer.text());
            acknowledged.lock().unwrap().archives.push(pushed.clone());
            pushed.put_narinfo(address)?;
            let mut acknowledged = acknowledged.lock().unwrap();
            acknowledged.archives.retain(|archive| archive.nar != pushed.nar);
            references.push(pushed.narinfo.store_path.clone());
            acknowledged.paths.push(pushed);
        }
    }
}

/// Everything that was acknowledged is there.
fn check(address: &str, key: &PublicKey, acknowledged: &Acknowledged) {
    let store = StoreDir::default();
    for pushed in &acknowledged.paths {
        let answer = http::get(address, &pushed.narinfo_url(), &[]);
        assert_eq!(answer.status, 200, "{}", pushed.narinfo.store_path);
        let narinfo = NarInfo::parse(&store, &answer.body).unwrap();
        assert_eq!((narinfo.nar_hash, &narinfo.references), (pushed.narinfo.nar_hash, &pushed.narinfo.references));
        let fingerprint = narinfo.fingerprint(&store);
        assert!(narinfo.signatures.verified_by(fingerprint.as_bytes(), std::slice::from_ref(key)).is_some());
        for reference in &narinfo.references {
            assert_eq!(http::get(address, &narinfo_url(reference), &[]).status, 200, "{reference}");
        }
        let archive = http::get(address, &format!("/nix/main/{}", narinfo.url.as_str()), &[]);
        assert!(archive.status == 200 && archive.body == pushed.nar, "{}", narinfo.store_path);
    }
    for pushed in &acknowledged.archives {
        let head = http::request(address, "HEAD", &pushed.nar_url(), &[], b"");
        assert_eq!(head.status, 200, "an acknowledged archive is gone");
        pushed.put_narinfo(address).unwrap();
        let archive = http::get(address, &pushed.nar_url(), &[]);
        assert!(archive.status == 200 && archive.body == pushed.nar);
    }
}

/// Waits until so many archives and narinfos were acknowledged, on a slow machine at most for a while.
fn wait_for(acknowledged: &Mutex<Acknowledged>, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_reached = || {
        let acknowledged = acknowledged.lock().unwrap();
        acknowledged.archives.len() + 2 * acknowledged.paths.len() >= count
    };
    while !is_reached() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_was_acknowledged_is_complete_signed_and_served_after_every_kill() {
    let data = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(1);
    let (mut key, mut before) = (None, Acknowledged::default());
    let (mut paths, mut kept) = (0, Vec::new());
    for round in 0..ROUNDS {
        let server = GfServer::start(data.path()).unwrap();
        let key = key.get_or_insert_with(|| PublicKey::parse(&public_key(&server)).unwrap());
        check(server.address(), key, &before);
        let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
        let clients = (0..CLIENTS).map(|client| {
            let (address, acknowledged) = (server.address().to_owned(), Arc::clone(&acknowledged));
            std::thread::spawn(move || push(&address, 1000 * round + client, &acknowledged))
        });
        let clients: Vec<_> = clients.collect();
        wait_for(&acknowledged, random.random_range(0..9));
        // Some moment in the midst of what comes next.
        std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        // Dropping it kills it.
        drop(server);
        for client in clients {
            client.join().unwrap();
        }
        before = Arc::into_inner(acknowledged).unwrap().into_inner().unwrap();
        paths += before.paths.len();
        kept.extend(before.paths.last().cloned());
    }
    assert!(paths >= 200, "only {paths} paths were pushed in {ROUNDS} rounds: that proves little");
    let server = GfServer::start(data.path()).unwrap();
    check(server.address(), key.as_ref().unwrap(), &before);
    // What was there after one kill is there after all the others.
    check(server.address(), key.as_ref().unwrap(), &Acknowledged { paths: kept, archives: Vec::new() });
    assert!(server.stop().unwrap().success());
}

//! A build without the bytes, while others want more space than there is: what Bazel was told is there must stay there.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::noise;
use gf_tests::{Bazel, GfServer, Metrics};

use crate::CLIENT_LIMIT;
use crate::bazel::{WITHOUT_RUST, Workshop, build};

const CAPACITY_MIB: usize = 128;
const BLOB_BYTES: usize = 1 << 20;
/// Longer than all builds take together, on however slow a machine.
const KEPT: &str = "2h";
const SHORTEST: &str = "1m";
const SOON: Duration = Duration::from_secs(600);

/// A server with the data of the one before, which keeps what it told of for `lease`.
fn server(data: &Path, lease: &str) -> GfServer {
    let config = data.join("gf.toml");
    let text = format!("[store]\ncapacity = \"{CAPACITY_MIB}MiB\"\nlease = \"{lease}\"\n[worker]\nenabled = false\n");
    fs::write(&config, text).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    GfServer::start_with(&GfServer::binary().unwrap(), ([127, 0, 0, 1], 0).into(), data, &arguments).unwrap()
}

/// Uploads a blob that nobody has. `false` when there is no room for it.
fn upload(server: &GfServer) -> bool {
    let bytes = noise(rand::random(), BLOB_BYTES);
    let hash = Digest::of(DigestFunction::Sha256, &bytes);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(CLIENT_LIMIT)).unwrap();
    let path = format!("/cas/{}", hash.hash_hex().as_str());
    // The server may refuse, and hang up, before it has read everything.
    let _ = write!(stream, "PUT {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {BLOB_BYTES}\r\n\r\n");
    let _ = stream.write_all(&bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned();
    assert!(status.starts_with('2') || status == "507" || status.is_empty(), "{status}");
    status.starts_with('2')
}

/// Others who upload without an end.
#[derive(Default)]
struct Others {
    stored: AtomicUsize,
    refused: AtomicUsize,
    are_gone: AtomicBool,
}

impl Others {
    fn press(&self, server: &GfServer) {
        while !self.are_gone.load(Ordering::Relaxed) {
            let count = if upload(server) { &self.stored } else { &self.refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until so many more were refused.
    fn wait_for_refusals(&self, more: usize) {
        let (enough, deadline) = (self.refused.load(Ordering::Relaxed) + more, Instant::now() + SOON);
        while self.refused.load(Ordering::Relaxed) < enough {
            assert!(Instant::now() < deadline, "{} were stored, and none refused", self.stored.load(Ordering::Relaxed));
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ends the pressure however a build ends.
struct Ending<'a>(&'a Others);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.are_gone.store(true, Ordering::Relaxed);
    }
}

/// Links anew: the objects of the other files were never here, and nothing but the store has them.
fn build_after_a_change(workshop: &Workshop, bazel: &Bazel, options: &[&str]) {
    let source = workshop.on_host("rotor/hourly.cc");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text + "\nint spun_up = 1;\n").unwrap();
    let rebuilt = bazel.build("build", WITHOUT_RUST, options, CLIENT_LIMIT).unwrap();
    assert!(rebuilt.log.mnemonics().contains_key("CppLink"), "{:?}", rebuilt.log.mnemonics());
    for sign in ["lost inputs", "evicted", "Failed to fetch"] {
        assert!(!rebuilt.finished.stderr.contains(sign), "{}", rebuilt.finished.stderr);
    }
}

fn count(server: &GfServer, metric: &str) -> f64 {
    Metrics::read(server.address()).unwrap().sum(metric, &[])
}

#[test]
fn a_build_without_the_bytes_never_misses_an_input_within_its_lease() {
    let data = tempfile::tempdir().unwrap();
    let patient = server(data.path(), KEPT);
    let workshop = Workshop::new();
    let cache = format!("--remote_cache={}", patient.grpc());
    let minimal = [cache.as_str(), "--remote_download_minimal"];
    let cacheable = build(&workshop.bazel("first"), &[&cache]).log.cacheable();
    let second = workshop.bazel("second");
    let others = Others::default();
    thread::scope(|scope| {
        let _ending = Ending(&others);
        scope.spawn(|| others.press(&patient));
        // From now on only what is under lease is left: whatever else there was has given way.
        others.wait_for_refusals(3);
        assert_eq!(build(&second, &minimal).log.all_remote_hits().unwrap(), cacheable);
        others.wait_for_refusals(3);
        build_after_a_change(&workshop, &second, &minimal);
        others.wait_for_refusals(1);
    });
    assert!(others.stored.into_inner() < CAPACITY_MIB);
    drop(second);
    let held = count(&patient, "gf_store_keys");
    assert!(patient.stop().unwrap().success());
    goes_without_a_lease(data.path(), held, &workshop);
}

/// It was the lease that kept it: under the same pressure it goes when that is over.
fn goes_without_a_lease(data: &Path, held: f64, workshop: &Workshop) {
    let (hasty, deadline) = (server(data, SHORTEST), Instant::now() + SOON);
    while count(&hasty, "gf_store_evicted_blobs_total") < held {
        assert!(Instant::now() < deadline, "what is under no lease does not go");
        if !upload(&hasty) {
            thread::sleep(Duration::from_millis(100));
        }
    }
    let cache = format!("--remote_cache={}", hasty.grpc());
    let third = workshop.bazel("third");
    assert_eq!(build(&third, &[&cache]).log.remote_hits(), 0);
    drop(third);
    assert!(hasty.stop().unwrap().success());
}

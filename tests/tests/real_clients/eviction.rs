//! A build without the bytes, while others fill the store: what Bazel was told is there must stay there.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use gf_digest::{Digest, DigestFunction};
use gf_testkit::blob_store_suite::noise;
use gf_tests::GfServer;

use crate::bazel::{WITHOUT_RUST, Workshop, build};
use crate::{CLIENT_LIMIT, Fixture};

/// A lease within which a Bazel that has started builds something again.
const CONFIGURATION: &str = "[store]\ncapacity = \"256MiB\"\nlease = \"2m\"\n[worker]\nenabled = false\n";
const BLOB_BYTES: usize = 1 << 20;
const UNTIL_LEASES_END: Duration = Duration::from_secs(400);

/// Uploads a blob that nobody has; the status of the answer.
fn upload(server: &GfServer) -> String {
    let bytes = noise(rand::random(), BLOB_BYTES);
    let hash = Digest::of(DigestFunction::Sha256, &bytes);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(CLIENT_LIMIT)).unwrap();
    let path = format!("/cas/{}", hash.hash_hex().as_str());
    write!(stream, "PUT {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {BLOB_BYTES}\r\n\r\n").unwrap();
    stream.write_all(&bytes).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// Fills the store, on a slow machine for longer than the first leases last, until something was evicted.
fn fill(fixture: &Fixture) {
    let mut full = None;
    while evicted(fixture) == 0.0 {
        if is_stored(&upload(&fixture.server)) {
            continue;
        }
        let full = full.get_or_insert_with(Instant::now);
        assert!(full.elapsed() < UNTIL_LEASES_END, "nothing may go though every lease is over");
        thread::sleep(Duration::from_secs(1));
    }
}

fn evicted(fixture: &Fixture) -> f64 {
    fixture.metrics().sum("gf_store_evicted_blobs_total", &[])
}

fn is_stored(status: &str) -> bool {
    status.starts_with('2')
}

#[test]
fn a_build_without_the_bytes_never_misses_an_input_within_its_lease() {
    let data = tempfile::tempdir().unwrap();
    let config = data.path().join("gf.toml");
    fs::write(&config, CONFIGURATION).unwrap();
    let fixture = Fixture::start_with(&["--config", &config.display().to_string()]);
    fill(&fixture);

    let workshop = Workshop::new();
    let cache = format!("--remote_cache={}", fixture.server.grpc());
    let minimal = [cache.as_str(), "--remote_download_minimal"];
    build(&workshop.bazel("first"), &[&cache]);
    let second = workshop.bazel("second");
    let hits = build(&second, &minimal).log.all_remote_hits().unwrap();
    let (evicted_before, is_over) = (evicted(&fixture), AtomicBool::new(false));
    let stored = thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut stored = 0;
            while !is_over.load(Ordering::Relaxed) {
                stored += usize::from(is_stored(&upload(&fixture.server)));
            }
            stored
        });
        // Linked anew: the objects of the other files were never here.
        let source = workshop.on_host("rotor/hourly.cc");
        let text = fs::read_to_string(&source).unwrap();
        fs::write(&source, text + "\nint spun_up = 1;\n").unwrap();
        let rebuilt = second.build("build", WITHOUT_RUST, &minimal, CLIENT_LIMIT);
        is_over.store(true, Ordering::Relaxed);
        let rebuilt = rebuilt.unwrap();
        assert!(rebuilt.log.mnemonics().contains_key("CppLink"), "{:?}", rebuilt.log.mnemonics());
        for sign in ["lost inputs", "evicted", "Failed to fetch"] {
            assert!(!rebuilt.finished.stderr.contains(sign), "{}", rebuilt.finished.stderr);
        }
        others.join().unwrap()
    });
    assert!(hits > 0 && stored > 0, "{hits} hits while others stored {stored} blobs");
    assert!(evicted(&fixture) > evicted_before, "nothing was evicted");
    fixture.stop();
}

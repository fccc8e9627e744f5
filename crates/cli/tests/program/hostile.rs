//! Clients that misbehave: the server stays small, and answers everybody else.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, text};

const REQUESTS: u32 = 100_000;
/// A server at rest has about 15 MiB.
const MEMORY_LIMIT_KIB: u64 = 100 << 10;

/// Writes until the server takes no more, or hangs up. It must do one of them rather than pile answers up. The connection
/// stays as it is while it is held.
#[must_use]
fn write_without_reading(mut stream: TcpStream, requests: impl Iterator<Item = Vec<u8>>) -> TcpStream {
    // Longer than a busy machine keeps the server from its work.
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    for request in requests {
        match stream.write_all(&request) {
            Ok(()) => {}
            Err(error) => {
                let stalled = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                let hung_up = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
                assert!(stalled || hung_up, "{error}");
                break;
            }
        }
    }
    stream
}

/// The most memory that it ever had.
fn peak_kib(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn check_still_well(server: &Server) {
    assert_eq!(server.get("/healthz").0, 200);
    let peak = peak_kib(server);
    assert!(peak < MEMORY_LIMIT_KIB, "{peak} KiB");
}

/// Another client is served while those connections are held.
fn check_still_well_beside(server: &Server, home: &Path, held: &[TcpStream]) {
    assert!(!held.is_empty());
    check_still_well(server);
    let status = gf(home).args(["status", "--server", &server.url]).output().unwrap();
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stderr));
    check_still_well(server);
}

#[test]
fn answers_that_nobody_reads_do_not_pile_up() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    // The longest answer that is free to ask for.
    let pipelined = (0..REQUESTS).map(|_| b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    let mut held = vec![write_without_reading(server.connect(), pipelined)];
    check_still_well_beside(&server, home.path(), &held);

    let mut stream = server.connect();
    // Windows of the largest size: only the connection itself holds the answers back.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])).unwrap();
    let requests =
        (0..REQUESTS).map(|number| frame(1, 5, 2 * number + 1, b"\x82\x86\x04\x08/metrics\x01\x09localhost"));
    held.push(write_without_reading(stream, requests));
    check_still_well_beside(&server, home.path(), &held);
}

/// The smallest calls there are, each of which is answered, and no answer is taken.
#[test]
fn calls_whose_answers_nobody_reads_do_not_pile_up() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let path = b"/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
    // POST, http, the path, an authority, application/grpc, te: trailers.
    let length = u8::try_from(path.len()).unwrap();
    let rest = b"\x01\x09localhost\x0f\x10\x10application/grpc\x00\x02te\x08trailers";
    let head = [b"\x83\x86\x04", &[length][..], path, rest].concat();
    let mut held = Vec::new();
    for window in [65_535_u32, 0x7fff_ffff] {
        let mut stream = server.connect();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat())).unwrap();
        let calls = (0..REQUESTS).map(|number| {
            let stream = 2 * number + 1;
            [frame(1, 4, stream, &head), frame(0, 1, stream, &[0; 5])].concat()
        });
        held.push(write_without_reading(stream, calls));
        check_still_well_beside(&server, home.path(), &held);
    }
    drop(held);
    check_still_well(&server);
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn noise_is_hung_up_on() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let noise: Vec<u8> = (0..100_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    for begin in [
        &b""[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        b"PUT /cas/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ] {
        let mut stream = server.connect();
        stream.write_all(begin).unwrap();
        // The server may hang up before it has read everything.
        let _ = stream.write_all(&noise);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it does not hang up after {begin:?}"),
        }
    }
    check_still_well(&server);
}

#[test]
fn silent_connections_hold_nobody_up() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let silent: Vec<TcpStream> = (0..500).map(|_| server.connect()).collect();
    check_still_well(&server);
    drop(silent);
}

#[test]
fn the_space_of_an_upload_that_is_cut_off_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let reserved = || {
        let stats = gf(home.path()).args(["store", "stats", "--json", "--server", &server.url]).output().unwrap();
        let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
        stats["reserved_bytes"].as_u64().unwrap()
    };
    let wait_until = |done: &dyn Fn() -> bool, what: &str| {
        let until = Instant::now() + DEADLINE;
        while !done() {
            assert!(Instant::now() < until, "{what}");
        }
    };
    let mut stream = server.connect();
    let head = format!("PUT /cas/{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n", "a".repeat(64));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[0; 1 << 20]).unwrap();
    wait_until(&|| reserved() >= 100_000_000, "no space is reserved for an upload");
    drop(stream);
    wait_until(&|| reserved() == 0, "the space does not come back");
}

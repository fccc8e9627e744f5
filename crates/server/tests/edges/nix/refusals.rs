//! What is wrong, forged or too much: refused with a status that ends Nix's command, or has it ask again, and never with
//! one that it takes for absence; and nothing of it is stored.

use gf_nix_cache::archives::ArchiveLimits;
use gf_nix_formats::Hash;

use super::path::{TestPath, file_archive};
use super::{NixServer, bearer};
use crate::server::{Answer, Door, noise};

/// Neither "absent" nor "try again".
fn check_refused(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(!matches!(answer.status, 401 | 403 | 404 | 408 | 410 | 429 | 500..=599));
}

async fn check_absent(server: &NixServer, path: &TestPath) {
    for url in [path.archive_url(), path.narinfo_url()] {
        assert_eq!(server.get(&url).await.status, 404, "{url}");
        assert_eq!(server.call("HEAD", &url, &[], b"").await.status, 404, "{url}");
    }
}

#[tokio::test]
async fn an_archive_that_is_not_what_its_name_says() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("right", &noise(1, 100_000));
    let url = path.archive_url();
    let mut flipped = path.archive.clone();
    flipped[50_000] ^= 1;
    for wrong in
        [&path.archive[..path.archive.len() - 8], &flipped, b"", b"no archive", &[&path.archive[..], b"."].concat()]
    {
        check_refused(&server.put(&url, wrong).await, 400);
    }
    // Honest about its hash, and still no archive.
    let text = b"just text";
    check_refused(&server.put(&format!("/nix/main/nar/{}.nar", Hash::sha256(text).base32()), text).await, 400);
    // Padding that is not zero: another archive of the same tree.
    let mut padded = file_archive(b"x");
    let at = padded.windows(2).position(|window| window == [b'x', 0]).unwrap();
    padded[at + 1] = 1;
    check_refused(&server.put(&format!("/nix/main/nar/{}.nar", Hash::sha256(&padded).base32()), &padded).await, 400);
    check_absent(&server, &path).await;
}

#[tokio::test]
async fn an_upload_that_is_cut_off() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("cut", &noise(1, 100_000));
    let length = path.archive.len().to_string();
    let half = &path.archive[..50_000];
    let headers = [("Content-Length", length.as_str())];
    // The client closes its side in the middle: whatever is answered, nothing was taken.
    use tokio::io::AsyncWriteExt;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!("PUT {} HTTP/1.1\r\nHost: t\r\n{}: {}\r\n\r\n", path.archive_url(), headers[0].0, headers[0].1);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(half).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _closed = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    check_absent(&server, &path).await;
    server.push(&path).await;
}

#[tokio::test]
async fn a_narinfo_that_does_not_fit_its_archive() {
    let server = NixServer::start(Door::Open).await;
    let (path, other) = (TestPath::file("path", b"one"), TestPath::file("other", b"another one"));
    let narinfo = path.narinfo();
    check_refused(&server.put(&path.narinfo_url(), narinfo.as_bytes()).await, 400);
    for path in [&path, &other] {
        assert_eq!(server.put(&path.archive_url(), &path.archive).await.status, 200);
    }
    let size = format!("NarSize: {}", path.archive.len());
    let (zeros, hash, other_hash) = ("0".repeat(52), path.nar_hash().base32(), other.nar_hash().base32());
    for (right, wrong) in [
        (size.as_str(), "NarSize: 7"),
        (size.as_str(), "NarSize: 0"),
        (size.as_str(), "NarSize: -1"),
        (hash.as_str(), other_hash.as_str()),
        (hash.as_str(), zeros.as_str()),
        ("/nix/store/", "/gnu/store/"),
        ("/nix/store/", "/nix/store/../"),
        ("Compression: none", "Compression: rot13"),
        ("References: ", "References:"),
        ("References: ", "References: ../../etc/passwd"),
        ("NarHash", "NarHush"),
    ] {
        check_refused(&server.put(&path.narinfo_url(), narinfo.replace(right, wrong).as_bytes()).await, 400);
    }
    for broken in [&b""[..], &b"\xff\xfe"[..], &narinfo.as_bytes()[..narinfo.len() - 1], &b"<html>"[..]] {
        check_refused(&server.put(&path.narinfo_url(), broken).await, 400);
    }
    check_refused(&server.put(&other.narinfo_url(), narinfo.as_bytes()).await, 400);
    let huge = format!("{narinfo}X: {}\n", "x".repeat(1 << 20));
    check_refused(&server.put(&path.narinfo_url(), huge.as_bytes()).await, 413);
    for path in [&path, &other] {
        assert_eq!(server.get(&path.narinfo_url()).await.status, 404);
    }
    server.push(&path).await;
}

#[tokio::test]
async fn a_signature_that_was_forged() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("signed", b"contents");
    server.push(&path).await;
    let served = server.get(&path.narinfo_url()).await.text();
    let signature = served.lines().find(|line| line.starts_with("Sig: ")).unwrap();
    let evil = TestPath::file("evil", b"other contents");
    assert_eq!(server.put(&evil.archive_url(), &evil.archive).await.status, 200);
    // The name of the cache's own key, over something else.
    let forged = format!("{}{signature}\n", evil.narinfo());
    check_refused(&server.put(&evil.narinfo_url(), forged.as_bytes()).await, 400);
    check_refused(&server.put(&evil.narinfo_url(), format!("{}Sig: none\n", evil.narinfo()).as_bytes()).await, 400);
    assert_eq!(server.get(&evil.narinfo_url()).await.status, 404);
    // A key that nobody here knows is its owner's business.
    let (_, bytes) = signature.rsplit_once(':').unwrap();
    let foreign = format!("{}Sig: elsewhere-1:{bytes}\n", evil.narinfo());
    assert_eq!(server.put(&evil.narinfo_url(), foreign.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn a_reference_that_is_not_here() {
    let server = NixServer::start(Door::Open).await;
    let dependency = TestPath::file("dependency", b"a library");
    let path = TestPath::file("program", b"a program").refers_to(&dependency);
    assert_eq!(server.put(&path.archive_url(), &path.archive).await.status, 200);
    let refused = server.put(&path.narinfo_url(), path.narinfo().as_bytes()).await;
    check_refused(&refused, 400);
    assert!(refused.text().contains(&dependency.base_name), "it names what is missing: {}", refused.text());
    assert_eq!(server.get(&path.narinfo_url()).await.status, 404);
    server.push(&dependency).await;
    server.push(&path).await;
}

#[tokio::test]
async fn the_first_writer_of_a_path_wins() {
    let server = NixServer::start(Door::Open).await;
    let first = TestPath::file("built-twice", b"one");
    server.push(&first).await;
    let mut second = TestPath::file("x", b"another result");
    second.base_name.clone_from(&first.base_name);
    assert_eq!(server.put(&second.archive_url(), &second.archive).await.status, 200);
    let answer = server.put(&second.narinfo_url(), second.narinfo().as_bytes()).await;
    assert_eq!(answer.status, 200, "the path is here, so its pusher can go on");
    assert!(answer.text().contains("stays"), "{}", answer.text());
    assert!(server.get(&first.narinfo_url()).await.text().contains(&first.nar_hash().to_string()));
}

#[tokio::test]
async fn a_bomb_stops_at_the_limit() {
    let limits = ArchiveLimits { size_bytes: 8 << 20, ..ArchiveLimits::default() };
    let server = NixServer::with(Door::Open, limits).await;
    // A file of a tebibyte, as its archive begins, in a few kilobytes.
    let mut archive = file_archive(b"");
    let at = archive.len() - 32 + 8;
    archive[at..at + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let honest = file_archive(&vec![0; 64 << 20]);
    for bomb in [[&archive[..at + 8], &vec![0; 64 << 20]].concat(), honest] {
        let file = zstd::bulk::compress(&bomb, 19).unwrap();
        assert!(file.len() < 64 << 10);
        let url = format!("/nix/main/nar/{}.nar.zst", Hash::sha256(&file).base32());
        check_refused(&server.put(&url, &file).await, 413);
        assert_eq!(server.call("HEAD", &url, &[], b"").await.status, 404);
    }
    assert_eq!(server.store.reserved_bytes(), 0);
}

#[tokio::test]
async fn names_that_lead_elsewhere() {
    let server = NixServer::start(Door::Closed).await;
    let headers = [("Authorization", bearer())];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for path in [
        "/nix/../../nix-cache-info",
        "/nix/%2e%2e/%2e%2e/nix-cache-info",
        "/nix/..%2f..%2fmain/nix-cache-info",
        "/nix/main/../main/nix-cache-info",
        "/nix/main/nar/..%2f..%2fetc%2fpasswd",
        "/nix/main/log/..%2f..%2fx.drv",
        "/nix/main%00/nix-cache-info",
        "/nix/%ff%fe/nix-cache-info",
        "/nix/main/realisations/sha256:..%2fx!out.doi",
        "/nix/_api/v1/cache-config/..%2f..",
    ] {
        for verb in ["GET", "HEAD", "PUT"] {
            let status = server.call(verb, path, &headers, b"").await.status;
            assert!(matches!(status, 400 | 404), "{verb} {path}: {status}");
        }
    }
    for (verb, path) in
        [("POST", "main/nix-cache-info"), ("DELETE", "main/nix-cache-info"), ("PUT", "main/attic-cache-info")]
    {
        let answer = server.call(verb, &format!("/nix/{path}"), &headers, b"").await;
        assert_eq!(answer.status, 405, "{verb} {path}");
        assert!(answer.header("allow").is_some_and(|allow| allow.starts_with("GET, HEAD")));
    }
}

#[tokio::test]
async fn what_cannot_be_known_is_not_absent() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("unknown", b"contents");
    server.push(&path).await;
    server.store.set_failing(true);
    let upload = TestPath::file("new", b"new contents");
    for answer in [server.get(&path.archive_url()).await, server.put(&upload.archive_url(), &upload.archive).await] {
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
    }
    server.store.set_failing(false);
    server.push(&upload).await;
    assert_eq!(server.get(&path.archive_url()).await.body, path.archive);
}

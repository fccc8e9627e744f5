//! What a tenant may use: what is refused says the number and the limit, others are not concerned, and a restart forgets
//! nothing of it.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gf_digest::{Digest, DigestFunction};
use gf_nix_formats::NarHash;
use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, text};

const TENANTS: &str =
    "[[tenant]]\nname = \"default\"\ninstances = [\"\"]\n[[tenant]]\nname = \"org-acme\"\ninstances = [\"acme\"]\n";

/// A server whose tenant `org-acme` has this quota.
fn start(home: &Path, quota: &str) -> Server {
    let file = home.join("gf.toml");
    fs::write(&file, format!("{TENANTS}[tenant.quota]\n{quota}\n")).unwrap();
    Server::start(home, &["--config", file.to_str().unwrap()])
}

/// Bytes that do not compress.
pub(crate) fn noise(number: u32, length: usize) -> Vec<u8> {
    let block =
        |at: u32| *Digest::of(DigestFunction::Sha256, &[number.to_le_bytes(), at.to_le_bytes()].concat()).hash();
    (0..).flat_map(block).take(length).collect()
}

/// The status of an answer, and all of it.
pub(crate) fn send(server: &Server, verb: &str, path: &str, body: &[u8]) -> (u16, String) {
    let length = body.len();
    let head =
        format!("{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).unwrap();
    // Who is refused may be told so before all was sent.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = text(&answer);
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

pub(crate) fn put(server: &Server, instance: &str, blob: &[u8]) -> (u16, String) {
    let hash = Digest::of(DigestFunction::Sha256, blob).hash_hex();
    send(server, "PUT", &format!("/{instance}cas/{}", hash.as_str()), blob)
}

pub(crate) fn ask(server: &Server, home: &Path, args: &[&str]) -> Output {
    gf(home).args(args).args(["--server", &server.url]).output().unwrap()
}

fn used(server: &Server, home: &Path, quota: &str) -> u64 {
    let status: Value = serde_json::from_slice(&ask(server, home, &["status", "--json"]).stdout).unwrap();
    let tenants = status["tenant_use"].as_array().unwrap();
    let acme = tenants.iter().find(|tenant| tenant["name"] == "org-acme").unwrap();
    acme[quota]["used"].as_u64().unwrap()
}

#[test]
fn what_a_tenant_stores_is_bounded_over_restarts() {
    let home = tempfile::tempdir().unwrap();
    let mut server = start(home.path(), "stored = \"2MiB\"");
    let first = noise(1, 900_000);
    assert_eq!(put(&server, "acme/", &first).0, 200);
    assert_eq!(put(&server, "acme/", &noise(2, 900_000)).0, 200);
    for _ in 0..2 {
        let (status, answer) = put(&server, "acme/", &noise(3, 900_000));
        assert_eq!(status, 507, "{answer}");
        assert!(answer.contains("of its 2.0 MiB") && answer.contains("tenant.quota.stored"), "{answer}");
        assert_eq!(put(&server, "acme/", &first).0, 200, "what is there already costs nothing");
        assert_eq!(put(&server, "", &noise(4, 2_000_000)).0, 200, "another tenant is not concerned");
        let hash = Digest::of(DigestFunction::Sha256, &first).hash_hex();
        assert_eq!(send(&server, "GET", &format!("/acme/cas/{}", hash.as_str()), b"").0, 200, "reads go on");
        let shown = text(&ask(&server, home.path(), &["status"]).stdout);
        assert!(shown.contains("org-acme: stores 1.7 MiB of 2.0 MiB") && shown.contains("times refused"), "{shown}");
        let metrics = server.get("/metrics").1;
        assert!(metrics.contains(r#"gf_tenant_limit{tenant="org-acme",quota="stored_bytes"} 2097152"#), "{metrics}");

        // The figure is written down: the next process refuses from its first request on.
        server.signal("-TERM");
        assert!(server.wait_for_end().success());
        server = start(home.path(), "stored = \"2MiB\"");
        assert_eq!(put(&server, "acme/", &noise(5, 900_000)).0, 507);

        // As after a crash.
        server.signal("-KILL");
        server.wait_for_end();
        server = start(home.path(), "stored = \"2MiB\"");
        let until = Instant::now() + DEADLINE;
        while used(&server, home.path(), "stored_bytes") < 1_800_000 {
            assert!(Instant::now() < until, "what a tenant stores was forgotten");
        }
    }
}

/// A day of this test must not end in its middle.
fn wait_for_the_next_day_if_it_is_near() {
    const DAY_S: u64 = 24 * 60 * 60;
    const NEAR_S: u64 = 120;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let left_s = DAY_S - now_s % DAY_S;
    if left_s < NEAR_S {
        std::thread::sleep(Duration::from_secs(left_s + 1));
    }
}

#[test]
fn what_comes_in_a_day_is_bounded_over_restarts() {
    wait_for_the_next_day_if_it_is_near();
    let home = tempfile::tempdir().unwrap();
    let mut server = start(home.path(), "uploaded_a_day = \"1MiB\"");
    assert_eq!(put(&server, "acme/", &noise(1, 900_000)).0, 200);
    for _ in 0..2 {
        let (status, answer) = put(&server, "acme/", &noise(2, 900_000));
        // Hours are not waited for.
        assert_eq!(status, 507, "{answer}");
        assert!(
            answer.contains("of its 1.0 MiB today") && !answer.to_lowercase().contains("retry-after: "),
            "{answer}"
        );
        assert_eq!(put(&server, "", &noise(3, 2_000_000)).0, 200, "another tenant is not concerned");
        server.signal("-TERM");
        assert!(server.wait_for_end().success());
        server = start(home.path(), "uploaded_a_day = \"1MiB\"");
        assert!(used(&server, home.path(), "uploaded_bytes_today") >= 900_000);
    }
}

#[test]
fn requests_are_bounded_and_the_client_is_told_when_to_come_back() {
    let home = tempfile::tempdir().unwrap();
    let server = start(home.path(), "requests_a_second = 1");
    let path = format!("/acme/cas/{}", "ab".repeat(32));
    let answers: Vec<_> = (0..20).map(|_| send(&server, "GET", &path, b"")).collect();
    assert_eq!(answers[0].0, 404);
    // One a second is let in also while these come.
    let refused = answers.iter().rfind(|(status, _)| *status == 429);
    let (_, refused) = refused.unwrap_or_else(|| panic!("none was refused: {answers:?}"));
    assert!(refused.contains("more than its 1 requests a second") && refused.to_lowercase().contains("retry-after: 1"));
    assert_eq!(send(&server, "GET", &path.replace("/acme", ""), b"").0, 404, "another tenant is not concerned");
    let until = Instant::now() + DEADLINE;
    while send(&server, "GET", &path, b"").0 != 404 {
        assert!(Instant::now() < until, "it never comes back");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A server with a quota for the tenant `default`, whose is the Nix cache `main`.
fn start_for_nix(home: &Path, quota: &str) -> Server {
    let file = home.join("gf.toml");
    fs::write(&file, format!("[[tenant]]\nname = \"default\"\ninstances = [\"\"]\n[tenant.quota]\n{quota}\n")).unwrap();
    Server::start(home, &["--config", file.to_str().unwrap()])
}

/// An archive of one file, and where Nix puts it.
fn archive(number: u32, length: usize) -> (String, Vec<u8>) {
    let mut archive = Vec::new();
    let contents = noise(number, length);
    let texts: [&[u8]; 7] = [b"nix-archive-1", b"(", b"type", b"regular", b"contents", &contents, b")"];
    for text in texts {
        archive.extend_from_slice(&(text.len() as u64).to_le_bytes());
        archive.extend_from_slice(text);
        archive.resize(archive.len().next_multiple_of(8), 0);
    }
    (format!("/nix/main/nar/{}.nar", NarHash::of(&archive).base32()), archive)
}

/// Nix tries again after 429, and waits as long as it is told; Attic's protocol says the same in its own form.
#[test]
fn what_clients_of_nix_ask_is_counted_like_all_else() {
    let home = tempfile::tempdir().unwrap();
    let server = start_for_nix(home.path(), "requests_a_second = 1");
    let (url, archive) = archive(1, 1000);
    let absent = format!("/nix/main/{}.narinfo", "0".repeat(32));
    let questions = [
        ("GET", "/nix/main/nix-cache-info", &b""[..]),
        ("GET", &absent, b""),
        ("HEAD", &absent, b""),
        ("GET", &url, b""),
        ("PUT", &url, &archive),
        ("PUT", &absent, b"StorePath: "),
        ("GET", "/nix/_api/v1/cache-config/main", b""),
    ];
    for (verb, path, body) in questions {
        let refused =
            (0..DEADLINE.as_secs()).map(|_| send(&server, verb, path, body)).find(|(status, _)| *status == 429);
        let (_, answer) = refused.unwrap_or_else(|| panic!("{verb} {path} is never refused"));
        assert!(answer.to_lowercase().contains("retry-after: 1"), "{verb} {path}: {answer}");
        if verb != "HEAD" {
            assert!(answer.contains("more than its 1 requests a second"), "{verb} {path}: {answer}");
        }
    }
    let until = Instant::now() + DEADLINE;
    while send(&server, "GET", "/nix/main/nix-cache-info", b"").0 != 200 {
        assert!(Instant::now() < until, "it never comes back");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

#[test]
fn what_comes_for_a_nix_cache_in_a_day_is_counted_like_all_else() {
    wait_for_the_next_day_if_it_is_near();
    let home = tempfile::tempdir().unwrap();
    let server = start_for_nix(home.path(), "uploaded_a_day = \"1MiB\"");
    let (first, second) = (archive(1, 900_000), archive(2, 900_000));
    assert_eq!(send(&server, "PUT", &first.0, &first.1).0, 200);
    let (status, answer) = send(&server, "PUT", &second.0, &second.1);
    assert!(status == 507 && answer.contains("of its 1.0 MiB today"), "{answer}");
    assert_eq!(put(&server, "", &noise(3, 900_000)).0, 507, "it is the same day for all protocols");
    assert_eq!(send(&server, "GET", &first.0, b"").0, 404, "no narinfo names it yet");
    assert_eq!(send(&server, "GET", "/nix/main/nix-cache-info", b"").0, 200, "reads go on");
}

/// Of an action whose result somebody doubts.
#[test]
fn an_action_result_is_explained_and_removed() {
    let home = tempfile::tempdir().unwrap();
    let mut server = Server::start(home.path(), &[]);
    let hash = "cd".repeat(32);
    let path = format!("/ac/{hash}");
    let absent = ask(&server, home.path(), &["ac", "show", &hash]);
    assert_eq!(absent.status.code(), Some(3), "{}", text(&absent.stderr));
    // An action result that says nothing.
    assert_eq!(send(&server, "PUT", &path, b"").0, 200);
    let shown = ask(&server, home.path(), &["ac", "show", &hash]);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    assert!(text(&shown.stdout).contains("ago, brought by anonymous"), "{}", text(&shown.stdout));

    let no_reason = ask(&server, home.path(), &["ac", "remove", &hash]);
    assert_eq!(no_reason.status.code(), Some(2));
    let remove = ["ac", "remove", &hash, "--reason", "a compiler with a bug", "--quarantine", "90min"];
    let planned = ask(&server, home.path(), &remove);
    assert_eq!(planned.status.code(), Some(0), "{}", text(&planned.stderr));
    assert!(text(&planned.stderr).contains("--yes"), "{}", text(&planned.stderr));
    assert_eq!(send(&server, "GET", &path, b"").0, 200, "a dry run changed something");
    let removed = ask(&server, home.path(), &[&remove[..], &["--yes"]].concat());
    assert_eq!(removed.status.code(), Some(0), "{}", text(&removed.stderr));
    for restarts in 0..2 {
        assert_eq!(send(&server, "GET", &path, b"").0, 404, "{restarts}");
        let (status, answer) = send(&server, "PUT", &path, b"");
        assert!(status == 409 && answer.contains("a compiler with a bug"), "{answer}");
        let why = ask(&server, home.path(), &["ac", "why", &hash]);
        let why = text(&why.stdout);
        assert!(
            why.contains("anonymous removed it: a compiler with a bug") && why.contains("none is taken for 1 h"),
            "{why}"
        );
        server.signal("-KILL");
        server.wait_for_end();
        server = Server::start(home.path(), &[]);
    }
    let malformed = ask(&server, home.path(), &["ac", "why", "xyz"]);
    assert_eq!(malformed.status.code(), Some(1), "{}", text(&malformed.stderr));
}

#[test]
fn only_operators_remove_results() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, "[access]\ntoken_file = \"token\"\nanonymous_read = true\n").unwrap();
    fs::write(home.path().join("token"), "opensesame\n").unwrap();
    let server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
    let hash = "cd".repeat(32);
    assert_eq!(send(&server, "PUT", &format!("/ac/{hash}"), b"").0, 401, "only who may write does");
    assert_eq!(ask(&server, home.path(), &["ac", "why", &hash]).status.code(), Some(0), "readers may ask");
    let remove = ["ac", "remove", &hash, "--reason", "because", "--yes"];
    let refused = ask(&server, home.path(), &remove);
    assert!(text(&refused.stderr).contains("GF_TOKEN"), "{}", text(&refused.stderr));
    let mut allowed = gf(home.path());
    allowed.args(remove).args(["--server", &server.url]).env("GF_TOKEN", "opensesame");
    assert_eq!(allowed.output().unwrap().status.code(), Some(0));
}

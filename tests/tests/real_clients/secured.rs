//! Bazel against a server that asks for a token, over TLS.

use std::{fs, path::Path, process::Command};

use gf_tests::{GfServer, run_within};

use crate::{
    CLIENT_LIMIT,
    bazel::{Workshop, build},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A configuration in `folder` with a token, and with TLS when a certificate was made there.
fn configuration(folder: &Path, tls: &str) -> String {
    fs::write(folder.join("token"), TOKEN).unwrap();
    let file = folder.join("gf.toml");
    fs::write(&file, format!("{tls}\n[access]\ntoken_file = \"token\"\n")).unwrap();
    file.display().to_string()
}

fn start(folder: &Path, configuration: &str) -> GfServer {
    let binary = GfServer::binary().unwrap();
    let data = folder.join("data");
    GfServer::start_with(&binary, ([127, 0, 0, 1], 0).into(), &data, &["--config", configuration]).unwrap()
}

/// A certificate for this machine, which is its own authority.
pub(crate) fn make_certificate(folder: &Path) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    command.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]);
    command.current_dir(folder);
    run_within(command, CLIENT_LIMIT).unwrap().success().unwrap();
}

#[test]
fn only_the_token_opens_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), &configuration(folder.path(), ""));
    let workshop = Workshop::new();
    let cache = format!("--remote_cache={}", server.grpc());
    let token = format!("--remote_header=authorization=Bearer {TOKEN}");
    let first = build(&workshop.bazel("first"), &[&cache, &token]);
    let second = build(&workshop.bazel("second"), &[&cache, &token]);
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());

    // Bazel goes on without its cache, and says why.
    let without = workshop.bazel("third").run(&["build", "//telemetry:wheel_1", &cache], CLIENT_LIMIT).unwrap();
    assert!(without.stderr.contains("UNAUTHENTICATED"), "{}", without.stderr);
    assert!(!without.stderr.contains("remote cache hit"), "{}", without.stderr);
    assert!(server.stop().unwrap().success());
}

#[test]
fn only_the_token_opens_the_cache_over_http() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path(), &configuration(folder.path(), ""));
    let workshop = Workshop::new();
    let cache = format!("--remote_cache={}", server.url());
    let token = format!("--remote_header=Authorization=Bearer {TOKEN}");
    let first = build(&workshop.bazel("first"), &[&cache, &token]);
    let second = build(&workshop.bazel("second"), &[&cache, &token]);
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());

    let without = build(&workshop.bazel("third"), &[&cache]);
    assert_eq!(without.log.remote_hits(), 0, "a client without the token had hits");
    assert!(server.stop().unwrap().success());
}

#[test]
fn a_clean_client_hits_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    make_certificate(folder.path());
    let tls = "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"";
    let server = start(folder.path(), &configuration(folder.path(), tls));
    let workshop = Workshop::new();
    let certificate = workshop.place.work().join("cert.pem");
    fs::copy(folder.path().join("cert.pem"), workshop.place.on_host(&certificate)).unwrap();

    let cache = format!("--remote_cache={}", server.grpc());
    assert!(cache.contains("grpcs://"), "{cache}");
    let trust = format!("--tls_certificate={}", certificate.display());
    let token = format!("--remote_header=authorization=Bearer {TOKEN}");
    let first = build(&workshop.bazel("first"), &[&cache, &trust, &token]);
    let second = build(&workshop.bazel("second"), &[&cache, &trust, &token]);
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());
    assert!(server.stop().unwrap().success());
}

//! Who may do what with a cache.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::attic::token;
use super::path::TestPath;
use super::{NixServer, bearer};
use crate::server::{Door, TOKEN};

const DERIVATION: &str = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-hello.drv";

/// Everything that can be asked of a cache, with paths that are well formed.
fn routes(cache: &str, path: &TestPath) -> Vec<(&'static str, String)> {
    let files = [
        "nix-cache-info".to_owned(),
        format!("{}.narinfo", path.hash()),
        format!("{}.ls", path.hash()),
        format!("nar/{}.nar", path.nar_hash().base32()),
        format!("log/{DERIVATION}"),
        format!("realisations/sha256:{}!out.doi", "ab".repeat(32)),
        format!("build-trace-v2/{DERIVATION}/out.doi"),
        format!("debuginfo/{}.debug", "0f".repeat(20)),
    ];
    let calls = files.iter().flat_map(|file| ["GET", "HEAD", "PUT"].map(|verb| (verb, format!("/nix/{cache}/{file}"))));
    let mut routes: Vec<_> = calls.collect();
    routes.extend(["GET", "HEAD"].map(|verb| (verb, format!("/nix/{cache}/attic-cache-info"))));
    let config = format!("/nix/_api/v1/cache-config/{cache}");
    routes.extend(["GET", "HEAD", "POST", "PATCH", "DELETE"].map(|verb| (verb, config.clone())));
    routes.push(("POST", "/nix/_api/v1/get-missing-paths".to_owned()));
    routes.push(("PUT", "/nix/_api/v1/upload-path".to_owned()));
    routes
}

fn is_read(verb: &str, path: &str) -> bool {
    matches!(verb, "GET" | "HEAD") && !path.contains("get-missing-paths")
}

async fn status(server: &NixServer, verb: &str, path: &str, authorization: Option<&str>) -> u16 {
    let headers: Vec<_> = authorization.map(|value| ("Authorization", value)).into_iter().collect();
    let answer = server.call(verb, path, &headers, b"").await;
    assert_eq!(answer.status == 401, answer.header("www-authenticate").is_some(), "{verb} {path}");
    answer.status
}

#[tokio::test]
async fn a_public_cache_is_read_by_all_and_written_by_holders() {
    let server = NixServer::start(Door::Closed).await;
    let path = TestPath::file("x", b"contents");
    for (verb, url) in routes("main", &path) {
        for wrong in [None, Some("Bearer wrong"), Some("Basic Og=="), Some("Digest x")] {
            let status = status(&server, verb, &url, wrong).await;
            let expected = if is_read(verb, &url) { status == 200 || status == 404 } else { status == 401 };
            assert!(expected, "{verb} {url} with {wrong:?}: {status}");
        }
    }
}

#[tokio::test]
async fn a_private_cache_is_closed_to_all_but_holders() {
    let server = NixServer::start(Door::Closed).await;
    let create = br#"{"is_public":false}"#;
    let authorization = bearer();
    let headers = [("Authorization", authorization.as_str())];
    assert_eq!(server.call("POST", "/nix/_api/v1/cache-config/private", &headers, create).await.status, 200);
    let path = TestPath::file("x", b"contents");
    for (verb, url) in routes("private", &path) {
        for (wrong, expected) in [
            (None, 401),
            (Some("Bearer wrong"), 401),
            (Some(token("main", &["r", "w", "d", "cc", "cr", "cq", "cd"]).as_str()), 403),
        ] {
            // A call that names the cache in its body is refused for having none.
            let names_it = url.contains("private");
            let status = status(&server, verb, &url, wrong).await;
            assert!(status == expected || (!names_it && status == 400), "{verb} {url} with {wrong:?}: {status}");
        }
    }
}

#[tokio::test]
async fn letters_of_a_token_open_what_they_stand_for() {
    let server = NixServer::start(Door::Closed).await;
    let create = br#"{"is_public":false}"#;
    let authorization = bearer();
    let headers = [("Authorization", authorization.as_str())];
    assert_eq!(server.call("POST", "/nix/_api/v1/cache-config/team", &headers, create).await.status, 200);
    let path = TestPath::file("x", b"contents");
    let urls = [
        ("GET", "/nix/team/nix-cache-info".to_owned(), "r"),
        ("PUT", "/nix/team/nix-cache-info".to_owned(), "w"),
        ("GET", "/nix/_api/v1/cache-config/team".to_owned(), "r"),
        ("PATCH", "/nix/_api/v1/cache-config/team".to_owned(), "cr"),
        ("HEAD", format!("/nix/team/{}.narinfo", path.hash()), "r"),
        ("DELETE", "/nix/_api/v1/cache-config/team".to_owned(), "cd"),
    ];
    for (verb, url, letter) in &urls {
        for other in ["r", "w", "d", "cc", "cr", "cq", "cd"] {
            let status = status(&server, verb, url, Some(&token("team", &[other]))).await;
            // A change of the retention is a PATCH, too.
            let opens = other == *letter || (*verb == "PATCH" && other == "cq");
            assert_eq!(status != 403, opens, "{verb} {url} with {other}: {status}");
        }
    }
}

/// Over REST each setting takes its own right, and toolchains that of all caches that give them.
#[tokio::test]
async fn settings_take_the_rights_for_what_they_change() {
    let server = NixServer::start(Door::Closed).await;
    let authorization = bearer();
    let headers = [("Authorization", authorization.as_str())];
    assert_eq!(server.call("POST", "/nix/_api/v1/cache-config/team", &headers, b"{}").await.status, 200);
    let patch = async |authorization: &str, body: &str| {
        let headers = [("Authorization", authorization), ("Content-Type", "application/json")];
        server.call("PATCH", "/api/v1/nix/caches/team", &headers, body.as_bytes()).await
    };
    let (keeper, owner) = (token("team", &["r", "cq"]), token("team", &["r", "cr"]));
    let (keep, order) = (r#"{"retention_seconds":3600}"#, r#"{"priority":7}"#);
    let (both, tools) = (r#"{"retention_seconds":60,"priority":8}"#, r#"{"gives_toolchains":true}"#);
    for (who, body, expected) in [
        (&keeper, keep, 200),
        (&keeper, order, 403),
        (&keeper, both, 403),
        (&owner, keep, 403),
        (&owner, order, 200),
        (&owner, both, 403),
        (&owner, tools, 403),
        (&token("*", &["r", "cr"]), tools, 200),
        (&owner, r#"{"gives_toolchains":false}"#, 200),
    ] {
        let answer = patch(who, body).await;
        assert_eq!(answer.status, expected, "{body}: {}", answer.text());
    }
    let shown = patch(&keeper, keep).await.text();
    assert!(shown.contains(r#""priority":7"#) && shown.contains(r#""retention_seconds":3600"#), "{shown}");
}

#[tokio::test]
async fn a_token_comes_as_bearer_or_as_the_password_of_anybody() {
    let server = NixServer::start(Door::Closed).await;
    let attic = token("main", &["w"]);
    for secret in [TOKEN, attic.strip_prefix("bearer ").unwrap()] {
        for authorization in [
            format!("Bearer {secret}"),
            format!("bearer {secret}"),
            format!("Basic {}", BASE64_STANDARD.encode(format!("anybody:{secret}"))),
            format!("Basic {}", BASE64_STANDARD.encode(format!(":{secret}"))),
        ] {
            assert_eq!(status(&server, "PUT", "/nix/main/nix-cache-info", Some(&authorization)).await, 200);
        }
    }
}

#[tokio::test]
async fn an_open_server_lets_everybody_push() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::file("open", b"contents");
    server.push(&path).await;
    assert_eq!(status(&server, "GET", &path.narinfo_url(), Some("Bearer ignored")).await, 200);
    let routes = routes("nothing", &path);
    for (verb, url) in routes.iter().filter(|(verb, url)| url.contains("nothing") && *verb != "POST") {
        assert_eq!(status(&server, verb, url, None).await, 404, "{verb} {url}");
    }
}

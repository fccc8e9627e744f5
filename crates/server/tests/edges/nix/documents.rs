//! Everything of a cache but its archives.

use gf_nix_formats::{KeyName, NarInfo, SecretKey, StoreDir};

use super::NixServer;
use super::path::TestPath;
use crate::server::{Answer, Door};

const DERIVATION: &str = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-hello.drv";

fn check_document(answer: &Answer, media_type: &str) {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)), "{}", answer.text());
    assert_eq!(answer.header("x-attic-cache-visibility"), Some("public"));
}

#[tokio::test]
async fn a_cache_says_what_it_is() {
    let server = NixServer::start(Door::Open).await;
    let answer = server.get("/nix/main/nix-cache-info").await;
    check_document(&answer, "text/x-nix-cache-info");
    assert_eq!(answer.text(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n");
    let head = server.call("HEAD", "/nix/main/nix-cache-info", &[], b"").await;
    assert_eq!(head.header("content-length"), Some(answer.body.len().to_string().as_str()));
    assert!(head.body.is_empty());
    // What a client puts that believes the cache to be new.
    assert_eq!(server.put("/nix/main/nix-cache-info", b"StoreDir: /nix/store\n").await.status, 200);
    assert_eq!(server.get("/nix/main/nix-cache-info").await.body, answer.body);
}

#[tokio::test]
async fn a_narinfo_is_served_signed_and_may_be_put_again() {
    let server = NixServer::start(Door::Open).await;
    let dependency = TestPath::file("dependency", b"a library");
    let path = TestPath::file("program", b"a program").refers_to(&dependency);
    assert_eq!(server.get(&path.narinfo_url()).await.status, 404);
    server.push(&dependency).await;
    server.push(&path).await;
    let answer = server.get(&path.narinfo_url()).await;
    check_document(&answer, "text/x-nix-narinfo");
    let text = answer.text();
    assert!(text.contains(&format!("\nReferences: {}\n", dependency.base_name)), "{text}");
    assert_eq!(text.matches("\nSig: main").count(), 1, "{text}");
    let alone = server.get(&dependency.narinfo_url()).await.text();
    assert!(alone.contains("\nReferences: \n"), "with the space, without which Nix misreads it: {alone}");

    let key = SecretKey::from_seed(KeyName::new("lab-1").unwrap(), [7; 32]).unwrap();
    let store = StoreDir::default();
    let mut again = NarInfo::parse(&store, path.narinfo().as_bytes()).unwrap();
    again.sign(&store, &key).unwrap();
    for _ in 0..2 {
        assert_eq!(server.put(&path.narinfo_url(), again.format(&store).as_bytes()).await.status, 200);
        let text = server.get(&path.narinfo_url()).await.text();
        assert_eq!((text.matches("\nSig: ").count(), text.matches("\nSig: lab-1:").count()), (2, 1), "{text}");
    }
}

#[tokio::test]
async fn a_listing_is_made_from_the_archive() {
    let server = NixServer::start(Door::Open).await;
    let path = TestPath::folder("listed", &[("data", b"0123456789".to_vec())]);
    let url = format!("/nix/main/{}.ls", path.hash());
    assert_eq!(server.get(&url).await.status, 404);
    server.push(&path).await;
    assert_eq!(server.put(&url, b"{\"version\":1,\"root\":\"nonsense\"}").await.status, 200);
    let answer = server.get(&url).await;
    check_document(&answer, "application/json");
    let listing: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let data = &listing["root"]["entries"]["data"];
    assert_eq!((&data["type"], &data["size"]), (&"regular".into(), &10.into()));
    let offset = usize::try_from(data["narOffset"].as_u64().unwrap()).unwrap();
    assert_eq!(&path.archive[offset..offset + 10], b"0123456789");
}

#[tokio::test]
async fn logs_are_kept_as_text_however_they_come() {
    let server = NixServer::start(Door::Open).await;
    let url = format!("/nix/main/log/{DERIVATION}");
    assert_eq!(server.get(&url).await.status, 404);
    let log = b"building\ndone\n".repeat(1000);
    let zstd = zstd::bulk::compress(&log, 3).unwrap();
    for (coding, body) in [(None, &log), (Some("zstd"), &zstd)] {
        let headers: Vec<_> = coding.map(|coding| ("Content-Encoding", coding)).into_iter().collect();
        assert_eq!(server.call("PUT", &url, &headers, body).await.status, 200);
        let answer = server.get(&url).await;
        check_document(&answer, "text/plain; charset=utf-8");
        assert_eq!((answer.header("content-encoding"), &answer.body), (None, &log));
    }
    let bomb = zstd::bulk::compress(&vec![0; 80 << 20], 19).unwrap();
    assert_eq!(server.call("PUT", &url, &[("Content-Encoding", "zstd")], &bomb).await.status, 413);
    assert_eq!(server.call("PUT", &url, &[("Content-Encoding", "zstd")], b"no").await.status, 400);
    assert_eq!(server.call("PUT", &url, &[("Content-Encoding", "rot13")], b"no").await.status, 415);
    assert_eq!(server.get(&url).await.body, log);
}

#[tokio::test]
async fn realisations_of_both_generations_keep_what_was_said_first() {
    let server = NixServer::start(Door::Open).await;
    let id = format!("sha256:{}!out", "ab".repeat(32));
    let realisation =
        |path: &str| format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{path}","signatures":[]}}"#);
    let trace = |path: &str| format!(r#"{{"outPath":"{path}","signatures":[]}}"#);
    let first = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-first";
    let other = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-other";
    let cases = [
        (format!("/nix/main/realisations/{}.doi", id.replace('!', "%21")), realisation(first), realisation(other)),
        (format!("/nix/main/build-trace-v2/{DERIVATION}/out.doi"), trace(first), trace(other)),
    ];
    for (url, first, other) in cases {
        assert_eq!(server.get(&url).await.status, 404);
        for _ in 0..2 {
            assert_eq!(server.put(&url, first.as_bytes()).await.status, 200);
        }
        // A build that came out differently is no mistake of who copies it.
        let told = server.put(&url, other.as_bytes()).await;
        assert!(told.status == 200 && told.text().contains("stays"), "{}", told.text());
        let answer = server.get(&url).await;
        check_document(&answer, "application/json");
        assert_eq!(answer.text(), first);
        assert_eq!(server.put(&url, b"{}").await.status, 400);
    }
    let elsewhere = format!("/nix/main/realisations/sha256:{}!out.doi", "cd".repeat(32));
    assert_eq!(server.put(&elsewhere, realisation(first).as_bytes()).await.status, 400, "of another output");
}

#[tokio::test]
async fn where_debug_information_is_can_be_said_once() {
    let server = NixServer::start(Door::Open).await;
    let url = format!("/nix/main/debuginfo/{}.debug", "0f".repeat(20));
    assert_eq!(server.call("HEAD", &url, &[], b"").await.status, 404);
    let text = r#"{"archive":"../nar/x.nar","member":"lib/debug/.build-id/0f/0f.debug"}"#;
    assert_eq!(server.put(&url, text.as_bytes()).await.status, 200);
    assert_eq!(server.get(&url).await.text(), text);
    assert_eq!(server.put(&url, b"{}").await.status, 200);
    assert_eq!(server.get(&url).await.text(), text);
    assert_eq!(server.put("/nix/main/debuginfo/xyz.debug", b"{}").await.status, 400);
}

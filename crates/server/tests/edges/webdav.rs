//! WebDAV, as far as compiler caches speak it.

use gf_server::edges::Limits;
use gf_testkit::MemoryBlobStore;

use crate::grpc::{Client, Seen};
use crate::server::{Answer, Door, Server, TOKEN, noise, sha256};

const NAME: &str = "/webdav/a/3/9/a39b";
const DEPTH_0: (&str, &str) = ("Depth", "0");

async fn describe(server: &Server, path: &str) -> Answer {
    let question = b"<?xml version=\"1.0\"?><D:propfind xmlns:D=\"DAV:\"><D:allprop/></D:propfind>";
    server.http("PROPFIND", path, &[DEPTH_0], question).await
}

#[tokio::test]
async fn values_come_back_as_they_were_put() {
    let server = Server::start(Door::Open);
    assert_eq!(server.http("GET", NAME, &[], b"").await.status, 404);
    for bytes in [Vec::new(), b"small".to_vec(), noise(1, 3_000_000), b"small again".to_vec()] {
        let put = server.http("PUT", NAME, &[], &bytes).await;
        assert_eq!(put.status, 201, "{}", put.text());
        let answer = server.http("GET", NAME, &[], b"").await;
        assert_eq!((answer.status, answer.body == bytes), (200, true));
        let answer = server.http("HEAD", NAME, &[], b"").await;
        let length = bytes.len().to_string();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some(length.as_str())));
    }
    let part = server.http("GET", NAME, &[("Range", "bytes=6-10")], b"").await;
    assert_eq!(
        (part.status, part.header("content-range"), part.text().as_str()),
        (206, Some("bytes 6-10/11"), "again")
    );
    let chunked =
        server.http("PUT", NAME, &[("Transfer-Encoding", "chunked")], b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n").await;
    assert_eq!((chunked.status, server.http("GET", NAME, &[], b"").await.text().as_str()), (201, "abc"));
}

#[tokio::test]
async fn every_folder_is_there_and_what_is_in_it_is_not_told() {
    let server = Server::start(Door::Open);
    for folder in ["/webdav", "/webdav/", "/webdav/a/3/9/", "/default/webdav/x/"] {
        let answer = describe(&server, folder).await;
        assert_eq!(answer.status, 207, "{folder}: {}", answer.text());
        assert!(answer.text().contains("<D:collection/>") && answer.text().contains(folder), "{}", answer.text());
        assert_eq!(server.http("MKCOL", folder, &[], b"").await.status, 405, "it is there");
        assert_eq!(server.http("PROPFIND", folder, &[("Depth", "1")], b"").await.status, 403, "a list");
        assert_eq!(server.http("PROPFIND", folder, &[], b"").await.status, 403, "a list of everything");
        assert_eq!(server.http("PUT", folder, &[], b"x").await.status, 405);
        assert_eq!(server.http("GET", folder, &[], b"").await.status, 405);
    }
    assert_eq!(describe(&server, NAME).await.status, 404);
    assert_eq!(server.http("PUT", NAME, &[], b"12345").await.status, 201);
    let value = describe(&server, NAME).await;
    assert_eq!((value.status, value.text().contains("<D:getcontentlength>5</D:getcontentlength>")), (207, true));
    assert!(!value.text().contains("collection") && !value.text().contains("1970"), "{}", value.text());
}

#[tokio::test]
async fn a_value_is_shown_by_its_name_alone() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let (bytes, key) = (b"an object file", sha256(b"a/3/9/a39b"));
    assert_eq!(server.http("PUT", NAME, &[], bytes).await.status, 201);
    assert_eq!(server.http("GET", &format!("/ac/{}", key.hash_hex()), &[], b"").await.status, 404);
    assert_eq!(client.get_result("", key).await.unwrap(), Seen::Absent);
    for elsewhere in ["/webdav/a/3/9/a39c", "/default/webdav/a/3/9/a39b", "/acme/ci/webdav/a/3/9/a39b"] {
        assert_eq!(server.http("GET", elsewhere, &[], b"").await.status, 404, "{elsewhere}");
    }
    // What is put by hash is not found under a name, and nothing can be named so.
    let by_hash = format!("/ac/{}", sha256(b"x").hash_hex());
    assert_eq!(server.http("PUT", &by_hash, &[], b"opaque").await.status, 200);
    let named = server.http("PUT", &format!("/webdav{by_hash}"), &[], b"x").await;
    assert_eq!((named.status, named.text().contains("not reached over HTTP")), (400, true), "{}", named.text());
}

#[tokio::test]
async fn what_is_lost_is_absent() {
    let server = Server::start(Door::Open);
    assert_eq!(server.http("PUT", NAME, &[], b"lost").await.status, 201);
    server.store.evict(sha256(b"lost"));
    for verb in ["GET", "HEAD"] {
        assert_eq!(server.http(verb, NAME, &[], b"").await.status, 404);
    }
    assert_eq!(describe(&server, NAME).await.status, 404);
    server.store.set_failing(true);
    assert_eq!(server.http("GET", NAME, &[], b"").await.status, 503, "it cannot be known");
}

#[tokio::test]
async fn what_cannot_be_a_value_is_refused() {
    let server = Server::start(Door::Open);
    let long = format!("/webdav/{}", "x".repeat(513));
    for path in ["/webdav/x//y", "/webdav/x%0ay", "/blobs/webdav/x", &long] {
        assert_eq!(server.http("PUT", path, &[], b"x").await.status, 400, "{path}");
    }
    assert_eq!(server.http("PUT", "/nowhere/webdav/x", &[], b"x").await.status, 404);
    assert_eq!(server.http("PUT", NAME, &[("Content-Encoding", "zstd")], b"x").await.status, 415);
    assert_eq!(server.http("PUT", NAME, &[("Content-Range", "bytes 0-0/2")], b"x").await.status, 415);
    assert_eq!(server.http("PUT", NAME, &[("Content-Length", "67108865")], b"").await.status, 413);
    let question = vec![b' '; 65_537];
    assert_eq!(server.http("PROPFIND", NAME, &[DEPTH_0], &question).await.status, 413);
    for verb in ["DELETE", "MKCOL", "MOVE", "LOCK", "POST"] {
        let refused = server.http(verb, NAME, &[], b"").await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD, PUT, PROPFIND")), "{verb}");
    }
    assert_eq!(server.http("GET", NAME, &[], b"").await.status, 404, "nothing of all that is kept");
    let full = Server::with(Door::Open, MemoryBlobStore::with_capacity(100), Limits::default());
    assert_eq!(full.http("PUT", NAME, &[], &noise(1, 1000)).await.status, 507);
}

#[tokio::test]
async fn readers_read_and_strangers_do_not() {
    let token = ("Authorization", &*format!("Bearer {TOKEN}"));
    // sccache sends it as a password, too.
    let password = ("Authorization", "Basic Y2k6czNjcmV0");
    for (door, may_read) in [(Door::ReadersMayEnter, true), (Door::Closed, false)] {
        let server = Server::start(door);
        assert_eq!(server.http("PUT", NAME, &[], b"x").await.status, 401);
        for (number, credential) in [token, password].into_iter().enumerate() {
            let name = format!("{NAME}{number}");
            assert_eq!(server.http("PUT", &name, &[credential], b"x").await.status, 201);
            for verb in ["GET", "HEAD", "PROPFIND"] {
                let shown = if verb == "PROPFIND" { 207 } else { 200 };
                assert_eq!(server.http(verb, &name, &[credential, DEPTH_0], b"").await.status, shown);
                let status = if may_read { shown } else { 401 };
                assert_eq!(server.http(verb, &name, &[DEPTH_0], b"").await.status, status, "{verb}");
            }
        }
        let wrong = ("Authorization", "Bearer wrong");
        assert_eq!(server.http("GET", NAME, &[wrong], b"").await.status, 401);
        assert_eq!(describe(&server, "/webdav/").await.status, if may_read { 207 } else { 401 });
    }
}

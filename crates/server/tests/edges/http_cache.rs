//! The cache over plain HTTP.

use std::time::Duration;

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::{ActionResult, OutputFile};
use gf_server::edges::Limits;
use gf_testkit::MemoryBlobStore;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::grpc::{Client, Seen};
use crate::server::{Door, Server, noise, sha256};

fn cas(bytes: &[u8]) -> String {
    format!("/cas/{}", sha256(bytes).hash_hex())
}

#[tokio::test]
async fn blobs_come_back_as_they_were_put() {
    let server = Server::start(Door::Open);
    for bytes in [Vec::new(), b"small".to_vec(), noise(1, 3_000_000)] {
        assert_eq!(server.http("PUT", &cas(&bytes), &[], &bytes).await.status, 200);
        // Again: it is there already.
        assert_eq!(server.http("PUT", &cas(&bytes), &[], &bytes).await.status, 200);
        let answer = server.http("GET", &cas(&bytes), &[], b"").await;
        assert_eq!((answer.status, &answer.body), (200, &bytes));
        let answer = server.http("HEAD", &cas(&bytes), &[], b"").await;
        let length = bytes.len().to_string();
        assert_eq!((answer.status, answer.header("content-length")), (200, Some(length.as_str())));
        assert!(answer.body.is_empty());
    }
    assert_eq!(server.http("GET", &cas(b"never put"), &[], b"").await.status, 404);
}

#[tokio::test]
async fn the_empty_blob_needs_no_upload() {
    let server = Server::start(Door::Open);
    let blake3 = format!("/cas/blake3/{}", Digest::empty(DigestFunction::Blake3).hash_hex());
    for path in [cas(b""), blake3] {
        let answer = server.http("GET", &path, &[], b"").await;
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("0")), "{path}");
    }
}

#[tokio::test]
async fn instances_and_digest_functions_are_kept_apart() {
    let server = Server::start(Door::Open);
    let bytes = b"a blob";
    let blake3 = format!("/acme/ci/cas/blake3/{}", Digest::of(DigestFunction::Blake3, bytes).hash_hex());
    assert_eq!(server.http("PUT", &blake3, &[], bytes).await.status, 200);
    assert_eq!(server.http("GET", &blake3, &[], b"").await.body, bytes);
    for elsewhere in [blake3.replace("/acme/ci", ""), blake3.replace("/blake3", ""), format!("/acme/ci{}", cas(bytes))]
    {
        assert_eq!(server.http("GET", &elsewhere, &[], b"").await.status, 404, "{elsewhere}");
    }
    let unknown = server.http("PUT", &format!("/cache{}", cas(bytes)), &[], bytes).await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.text().contains("no instance \"cache\""), "{}", unknown.text());
}

#[tokio::test]
async fn bytes_that_do_not_fit_the_hash_are_refused() {
    let server = Server::start(Door::Open);
    assert_eq!(server.http("PUT", &cas(b"right"), &[], b"wrong").await.status, 400);
    assert_eq!(server.http("GET", &cas(b"right"), &[], b"").await.status, 404);
    assert_eq!(server.http("PUT", "/cas/abc", &[], b"x").await.status, 400);
    assert_eq!(server.http("POST", &cas(b"x"), &[], b"x").await.status, 405);
    assert_eq!(server.http("GET", "/nothing/of/ours", &[], b"").await.status, 404);
    assert_eq!(server.http("PUT", &cas(b"x"), &[("Content-Encoding", "br")], b"x").await.status, 415);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_taken() {
    let server = Server::start(Door::Open);
    let body = b"6\r\nin two\r\n7\r\n pieces\r\n0\r\n\r\n";
    let path = cas(b"in two pieces");
    assert_eq!(server.http("PUT", &path, &[("Transfer-Encoding", "chunked")], body).await.status, 200);
    assert_eq!(server.http("GET", &path, &[], b"").await.body, b"in two pieces");
}

#[tokio::test]
async fn what_is_too_large_is_refused_unread() {
    let limits = Limits { max_blob_size_bytes: 1000, ..Limits::default() };
    let server = Server::with(Door::Open, MemoryBlobStore::default(), limits);
    let blob = noise(1, 1001);
    assert_eq!(server.http("PUT", &cas(&blob), &[], &blob).await.status, 413);
    assert_eq!(server.http("PUT", &cas(&blob[1..]), &[], &blob[1..]).await.status, 200);
}

#[tokio::test]
async fn one_who_is_refused_while_sending_can_send_to_the_end_and_read_why() {
    let limits = Limits { max_blob_size_bytes: 1000, ..Limits::default() };
    let open = Server::with(Door::Open, MemoryBlobStore::default(), limits);
    let (mebibyte, mebibytes) = (vec![7; 1 << 20], 200);
    for (server, status) in [(&open, "413"), (&Server::start(Door::Closed), "401")] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n",
            cas(&mebibyte),
            mebibytes * mebibyte.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // As clients do that look for an answer only when they have sent everything.
        for _ in 0..mebibytes {
            stream.write_all(&mebibyte).await.unwrap();
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "those who look meanwhile can stop: {answer}");
    }
}

#[tokio::test]
async fn bodies_that_trickle_leave_room_for_others() {
    let server = Server::start(Door::Open);
    let mut trickling = Vec::new();
    for number in 0..8 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let length = if number % 2 == 0 { "Transfer-Encoding: chunked" } else { "Content-Length: 67108864" };
        let path = format!("/ac/{}", sha256(&[number]).hash_hex());
        let head = format!("PUT {path} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n{length}\r\n\r\n1\r\nx\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server asks for the body, so it has begun to take it.
        let mut asked = [0; 25];
        let asking = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut asked));
        asking.await.unwrap().unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        trickling.push(stream);
    }
    let path = format!("/ac/{}", sha256(b"honest").hash_hex());
    let put = server.http("PUT", &path, &[], b"an honest body");
    let answer = tokio::time::timeout(Duration::from_secs(20), put).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn zstd_comes_and_goes_by_headers() {
    let server = Server::start(Door::Open);
    let blob = [noise(1, 1000), vec![0; 500_000]].concat();
    let frame = zstd::bulk::compress(&blob, 3).unwrap();
    let put = server.http("PUT", &cas(&blob), &[("Content-Encoding", "zstd")], &frame).await;
    assert_eq!(put.status, 200, "{}", put.text());
    let plain = server.http("GET", &cas(&blob), &[], b"").await;
    assert_eq!((plain.header("content-encoding"), &plain.body), (None, &blob));
    let accepting = server.http("GET", &cas(&blob), &[("Accept-Encoding", "gzip, zstd")], b"").await;
    let body = match accepting.header("content-encoding") {
        Some("zstd") => zstd::stream::decode_all(&*accepting.body).unwrap(),
        None => accepting.body,
        Some(other) => panic!("{other}"),
    };
    assert_eq!(body, blob);
    let broken = server.http("PUT", &cas(b"x"), &[("Content-Encoding", "zstd")], b"not zstd").await;
    assert_eq!(broken.status, 400);
}

#[tokio::test]
async fn a_part_can_be_read() {
    let server = Server::start(Door::Open);
    let blob = noise(1, 10_000);
    assert_eq!(server.http("PUT", &cas(&blob), &[], &blob).await.status, 200);
    let answer = server.http("GET", &cas(&blob), &[("Range", "bytes=100-199")], b"").await;
    assert_eq!((answer.status, answer.header("content-range")), (206, Some("bytes 100-199/10000")));
    assert_eq!(answer.body, blob[100..200]);
    let outside = server.http("GET", &cas(&blob), &[("Range", "bytes=10000-")], b"").await;
    assert_eq!((outside.status, outside.header("content-range")), (416, Some("bytes */10000")));
    let head = server.http("HEAD", &cas(&blob), &[("Range", "bytes=100-199")], b"").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("10000")), "only GET has ranges");
}

#[tokio::test]
async fn action_results_are_shared_with_grpc_and_must_be_complete() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let output = OutputFile { path: "o".to_owned(), digest: Some(sha256(b"output").into()), ..OutputFile::default() };
    let result = ActionResult { output_files: vec![output], exit_code: 0, ..ActionResult::default() };
    let action = sha256(b"an action");
    let path = format!("/ac/{}", action.hash_hex());
    assert_eq!(server.http("PUT", &path, &[], &result.encode_to_vec()).await.status, 200);
    assert_eq!(server.http("GET", &path, &[], b"").await.status, 404, "its output is not there");
    assert_eq!(client.get_result("", action).await.unwrap(), Seen::Absent);
    client.put("", b"output").await.unwrap();
    let answer = server.http("GET", &path, &[], b"").await;
    assert_eq!((answer.status, answer.body), (200, result.encode_to_vec()));
    assert_eq!(client.get_result("", action).await.unwrap(), Seen::Present);

    let other = sha256(b"another action");
    client.store_result("", other, sha256(b"output")).await.unwrap();
    assert_eq!(server.http("HEAD", &format!("/ac/{}", other.hash_hex()), &[], b"").await.status, 200);
}

#[tokio::test]
async fn what_is_no_action_result_is_kept_for_http_alone() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let key = sha256(b"a compiler call");
    let path = format!("/ac/{}", key.hash_hex());
    for bytes in [b"cCrS opaque".to_vec(), noise(1, 8_000_000)] {
        assert_eq!(server.http("PUT", &path, &[], &bytes).await.status, 200);
        let answer = server.http("GET", &path, &[], b"").await;
        assert_eq!((answer.status, answer.body == bytes), (200, true));
    }
    assert_eq!(client.get_result("", key).await.unwrap(), Seen::Absent);
    assert_eq!(server.http("GET", &format!("/default{path}"), &[], b"").await.status, 404, "another instance");
}

#[tokio::test]
async fn grpc_clients_of_other_services_are_told_so() {
    let server = Server::start(Door::Open);
    let status = crate::grpc::call_with_bytes(server.channel().await, "/some.Service/Call", bytes::Bytes::new()).await;
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    let path = edges_path();
    assert_eq!(server.http("GET", &path, &[], b"").await.status, 415, "a browser on a gRPC path");
}

fn edges_path() -> String {
    gf_server::edges::grpc_methods().next().unwrap()
}

//! Input that is wrong, hostile or cut off: each call ends with the right status, and the server goes on.

use std::time::Duration;

use bytes::Bytes;
use gf_reapi::bytestream::{ReadRequest, WriteRequest};
use gf_reapi::execution::batch_update_blobs_request;
use gf_reapi::{WireDigest, execution};
use gf_server::edges::{self, Limits};
use gf_testkit::MemoryBlobStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use crate::execution::OF_OPERATIONS;
use crate::grpc::{Client, call_with_bytes, resource_name};
use crate::server::{Door, Server, eventually, noise, sha256};

#[tokio::test]
async fn a_malformed_message_is_the_callers_fault() {
    let server = Server::start(Door::Open);
    for method in edges::grpc_methods() {
        for bytes in [&[0xff; 20][..], &[0x0a, 0x05, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x0a, 0x7f]] {
            let status = call_with_bytes(server.channel().await, &method, Bytes::from_static(bytes)).await;
            assert_eq!(status.code(), Code::InvalidArgument, "{method}: {}", status.message());
        }
        let huge = Bytes::from(vec![0; 6 << 20]);
        let status = call_with_bytes(server.channel().await, &method, huge).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{method}: {}", status.message());
    }
}

#[tokio::test]
async fn a_resource_name_of_a_megabyte_is_refused() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let name = "x/".repeat(512 * 1024);
    let read = ReadRequest { resource_name: name.clone(), ..ReadRequest::default() };
    let status = client.bytes().read(read).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().len() < 500, "the name is not sent back");
    let write = WriteRequest { resource_name: name, finish_write: true, ..WriteRequest::default() };
    assert_eq!(client.write(vec![write]).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_negative_size_is_refused() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let digest = WireDigest::from_text(sha256(b"x").hash_hex().as_str(), -1);
    let entry = batch_update_blobs_request::Request {
        digest: Some(digest.clone()),
        data: Bytes::from_static(b"x"),
        compressor: 0,
    };
    assert_eq!(client.batch_update("", entry).await.unwrap_err().code(), Code::InvalidArgument);
    let find = execution::FindMissingBlobsRequest { blob_digests: vec![digest], ..Default::default() };
    assert_eq!(client.storage().find_missing_blobs(find).await.unwrap_err().code(), Code::InvalidArgument);
    let read = ReadRequest { resource_name: format!("blobs/{}/-1", sha256(b"x").hash_hex()), ..Default::default() };
    assert_eq!(client.bytes().read(read).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_zstd_bomb_stops_at_the_size_that_was_announced() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let bomb = Bytes::from(zstd::bulk::compress(&vec![0; 256 << 20], 3).unwrap());
    assert!(bomb.len() < 64 << 10);
    let digest = sha256(b"ten bytes.");
    let entry = batch_update_blobs_request::Request { digest: Some(digest.into()), data: bomb.clone(), compressor: 1 };
    assert_eq!(client.batch_update("", entry).await.unwrap_err().code(), Code::InvalidArgument);
    let name = format!("uploads/1/compressed-blobs/zstd/{}/{}", digest.hash_hex(), digest.size_bytes());
    let message = |at: usize, finish_write, data| WriteRequest {
        resource_name: name.clone(),
        write_offset: i64::try_from(at).unwrap(),
        finish_write,
        data,
    };
    let whole = vec![message(0, true, bomb.clone())];
    assert_eq!(client.write(whole).await.unwrap_err().code(), Code::InvalidArgument);
    let parts = vec![message(0, false, bomb.slice(..100)), message(100, true, bomb.slice(100..))];
    assert_eq!(client.write(parts).await.unwrap_err().code(), Code::InvalidArgument);
    let path = format!("/cas/{}", digest.hash_hex());
    let answer = server.http("PUT", &path, &[("Content-Encoding", "zstd")], &bomb).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(server.store.reserved_bytes(), 0);
}

/// Sends the first half of an upload and vanishes.
async fn vanish(server: &Server, blob: &[u8], name: &str, data: Bytes) {
    let client = Client::of(server, None).await;
    let (sender, messages) = tokio::sync::mpsc::channel(4);
    let call = tokio::spawn(async move { client.bytes().write(Request::new(ReceiverStream::new(messages))).await });
    let message = WriteRequest { resource_name: name.to_owned(), data, ..WriteRequest::default() };
    sender.send(message).await.unwrap();
    let store = server.store.clone();
    eventually("the upload has begun", || store.reserved_bytes() == blob.len() as u64).await;
    call.abort();
}

#[tokio::test]
async fn the_space_of_a_client_that_vanished_comes_back() {
    let limits = Limits { parked_upload_ttl: Duration::from_millis(100), ..Limits::default() };
    let server = Server::with(Door::Open, MemoryBlobStore::default(), limits);
    let blob = noise(1, 1 << 20);
    let name = resource_name("", "uploads/1/", sha256(&blob));
    vanish(&server, &blob, &name, Bytes::copy_from_slice(&blob[..1000])).await;
    let store = server.store.clone();
    eventually("an upload that nobody comes back to ends", || store.reserved_bytes() == 0).await;

    let name = name.replace("/blobs/", "/compressed-blobs/zstd/");
    let frame = Bytes::from(zstd::bulk::compress(&blob, 1).unwrap());
    vanish(&server, &blob, &name, frame.slice(..1000)).await;
    eventually("a compressed upload ends at once", || store.reserved_bytes() == 0).await;
}

#[tokio::test]
async fn uploads_that_wait_make_room_for_those_that_do_not() {
    let server = Server::with(Door::Open, MemoryBlobStore::with_capacity(1 << 20), Limits::default());
    let (one, other) = (noise(1, 1 << 20), noise(2, 1 << 20));
    vanish(&server, &one, &resource_name("", "uploads/1/", sha256(&one)), Bytes::copy_from_slice(&one[..1000])).await;
    let client = Client::of(&server, None).await;
    let name = resource_name("", "uploads/2/", sha256(&other));
    let messages = || {
        let half = 1 << 19;
        let data = Bytes::copy_from_slice(&other);
        vec![
            WriteRequest { resource_name: name.clone(), data: data.slice(..half), ..WriteRequest::default() },
            WriteRequest {
                write_offset: i64::try_from(half).unwrap(),
                finish_write: true,
                data: data.slice(half..),
                ..WriteRequest::default()
            },
        ]
    };
    // Until the server notices that the other client is gone, there is no room.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match client.write(messages()).await {
            Ok(committed) => break assert_eq!(committed, 1 << 20),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{}", status.message()),
        }
        assert!(std::time::Instant::now() < deadline, "the upload that waits does not give way");
    }
}

#[tokio::test]
async fn a_full_store_says_so_and_still_reads() {
    let server = Server::with(Door::Open, MemoryBlobStore::with_capacity(1000), Limits::default());
    let client = Client::of(&server, None).await;
    let kept = client.put("", &noise(1, 900)).await.unwrap();
    assert_eq!(client.put("", &noise(2, 900)).await.unwrap_err().code(), Code::ResourceExhausted);
    let answer = server.http("PUT", &format!("/cas/{}", sha256(b"x").hash_hex()), &[], &noise(3, 900)).await;
    assert_eq!(answer.status, 507, "{}", answer.text());
    let answer = server.http("GET", &format!("/cas/{}", kept.hash_hex()), &[], b"").await;
    assert_eq!((answer.status, answer.body), (200, noise(1, 900)));
}

/// When the store cannot know, nothing is reported absent.
#[tokio::test]
async fn a_store_that_fails_is_never_an_empty_one() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let blob = client.put("", b"a blob").await.unwrap();
    server.store.set_failing(true);
    let needs_no_store = |method: &str| {
        let name = method.rsplit('/').next().unwrap();
        OF_OPERATIONS.contains(&name) || name == "GetCapabilities" || name == "Attach"
    };
    for method in edges::grpc_methods().filter(|method| !needs_no_store(method)) {
        let status = match client.call(&method, "", blob).await.unwrap() {
            Err(status) => status,
            Ok(seen) => panic!("{method} answered {seen:?}"),
        };
        assert_eq!(status.code(), Code::Unavailable, "{method}: {}", status.message());
    }
    for half in ["ac", "cas"] {
        let answer = server.http("GET", &format!("/{half}/{}", blob.hash_hex()), &[], b"").await;
        assert_eq!(answer.status, 503);
    }
}

#[tokio::test]
async fn one_that_asks_much_and_reads_nothing_does_not_hurt_others() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    let blob = client.put("", &noise(1, 4000)).await.unwrap();
    let request = format!("GET /cas/{} HTTP/1.1\r\nHost: t\r\n\r\n", blob.hash_hex());
    let mut greedy = TcpStream::connect(server.address).await.unwrap();
    let mut sent = 0;
    while sent < 100_000 {
        // The server stops reading when its answers are not read: then there is nothing more to send. Longer than a busy
        // machine keeps it from its work.
        let writing = greedy.write_all(request.as_bytes());
        if tokio::time::timeout(Duration::from_secs(5), writing).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 100_000, "the server buffers without a bound");
    assert!(client.put("", b"still here").await.is_ok());
    let mut first = [0; 15];
    greedy.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
}

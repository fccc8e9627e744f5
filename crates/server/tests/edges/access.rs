//! Every method and route, without a credential, with a wrong one, and from another tenant.

use gf_digest::Digest;
use gf_reapi::execution::{Directory, FileNode};
use gf_server::edges;
use prost::Message;
use tonic::Code;

use crate::grpc::{Client, Seen};
use crate::server::{Door, Server, TOKEN, WORKER_TOKEN, noise, sha256};

/// The methods that readers may not call: they change something, or show what those do who may.
const WRITES: [&str; 14] = [
    "BatchUpdateBlobs",
    "SpliceBlob",
    "RegisterChunkMapping",
    "Write",
    "QueryWriteStatus",
    "UpdateActionResult",
    "Execute",
    "WaitExecution",
    "GetOperation",
    "ListOperations",
    "CancelOperation",
    "WaitOperation",
    "Attach",
    "PUT",
];

/// Whoever attaches a worker touches no instance by that.
fn is_for_workers(path: &str) -> bool {
    path.ends_with("/Attach")
}

fn is_write(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|method| WRITES.contains(&method))
}

/// A blob that is a directory too, and large enough to be split.
fn directory() -> Vec<u8> {
    let name: String = noise(1, 1_000_000).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = FileNode { name, digest: Some(Digest::empty(sha256(b"").function()).into()), ..FileNode::default() };
    Directory { files: vec![file], ..Directory::default() }.encode_to_vec()
}

/// The blob, which is its own action's output, in the tenant `default`.
async fn filled(server: &Server) -> Digest {
    let client = Client::holder(server).await;
    let blob = client.put("default", &directory()).await.unwrap();
    client.store_result("default", blob, blob).await.unwrap();
    blob
}

/// The list of methods in these tests is that of the server.
#[tokio::test]
async fn every_method_is_tested() {
    let server = Server::start(Door::Closed);
    let blob = filled(&server).await;
    let client = Client::holder(&server).await;
    let worker = Client::of(&server, Some(WORKER_TOKEN)).await;
    assert_eq!(edges::grpc_methods().count(), 21);
    for method in edges::grpc_methods() {
        let client = if is_for_workers(&method) { &worker } else { &client };
        let answer = client.call(&method, "default", blob).await;
        let seen = answer.unwrap_or_else(|| panic!("{method} has no test")).unwrap();
        // The first and the last tell of no blob, and bytes in a batch are always looked at.
        let expected = match method.rsplit('/').next() {
            Some("GetCapabilities" | "BatchUpdateBlobs" | "Attach") => Seen::Absent,
            _ => Seen::Present,
        };
        assert_eq!(seen, expected, "{method}");
    }
}

#[tokio::test]
async fn without_the_token_nothing_is_served() {
    let server = Server::start(Door::Closed);
    let blob = filled(&server).await;
    for token in [None, Some("wrong"), Some("")] {
        let client = Client::of(&server, token).await;
        for method in edges::grpc_methods() {
            for instance in ["default", "no/such/instance"] {
                let status = client.call(&method, instance, blob).await.unwrap().unwrap_err();
                assert_eq!(status.code(), Code::Unauthenticated, "{method} with {token:?} in {instance}");
            }
        }
    }
}

#[tokio::test]
async fn readers_may_read_and_are_told_that_they_may_not_write() {
    let server = Server::start(Door::ReadersMayEnter);
    let blob = filled(&server).await;
    let reader = Client::of(&server, None).await;
    for method in edges::grpc_methods() {
        let answer = reader.call(&method, "default", blob).await.unwrap();
        match is_write(&method) {
            true => assert_eq!(answer.unwrap_err().code(), Code::Unauthenticated, "{method}"),
            false => assert!(answer.is_ok(), "{method}: {answer:?}"),
        }
    }
    assert!(!reader.capabilities("default").await.unwrap());
    assert!(Client::holder(&server).await.capabilities("default").await.unwrap());
}

#[tokio::test]
async fn a_tenant_learns_nothing_of_what_another_has() {
    let server = Server::start(Door::Closed);
    let blob = filled(&server).await;
    let client = Client::holder(&server).await;
    for method in edges::grpc_methods().filter(|method| !is_for_workers(method)) {
        let seen = client.call(&method, "acme/ci", blob).await.unwrap();
        assert_eq!(seen.unwrap(), Seen::Absent, "{method}");
    }
}

#[tokio::test]
async fn an_unknown_instance_is_said_to_be_unknown() {
    let server = Server::start(Door::Open);
    let client = Client::of(&server, None).await;
    for method in edges::grpc_methods().filter(|method| !is_for_workers(method)) {
        let status = client.call(&method, "nobody", sha256(b"x")).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
        assert!(status.message().contains("no instance \"nobody\""), "{method}: {}", status.message());
    }
}

/// Neither token does what the other is for.
#[tokio::test]
async fn workers_only_attach_and_only_workers_do() {
    let server = Server::start(Door::Closed);
    let blob = filled(&server).await;
    let worker = Client::of(&server, Some(WORKER_TOKEN)).await;
    let holder = Client::holder(&server).await;
    for method in edges::grpc_methods() {
        let refused = if is_for_workers(&method) { &holder } else { &worker };
        let status = refused.call(&method, "default", blob).await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{method}");
    }
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let server = Server::start(Door::Open);
    for method in ["Execution/Nothing", "ActionCache/Nothing"] {
        let path = format!("/build.bazel.remote.execution.v2.{method}");
        let status = crate::grpc::call_with_bytes(server.channel().await, &path, bytes::Bytes::new()).await;
        assert_eq!(status.code(), Code::Unimplemented, "{method}");
    }
}

/// All routes of the HTTP cache, with the path of a blob or of a result that is there.
fn http_routes(blob: Digest) -> Vec<(&'static str, String)> {
    let hash = blob.hash_hex();
    ["GET", "HEAD", "PUT"]
        .into_iter()
        .flat_map(|verb| [(verb, format!("ac/{hash}")), (verb, format!("cas/{hash}"))])
        .collect()
}

#[tokio::test]
async fn http_asks_for_the_token_too() {
    let server = Server::start(Door::Closed);
    let blob = filled(&server).await;
    let right = format!("Bearer {TOKEN}");
    for (verb, path) in http_routes(blob) {
        for headers in [&[][..], &[("Authorization", "Bearer wrong")], &[("Authorization", "Basic Og==")]] {
            let answer = server.http(verb, &format!("/default/{path}"), headers, b"x").await;
            assert_eq!(answer.status, 401, "{verb} {path} {headers:?}");
            assert!(answer.header("www-authenticate").is_some());
        }
        let elsewhere = server.http(verb, &format!("/acme/ci/{path}"), &[("Authorization", &right)], b"x").await;
        let expected = match (verb, path.starts_with("cas")) {
            ("PUT", true) => 400,
            ("PUT", false) => 200,
            _ => 404,
        };
        assert_eq!(elsewhere.status, expected, "{verb} {path} of another tenant");
    }
    // "user:s3cret"
    let basic = [("Authorization", "Basic dXNlcjpzM2NyZXQ=")];
    let answer = server.http("GET", &format!("/cas/{}", blob.hash_hex()), &basic, b"").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, directory());
}

#[tokio::test]
async fn http_readers_may_read() {
    let server = Server::start(Door::ReadersMayEnter);
    let blob = filled(&server).await;
    for (verb, path) in http_routes(blob) {
        let answer = server.http(verb, &format!("/default/{path}"), &[], b"").await;
        assert_eq!(answer.status, if is_write(verb) { 401 } else { 200 }, "{verb} {path}");
    }
}

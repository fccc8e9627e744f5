use std::time::Duration;

use gf_blobstore::{Encoding, NewBlob};
use gf_digest::{DigestFunction, InstanceName};
use gf_reapi::execution::{Directory, DirectoryNode, FileNode};
use gf_tenancy::{Access, AccessConfig, Principal, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;

use super::*;
use crate::closures::NoCaches;

const FUNCTION: DigestFunction = DigestFunction::Sha256;
const TIMEOUTS: Timeouts = Timeouts { default: Duration::from_secs(60), max: Duration::from_secs(600) };

fn grant() -> Authorized<Execute> {
    let instance = InstanceName::new("").unwrap();
    let tenant = TenantConfig { name: TenantName::new("default").unwrap(), instances: vec![instance.clone()] };
    let access = Access::new(AccessConfig { tenants: vec![tenant], token: None, anonymous_read: false }).unwrap();
    access.authorize(Principal::Anonymous, &instance).unwrap()
}

async fn put(store: &MemoryBlobStore, bytes: Vec<u8>) -> Digest {
    let digest = Digest::of(FUNCTION, &bytes);
    let blob = NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity };
    store.write_batch(owner(&grant()), vec![blob]).await.remove(0).unwrap();
    digest
}

fn command() -> Command {
    Command { arguments: vec!["/bin/true".to_owned()], ..Command::default() }
}

fn file(name: &str, digest: Digest) -> FileNode {
    FileNode { name: name.to_owned(), digest: Some(digest.into()), ..FileNode::default() }
}

async fn check(store: &MemoryBlobStore, action: &Action) -> Result<CheckedAction, ActionError> {
    let digest = put(store, action.encode_to_vec()).await;
    let toolchains = Toolchains::new(Arc::new(store.clone()), Arc::new(NoCaches), Duration::from_secs(60));
    ReadAction::read(store, &grant(), digest).await?.check(store, &grant(), &toolchains, TIMEOUTS).await
}

fn action(command: Digest, root: Digest) -> Action {
    Action { command_digest: Some(command.into()), input_root_digest: Some(root.into()), ..Action::default() }
}

fn absent(name: &str) -> Digest {
    Digest::of(FUNCTION, name.as_bytes())
}

#[tokio::test]
async fn everything_that_is_missing_is_named_at_once() {
    let store = MemoryBlobStore::default();
    let deep = Directory { files: vec![file("f", absent("deep file"))], ..Directory::default() };
    let deep = put(&store, deep.encode_to_vec()).await;
    let child = |name: &str, digest: Digest| DirectoryNode { name: name.to_owned(), digest: Some(digest.into()) };
    let root = Directory {
        files: vec![file("a", absent("file")), file("b", absent("file"))],
        directories: vec![child("deep", deep), child("gone", absent("directory"))],
        ..Directory::default()
    };
    let root = put(&store, root.encode_to_vec()).await;
    let Err(ActionError::Missing(mut missing)) = check(&store, &action(absent("command"), root)).await else {
        panic!("blobs are missing");
    };
    let mut expected = ["file", "deep file", "directory", "command"].map(absent).to_vec();
    missing.sort_by_key(|digest| *digest.hash());
    expected.sort_by_key(|digest| *digest.hash());
    assert_eq!(missing, expected);

    let unknown = ReadAction::read(&store, &grant(), absent("action")).await.unwrap_err();
    assert!(matches!(unknown, ActionError::Missing(digests) if digests == [absent("action")]));
}

#[tokio::test]
async fn what_can_never_run_is_invalid() {
    let store = MemoryBlobStore::default();
    let empty = Digest::empty(FUNCTION);
    let good = put(&store, command().encode_to_vec()).await;
    assert!(check(&store, &action(good, empty)).await.is_ok());

    let unsorted = Directory { files: vec![file("b", empty), file("a", empty)], ..Directory::default() };
    let unsorted = put(&store, unsorted.encode_to_vec()).await;
    let garbage = put(&store, b"\xff\xff\xff".to_vec()).await;
    let no_program = put(&store, Command::default().encode_to_vec()).await;
    let long = Action { timeout: Some(prost_types::Duration { seconds: 601, nanos: 0 }), ..action(good, empty) };
    let negative = Action { timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }), ..action(good, empty) };
    let cases = [
        (action(good, unsorted), "sorted"),
        (action(good, garbage), "directory"),
        (action(garbage, empty), "Command"),
        (action(no_program, empty), "program"),
        (Action::default(), "command_digest"),
        (long, "600"),
        (negative, "negative"),
    ];
    for (action, expected) in cases {
        match check(&store, &action).await {
            Err(ActionError::Invalid(reason)) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn times() {
    let store = MemoryBlobStore::default();
    let command = put(&store, command().encode_to_vec()).await;
    for (asked, expected) in [(None, 60), (Some(0), 60), (Some(7), 7), (Some(600), 600)] {
        let timeout = asked.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let action = Action { timeout, ..action(command, Digest::empty(FUNCTION)) };
        assert_eq!(check(&store, &action).await.unwrap().timeout, Duration::from_secs(expected));
    }
}

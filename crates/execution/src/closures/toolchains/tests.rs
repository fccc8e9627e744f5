use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use gf_blobstore::{Encoding, NewBlob};
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_reapi::execution::{Directory, FileNode};
use gf_tenancy::{Access, AccessConfig, Principal, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;
use prost::Message;

use super::*;
use crate::closures::ClosurePath;

const LEASE: Duration = Duration::from_secs(600);

/// One tenant has one path; whoever asks for another is told so.
struct OnePath {
    path: ClosurePath,
    tenant: &'static str,
    asked: AtomicUsize,
}

#[async_trait]
impl Closures for OnePath {
    async fn closure(
        &self,
        grant: &Authorized<Execute>,
        paths: &[StorePath],
    ) -> Result<Vec<ClosurePath>, ClosureError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let is_here = |path: &StorePath| grant.tenant().name().as_str() == self.tenant && *path == self.path.path;
        let missing: Vec<StorePath> = paths.iter().filter(|path| !is_here(path)).cloned().collect();
        if missing.is_empty() { Ok(vec![self.path.clone()]) } else { Err(ClosureError::Missing(missing)) }
    }
}

fn path(name: &str) -> StorePath {
    StorePath::parse(&format!("2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-{name}")).unwrap()
}

fn grant(instance: &str) -> Authorized<Execute> {
    let tenant = |name: &str, instance: &str| TenantConfig {
        name: TenantName::new(name).unwrap(),
        instances: vec![InstanceName::new(instance).unwrap()],
    };
    let tenants = vec![tenant("default", ""), tenant("org-acme", "acme")];
    let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
    access.authorize(Principal::Anonymous, &InstanceName::new(instance).unwrap()).unwrap()
}

async fn put(store: &MemoryBlobStore, bytes: Vec<u8>) -> Digest {
    let digest = Digest::of(DigestFunction::Sha256, &bytes);
    let blob = NewBlob { digest, bytes: bytes.into(), encoding: Encoding::Identity };
    store.write_batch(owner(&grant("")), vec![blob]).await.remove(0).unwrap();
    digest
}

/// A path with one file in it; without it if `is_whole` says so.
async fn toolchains(is_whole: bool) -> (Toolchains, Arc<OnePath>) {
    let store = MemoryBlobStore::default();
    let digest = Digest::of(DigestFunction::Sha256, b"tool");
    if is_whole {
        put(&store, b"tool".to_vec()).await;
    }
    let file = FileNode { name: "tool".to_owned(), digest: Some(digest.into()), ..FileNode::default() };
    let folder = Directory { files: vec![file], ..Directory::default() };
    let root = ClosureRoot::Directory(put(&store, folder.encode_to_vec()).await);
    let closures = OnePath { path: ClosurePath { path: path("tool"), root }, tenant: "default", asked: 0.into() };
    let closures = Arc::new(closures);
    (Toolchains::new(Arc::new(store), Arc::clone(&closures) as Arc<dyn Closures>, LEASE), closures)
}

fn refused(provided: Result<Closure, ActionError>) -> ClosureError {
    match provided {
        Err(ActionError::Closure(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_good_for_a_moment() {
    let (toolchains, closures) = toolchains(true).await;
    for (later, asked) in [(Duration::ZERO, 1), (Duration::from_secs(1), 1), (FRESH, 2)] {
        tokio::time::advance(later).await;
        // The order and number of names make no difference.
        let closure = toolchains.provide(&grant(""), vec![path("tool"), path("tool")]).await.unwrap();
        assert_eq!(closure.paths(), std::slice::from_ref(&closures.path));
        assert_eq!(closures.asked.load(Ordering::Relaxed), asked, "after {later:?} more");
    }
}

#[tokio::test]
async fn nothing_named_is_nothing_asked() {
    let (toolchains, closures) = toolchains(true).await;
    assert_eq!(toolchains.provide(&grant(""), Vec::new()).await.unwrap(), Closure::default());
    assert_eq!(closures.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_one_tenant_has_is_missing_for_another() {
    let (toolchains, _) = toolchains(true).await;
    toolchains.provide(&grant(""), vec![path("tool")]).await.unwrap();
    let error = refused(toolchains.provide(&grant("acme"), vec![path("tool")]).await);
    assert_eq!(error, ClosureError::Missing(vec![path("tool")]));
}

#[tokio::test]
async fn a_path_that_is_not_whole_is_named() {
    let (toolchains, _) = toolchains(false).await;
    let error = refused(toolchains.provide(&grant(""), vec![path("tool")]).await);
    assert_eq!(error, ClosureError::Damaged(vec![path("tool")]));
}

#[tokio::test(start_paused = true)]
async fn what_was_leased_is_leased_again_before_its_lease_ends() {
    let (toolchains, closures) = toolchains(true).await;
    let closure = toolchains.provide(&grant(""), vec![path("tool")]).await.unwrap();
    let key = (owner(&grant("")), closures.path.root.clone());
    let first = lock(&toolchains.leased)[&key];
    toolchains.lease(&grant(""), &closure).await.unwrap();
    assert_eq!(lock(&toolchains.leased)[&key], first, "so soon it is not walked again");
    tokio::time::advance(LEASE / 3).await;
    toolchains.lease(&grant(""), &closure).await.unwrap();
    assert_eq!(lock(&toolchains.leased)[&key], Instant::now());
}

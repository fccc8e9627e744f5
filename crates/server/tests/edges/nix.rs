//! Nix caches through the port.

mod archives;
mod attic;
mod documents;
mod door;
mod path;
mod refusals;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::{BlobStore, MachineTime};
use gf_database::{Database, Location};
use gf_fetch::Networks;
use gf_nix_cache::archives::{ArchiveLimits, Archives};
use gf_nix_cache::{MIGRATIONS, NixCaches, Parts};
use gf_server::Background;
use gf_server::edges::{Gate, NixState, nix_router};
use gf_server::listen::{Connections, Listener};
use gf_server::metrics::EdgeMetrics;
use gf_server::quotas::Quotas;
use gf_tenancy::{Access, AccessConfig, Secret, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;
use tempfile::TempDir;

use crate::server::{Answer, Door, TOKEN, request};
use path::TestPath;

/// A server with the public cache `main` of the tenant `default`.
pub(crate) struct NixServer {
    pub(crate) address: SocketAddr,
    pub(crate) store: MemoryBlobStore,
    _connections: Connections,
    _folder: TempDir,
}

impl NixServer {
    pub(crate) async fn start(door: Door) -> Self {
        Self::with(door, ArchiveLimits::default()).await
    }

    pub(crate) async fn with(door: Door, limits: ArchiveLimits) -> Self {
        let tenant = TenantName::new("default").unwrap();
        let config = AccessConfig {
            tenants: vec![TenantConfig { name: tenant.clone(), instances: Vec::new() }],
            token: (door != Door::Open).then(|| Secret::new(TOKEN.to_owned())),
            anonymous_read: door == Door::ReadersMayEnter,
        };
        let mut access = Access::new(config).unwrap();
        if door != Door::Open {
            access = access.with_attic_tokens(attic::key());
        }
        let access = Arc::new(access);
        let folder = tempfile::tempdir().unwrap();
        let store = MemoryBlobStore::default();
        let blobs: Arc<dyn BlobStore> = Arc::new(store.clone());
        let database = Location::file(&folder.path().join("facts"));
        let database = Database::open(&database, &[MIGRATIONS]).await.unwrap();
        let archives = Arc::new(Archives::new(Arc::clone(&blobs), folder.path().to_owned(), limits));
        let (time, upstream_networks) = (Arc::new(MachineTime::default()), Networks::with_this_machine());
        let caches = NixCaches::new(Parts { database, store: blobs, archives, time, upstream_networks });
        caches.ensure_main(access.tenant(&tenant).unwrap()).await.unwrap();
        let metrics = Arc::new(EdgeMetrics::default());
        let upload_idle_timeout = Duration::from_secs(20);
        let (gate, quotas) = (Gate::without_log(access), Arc::new(Quotas::none()));
        let (background, scheme) = (Background::default(), "http");
        let state = NixState { gate, caches, quotas, background, tenant, metrics, upload_idle_timeout, scheme };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let address = listener.address();
        Self { address, store, _connections: listener.serve(nix_router(state)), _folder: folder }
    }

    pub(crate) async fn call(&self, verb: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        request(self.address, verb, path, headers, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], b"").await
    }

    pub(crate) async fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.call("PUT", path, &[], body).await
    }

    /// Pushes a path as Nix does, without compression, to the cache `main`.
    pub(crate) async fn push(&self, path: &TestPath) {
        assert_eq!(self.put(&path.archive_url(), &path.archive).await.status, 200);
        let answer = self.put(&path.narinfo_url(), path.narinfo().as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Whoever presents this has the static token.
pub(crate) fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

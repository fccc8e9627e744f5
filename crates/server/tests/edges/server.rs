//! A server on a free port, and the plainest HTTP client.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_blobstore::BlobStore;
use gf_digest::{Digest, DigestFunction, InstanceName};
use gf_execution::{ActionCache, Operations, OperationsConfig};
use gf_server::edges::{self, EdgeState, Gate, Limits};
use gf_server::listen::{Connections, Listener};
use gf_server::metrics::EdgeMetrics;
use gf_server::quotas::Quotas;
use gf_tenancy::{Access, AccessConfig, Secret, TenantConfig, TenantName};
use gf_testkit::MemoryBlobStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(crate) const TOKEN: &str = "s3cret";
pub(crate) const WORKER_TOKEN: &str = "w0rker";

/// Who may do what without the token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    ReadersMayEnter,
    Closed,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) store: MemoryBlobStore,
    _connections: Connections,
}

impl Server {
    pub(crate) fn start(door: Door) -> Self {
        Self::with(door, MemoryBlobStore::default(), Limits::default())
    }

    /// Two tenants: `default` with the instances `` and `default`, and `org-acme` with `acme/ci`.
    pub(crate) fn with(door: Door, store: MemoryBlobStore, limits: Limits) -> Self {
        let tenant = |name: &str, instances: &[&str]| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: instances.iter().map(|name| InstanceName::new(name).unwrap()).collect(),
        };
        let config = AccessConfig {
            tenants: vec![tenant("default", &["", "default"]), tenant("org-acme", &["acme/ci"])],
            token: (door != Door::Open).then(|| Secret::new(TOKEN.to_owned())),
            anonymous_read: door == Door::ReadersMayEnter,
        };
        let worker_token = (door != Door::Open).then(|| Secret::new(WORKER_TOKEN.to_owned()));
        let access = Arc::new(Access::new(config).unwrap().with_worker_tokens(worker_token.as_slice()));
        let blobs: Arc<dyn BlobStore> = Arc::new(store.clone());
        let action_cache = ActionCache::new(Arc::clone(&blobs));
        let operations = Operations::start(
            Arc::clone(&blobs),
            action_cache.clone(),
            Arc::clone(&access),
            OperationsConfig::default(),
        );
        let state = EdgeState {
            gate: Gate::without_log(access),
            store: blobs,
            action_cache,
            quotas: Arc::new(Quotas::none()),
            operations,
            limits,
            metrics: Arc::new(EdgeMetrics::default()),
            stopping: CancellationToken::new(),
        };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let address = listener.address();
        Self { address, store, _connections: listener.serve(edges::router(state)) }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// Sends one request and reads the answer to its end.
    pub(crate) async fn http(&self, verb: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        request(self.address, verb, path, headers, body).await
    }
}

/// Sends one request and reads the answer to its end. A length or an encoding of the body among the headers stands for
/// the true one.
pub(crate) async fn request(
    address: SocketAddr,
    verb: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{verb} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| matches!(*name, "Transfer-Encoding" | "Content-Length")) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses may close before it has read everything.
    let _refused = stream.write_all(body).await;
    let mut bytes = Vec::new();
    let _cut_off = stream.read_to_end(&mut bytes).await;
    Answer::parse(&bytes)
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let mut lines = std::str::from_utf8(&bytes[..end]).unwrap().lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.into()))
            .collect();
        let raw = &bytes[end + 4..];
        let body = if headers.contains_key("transfer-encoding") { join_chunks(raw) } else { raw.to_vec() };
        Self { status, headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn join_chunks(mut raw: &[u8]) -> Vec<u8> {
    let mut joined = Vec::new();
    while let Some(at) = raw.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..at]).unwrap(), 16).unwrap();
        joined.extend_from_slice(&raw[at + 2..at + 2 + size]);
        raw = &raw[at + 2 + size + 2..];
        if size == 0 {
            break;
        }
    }
    joined
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(DigestFunction::Sha256, bytes)
}

/// Bytes that do not compress, other ones for each seed.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8)).flat_map(|_| next()).take(size).collect()
}

/// Waits until something is so, and fails when it is not for a minute.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

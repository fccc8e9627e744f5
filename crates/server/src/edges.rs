//! The edges: what clients speak to. A handler parses, authorizes, calls one service function and maps the answer.
//!
//! Deliberately absent: sockets, TLS, `/metrics` and health (the program mounts [`router`] beside them), and product
//! rules (services have them).
//!
//! What always holds: every call is authorized before a service is asked; every message, stream and wait is bounded.

pub(crate) mod credentials;
mod exchange;
pub(crate) mod gate;
mod grpc;
mod http_cache;
mod nix;
pub mod origin;
mod plain_http;
mod reapi;
pub(crate) mod this_machine;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use gf_blobstore::BlobStore;
use gf_execution::{ActionCache, Content, NamedValues, Operations};
use tokio_util::sync::CancellationToken;

use crate::metrics::EdgeMetrics;
use crate::quotas::Quotas;

pub(crate) use exchange::{ExchangeState, router as exchange_router};
pub use gate::{Gate, NotRecorded};
pub use nix::{NixState, router as nix_router};

/// What edges work with. Cheap to clone.
#[derive(Clone)]
pub struct EdgeState {
    /// Who may do what, and what is recorded of it.
    pub gate: Gate,
    /// Where the bytes are.
    pub store: Arc<dyn BlobStore>,
    /// Action results; the same that operations write to.
    pub action_cache: ActionCache,
    /// What tenants may use.
    pub quotas: Arc<Quotas>,
    /// What is run, and who waits for it.
    pub operations: Operations,
    /// The bounds that clients meet.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<EdgeMetrics>,
    /// Cancelled when the server stops: calls that have no end of their own end then.
    pub stopping: CancellationToken,
}

/// The bounds that clients meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether actions are run here at all; otherwise the server is a cache, and says so.
    pub executes: bool,
    /// The largest blob that may be uploaded, in bytes; told to clients as `max_cas_blob_size_bytes`.
    pub max_blob_size_bytes: u64,
    /// Uploads that were cut off and wait for their client to come back, over all tenants.
    pub parked_uploads: usize,
    /// How long a cut-off upload waits before its space is given back.
    pub parked_upload_ttl: Duration,
    /// How long an upload may send nothing before it counts as cut off.
    pub upload_idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            executes: true,
            max_blob_size_bytes: 16 << 30,
            parked_uploads: 256,
            parked_upload_ttl: Duration::from_secs(300),
            upload_idle_timeout: Duration::from_secs(120),
        }
    }
}

/// The services that edges call, over one store.
#[derive(Clone)]
struct Services {
    state: EdgeState,
    content: Content,
    action_cache: ActionCache,
    named_values: NamedValues,
}

/// The path of every gRPC method that is served: for tests, which must not forget one.
pub fn grpc_methods() -> impl Iterator<Item = String> {
    reapi::paths()
}

/// What somebody else says is kept and repeated up to a length.
fn cut(mut text: String, max_bytes: usize) -> String {
    let boundary = (0..=max_bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(boundary.unwrap_or_default());
    text
}

/// All edges of Bazel and its kin, gRPC and HTTP, as one router without a fallback: `/{*path}`, which belongs to the HTTP cache, takes what
/// no other route does. Must be called within a Tokio runtime.
pub fn router(state: EdgeState) -> axum::Router {
    let services = Services {
        content: Content::new(Arc::clone(&state.store), state.limits.max_blob_size_bytes),
        action_cache: state.action_cache.clone(),
        named_values: NamedValues::new(Arc::clone(&state.store)),
        state,
    };
    reapi::router(services.clone()).merge(http_cache::router(services))
}

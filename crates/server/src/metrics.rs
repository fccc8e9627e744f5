//! What the server counts, and how it is shown under `/metrics`.
//!
//! Edges hold one [`EdgeMetrics`] and call plain methods on it; each is a few atomic additions, with no lock, no
//! look-up and no allocation. Encoding happens only when somebody reads `/metrics`.
//!
//! Deliberately absent: labels whose values come from outside (instance, user, digest), since a stranger could make
//! as many of them as it likes.

mod access;
mod executions;
mod exposition;
mod histogram;
mod tenants;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use tonic::Code;

pub use access::AccessStats;
pub use exposition::{CONTENT_TYPE, encode};
use histogram::LatencyHistogram;

/// The calls that are measured, under the names that their specifications give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(
    missing_docs,
    reason = "each is the gRPC method or HTTP verb of that name; Nar is for archives, Nix for the rest"
)]
pub enum Method {
    FindMissingBlobs,
    BatchUpdateBlobs,
    BatchReadBlobs,
    GetTree,
    SplitBlob,
    SpliceBlob,
    GetChunkMapping,
    RegisterChunkMapping,
    Read,
    Write,
    QueryWriteStatus,
    GetActionResult,
    UpdateActionResult,
    GetCapabilities,
    Execute,
    WaitExecution,
    GetOperation,
    ListOperations,
    CancelOperation,
    WaitOperation,
    Attach,
    HttpGet,
    HttpHead,
    HttpPut,
    HttpPropfind,
    NixGet,
    NixHead,
    NixPut,
    NarGet,
    NarHead,
    NarPut,
    Attic,
}

impl Method {
    const ALL: [(Self, &'static str); 32] = [
        (Self::FindMissingBlobs, "FindMissingBlobs"),
        (Self::BatchUpdateBlobs, "BatchUpdateBlobs"),
        (Self::BatchReadBlobs, "BatchReadBlobs"),
        (Self::GetTree, "GetTree"),
        (Self::SplitBlob, "SplitBlob"),
        (Self::SpliceBlob, "SpliceBlob"),
        (Self::GetChunkMapping, "GetChunkMapping"),
        (Self::RegisterChunkMapping, "RegisterChunkMapping"),
        (Self::Read, "Read"),
        (Self::Write, "Write"),
        (Self::QueryWriteStatus, "QueryWriteStatus"),
        (Self::GetActionResult, "GetActionResult"),
        (Self::UpdateActionResult, "UpdateActionResult"),
        (Self::GetCapabilities, "GetCapabilities"),
        (Self::Execute, "Execute"),
        (Self::WaitExecution, "WaitExecution"),
        (Self::GetOperation, "GetOperation"),
        (Self::ListOperations, "ListOperations"),
        (Self::CancelOperation, "CancelOperation"),
        (Self::WaitOperation, "WaitOperation"),
        (Self::Attach, "Attach"),
        (Self::HttpGet, "GET"),
        (Self::HttpHead, "HEAD"),
        (Self::HttpPut, "PUT"),
        (Self::HttpPropfind, "PROPFIND"),
        (Self::NixGet, "NixGet"),
        (Self::NixHead, "NixHead"),
        (Self::NixPut, "NixPut"),
        (Self::NarGet, "NarGet"),
        (Self::NarHead, "NarHead"),
        (Self::NarPut, "NarPut"),
        (Self::Attic, "Attic"),
    ];
}

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It was there.
    Hit,
    /// It was not.
    Miss,
}

/// Hits and misses of one kind.
#[derive(Debug, Default)]
struct Lookups {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Lookups {
    fn add(&self, lookup: Lookup) {
        match lookup {
            Lookup::Hit => self.hits.fetch_add(1, Ordering::Relaxed),
            Lookup::Miss => self.misses.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// gRPC has the codes 0 to 16.
const CODES: usize = 17;

/// What is counted for one [`Method`].
#[derive(Debug, Default)]
struct MethodMetrics {
    by_code: [AtomicU64; CODES],
    latency: LatencyHistogram,
    in_flight: AtomicI64,
}

/// The counters of all edges. Share it in an [`Arc`].
#[derive(Debug, Default)]
pub struct EdgeMetrics {
    cas: Lookups,
    action_cache: Lookups,
    http: Lookups,
    nix: Lookups,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    methods: [MethodMetrics; Method::ALL.len()],
}

impl EdgeMetrics {
    /// Digests asked for by FindMissingBlobs, or read, over gRPC.
    pub fn cas_lookup(&self, found: u64, missing: u64) {
        self.cas.hits.fetch_add(found, Ordering::Relaxed);
        self.cas.misses.fetch_add(missing, Ordering::Relaxed);
    }

    /// One GetActionResult.
    pub fn action_cache_lookup(&self, lookup: Lookup) {
        self.action_cache.add(lookup);
    }

    /// One GET or HEAD under `/ac/` or `/cas/`.
    pub fn http_lookup(&self, lookup: Lookup) {
        self.http.add(lookup);
    }

    /// One GET or HEAD of a narinfo.
    pub fn nix_lookup(&self, lookup: Lookup) {
        self.nix.add(lookup);
    }

    /// Bytes of blobs received, as they were on the wire.
    pub fn bytes_in(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of blobs sent, as they were on the wire.
    pub fn bytes_out(&self, bytes: u64) {
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A call that ended. Use [`Self::call`] where the call may be cut off.
    pub fn observe(&self, method: Method, took: Duration, code: Code) {
        let Some(counters) = self.methods.get(method as usize) else { return };
        if let Some(count) = counters.by_code.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        counters.latency.observe(took);
    }

    /// Begins a call: it is in flight until [`Call::finish`], or until it is dropped, which counts as cancelled.
    pub fn call(self: &Arc<Self>, method: Method) -> Call {
        self.in_flight(method, 1);
        Call { metrics: Arc::clone(self), method, began: Instant::now(), code: Code::Cancelled }
    }

    fn in_flight(&self, method: Method, change: i64) {
        if let Some(counters) = self.methods.get(method as usize) {
            counters.in_flight.fetch_add(change, Ordering::Relaxed);
        }
    }
}

/// A call in flight. Streams carry it along, so that a client that vanishes is counted as cancelled.
#[derive(Debug)]
#[must_use = "dropping it at once counts a cancelled call"]
pub struct Call {
    metrics: Arc<EdgeMetrics>,
    method: Method,
    began: Instant,
    code: Code,
}

impl Call {
    /// Ends a gRPC call.
    pub fn finish(mut self, code: Code) {
        self.code = code;
    }

    /// Ends an HTTP call; it is counted under the gRPC code of the same meaning.
    pub fn finish_http(self, status: StatusCode) {
        self.finish(code_of(status));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.metrics.in_flight(self.method, -1);
        self.metrics.observe(self.method, self.began.elapsed(), self.code);
    }
}

const fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        100..=399 => Code::Ok,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        416 => Code::OutOfRange,
        429 | 507 => Code::ResourceExhausted,
        409 => Code::AlreadyExists,
        400..=499 => Code::InvalidArgument,
        501 => Code::Unimplemented,
        503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_own_place() {
        for (place, (method, _)) in Method::ALL.iter().enumerate() {
            assert_eq!(*method as usize, place, "{method:?}");
        }
    }

    #[test]
    fn a_dropped_call_counts_as_cancelled() {
        let metrics = Arc::new(EdgeMetrics::default());
        metrics.call(Method::Write).finish(Code::Ok);
        let cut = metrics.call(Method::Write);
        let write = &metrics.methods[Method::Write as usize];
        assert_eq!(write.in_flight.load(Ordering::Relaxed), 1);
        drop(cut);
        assert_eq!(write.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(write.by_code[Code::Ok as usize].load(Ordering::Relaxed), 1);
        assert_eq!(write.by_code[Code::Cancelled as usize].load(Ordering::Relaxed), 1);
    }
}

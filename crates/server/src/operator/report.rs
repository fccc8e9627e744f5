//! What `/api/v1/` says, as JSON. The `gf` commands read these too, so a field is only ever added.

mod action_results;
mod execution;
mod nix;
mod tenants;

use serde::{Deserialize, Serialize};

pub use action_results::{
    ActionName, ActionResultRemoval, ActionResultRemoved, ActionResultReport, OutputReport, ProvenanceReport,
    ResultReport, TombstoneReport,
};
pub use execution::{
    ActionReport, AheadReport, EndReport, ExecutionReport, ExecutionSummary, ExplanationReport, MatchingReport,
    OperationReport, OwnWorker, PropertyReport, QueueReport, RunReport, ScarceReport, ShareReport, SituationReport,
    WorkerReport,
};

pub use tenants::{QuotaReport, TenantReport};

pub use nix::{
    NixCacheChange, NixCacheReport, NixCollectReport, NixCollectRequest, NixContentsReport, NixPathReport,
    NixPinReport, NixPinRequest, NixRemovalReport, NixUpstreamReport, NixUpstreamSetting, NixVerifyReport,
    NixVerifyRequest,
};

/// `GET /api/v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the server.
    pub version: String,
    /// How long it has been serving.
    pub uptime_seconds: u64,
    /// Why the store cannot be used now; absent when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// Why writes are refused now, while reads go on; absent when there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// The tenants served, by name.
    pub tenants: Vec<String>,
    /// What each of them uses of what it may; absent from servers that did not tell of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenant_use: Vec<TenantReport>,
    /// The store.
    pub store: StoreStatus,
    /// Remote execution; absent from servers that had none to tell of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<ExecutionSummary>,
}

/// `GET /api/v1/store/stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The most that it may hold.
    pub capacity_bytes: u64,
    /// What it holds, on disk.
    pub used_bytes: u64,
    /// Set aside for uploads under way.
    pub reserved_bytes: u64,
    /// Under lease, as of a minute ago at most: not to be evicted.
    pub leased_bytes: u64,
    /// How long what was reported present stays.
    pub lease_seconds: u64,
    /// How long after it was acknowledged a blob can still be lost to a power cut.
    pub sync_window_ms: u64,
    /// Free on its file system.
    pub free_disk_bytes: u64,
    /// Blobs, entries and grants in the parts of the index read so far.
    pub keys: u64,
    /// Bytes saved since the start by sharing parts of large blobs.
    pub deduplicated_bytes: u64,
    /// Blobs and entries evicted since the start.
    pub evicted_blobs: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Since the last use of the most recently used of all evicted ones; absent while none was evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub youngest_evicted_age_seconds: Option<u64>,
    /// Blobs found damaged and set aside since the start.
    pub quarantined_blobs: u64,
    /// What was read back to find damage; absent from servers that did not tell of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubStatus>,
}

/// What was read back to find damage, in the life of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Times that everything was read.
    pub passes: u64,
    /// Since the last of them ended; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_pass_age_seconds: Option<u64>,
    /// Blobs whose bytes were hashed to their digest.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries and grants whose bytes matched their check.
    pub entries: u64,
    /// Blobs and entries that were found damaged and taken out.
    pub damaged: u64,
    /// Times that the disk failed to read a blob or an entry.
    pub unreadable: u64,
}

/// The body of `POST /api/v1/store/verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Whether to rebuild what the index lost, and to remove files that belong to nothing.
    #[serde(default)]
    pub repair: bool,
}

/// What a verification proved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyResult {
    /// Whether nothing was wrong.
    pub clean: bool,
    /// Blobs whose bytes were read and have their digest.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Action results and other entries whose bytes matched their check.
    pub entries: u64,
    /// How many blobs and entries were damaged; they are reported absent from now on.
    pub lost_count: u64,
    /// The first of them, by name.
    pub lost: Vec<String>,
    /// Whether the index had everything that the records have.
    pub index_was_whole: bool,
    /// What a repair did; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// What a repair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// Keys that the index had lost and has again.
    pub restored: u64,
    /// Keys that it had and whose bytes are gone.
    pub dropped: u64,
    /// Files that belonged to nothing and were removed.
    pub orphans_removed: u64,
}

/// The body of `POST /api/v1/store/gc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// How much to free, by evicting what was used least recently where garbage is not enough. 0: only garbage.
    #[serde(default)]
    pub free_bytes: u64,
    /// Say what would go, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a collection did, or would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcResult {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Blobs and entries evicted.
    pub evicted_blobs: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Bytes that the store uses less than before.
    pub freed_bytes: u64,
    /// Bytes under lease, which nothing evicts.
    pub leased_bytes: u64,
    /// Segments removed or rewritten.
    pub compacted_segments: u64,
}

/// What every failed call answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, and the next step.
    pub error: String,
}

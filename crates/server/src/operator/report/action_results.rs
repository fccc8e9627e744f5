//! `/api/v1/action-results/…`.

use serde::{Deserialize, Serialize};

/// Which action's result, in the query of `GET /api/v1/action-results` and in the body of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionName {
    /// The REAPI instance.
    #[serde(default)]
    pub instance: String,
    /// The digest of the action: `HASH`, or `HASH/SIZE`.
    pub action: String,
    /// `SHA256` or `BLAKE3`; the first unless told.
    #[serde(default)]
    pub digest_function: String,
}

/// `GET /api/v1/action-results`: what is known of one action's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResultReport {
    /// The action, as it was asked for.
    #[serde(flatten)]
    pub name: ActionName,
    /// `shown`, `absent`, `incomplete`, `other-size`, `opaque` or `removed`.
    pub standing: String,
    /// The same in one sentence.
    pub sentence: String,
    /// What to do now.
    pub next_step: String,
    /// Who wrote it; absent when there is nothing, or when that was not kept yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<ProvenanceReport>,
    /// Who removed it; absent unless somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<TombstoneReport>,
    /// What it says; absent when there is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultReport>,
    /// The blobs that must be there for it to be shown; absent when that cannot be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobs: Option<u64>,
    /// The first of those that are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// How many are not there.
    #[serde(default)]
    pub missing_count: u64,
}

/// Who wrote a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvenanceReport {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// By whom, or for whom it was run.
    pub principal: String,
    /// The worker that ran it; absent when a client brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// What that worker called its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// Who removed a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TombstoneReport {
    /// When, in seconds since 1970.
    pub at_s: u64,
    /// Until when none is taken, in seconds since 1970.
    pub until_s: u64,
    /// By whom.
    pub principal: String,
    /// Why.
    pub reason: String,
}

/// What a result says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultReport {
    /// How the command ended.
    pub exit_code: i32,
    /// The paths of its first output files, each with its digest.
    pub files: Vec<OutputReport>,
    /// Of its first output directories, each with the digest of its tree.
    pub directories: Vec<OutputReport>,
    /// How many files, directories and symbolic links there are.
    pub outputs: u64,
}

/// One output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputReport {
    /// Where.
    pub path: String,
    /// `HASH/SIZE`; empty when it has none.
    pub digest: String,
}

/// The body of `POST /api/v1/action-results/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResultRemoval {
    /// Which.
    #[serde(flatten)]
    pub name: ActionName,
    /// Why, for whoever finds it missing.
    pub reason: String,
    /// How long none is taken.
    pub quarantine_seconds: u64,
    /// Say what would go, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a removal did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResultRemoved {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// What was known before.
    pub before: ActionResultReport,
    /// What keeps it away from now on; absent in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<TombstoneReport>,
}

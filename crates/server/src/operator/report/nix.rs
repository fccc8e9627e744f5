//! What `/api/v1/nix/` says and takes, as JSON.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/nix/caches/{cache}`, and each of `GET /api/v1/nix/caches`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixCacheReport {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Whether everybody may read it.
    pub is_public: bool,
    /// Lower is asked first.
    pub priority: u32,
    /// What clients trust it by.
    pub public_key: String,
    /// Keys of caches that every client is taken to have too.
    pub upstream_key_names: Vec<String>,
    /// How long paths stay that nobody uses; absent when they stay for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<u64>,
    /// How long paths stay after a client was told of them, whatever else is set.
    pub grace_seconds: u64,
    /// The most bytes of archives; absent when there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Caches whose paths this one serves as its own, in the order in which they are asked.
    #[serde(default)]
    pub upstreams: Vec<NixUpstreamSetting>,
    /// Whether actions may name its paths as their tools.
    #[serde(default)]
    pub gives_toolchains: bool,
    /// What is in it; absent from lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<NixContentsReport>,
}

/// What is in a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixContentsReport {
    /// Paths that clients see.
    pub paths: u64,
    /// Bytes of their archives, uncompressed.
    pub nar_bytes: u64,
    /// Paths that wait for others that they refer to.
    pub waiting_paths: u64,
    /// Pins.
    pub pins: u64,
    /// What came from other caches.
    pub upstreams: Vec<NixUpstreamReport>,
}

/// What a cache has from another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixUpstreamReport {
    /// Where that is.
    pub url: String,
    /// Paths that were found there.
    pub paths: u64,
    /// Bytes of their archives, uncompressed.
    pub nar_bytes: u64,
}

/// `GET /api/v1/nix/caches/{cache}/pins`, each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixPinReport {
    /// Its name.
    pub name: String,
    /// The path, without the folder of the store.
    pub path: String,
    /// When it was set, in seconds since 1970.
    pub created: u64,
    /// When it ends by itself, in seconds since 1970; absent when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// `PUT /api/v1/nix/caches/{cache}/pins/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NixPinRequest {
    /// The path, without the folder of the store.
    pub path: String,
    /// When it shall end by itself, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// Another cache, whose paths a cache serves as its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NixUpstreamSetting {
    /// Where it is: `https://cache.example`.
    pub url: String,
    /// A path of it is taken when one of these keys signed it.
    pub keys: Vec<String>,
}

/// `PATCH /api/v1/nix/caches/{cache}`: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NixCacheChange {
    /// Whether everybody may read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// Lower is asked first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// All upstreams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<Vec<NixUpstreamSetting>>,
    /// Whether actions may name its paths as their tools. Turning this on takes the right to configure every cache of the
    /// tenant that gives them already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gives_toolchains: Option<bool>,
    /// How long paths stay that nobody uses; 0 for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<u64>,
    /// The most bytes of archives; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// How long paths stay after a client was told of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
}

/// `GET /api/v1/nix/caches/{cache}/paths/{hash}`: why a path is here, or is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixPathReport {
    /// Whether a client gets it that trusts one of its keys.
    pub is_substitutable: bool,
    /// The chain from the cache to the bytes, a sentence for each link; it ends with the one that is broken.
    pub links: Vec<String>,
    /// Why it stays, a sentence for each reason.
    pub kept_by: Vec<String>,
}

/// `POST /api/v1/nix/caches/{cache}/verify`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NixVerifyRequest {}

/// What was proved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixVerifyReport {
    /// Paths that were checked.
    pub paths: u64,
    /// Those whose archives are still to be fetched from upstreams.
    pub not_fetched: u64,
    /// Bytes that were read and hashed.
    pub nar_bytes: u64,
    /// How many things are not as they should be.
    pub problem_count: u64,
    /// The first of them, each after its path.
    pub problems: Vec<String>,
}

/// `POST /api/v1/nix/caches/{cache}/collect`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NixCollectRequest {
    /// Say what would go, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixCollectReport {
    /// The paths.
    pub removals: Vec<NixRemovalReport>,
    /// How many of them stay after all, since they were used meanwhile.
    pub spared: usize,
}

/// A path that goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixRemovalReport {
    /// The path, without the folder of the store.
    pub path: String,
    /// Why.
    pub reason: String,
    /// Bytes of its archive, uncompressed.
    pub nar_bytes: u64,
}

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

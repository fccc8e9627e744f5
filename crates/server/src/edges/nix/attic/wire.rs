//! The JSON of Attic's interface. Fields that are unknown are passed over, since clients may be newer.

use serde::{Deserialize, Serialize};

/// `cache-config`: what is asked for, what is to be changed, and what is answered. What is `None` is not said.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CacheConfig {
    /// The signing key that is asked for. Never answered.
    #[serde(skip_serializing)]
    pub(super) keypair: Option<Keypair>,
    /// Where `nix` finds the cache. Only answered, as the next two.
    #[serde(skip_deserializing)]
    pub(super) substituter_endpoint: Option<String>,
    /// Where the client shall call from now on.
    #[serde(skip_deserializing)]
    pub(super) api_endpoint: Option<String>,
    /// What clients trust the cache by.
    #[serde(skip_deserializing)]
    pub(super) public_key: Option<String>,
    pub(super) is_public: Option<bool>,
    pub(super) store_dir: Option<String>,
    pub(super) priority: Option<i32>,
    pub(super) upstream_cache_key_names: Option<Vec<String>>,
    pub(super) retention_period: Option<RetentionPeriod>,
}

/// Where a signing key comes from.
#[derive(Debug, Deserialize)]
pub(super) enum Keypair {
    /// The server makes it.
    Generate,
    /// The client has it: `<name>:<base64 of 64 bytes>`.
    Keypair(String),
}

/// How long what nobody uses stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum RetentionPeriod {
    /// As the server has it.
    Global,
    /// So many seconds; 0 is for ever.
    Period(u32),
}

/// `get-missing-paths`, asked.
#[derive(Debug, Deserialize)]
pub(super) struct MissingPathsRequest {
    pub(super) cache: String,
    pub(super) store_path_hashes: Vec<String>,
}

/// `get-missing-paths`, answered.
#[derive(Debug, Serialize)]
pub(super) struct MissingPathsAnswer {
    pub(super) missing_paths: Vec<String>,
}

/// What `upload-path` says of the archive that follows.
#[derive(Debug, Deserialize)]
pub(super) struct UploadInfo {
    pub(super) cache: String,
    pub(super) store_path_hash: String,
    pub(super) store_path: String,
    pub(super) references: Vec<String>,
    #[serde(default)]
    pub(super) system: Option<String>,
    #[serde(default)]
    pub(super) deriver: Option<String>,
    #[serde(default)]
    pub(super) sigs: Vec<String>,
    #[serde(default)]
    pub(super) ca: Option<String>,
    pub(super) nar_hash: String,
    pub(super) nar_size: u64,
}

/// `upload-path`, answered.
#[derive(Debug, Serialize)]
pub(super) struct UploadAnswer {
    pub(super) kind: UploadKind,
    pub(super) file_size: Option<u64>,
    pub(super) frac_deduplicated: Option<f64>,
}

/// What became of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum UploadKind {
    /// It is new.
    Uploaded,
    /// It was here.
    Deduplicated,
}

/// Every refusal.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    pub(super) code: u16,
    pub(super) error: &'static str,
    pub(super) message: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_is_read() {
        // As `attic cache create` sends it.
        let text = r#"{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,
            "upstream_cache_key_names":["cache.nixos.org-1"]}"#;
        let config: CacheConfig = serde_json::from_str(text).unwrap();
        assert!(matches!(config.keypair, Some(Keypair::Generate)));
        assert_eq!((config.is_public, config.priority, config.retention_period), (Some(false), Some(41), None));
        // As `attic cache configure` does, and a newer client.
        for (text, expected) in [
            (r#"{"retention_period":"Global","novelty":1}"#, Some(RetentionPeriod::Global)),
            (r#"{"retention_period":{"Period":86400}}"#, Some(RetentionPeriod::Period(86400))),
            (r#"{"retention_period":null}"#, None),
        ] {
            assert_eq!(serde_json::from_str::<CacheConfig>(text).unwrap().retention_period, expected);
        }
        let config: CacheConfig = serde_json::from_str(r#"{"keypair":{"Keypair":"k:abc"}}"#).unwrap();
        assert!(matches!(config.keypair, Some(Keypair::Keypair(key)) if key == "k:abc"));
    }

    #[test]
    fn a_key_is_never_answered() {
        let config = CacheConfig { keypair: Some(Keypair::Keypair("k:secret".into())), ..CacheConfig::default() };
        assert!(!serde_json::to_string(&config).unwrap().contains("secret"));
    }
}

//! A cache of a server, over Attic's interface and Nix's own.

use bytes::Bytes;
use gf_nix_formats::{NarInfo, StoreDir, StorePath, StorePathHash};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::archive;
use super::local_store::LocalPath;
use crate::args::ServerArgs;
use crate::client::{Client, Patience, whole};
use crate::failure::{Failure, FailureKind};

const PREAMBLE_SIZE: HeaderName = HeaderName::from_static("x-attic-nar-info-preamble-size");
/// Paths asked about at once.
const AT_ONCE: usize = 50_000;

/// A cache of a server.
pub(super) struct RemoteCache {
    pub(super) client: Client,
    pub(super) name: String,
}

/// How a cache is set up.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CacheConfig {
    /// Where Nix finds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) substituter_endpoint: Option<String>,
    /// What it signs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) public_key: Option<String>,
    /// Whether everybody may read it.
    pub(super) is_public: bool,
    /// The folder of its paths.
    pub(super) store_dir: String,
    /// Lower is asked first.
    pub(super) priority: u32,
    /// Keys of caches that every client has too.
    pub(super) upstream_cache_key_names: Vec<String>,
}

#[derive(Serialize)]
struct MissingQuestion<'a> {
    cache: &'a str,
    store_path_hashes: Vec<String>,
}

#[derive(Deserialize)]
struct MissingAnswer {
    missing_paths: Vec<String>,
}

#[derive(Serialize)]
struct UploadInfo<'a> {
    cache: &'a str,
    store_path_hash: String,
    store_path: String,
    references: Vec<&'a str>,
    system: Option<&'a str>,
    deriver: Option<&'a str>,
    sigs: &'a [String],
    ca: Option<&'a str>,
    nar_hash: String,
    nar_size: u64,
}

#[derive(Deserialize)]
struct UploadAnswer {
    kind: String,
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The archive was sent.
    Uploaded,
    /// The server had it, under another path or in another cache.
    Deduplicated,
}

impl RemoteCache {
    pub(super) fn new(server: ServerArgs, name: &str) -> Result<Self, Failure> {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_good) {
            let message = format!("{name:?} is no name of a cache: use letters, digits, `-`, `_` and `+`");
            return Err(Failure::new(FailureKind::Usage, message));
        }
        Ok(Self { client: Client::new(server)?, name: name.to_owned() })
    }

    /// The path of something in the cache.
    pub(super) fn path(&self, below: &str) -> String {
        format!("/nix/{}/{below}", self.name)
    }

    /// How it is set up.
    pub(super) async fn config(&self) -> Result<CacheConfig, Failure> {
        let path = format!("/nix/_api/v1/cache-config/{}", self.name);
        self.client.ask(Method::GET, &path, Bytes::new(), Patience::Short).await
    }

    /// Which of these it lacks; in the same order.
    pub(super) async fn missing<'a>(&self, paths: &'a [LocalPath]) -> Result<Vec<&'a LocalPath>, Failure> {
        let mut missing = Vec::new();
        for some in paths.chunks(AT_ONCE) {
            let hashes = some.iter().map(|path| path.path.hash().to_string()).collect();
            let question = MissingQuestion { cache: &self.name, store_path_hashes: hashes };
            let question = serde_json::to_vec(&question).map_err(Failure::failed)?;
            let path = "/nix/_api/v1/get-missing-paths";
            let answer: MissingAnswer =
                self.client.ask(Method::POST, path, question.into(), Patience::Maintenance).await?;
            let names: std::collections::HashSet<String> = answer.missing_paths.into_iter().collect();
            missing.extend(some.iter().filter(|path| names.contains(&path.path.hash().to_string())));
        }
        Ok(missing)
    }

    /// Sends a path with its archive.
    pub(super) async fn upload(&self, path: &LocalPath) -> Result<Sent, Failure> {
        let info = UploadInfo {
            cache: &self.name,
            store_path_hash: path.path.hash().to_string(),
            store_path: StoreDir::default().join(&path.path),
            references: path.references.iter().map(StorePath::as_str).collect(),
            system: None,
            deriver: path.deriver.as_ref().map(StorePath::as_str),
            sigs: &path.signatures,
            ca: path.content_address.as_deref(),
            nar_hash: path.nar_hash.to_string(),
            nar_size: path.nar_size,
        };
        let preamble = serde_json::to_vec(&info).map_err(Failure::failed)?;
        let headers = [(PREAMBLE_SIZE, HeaderValue::from(preamble.len()))];
        let body = archive::body(preamble.into(), path.location());
        let (status, answer) = self
            .client
            .exchange(Method::PUT, "/nix/_api/v1/upload-path", &headers, body, Patience::Maintenance)
            .await
            .map_err(|failure| failure.about(&path.path))?;
        if !status.is_success() {
            return Err(self.client.refused(status, &answer).about(&path.path));
        }
        // Newer servers may answer more kinds; it is here all the same.
        let kind = serde_json::from_slice(&answer).map(|answer: UploadAnswer| answer.kind).unwrap_or_default();
        Ok(if kind == "Deduplicated" { Sent::Deduplicated } else { Sent::Uploaded })
    }

    /// The narinfo of a path; `None` when the cache does not have it.
    pub(super) async fn narinfo(&self, path: StorePathHash) -> Result<Option<(Bytes, NarInfo)>, Failure> {
        let path = self.path(&format!("{path}.narinfo"));
        let (status, body) = self.client.exchange(Method::GET, &path, &[], whole(""), Patience::Short).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let narinfo = NarInfo::parse(&StoreDir::default(), &body).map_err(Failure::failed)?;
                Ok(Some((body, narinfo)))
            }
            status => Err(self.client.refused(status, &body)),
        }
    }

    /// Puts something as Nix does.
    pub(super) async fn put(&self, below: &str, kind: &'static str, body: crate::client::Body) -> Result<(), Failure> {
        let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind))];
        let path = self.path(below);
        let (status, answer) = self.client.exchange(Method::PUT, &path, &headers, body, Patience::Maintenance).await?;
        if status.is_success() { Ok(()) } else { Err(self.client.refused(status, &answer).about(&below)) }
    }

    /// Whether something is there.
    pub(super) async fn has(&self, below: &str) -> Result<bool, Failure> {
        let path = self.path(below);
        let (status, body) = self.client.exchange(Method::HEAD, &path, &[], whole(""), Patience::Short).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(self.client.refused(status, &body)),
        }
    }
}

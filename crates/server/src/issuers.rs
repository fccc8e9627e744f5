//! Asks issuers of OpenID Connect for the keys that they publish: discovery, then the set of keys that it names.
//!
//! What always holds: a set of keys comes over TLS, from this machine or out of a file of the operator, and the issuer
//! says itself that it is the one that was asked; every answer is bounded. Deliberately absent: how long keys are
//! believed and how often they are asked for, which tenancy knows.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use gf_fetch::{Client, Reach};
use gf_tenancy::MAX_KEY_SET_BYTES;
use gf_tenancy::trust::KeySource;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use thiserror::Error;

use crate::config::IssuerSettings;

/// The longest document of discovery; those of large issuers have two thousand bytes.
const MAX_DISCOVERY_BYTES: usize = 64 << 10;
/// The longest token to present to an issuer.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

/// A file of an issuer's settings is not what it should be.
#[derive(Debug, Error)]
#[error("the issuer {issuer}: {path} holds no certificate in PEM form: {reason}", path = path.display())]
pub struct IssuerFileError {
    issuer: String,
    path: PathBuf,
    reason: String,
}

/// All issuers that rules are about.
pub(crate) struct Issuers {
    client: Client,
    /// Those of which more is known.
    known: HashMap<String, Known>,
}

struct Known {
    /// When the machine's authorities are not those to believe.
    client: Option<Client>,
    token_file: Option<PathBuf>,
    keys_file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Issuers {
    /// Reads the files of authorities that are named.
    ///
    /// # Errors
    /// [`IssuerFileError`].
    pub(crate) fn new(settings: Vec<IssuerSettings>) -> Result<Self, IssuerFileError> {
        let known = settings.into_iter().map(|IssuerSettings { url, ca_file, token_file, keys_file }| {
            let wrong = |(path, reason)| IssuerFileError { issuer: url.clone(), path, reason };
            let client = ca_file.map(|path| authorities(&path).map_err(|reason| wrong((path, reason)))).transpose()?;
            let client = client.map(|roots| Client::with_authorities(Reach::Authentic, roots));
            Ok((url, Known { client, token_file, keys_file }))
        });
        Ok(Self { client: Client::new(Reach::Authentic), known: known.collect::<Result<_, _>>()? })
    }
}

#[async_trait]
impl KeySource for Issuers {
    async fn fetch(&self, issuer: &str) -> Result<Vec<u8>, String> {
        let known = self.known.get(issuer);
        if let Some(path) = known.and_then(|known| known.keys_file.as_deref()) {
            return read_file(path, MAX_KEY_SET_BYTES as u64).await;
        }
        let client = known.and_then(|known| known.client.as_ref()).unwrap_or(&self.client);
        let token = match known.and_then(|known| known.token_file.as_deref()) {
            Some(path) => Some(read_file(path, MAX_TOKEN_BYTES).await?),
            None => None,
        };
        let token = token.as_deref().map(String::from_utf8_lossy);
        let token = token.as_deref().map(str::trim);
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery = ask(client, &url, token, MAX_DISCOVERY_BYTES).await?;
        let Discovery { issuer: named, jwks_uri } = serde_json::from_slice(&discovery)
            .map_err(|error| format!("{url} is no document of discovery: {error}"))?;
        if named != issuer {
            return Err(format!("{url} is about the issuer {named:?}: name it in the rule as it names itself"));
        }
        ask(client, &jwks_uri, token, MAX_KEY_SET_BYTES).await
    }
}

async fn ask(client: &Client, url: &str, token: Option<&str>, max_bytes: usize) -> Result<Vec<u8>, String> {
    let answer = match token {
        Some(token) => client.get_small_as(url, token, max_bytes).await,
        None => client.get_small(url, max_bytes).await,
    };
    let answer = answer.map_err(|reason| format!("{url}: {reason}"))?;
    answer.map(Vec::from).ok_or_else(|| format!("{url}: there is nothing, or not for everybody"))
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("there is none".to_owned()) } else { Ok(roots) }
}

/// The files are small, but may be on a file system that hangs.
async fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let failed = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
        let mut bytes = Vec::new();
        let taken = File::open(&path).map_err(failed)?.take(max_bytes + 1).read_to_end(&mut bytes).map_err(failed)?;
        if taken as u64 > max_bytes {
            return Err(format!("{} has more than {max_bytes} bytes", path.display()));
        }
        Ok(bytes)
    });
    read.await.map_err(|error| error.to_string())?
}

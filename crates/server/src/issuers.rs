//! Asks issuers of OpenID Connect for the keys that they publish: discovery, then the set of keys that it names.
//!
//! What always holds: a set of keys comes over TLS or out of a file of the operator, and from this machine without TLS
//! only when the issuer is there; the issuer says itself that it is the one that was asked; the token that it is asked
//! with goes to its own server and no other; every answer is bounded. Deliberately absent: how long keys are believed and
//! how often they are asked for, which tenancy knows.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use axum::http::Uri;
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
    /// Asks those that are elsewhere.
    client: Client,
    /// Asks those on this machine.
    local: Client,
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
            let client = client.map(|roots| Client::with_authorities(reach(&url), roots));
            Ok((url, Known { client, token_file, keys_file }))
        });
        let (client, local) = (Client::new(Reach::Tls), Client::new(Reach::Authentic));
        Ok(Self { client, local, known: known.collect::<Result<_, _>>()? })
    }

    fn client(&self, issuer: &str) -> &Client {
        let own = self.known.get(issuer).and_then(|known| known.client.as_ref());
        own.unwrap_or(if reach(issuer) == Reach::Tls { &self.client } else { &self.local })
    }
}

#[async_trait]
impl KeySource for Issuers {
    async fn fetch(&self, issuer: &str) -> Result<Vec<u8>, String> {
        let known = self.known.get(issuer);
        if let Some(path) = known.and_then(|known| known.keys_file.as_deref()) {
            return read_file(path, MAX_KEY_SET_BYTES as u64).await;
        }
        let client = self.client(issuer);
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
        match token {
            Some(token) => ask_with_token(client, issuer, &jwks_uri, token).await,
            None => ask(client, &jwks_uri, None, MAX_KEY_SET_BYTES).await,
        }
    }
}

/// Where an issuer may lead: one that is elsewhere has no business on this machine.
fn reach(issuer: &str) -> Reach {
    if Reach::Tls.check(issuer).is_ok() { Reach::Tls } else { Reach::Authentic }
}

/// The keys of an issuer that wants a token. A cluster names itself by another address than the one it is known by here:
/// the token stays with the latter, which has the same keys under the same path.
async fn ask_with_token(client: &Client, issuer: &str, jwks_uri: &str, token: &str) -> Result<Vec<u8>, String> {
    let own = on_server_of(issuer, jwks_uri).ok_or_else(|| format!("{jwks_uri} is no URL"))?;
    let answer = ask(client, &own.to_string(), Some(token), MAX_KEY_SET_BYTES).await;
    if answer.is_ok() || jwks_uri.parse().is_ok_and(|named: Uri| named == own) {
        return answer;
    }
    ask(client, jwks_uri, None, MAX_KEY_SET_BYTES).await
}

/// The same path on the issuer's server.
fn on_server_of(issuer: &str, url: &str) -> Option<Uri> {
    let (issuer, url): (Uri, Uri) = (issuer.parse().ok()?, url.parse().ok()?);
    let path = url.path_and_query()?.clone();
    Uri::builder()
        .scheme(issuer.scheme()?.clone())
        .authority(issuer.authority()?.clone())
        .path_and_query(path)
        .build()
        .ok()
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use tokio::net::TcpListener;

    use super::*;

    const KEYS: &str = r#"{"keys":[]}"#;

    /// Answers `answers` by path, and notes with which token what was asked.
    #[derive(Clone, Default)]
    struct Server {
        answers: Arc<Mutex<HashMap<String, String>>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        async fn start(&self) -> String {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let router = Router::new().fallback(answer).with_state(self.clone());
            tokio::spawn(async move { axum::serve(listener, router).await });
            url
        }

        fn answers(&self, path: &str, text: String) {
            self.answers.lock().unwrap().insert(path.to_owned(), text);
        }

        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    async fn answer(State(server): State<Server>, uri: Uri, headers: HeaderMap) -> Result<String, StatusCode> {
        let token = headers.get("authorization").map_or("", |value| value.to_str().unwrap());
        server.asked.lock().unwrap().push(format!("{} {token}", uri.path()));
        server.answers.lock().unwrap().get(uri.path()).cloned().ok_or(StatusCode::NOT_FOUND)
    }

    #[tokio::test]
    async fn a_token_goes_to_its_issuer_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "t").unwrap();
        let (issuer, other) = (Server::default(), Server::default());
        let (url, elsewhere) = (issuer.start().await, other.start().await);
        let discovery = format!(r#"{{"issuer":"{url}","jwks_uri":"{elsewhere}/keys"}}"#);
        issuer.answers("/.well-known/openid-configuration", discovery);
        other.answers("/keys", KEYS.to_owned());
        let settings =
            IssuerSettings { url: url.clone(), ca_file: None, token_file: Some(token_file), keys_file: None };
        let issuers = Issuers::new(vec![settings]).unwrap();

        assert_eq!(issuers.fetch(&url).await.unwrap(), KEYS.as_bytes());
        assert_eq!(issuer.asked(), ["/.well-known/openid-configuration Bearer t", "/keys Bearer t"]);
        assert_eq!(other.asked(), ["/keys "], "without the token");
        // A cluster that names itself otherwise has its keys under its known name too.
        issuer.answers("/keys", KEYS.to_owned());
        assert_eq!(issuers.fetch(&url).await.unwrap(), KEYS.as_bytes());
        assert_eq!(other.asked(), [""; 0]);
    }

    #[test]
    fn who_is_elsewhere_does_not_lead_here() {
        let issuers = Issuers::new(Vec::new()).unwrap();
        assert!(std::ptr::eq(issuers.client("https://forge.example"), &issuers.client));
        assert!(std::ptr::eq(issuers.client("https://127.0.0.1"), &issuers.client));
        assert!(std::ptr::eq(issuers.client("http://127.0.0.1:1"), &issuers.local));
        assert!(Reach::check(reach("https://forge.example"), "http://127.0.0.1/keys").is_err());
    }
}

//! TLS for the one port: certificate and key from PEM files, HTTP/2 and HTTP/1.1 by ALPN, and certificates of clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;

/// Where certificate chain and key are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The chain, the server's certificate first.
    pub cert: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
    /// Which certificates of clients are taken; `None` asks for none.
    pub clients: Option<ClientCertificates>,
}

/// Which certificates of clients are taken, all as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The authorities that sign them.
    pub authorities: PathBuf,
    /// Lists of those that were taken back.
    pub revoked: Option<PathBuf>,
    /// Whether a client must have one.
    pub presence: Presence,
}

/// Whether a client must have a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Without one it may present another credential.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// Why certificate and key cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{path} holds no {expected} in PEM form: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What the parser said.
        source: pem::Error,
    },
    /// The key does not belong to the certificate, or their kind is unknown.
    #[error("certificate and key do not work together: {0}")]
    Pair(#[from] rustls::Error),
    /// The authorities of clients cannot be used.
    #[error("certificates of clients cannot be checked by {path}: {source}", path = path.display())]
    Clients {
        /// The file of authorities.
        path: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
}

impl TlsConfig {
    /// Reads all files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let chain = read_chain(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|source| TlsError::File {
            path: self.key.clone(),
            expected: "private key",
            source,
        })?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match &self.clients {
            Some(clients) => builder.with_client_cert_verifier(clients.verifier()?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key)?;
        if self.clients.is_some() {
            // A session that is resumed brings its certificate along, and nobody looks whether that is still good.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ClientCertificates {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in read_chain(&self.authorities)? {
            roots.add(certificate)?;
        }
        let provider = Arc::new(ring::default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if let Some(path) = &self.revoked {
            // Of authorities without a list nothing was taken back.
            builder = builder.with_crls(read_revoked(path)?).allow_unknown_revocation_status();
        }
        if self.presence == Presence::Optional {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map_err(|source| TlsError::Clients { path: self.authorities.clone(), source })
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::File { path: path.to_owned(), expected: "certificate", source };
    let chain = CertificateDer::pem_file_iter(path).map_err(error)?.collect::<Result<Vec<_>, _>>().map_err(error)?;
    if chain.is_empty() { Err(error(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn read_revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let error = |source| TlsError::File { path: path.to_owned(), expected: "list of revoked certificates", source };
    let lists = CertificateRevocationListDer::pem_file_iter(path).map_err(error)?;
    let lists = lists.collect::<Result<Vec<_>, _>>().map_err(error)?;
    if lists.is_empty() { Err(error(pem::Error::NoItemsFound)) } else { Ok(lists) }
}

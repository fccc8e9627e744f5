//! The connection to the server.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::config::ServerConnection;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is gone without a word is noticed after two of these. One that stands still on this machine is not gone:
/// an inherited connection ends with it, and is not asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// What the server may send without waiting for us, for one stream and for all.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Nobody resolves it: the connection is there already.
const INHERITED_URL: &str = "http://worker.invalid";

/// Why there can be no connection, ever.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The URL is none.
    #[error("the server {0:?} is no URL: write http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    /// The certificates cannot be used.
    #[error("the certificates cannot be used: {0}")]
    Certificates(#[source] tonic::transport::Error),
    /// The descriptor is no connected socket.
    #[error("the inherited connection is no socket: {0}")]
    Inherited(#[source] io::Error),
}

/// Connects, once or again and again.
pub(crate) enum Connector {
    Url(Box<Endpoint>),
    Inherited(Option<UnixStream>),
}

impl Connector {
    pub(crate) fn new(server: ServerConnection) -> Result<Self, ConnectionError> {
        match server {
            ServerConnection::Url { url, ca_pem } => {
                let endpoint = Endpoint::from_shared(url.clone()).map_err(|_| ConnectionError::Url(url.clone()))?;
                if !matches!(endpoint.uri().scheme_str(), Some("http" | "https")) || endpoint.uri().host().is_none() {
                    return Err(ConnectionError::Url(url));
                }
                let endpoint = settled(endpoint)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .keep_alive_while_idle(true);
                if endpoint.uri().scheme_str() == Some("http") {
                    return Ok(Self::Url(Box::new(endpoint)));
                }
                let tls = match ca_pem {
                    Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                    None => ClientTlsConfig::new().with_native_roots(),
                };
                Ok(Self::Url(Box::new(endpoint.tls_config(tls).map_err(ConnectionError::Certificates)?)))
            }
            ServerConnection::Inherited(descriptor) => Ok(Self::Inherited(Some(inherited(descriptor)?))),
        }
    }

    /// Whether it is worth to try again after the connection ended.
    pub(crate) const fn can_reconnect(&self) -> bool {
        matches!(self, Self::Url(_))
    }

    pub(crate) async fn connect(&mut self) -> Result<Channel, tonic::transport::Error> {
        match self {
            Self::Url(endpoint) => endpoint.connect().await,
            Self::Inherited(stream) => {
                let stream = Arc::new(Mutex::new(stream.take()));
                let take = move |_: Uri| {
                    let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                    async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
                };
                settled(Endpoint::from_static(INHERITED_URL)).connect_with_connector(tower::service_fn(take)).await
            }
        }
    }
}

fn settled(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

fn inherited(descriptor: OwnedFd) -> Result<UnixStream, ConnectionError> {
    let stream = StdUnixStream::from(descriptor);
    // It asks what only a connected socket answers.
    stream.peer_addr().map_err(ConnectionError::Inherited)?;
    stream.set_nonblocking(true).map_err(ConnectionError::Inherited)?;
    UnixStream::from_std(stream).map_err(ConnectionError::Inherited)
}

//! The one wiring function: [`App::start`] builds the store, the services and the edges from a [`Config`].
//!
//! Deliberately absent: signals, the command line and the exit code, which are the program's.
//!
//! What always holds: a started [`App`] answers on every edge. Tasks live in groups that stop in order:
//! connections first, then the store that they use.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use gf_blobstore::BlobStore;
use gf_tenancy::{Access, AccessConfigError};
use gf_testkit::MemoryBlobStore;
use thiserror::Error;

use crate::config::Config;
use crate::edges::{self, EdgeState, Limits};
use crate::health::{self, Readiness};
use crate::listen::{Connections, Drained, Listener, TlsError};
use crate::metrics::{self, EdgeMetrics};

/// Why the server did not start. Each says what to do about it.
#[derive(Debug, Error)]
pub enum StartError {
    /// The tenants or instances clash.
    #[error(transparent)]
    Access(#[from] AccessConfigError),
    /// Certificate or key cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] TlsError),
    /// Somebody listens there already.
    #[error("{0} is in use: stop what listens there (`ss -ltnp` shows it), or choose another with --listen ADDR:PORT")]
    AddressInUse(SocketAddr),
    /// The address cannot be taken.
    #[error("cannot listen on {address}: {source}; choose another address with --listen ADDR:PORT")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The folder cannot be made.
    #[error("the data folder {path} cannot be made: {source}; choose another with --data-dir DIR", path = path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A running server.
pub struct App {
    address: SocketAddr,
    scheme: &'static str,
    connections: Connections,
}

impl App {
    /// Builds everything and begins to answer.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let tls = config.tls.as_ref().map(|tls| tls.load()).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let access = Arc::new(Access::new(config.access)?);
        let listener = Listener::bind(config.listen, tls).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => StartError::AddressInUse(config.listen),
            _ => StartError::Bind { address: config.listen, source },
        })?;
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;
        let store: Arc<dyn BlobStore> = Arc::new(MemoryBlobStore::default());
        let metrics = Arc::new(EdgeMetrics::default());

        let limits = Limits { max_blob_size_bytes: config.store.max_blob_size_bytes, ..Limits::default() };
        let state = EdgeState { access, store: Arc::clone(&store), limits, metrics: Arc::clone(&metrics) };
        let router = edges::router(state)
            .merge(health::router(Readiness::new(store, &config.data_dir)))
            .merge(metrics_router(metrics));

        let address = listener.address();
        let connections = listener.serve(router);
        tracing::info!(%address, data_dir = %config.data_dir.display(), "serving");
        Ok(Self { address, scheme, connections })
    }

    /// The address that it listens on, with the real port where 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients find it: `http://ADDR:PORT`, or `https://` with TLS.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Stops accepting, lets requests under way finish until the deadline, then closes the store.
    pub async fn stop(self, deadline: Duration) -> Drained {
        let drained = self.connections.drain(deadline).await;
        tracing::info!(?drained, "stopped");
        drained
    }
}

fn metrics_router(metrics: Arc<EdgeMetrics>) -> Router {
    let show = move || async move {
        match metrics::encode(&metrics, None) {
            Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, metrics::CONTENT_TYPE)], text),
            Err(error) => {
                tracing::error!(%error, "metrics could not be written");
                (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], String::new())
            }
        }
    };
    Router::new().route("/metrics", get(show))
}

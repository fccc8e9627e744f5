//! The one place where everything is wired: [`App::start`] builds the store, the services and the edges from a [`Config`].
//!
//! Deliberately absent: signals, the command line and the exit code, which are the program's.
//!
//! What always holds: a started [`App`] answers on every edge. Tasks live in groups that stop in order:
//! connections and the worker first, then work in the background, then the store that they use.

mod parts;
mod routes;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_blobstore::{DiskBlobStore, OpenError, StoreError};
use gf_database::DatabaseError;
use gf_tenancy::{Access, AccessConfigError};
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::access_services::AccessStartError;
use crate::builtin_worker::{Blueprint, BuiltinWorker, Condition};
use crate::config::Config;
use crate::edges;
use crate::issuers::IssuerFileError;
use crate::listen::{Connections, Drained, Listener, TlsError};
use crate::nix_caches::NixStartError;
use crate::operator;
use crate::operator::report::OwnWorker;
use parts::Parts;
pub(crate) use parts::{blob_store_config, store_folder};

/// What is said loudly of a server without access control.
const OPEN: &str = "OPEN: whoever reaches this address may read, write and administer everything, since no [access] is \
                    configured; `gf init` makes a configuration that asks for a token";

/// How long closing the database may take, which waits for those that still use it.
const DATABASE_DEADLINE: Duration = Duration::from_secs(2);

/// Why the server did not start. Each says what to do about it.
#[derive(Debug, Error)]
pub enum StartError {
    /// The tenants or instances clash.
    #[error(transparent)]
    Access(#[from] AccessConfigError),
    /// Nobody could be served.
    #[error("no tenant has an instance: add a [[tenant]] to the configuration")]
    NoTenant,
    /// Certificate or key cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] TlsError),
    /// What is said of an issuer cannot be used.
    #[error(transparent)]
    Issuer(#[from] IssuerFileError),
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
    /// The folder cannot be made or asked about.
    #[error("the data folder {path} cannot be used: {source}; choose another with --data-dir DIR", path = path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The facts cannot be opened.
    #[error(transparent)]
    Facts(#[from] AccessStartError),
    /// The facts cannot be read.
    #[error("the database cannot be read: {0}")]
    Read(#[from] DatabaseError),
    /// The Nix caches cannot be opened.
    #[error(transparent)]
    NixCaches(#[from] NixStartError),
}

/// Why a server did not stop well.
#[derive(Debug, Error)]
pub enum StopError {
    /// The store could not write its last checkpoint.
    #[error("the store was not closed: {0}; nothing acknowledged is lost, and the next start recovers")]
    Store(#[from] StoreError),
    /// The threads that close it are gone.
    #[error("the store was not closed: {0}; nothing acknowledged is lost, and the next start recovers")]
    System(#[from] io::Error),
}

/// A running server.
pub struct App {
    address: SocketAddr,
    scheme: &'static str,
    stopping: CancellationToken,
    connections: Connections,
    worker: Option<BuiltinWorker>,
    parts: Parts,
}

impl App {
    /// Builds everything and begins to answer.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let access = access_of(&config)?;
        let exchanging = routes::Exchanging::new(&config.trust)?;
        let listener = listen(&config)?;
        let parts = Parts::open(&config, access).await?;
        let (stopping, condition) = (CancellationToken::new(), Condition::default());
        let front = routes::Front {
            exchanging,
            scheme: if config.tls.is_some() { "https" } else { "http" },
            stopping: stopping.clone(),
            own_worker: condition.clone(),
        };
        let (scheme, router) = (front.scheme, routes::router(&config, &parts, front));

        let address = listener.address();
        let knows_certificates = knows_certificates(&config);
        let listener = if knows_certificates { listener.knowing(Arc::clone(&parts.access)) } else { listener };
        let router = match parts.access.is_open() {
            true => router.layer(axum::middleware::from_fn(edges::this_machine::only)),
            false => router,
        };
        let connections = listener.serve(router);
        if parts.access.is_open() {
            tracing::warn!("{OPEN}");
        }
        let opened_ms = u64::try_from(parts.opened_in.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%address, data_dir = %config.data_dir.display(), opened_ms, "serving");
        let worker = start_worker(config, &parts, &connections, condition);
        Ok(Self { address, scheme, stopping, connections, worker, parts })
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

    /// Stops accepting and ends its worker, lets requests under way finish until the deadline, then closes the store.
    ///
    /// # Errors
    /// [`StopError`]; what was acknowledged is safe all the same.
    pub async fn stop(self, deadline: Duration) -> Result<Drained, StopError> {
        self.stopping.cancel();
        let stop_worker = async {
            if let Some(worker) = self.worker {
                worker.stop().await;
            }
        };
        // A connection that is draining takes no new calls, and what runs has its outputs still to store.
        let began = Instant::now();
        tokio::join!(self.parts.operations.quiet(deadline / 2), stop_worker);
        let drained = self.connections.drain(deadline.saturating_sub(began.elapsed())).await;
        if drained == Drained::Cut {
            tracing::warn!("requests were cut off at the deadline of the drain");
        }
        self.parts.operations.stop().await;
        self.parts.background.stop().await;
        if timeout(DATABASE_DEADLINE, self.parts.services.database.close()).await.is_err() {
            tracing::warn!("a request that was cut off still holds the database; what was committed is safe");
        }
        operator::blocking(&self.parts.store, DiskBlobStore::close).await??;
        tracing::info!("stopped");
        Ok(drained)
    }
}

fn knows_certificates(config: &Config) -> bool {
    config.tls.as_ref().is_some_and(|tls| tls.clients.is_some())
}

/// Who is let in, but for what the database knows of it.
fn access_of(config: &Config) -> Result<Access, StartError> {
    let worker_token = config.worker_token.as_slice();
    let mut access = Access::new(config.access.clone())?.with_worker_tokens(worker_token);
    access = access.with_public_tenants(config.public_tenants.clone());
    if let Some(attic) = &config.attic {
        access = access.with_attic_tokens(attic.clone());
    }
    if knows_certificates(config) {
        access = access.with_certificates(config.certificates.clone());
    }
    if config.require_token || !config.trust.rules.is_empty() {
        access = access.closed();
    }
    Ok(access)
}

fn listen(config: &Config) -> Result<Listener, StartError> {
    let (address, tls) = (config.listen, config.tls.clone().map(|tls| tls.load()).transpose()?);
    Listener::bind(address, tls).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse(address),
        _ => StartError::Bind { address, source },
    })
}

/// Without a worker of its own a server still serves the cache, and other workers.
fn start_worker(
    config: Config,
    parts: &Parts,
    connections: &Connections,
    condition: Condition,
) -> Option<BuiltinWorker> {
    let (settings, program) = config.worker.filter(|_| config.execution.enabled).zip(config.worker_program)?;
    let blueprint = Blueprint {
        program,
        data_dir: config.data_dir,
        settings,
        access: Arc::clone(&parts.access),
        connections: connections.clone(),
        condition: condition.clone(),
    };
    let failed = |error: &io::Error| {
        tracing::warn!(%error, "the worker inside the server cannot be kept running");
        condition.set(OwnWorker::GivenUp { reason: error.to_string() });
    };
    BuiltinWorker::start(blueprint).inspect_err(failed).ok()
}

//! The one wiring function: [`App::start`] builds the store, the services and the edges from a [`Config`].
//!
//! Deliberately absent: signals, the command line and the exit code, which are the program's.
//!
//! What always holds: a started [`App`] answers on every edge. Tasks live in groups that stop in order:
//! connections and the worker first, then work in the background, then the store that they use.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use gf_blobstore::{BlobStore, DiskBlobStore, MachineTime, OpenError, StoreConfig, StoreError};
use gf_database::{Database, DatabaseError};
use gf_execution::{ActionCache, Operations, OperationsConfig, Timeouts};
use gf_nix_cache::NixCaches;
use gf_tenancy::trust::Exchange;
use gf_tenancy::{Access, AccessConfigError, Operate};
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::access_api::{self, AccessApi};
use crate::access_services::{AccessServices, AccessStartError};
use crate::builtin_worker::{Blueprint, BuiltinWorker, Condition};
use crate::capacity::Background;
use crate::config::{Config, ExecutionSettings, StoreSettings};
use crate::edges::credentials::Visitor;
use crate::edges::{self, EdgeState, ExchangeState, Gate, Limits, NixState};
use crate::health::{self, Readiness};
use crate::issuers::{IssuerFileError, Issuers};
use crate::listen::{Connections, Drained, Listener, TlsError};
use crate::metrics::{self, EdgeMetrics};
use crate::nix_caches::{self, NixStartError};
use crate::nix_closures::NixClosures;
use crate::operator::action_results::ActionResults;
use crate::operator::report::OwnWorker;
use crate::operator::{self, Operator};
use crate::quotas::{QuotaStore, Quotas};

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
    operations: Operations,
    background: Background,
    store: Arc<DiskBlobStore>,
    database: Database,
}

impl App {
    /// Builds everything and begins to answer.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let Config {
            listen,
            data_dir,
            database,
            tls,
            access,
            public_tenants,
            require_token,
            attic,
            trust,
            certificates,
            worker_token,
            upstream_networks,
            quotas,
            store: settings,
            execution,
            worker,
            worker_program,
            ..
        } = config;
        let knows_certificates = tls.as_ref().is_some_and(|tls| tls.clients.is_some());
        let tls = tls.map(|tls| tls.load()).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let reached = access.tenants.iter().find(|tenant| !tenant.instances.is_empty());
        let tenant = reached.map(|tenant| tenant.name.clone()).ok_or(StartError::NoTenant)?;
        let mut access =
            Access::new(access)?.with_worker_tokens(worker_token.as_slice()).with_public_tenants(public_tenants);
        if let Some(attic) = attic {
            access = access.with_attic_tokens(attic);
        }
        if knows_certificates {
            access = access.with_certificates(certificates);
        }
        if require_token || !trust.rules.is_empty() {
            access = access.closed();
        }
        let issuers = Issuers::new(trust.issuers)?;
        let listener = bind(listen, tls)?;
        let began = Instant::now();
        let store = open_store(&data_dir, &settings).await?;
        let opened_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let services = AccessServices::open(&database).await?;
        let access = Arc::new(services.attach_to(access));
        let background = Background::start(&store, &data_dir, &settings).await;
        let gate = services.gate(&access);
        background.run_to_its_end(|stopping| services.clone().tend_until(stopping));
        let trail = services.trail.clone();
        // What the others do until their end is recorded too.
        background.run_beyond_the_others(|stopping| async move { trail.write_until(stopping.cancelled()).await });
        let metrics = Arc::new(EdgeMetrics::default());

        let facts = services.database.clone();
        let own = Some(Arc::clone(&store));
        let quotas = Arc::new(Quotas::open(own, Some(&facts), access.tenants(), &quotas).await?);
        let (tended, tended_in) = (Arc::clone(&quotas), facts.clone());
        background.run_to_its_end(|stopping| tended.tend_until(tended_in, stopping));
        let bare: Arc<dyn BlobStore> = Arc::clone(&store) as Arc<dyn BlobStore>;
        let blobs: Arc<dyn BlobStore> = Arc::new(QuotaStore::new(bare, Arc::clone(&quotas)));
        let action_cache =
            ActionCache::open(Arc::clone(&blobs), facts.clone(), Arc::new(MachineTime::default())).await?;
        let first = access.tenant(&tenant).ok_or(StartError::NoTenant)?;
        let caches = nix_caches::open(&data_dir, facts, &blobs, first, upstream_networks).await?;
        let tended = caches.clone();
        background.run_to_its_end(|stopping| async move { tended.tend_until(stopping).await });
        let readiness = Readiness::new(Arc::clone(&blobs), &store_folder(&data_dir)).following(services.followed_ago());
        let operations = start_operations(&blobs, &action_cache, &access, &settings, &caches, execution);
        quotas.cap_executions(&operations);
        let own_worker = Condition::default();
        let operator = Operator {
            gate: gate.clone(),
            store: Arc::clone(&store),
            settings,
            readiness: readiness.clone(),
            began,
            maintenance: Arc::new(Semaphore::new(1)),
            background: background.clone(),
            operations: operations.clone(),
            own_worker: own_worker.clone(),
            quotas: Arc::clone(&quotas),
        };
        let results = ActionResults { gate: gate.clone(), cache: action_cache.clone() };
        let max_blob_size_bytes = settings.max_blob_size_bytes;
        let limits = Limits { executes: execution.enabled, max_blob_size_bytes, ..Limits::default() };
        let stopping = CancellationToken::new();
        let edges = EdgeState {
            gate: gate.clone(),
            store: blobs,
            action_cache,
            quotas: Arc::clone(&quotas),
            operations: operations.clone(),
            limits,
            metrics: Arc::clone(&metrics),
            stopping: stopping.clone(),
        };
        let upload_idle_timeout = limits.upload_idle_timeout;
        let access_api =
            AccessApi::new(gate.clone(), Arc::clone(&services.tokens), services.trail.log().clone(), caches.clone());
        let tokens = Arc::clone(&services.tokens);
        let exchange = ExchangeState {
            exchange: (!trust.rules.is_empty()).then(|| Exchange::new(trust.rules, Arc::new(issuers), tokens)),
            access: Arc::clone(&access),
            trail: services.trail.clone(),
            background: background.clone(),
        };
        let nix = NixState {
            gate: gate.clone(),
            caches,
            quotas: Arc::clone(&quotas),
            background: background.clone(),
            tenant,
            metrics: Arc::clone(&metrics),
            upload_idle_timeout,
            scheme,
        };
        let shown = metrics_router(gate, Arc::clone(&metrics), Arc::clone(&store), operations.clone(), quotas);
        let router = edges::router(edges)
            .merge(edges::nix_router(nix))
            .merge(edges::exchange_router(exchange))
            .merge(health::router(readiness))
            .merge(access_api::router(Arc::new(access_api)))
            .merge(operator::router(Arc::new(operator)))
            .merge(operator::action_results::router(results))
            .merge(shown)
            .layer(axum::middleware::from_fn(edges::origin::note));

        let address = listener.address();
        let listener = if knows_certificates { listener.knowing(Arc::clone(&access)) } else { listener };
        let router = match access.is_open() {
            true => router.layer(axum::middleware::from_fn(edges::this_machine::only)),
            false => router,
        };
        let connections = listener.serve(router);
        if access.is_open() {
            tracing::warn!("{OPEN}");
        }
        tracing::info!(%address, data_dir = %data_dir.display(), opened_ms, "serving");
        let blueprint = worker.filter(|_| execution.enabled).zip(worker_program).map(|(settings, program)| Blueprint {
            program,
            data_dir,
            settings,
            access,
            connections: connections.clone(),
            condition: own_worker,
        });
        let worker = blueprint.and_then(start_worker);
        Ok(Self {
            address,
            scheme,
            stopping,
            connections,
            worker,
            operations,
            background,
            store,
            database: services.database,
        })
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
        tokio::join!(self.operations.quiet(deadline / 2), stop_worker);
        let drained = self.connections.drain(deadline.saturating_sub(began.elapsed())).await;
        if drained == Drained::Cut {
            tracing::warn!("requests were cut off at the deadline of the drain");
        }
        self.operations.stop().await;
        self.background.stop().await;
        if timeout(DATABASE_DEADLINE, self.database.close()).await.is_err() {
            tracing::warn!("a request that was cut off still holds the database; what was committed is safe");
        }
        operator::blocking(&self.store, DiskBlobStore::close).await??;
        tracing::info!("stopped");
        Ok(drained)
    }
}

fn start_operations(
    blobs: &Arc<dyn BlobStore>,
    action_cache: &ActionCache,
    access: &Arc<Access>,
    store: &StoreSettings,
    caches: &NixCaches,
    settings: ExecutionSettings,
) -> Operations {
    let timeouts = Timeouts { default: settings.default_timeout, max: settings.max_timeout };
    let config = OperationsConfig { timeouts, lease: store.lease, ..OperationsConfig::default() };
    let (action_cache, closures) = (action_cache.clone(), Arc::new(NixClosures(caches.clone())));
    Operations::start_with_closures(Arc::clone(blobs), action_cache, Arc::clone(access), closures, config)
}

/// Without a worker of its own a server still serves the cache, and other workers.
fn start_worker(blueprint: Blueprint) -> Option<BuiltinWorker> {
    let condition = blueprint.condition.clone();
    let failed = |error: &io::Error| {
        tracing::warn!(%error, "the worker inside the server cannot be kept running");
        condition.set(OwnWorker::GivenUp { reason: error.to_string() });
    };
    BuiltinWorker::start(blueprint).inspect_err(failed).ok()
}

fn bind(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Result<Listener, StartError> {
    Listener::bind(address, tls).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::AddressInUse(address),
        _ => StartError::Bind { address, source },
    })
}

async fn open_store(data_dir: &Path, settings: &StoreSettings) -> Result<Arc<DiskBlobStore>, StartError> {
    let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    std::fs::create_dir_all(data_dir).map_err(failed)?;
    Ok(DiskBlobStore::open(blob_store_config(data_dir, settings)).await?)
}

/// The folder of the store below the data folder, so that other kinds of data find a place beside it.
pub(crate) fn store_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("blobs")
}

/// How the store in a data folder is set up.
pub(crate) fn blob_store_config(data_dir: &Path, settings: &StoreSettings) -> StoreConfig {
    let StoreSettings { capacity_bytes, lease, sync_window, max_blob_size_bytes } = *settings;
    let defaults = StoreConfig::new(store_folder(data_dir));
    let capacity_bytes = capacity_bytes.unwrap_or(defaults.capacity_bytes);
    StoreConfig { capacity_bytes, lease, sync_window, max_blob_size_bytes, ..defaults }
}

/// What tenants use is shown to whoever operates the server; the rest, which names nobody, to everybody.
fn metrics_router(
    gate: Gate,
    metrics: Arc<EdgeMetrics>,
    store: Arc<DiskBlobStore>,
    operations: Operations,
    quotas: Arc<Quotas>,
) -> Router {
    let show = move |visitor: Visitor| async move {
        let stats = operator::stats(&store).await.map_err(|error| error.to_string());
        let may_know = gate.has_everywhere::<Operate>(&visitor);
        let tenants = if may_know { quotas.report(&operations) } else { Vec::new() };
        let access = gate.stats();
        let encode =
            |stats| metrics::encode(&metrics, stats, operations, tenants, access).map_err(|error| error.to_string());
        let text = stats.and_then(encode);
        match text {
            Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, metrics::CONTENT_TYPE)], text),
            Err(error) => {
                tracing::error!(%error, "metrics could not be read");
                (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], error)
            }
        }
    };
    Router::new().route("/metrics", get(show))
}

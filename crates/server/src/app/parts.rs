//! What a server is made of, opened in the order in which each leans on those before it.
//!
//! What always holds: what tends a part in the background runs from the moment at which the part is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_blobstore::{BlobStore, DiskBlobStore, MachineTime, StoreConfig};
use gf_database::Database;
use gf_execution::{ActionCache, Operations, OperationsConfig, Timeouts};
use gf_nix_cache::NixCaches;
use gf_tenancy::{Access, Tenant, TenantName};

use super::StartError;
use crate::access_services::{AccessServices, AccessStartError, SERVICES};
use crate::capacity::Background;
use crate::config::{Config, StoreSettings};
use crate::edges::Gate;
use crate::health::Readiness;
use crate::metrics::EdgeMetrics;
use crate::nix_caches;
use crate::nix_closures::NixClosures;
use crate::quotas::{QuotaStore, Quotas};

/// Everything below the edges.
pub(super) struct Parts {
    pub(super) access: Arc<Access>,
    pub(super) services: AccessServices,
    pub(super) gate: Gate,
    pub(super) background: Background,
    pub(super) store: Arc<DiskBlobStore>,
    /// When the store was begun to be opened, and how long that took.
    pub(super) began: Instant,
    pub(super) opened_in: Duration,
    pub(super) quotas: Arc<Quotas>,
    /// The store within what each tenant may use of it.
    pub(super) blobs: Arc<dyn BlobStore>,
    pub(super) action_cache: ActionCache,
    /// The first tenant, whose the cache `main` is.
    pub(super) tenant: TenantName,
    pub(super) caches: NixCaches,
    pub(super) operations: Operations,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<EdgeMetrics>,
}

impl Parts {
    pub(super) async fn open(config: &Config, access: Access) -> Result<Self, StartError> {
        let tenant = first_tenant(config)?;
        // What a newer program wrote is refused before anything of the folder is touched.
        Database::foresee(&config.database, &SERVICES).await.map_err(AccessStartError::from)?;
        let began = Instant::now();
        let store = open_store(&config.data_dir, &config.store).await?;
        let opened_in = began.elapsed();
        let services = AccessServices::open(&config.database).await?;
        let access = Arc::new(services.attach_to(access));
        let background = Background::start(&store, &config.data_dir, &config.store).await;
        tend_access(&background, &services);
        let quotas = open_quotas(config, &store, &services, &access, &background).await?;
        let bare: Arc<dyn BlobStore> = Arc::clone(&store) as Arc<dyn BlobStore>;
        let blobs: Arc<dyn BlobStore> = Arc::new(QuotaStore::new(bare, Arc::clone(&quotas)));
        let time = Arc::new(MachineTime::default());
        let action_cache = ActionCache::open(Arc::clone(&blobs), services.database.clone(), time).await?;
        let first = access.tenant(&tenant).ok_or(StartError::NoTenant)?;
        let caches = open_caches(config, &services, &blobs, first, &background).await?;
        let operations = start_operations(config, &blobs, &action_cache, &access, &caches);
        quotas.cap_executions(&operations);
        let readiness =
            Readiness::new(Arc::clone(&blobs), &store_folder(&config.data_dir)).following(services.followed_ago());
        Ok(Self {
            gate: services.gate(&access),
            access,
            services,
            background,
            store,
            began,
            opened_in,
            quotas,
            blobs,
            action_cache,
            tenant,
            caches,
            operations,
            readiness,
            metrics: Arc::new(EdgeMetrics::default()),
        })
    }
}

/// The first that clients reach.
fn first_tenant(config: &Config) -> Result<TenantName, StartError> {
    let reached = config.access.tenants.iter().find(|tenant| !tenant.instances.is_empty());
    reached.map(|tenant| tenant.name.clone()).ok_or(StartError::NoTenant)
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

fn tend_access(background: &Background, services: &AccessServices) {
    background.run_to_its_end(|stopping| services.clone().tend_until(stopping));
    // What the others do until their end is recorded too.
    let trail = services.trail.clone();
    background.run_beyond_the_others(|stopping| async move { trail.write_until(stopping.cancelled()).await });
}

async fn open_quotas(
    config: &Config,
    store: &Arc<DiskBlobStore>,
    services: &AccessServices,
    access: &Access,
    background: &Background,
) -> Result<Arc<Quotas>, StartError> {
    let (own, facts) = (Some(Arc::clone(store)), services.database.clone());
    let quotas = Arc::new(Quotas::open(own, Some(&facts), access.tenants(), &config.quotas).await?);
    let tended = Arc::clone(&quotas);
    background.run_to_its_end(|stopping| tended.tend_until(facts, stopping));
    Ok(quotas)
}

async fn open_caches(
    config: &Config,
    services: &AccessServices,
    blobs: &Arc<dyn BlobStore>,
    first: &Tenant,
    background: &Background,
) -> Result<NixCaches, StartError> {
    let (facts, networks) = (services.database.clone(), config.upstream_networks.clone());
    let caches = nix_caches::open(&config.data_dir, facts, blobs, first, networks).await?;
    let tended = caches.clone();
    background.run_to_its_end(|stopping| async move { tended.tend_until(stopping).await });
    Ok(caches)
}

fn start_operations(
    config: &Config,
    blobs: &Arc<dyn BlobStore>,
    action_cache: &ActionCache,
    access: &Arc<Access>,
    caches: &NixCaches,
) -> Operations {
    let timeouts = Timeouts { default: config.execution.default_timeout, max: config.execution.max_timeout };
    let settings = OperationsConfig { timeouts, lease: config.store.lease, ..OperationsConfig::default() };
    let (action_cache, closures) = (action_cache.clone(), Arc::new(NixClosures(caches.clone())));
    Operations::start_with_closures(Arc::clone(blobs), action_cache, Arc::clone(access), closures, settings)
}

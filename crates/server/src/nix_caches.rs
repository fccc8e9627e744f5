//! Builds the service of the Nix caches over what a data folder holds.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gf_blobstore::{BlobStore, MachineTime};
use gf_database::Database;
use gf_fetch::Networks;
use gf_nix_cache::archives::{ArchiveLimits, Archives};
use gf_nix_cache::{CacheError, NixCaches, Parts};
use gf_tenancy::Tenant;
use thiserror::Error;

/// Why there are no caches to serve.
#[derive(Debug, Error)]
pub enum NixStartError {
    /// The folder for archives that arrive cannot be made.
    #[error("the folder for archives that arrive cannot be made: {0}")]
    Scratch(#[from] io::Error),
    /// The first cache cannot be made.
    #[error("the Nix cache `main` cannot be made: {0}")]
    Main(#[from] CacheError),
}

/// Opens the caches whose facts are in this database and whose archives arrive in this data folder. A fresh one gets the public cache `main`, of `tenant`.
///
/// # Errors
/// [`NixStartError`].
pub(crate) async fn open(
    data_dir: &Path,
    database: Database,
    store: &Arc<dyn BlobStore>,
    tenant: &Tenant,
    upstream_networks: Networks,
) -> Result<NixCaches, NixStartError> {
    let scratch = data_dir.join("scratch");
    std::fs::create_dir_all(&scratch)?;
    let archives = Arc::new(Archives::new(Arc::clone(store), scratch, ArchiveLimits::default()));
    let time = Arc::new(MachineTime::default());
    let parts = Parts { database, store: Arc::clone(store), archives, time, upstream_networks };
    let caches = NixCaches::new(parts);
    caches.ensure_main(tenant).await?;
    Ok(caches)
}

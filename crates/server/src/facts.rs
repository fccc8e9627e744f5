//! Copies of the facts of a server, made while it serves, and putting them back. For the command line.
//!
//! Deliberately absent: blobs. What is in the store can be made again; what is in the database cannot.

use std::path::{Path, PathBuf};

use gf_database::{BackupError, Database, Location, OpenError, RestoreError};
use thiserror::Error;

use crate::access_services::SERVICES;
use crate::config::Config;

/// Why facts were not copied or put back.
#[derive(Debug, Error)]
pub enum FactsError {
    /// There is nothing to copy, and asking must not make it.
    #[error("there is no database at {path}: say with --config or --data-dir which server is meant", path = .0.display())]
    NoDatabase(PathBuf),
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be copied.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The copy cannot be put back.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Copies the database of a server, which may be running, to a new file that is for its owner alone.
///
/// # Errors
/// [`FactsError`].
pub async fn back_up(config: &Config, to: &Path) -> Result<(), FactsError> {
    if let Location::Sqlite(path) = &config.database
        && !path.exists()
    {
        return Err(FactsError::NoDatabase(path.clone()));
    }
    let database = Database::connect(&config.database).await?;
    let copied = database.back_up(to).await;
    database.close().await;
    Ok(copied?)
}

/// Puts a copy back where a server has no database yet.
///
/// # Errors
/// [`FactsError`].
pub async fn restore(config: &Config, from: &Path) -> Result<(), FactsError> {
    Ok(Database::restore(from, &config.database, &SERVICES).await?)
}

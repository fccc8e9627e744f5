//! Copies of the facts of a server, made while it serves, and putting them back. For the command line.
//!
//! Deliberately absent: blobs. What is in the store can be made again; what is in the database cannot.

use std::path::{Path, PathBuf};

use gf_database::{BackupError, Database, DatabaseError, Location, OpenError, RestoreError, work};
use gf_tenancy::audit::{AuditLog, record_restore};
use gf_tenancy::{TokenError, Tokens};
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
    /// It was put back, and cannot be looked at.
    #[error("the copy was put back, but the database cannot be used: {0}")]
    Look(#[from] DatabaseError),
    /// It was put back, and its tokens cannot be read.
    #[error("the copy was put back, but the tokens cannot be read: {0}")]
    Tokens(#[from] TokenError),
}

/// What was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Tokens that are good by the copy, also if they were revoked after it was made.
    pub good_tokens: usize,
    /// The last record of its audit log.
    pub last_record: u64,
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
    let copied = database.back_up(to, &SERVICES).await;
    database.close().await;
    Ok(copied?)
}

/// Puts a copy back where a server has no database yet, and records that: what was revoked after the copy was made is
/// good again, which nothing else would show.
///
/// # Errors
/// [`FactsError`].
pub async fn restore(config: &Config, from: &Path) -> Result<Restored, FactsError> {
    Database::restore(from, &config.database, &SERVICES, |transaction| work(record_restore(transaction))).await?;
    let database = Database::connect(&config.database).await?;
    let restored = look(&database).await;
    database.close().await;
    restored
}

async fn look(database: &Database) -> Result<Restored, FactsError> {
    let good_tokens = Tokens::open(database.clone()).await?.number_good();
    // The last one is that it was put back.
    let (number, _) = AuditLog::new(database.clone()).head().await?;
    Ok(Restored { good_tokens, last_record: number.saturating_sub(1) })
}

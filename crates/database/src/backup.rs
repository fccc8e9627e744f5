//! A copy of the whole database, made while it is in use: a file of SQLite's, also where the database is PostgreSQL's.

use std::io;
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions, Connection as _};
use thiserror::Error;

use crate::copy::{CopyError, nothing_more, transfer};
use crate::database::Connections;
use crate::file::{beside, give_name, remove_if_there, take_private};
use crate::migrations::{has_list, hold_off};
use crate::statement::Connection;
use crate::{Database, DatabaseError, Migrations, OpenError, Transaction, sql};

/// Why no copy was made.
#[derive(Debug, Error)]
pub enum BackupError {
    /// There is something there already, and a copy never replaces another.
    #[error("{path} is there already: name a file that is not", path = .0.display())]
    Exists(PathBuf),
    /// Somebody else is copying there.
    #[error("another copy is being made to {path}: wait for it, or name another file", path = .0.display())]
    Busy(PathBuf),
    /// The path is not text, which SQLite asks for.
    #[error("{path} cannot be named in a statement: use a path of Unicode characters", path = .0.display())]
    Path(PathBuf),
    /// There are no tables of ours.
    #[error("there is nothing to copy: no server has used this database yet")]
    Empty,
    /// The tables are not what this program knows.
    #[error(transparent)]
    Tables(#[from] OpenError),
    /// The copy could not be written.
    #[error("the database cannot be copied: {0}")]
    Database(#[from] DatabaseError),
    /// The file of the copy could not be made or made durable.
    #[error("the copy of the database cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl From<CopyError> for BackupError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Tables(error) => error.into(),
            CopyError::Rows(error) => error.into(),
        }
    }
}

impl Database {
    /// Copies the database, as it is at one moment, to a new file, which is durable when this returns. Reading and
    /// writing go on meanwhile; bringing tables up to date waits. What a killed process leaves is called FILE.partial, and
    /// goes with the next copy to the same FILE.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn back_up(&self, to: &Path, services: &[Migrations]) -> Result<(), BackupError> {
        if to.exists() {
            return Err(BackupError::Exists(to.to_owned()));
        }
        let partial = beside(to, ".partial");
        // SQLite fills a file that is there and empty; one of its own making would be for everybody to read.
        let held = take_private(&partial).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => BackupError::Busy(to.to_owned()),
            _ => BackupError::Io(error),
        })?;
        remove_if_there(&beside(&partial, "-journal"))?;
        let copied = match &self.connections {
            Connections::Sqlite { .. } => self.copy_file(&partial).await,
            Connections::Postgres(_) => self.copy_tables(&partial, services).await,
        };
        let named = match copied {
            Ok(()) => name(&partial, to).await,
            Err(error) => Err(error),
        };
        remove_if_there(&partial)?;
        drop(held);
        named
    }

    async fn copy_file(&self, to: &Path) -> Result<(), BackupError> {
        let Connections::Sqlite { readers, .. } = &self.connections else { return Ok(()) };
        let path = to.to_str().ok_or_else(|| BackupError::Path(to.to_owned()))?;
        let copy = sql("VACUUM INTO $1").bind(path);
        // A connection of its own: readers may not write, not even another file.
        let options = readers.connect_options().as_ref().clone().pragma("query_only", "OFF");
        let mut connection = options.connect().await.map_err(DatabaseError::from)?;
        connection.execute(&copy).await?;
        Ok(connection.close().await.map_err(DatabaseError::from)?)
    }

    async fn copy_tables(&self, to: &Path, services: &[Migrations]) -> Result<(), BackupError> {
        let copy = Self::open_alone(to).await?;
        let mut guard = hold_off(self).await?;
        let mut source = Transaction::begin_reading(self).await?;
        let copied = match has_list(&mut source).await? {
            true => transfer(&mut source, &copy, services, nothing_more).await.map_err(BackupError::from),
            false => Err(BackupError::Empty),
        };
        source.roll_back().await;
        guard.roll_back().await;
        copy.close().await;
        copied
    }
}

async fn name(partial: &Path, to: &Path) -> Result<(), BackupError> {
    let (whole, name) = (partial.to_owned(), to.to_owned());
    let named = tokio::task::spawn_blocking(move || give_name(&whole, &name)).await.map_err(io::Error::from)?;
    named.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_owned()),
        _ => BackupError::Io(error),
    })
}

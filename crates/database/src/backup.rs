//! A copy of the whole database, made while it is in use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sqlx::{ConnectOptions, Connection as _};
use thiserror::Error;

use crate::database::Connections;
use crate::statement::Connection;
use crate::{Database, DatabaseError, sql};

/// Why no copy was made.
#[derive(Debug, Error)]
pub enum BackupError {
    /// There is something there already, and a copy never replaces another.
    #[error("{path} is there already: name a file that is not", path = .0.display())]
    Exists(PathBuf),
    /// The path is not text, which SQLite asks for.
    #[error("{path} cannot be named in a statement: use a path of Unicode characters", path = .0.display())]
    Path(PathBuf),
    /// PostgreSQL has its own tools for this, which know more than we do.
    #[error("a PostgreSQL database is copied with pg_dump, or with what its operator already uses")]
    Postgres,
    /// The copy could not be written.
    #[error("the database cannot be copied: {0}")]
    Database(#[from] DatabaseError),
    /// The file of the copy could not be made or made durable.
    #[error("the copy of the database cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl Database {
    /// Copies the database, as it is at one moment, to a new file, which is durable when this returns. Reading and
    /// writing go on meanwhile.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn back_up(&self, to: &Path) -> Result<(), BackupError> {
        let Connections::Sqlite { readers, .. } = &self.connections else { return Err(BackupError::Postgres) };
        let path = to.to_str().ok_or_else(|| BackupError::Path(to.to_owned()))?;
        // SQLite fills a file that is there and empty; one of its own making would be for everybody to read.
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_owned()),
            _ => BackupError::Io(error),
        })?;
        let copy = sql("VACUUM INTO $1").bind(path);
        // A connection of its own: readers may not write, not even another file.
        let options = readers.connect_options().as_ref().clone().pragma("query_only", "OFF");
        let mut connection = options.connect().await.map_err(DatabaseError::from)?;
        connection.execute(&copy).await?;
        connection.close().await.map_err(DatabaseError::from)?;
        let (copy, folder) = (to.to_owned(), to.parent().map(Path::to_owned).unwrap_or_default());
        let sync = move || {
            File::open(copy)?.sync_all()?;
            File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder })?.sync_all()
        };
        tokio::task::spawn_blocking(sync).await.map_err(io::Error::from)??;
        Ok(())
    }
}

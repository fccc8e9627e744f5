//! Putting a copy of a database back: into an empty place, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::{Database, DatabaseError, Location, Migrations, OpenError, sql};

/// What SQLite keeps beside a file that is in use.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// Why no copy was put back. Nothing was changed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// There is a database, and a copy never replaces one.
    #[error("{path} is there already: stop the server that uses it, and move it away first", path = .0.display())]
    Exists(PathBuf),
    /// The file is no whole copy.
    #[error("{path} is no whole copy of a database: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// PostgreSQL has its own tools for this.
    #[error("a PostgreSQL database is restored with psql or pg_restore, from what pg_dump wrote")]
    Postgres,
    /// It is one of another program.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The files could not be read or written.
    #[error("the copy cannot be put back: {0}")]
    Io(#[from] io::Error),
}

impl Database {
    /// Puts a copy that [`Database::back_up`] made where there is no database. It is read to its end, checked, and brought
    /// to what this program knows before it gets its name; what a killed process leaves has another name, and goes with
    /// the next restore.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn restore(from: &Path, to: &Location, services: &[Migrations]) -> Result<(), RestoreError> {
        let Location::Sqlite(to) = to else { return Err(RestoreError::Postgres) };
        if let Some(there) = [""].iter().chain(&BESIDE).map(|end| beside(to, end)).find(|path| path.exists()) {
            return Err(RestoreError::Exists(there));
        }
        let partial = beside(to, ".restoring");
        for end in [""].iter().chain(&BESIDE) {
            remove_if_there(&beside(&partial, end))?;
        }
        let outcome = fill(from, to, &partial, services).await;
        // Under its own name, or of no use.
        remove_if_there(&partial)?;
        outcome
    }

    /// Reads all of a database, and says what is wrong with it.
    async fn check(&self) -> Result<Result<(), String>, DatabaseError> {
        let report = self.first(sql("PRAGMA integrity_check")).await?;
        let said = report.map(|row| row.get::<String>("integrity_check")).transpose()?.unwrap_or_default();
        if said != "ok" {
            return Ok(Err(said));
        }
        let tables = sql("SELECT COUNT(*) AS tables FROM sqlite_master WHERE type = 'table' AND name = 'migration'");
        let found = self.first(tables).await?.map(|row| row.get::<i64>("tables")).transpose()?;
        Ok(if found == Some(1) { Ok(()) } else { Err("it has no list of migrations".to_owned()) })
    }
}

async fn fill(from: &Path, to: &Path, partial: &Path, services: &[Migrations]) -> Result<(), RestoreError> {
    let damaged = |reason: String| RestoreError::Damaged { path: from.to_owned(), reason };
    let (source, copy) = (from.to_owned(), partial.to_owned());
    let copied = tokio::task::spawn_blocking(move || copy_private(&source, &copy)).await;
    copied.map_err(io::Error::other)??;
    let location = Location::file(partial);
    let database = Database::connect(&location).await.map_err(|error| damaged(error.to_string()))?;
    let checked = database.check().await;
    database.close().await;
    checked.map_err(|error| damaged(error.to_string()))?.map_err(damaged)?;
    // Of a newer program, or another build: it must not take the place.
    Database::open(&location, services).await?.close().await;
    // Unlike renaming, this never replaces what came there meanwhile.
    fs::hard_link(partial, to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => RestoreError::Exists(to.to_owned()),
        _ => RestoreError::Io(error),
    })?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(folder)?.sync_all()?)
}

/// For its owner alone: it holds the fingerprints of tokens.
fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The path with something at its end.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

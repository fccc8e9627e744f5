//! Putting a copy of a database back: into an empty place, whole or not at all. A copy of either system goes into both.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;
use thiserror::Error;

use crate::copy::{CopyError, transfer};
use crate::file::{BESIDE, beside, give_name, make_private, remove_if_there};
use crate::migrations::has_list;
use crate::{Database, DatabaseError, Location, Migrations, OpenError, Transaction, sql};

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
    /// It is one of another program, or PostgreSQL has tables of ours already.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The rows could not be written.
    #[error("the copy cannot be put back: {0}")]
    Database(#[from] DatabaseError),
    /// The files could not be read or written.
    #[error("the copy cannot be put back: {0}")]
    Io(#[from] io::Error),
}

impl From<CopyError> for RestoreError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Tables(error) => error.into(),
            CopyError::Rows(error) => error.into(),
        }
    }
}

impl Database {
    /// Puts a copy that [`Database::back_up`] made where there is no database. It is read to its end, checked, and brought
    /// to what this program knows before it gets its name; what a killed process leaves has another name, and goes with
    /// the next restore. Into PostgreSQL it goes in one transaction.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn restore(from: &Path, to: &Location, services: &[Migrations]) -> Result<(), RestoreError> {
        let to = match to {
            Location::Sqlite(path) => path,
            Location::Postgres(options) => return fill_postgres(from, options, services).await,
        };
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
        let mut reading = Transaction::begin_reading(self).await?;
        let has_list = has_list(&mut reading).await?;
        reading.roll_back().await;
        Ok(if has_list { Ok(()) } else { Err("it has no list of migrations".to_owned()) })
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
    give_name(partial, to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => RestoreError::Exists(to.to_owned()),
        _ => RestoreError::Io(error),
    })
}

async fn fill_postgres(from: &Path, to: &PgConnectOptions, services: &[Migrations]) -> Result<(), RestoreError> {
    let damaged = |reason: String| RestoreError::Damaged { path: from.to_owned(), reason };
    // What is not there, or may not be read, is not damaged.
    File::open(from)?;
    let copy = Database::open_read_only(from).await.map_err(|error| damaged(error.to_string()))?;
    let checked = copy.check().await.map_err(|error| damaged(error.to_string()))?;
    let filled = match checked {
        Ok(()) => {
            let target = Database::connect(&Location::Postgres(Box::new(to.clone()))).await?;
            let mut source = Transaction::begin_reading(&copy).await?;
            let filled = transfer(&mut source, &target, services).await;
            source.roll_back().await;
            target.close().await;
            filled.map_err(RestoreError::from)
        }
        Err(reason) => Err(damaged(reason)),
    };
    copy.close().await;
    filled
}

fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    let (mut source, mut copy) = (File::open(from)?, make_private(to)?);
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}

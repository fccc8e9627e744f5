//! Putting a copy of a database back: into an empty place, whole or not at all. A copy of either system goes into both.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;
use thiserror::Error;

use crate::copy::{CopyError, Last, transfer};
use crate::file::{BESIDE, beside, give_name, remove_if_there, take_private};
use crate::migrations::{bring_up_to_date, has_list};
use crate::{Database, DatabaseError, Location, Migrations, OpenError, Transaction, Work, sql};

/// Why no copy was put back. Nothing was changed.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// There is a database, and a copy never replaces one.
    #[error("{path} is there already: stop the server that uses it, and move it away first", path = .0.display())]
    Exists(PathBuf),
    /// Somebody else is putting a copy there.
    #[error("another copy is being put into {path}: wait for it", path = .0.display())]
    Busy(PathBuf),
    /// It is no copy, but a database that was in use.
    #[error(
        "{path} is a database and no copy: what was written to it last lies beside it; make a copy with `gf backup`",
        path = .0.display()
    )]
    NoCopy(PathBuf),
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
    /// the next restore. Into PostgreSQL it goes in one transaction. What is to be written at last, such as that it was put
    /// back, is there when the copy is.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn restore(
        from: &Path,
        to: &Location,
        services: &[Migrations],
        last: for<'t> fn(&'t mut Transaction) -> Work<'static, 't, (), DatabaseError>,
    ) -> Result<(), RestoreError> {
        for end in ["-wal", "-journal"] {
            if fs::metadata(beside(from, end)).is_ok_and(|beside| beside.len() > 0) {
                return Err(RestoreError::NoCopy(from.to_owned()));
            }
        }
        let to = match to {
            Location::Sqlite(path) => path,
            Location::Postgres(options) => return fill_postgres(from, options, services, last).await,
        };
        if let Some(there) = [""].iter().chain(&BESIDE).map(|end| beside(to, end)).find(|path| path.exists()) {
            return Err(RestoreError::Exists(there));
        }
        let partial = beside(to, ".restoring");
        let held = take_private(&partial).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => RestoreError::Busy(to.to_owned()),
            _ => RestoreError::Io(error),
        })?;
        for end in BESIDE {
            remove_if_there(&beside(&partial, end))?;
        }
        let outcome = fill(from, to, &partial, services, last).await;
        // Under its own name, or of no use.
        remove_if_there(&partial)?;
        drop(held);
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

async fn fill(from: &Path, to: &Path, partial: &Path, services: &[Migrations], last: Last) -> Result<(), RestoreError> {
    let damaged = |reason: String| RestoreError::Damaged { path: from.to_owned(), reason };
    let (source, copy) = (from.to_owned(), partial.to_owned());
    let copied = tokio::task::spawn_blocking(move || copy_into(&source, &copy)).await;
    copied.map_err(io::Error::other)??;
    let database = Database::open_read_only(partial).await.map_err(|error| damaged(error.to_string()))?;
    let checked = database.check().await;
    database.close().await;
    checked.map_err(|error| damaged(error.to_string()))?.map_err(damaged)?;
    // All of it in the one file, since that alone gets the name.
    let database = Database::open_alone(partial).await?;
    let written = finish(&database, services, last).await;
    database.close().await;
    written?;
    give_name(partial, to).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => RestoreError::Exists(to.to_owned()),
        _ => RestoreError::Io(error),
    })
}

/// Brings the tables to what this program knows: those of a newer program, or of another build, must not take the place.
async fn finish(database: &Database, services: &[Migrations], last: Last) -> Result<(), RestoreError> {
    bring_up_to_date(database, services).await?;
    Ok(database.write(last).await?)
}

async fn fill_postgres(
    from: &Path,
    to: &PgConnectOptions,
    services: &[Migrations],
    last: Last,
) -> Result<(), RestoreError> {
    let damaged = |reason: String| RestoreError::Damaged { path: from.to_owned(), reason };
    // What is not there, or may not be read, is not damaged.
    File::open(from)?;
    let copy = Database::open_read_only(from).await.map_err(|error| damaged(error.to_string()))?;
    let checked = copy.check().await.map_err(|error| damaged(error.to_string()))?;
    let filled = match checked {
        Ok(()) => {
            let target = Database::connect(&Location::Postgres(Box::new(to.clone()))).await?;
            let mut source = Transaction::begin_reading(&copy).await?;
            let filled = transfer(&mut source, &target, services, last).await;
            source.roll_back().await;
            target.close().await;
            filled.map_err(RestoreError::from)
        }
        Err(reason) => Err(damaged(reason)),
    };
    copy.close().await;
    filled
}

/// Into a file that is there and empty.
fn copy_into(from: &Path, to: &Path) -> io::Result<()> {
    let (mut source, mut copy) = (File::open(from)?, OpenOptions::new().write(true).open(to)?);
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}

//! What can go wrong, by what the caller should do about it.

use std::io;
use std::path::PathBuf;

use sqlx::error::{DatabaseError as Report, ErrorKind};
use thiserror::Error;

/// Why a statement or a transaction came to nothing.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// The database cannot say now: no connection, no space, no turn in time. Nothing follows for what was asked; after
    /// a failed commit, what was written may be there or not. Callers answer "unknown, try again", never "absent".
    #[error("the database cannot answer now: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// Others were changing the same rows, and the database chose this transaction to give way. Nothing was written;
    /// doing all of it again may well work.
    #[error("others were writing the same at the same time: {0}")]
    Contended(#[source] sqlx::Error),
    /// A rule of the tables forbids it: a key that is there already, a reference to what is not. Nothing was written.
    #[error("a rule of the tables forbids it: {0}")]
    Conflict(#[source] sqlx::Error),
    /// Neither the caller nor the weather: a statement or a row that is not as this program expects, or a damaged file.
    #[error("the database or this program is broken: {0}")]
    Broken(#[source] sqlx::Error),
}

impl DatabaseError {
    /// Whether the same may work later, so that nothing follows from it for what was asked.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Contended(_))
    }

    /// Whether a rule of the tables forbade it.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(report) => match judge(report.as_ref()) {
                Verdict::Unavailable => Self::Unavailable(error),
                Verdict::Contended => Self::Contended(error),
                Verdict::Conflict => Self::Conflict(error),
                Verdict::Broken => Self::Broken(error),
            },
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error),
            _ => Self::Broken(error),
        }
    }
}

enum Verdict {
    Unavailable,
    Contended,
    Conflict,
    Broken,
}

fn judge(report: &dyn Report) -> Verdict {
    match report.kind() {
        ErrorKind::UniqueViolation
        | ErrorKind::ForeignKeyViolation
        | ErrorKind::NotNullViolation
        | ErrorKind::CheckViolation => return Verdict::Conflict,
        _ => {}
    }
    let code = report.code().unwrap_or_default();
    match code.parse::<u32>() {
        // SQLSTATE has five characters, SQLite's codes have at most four.
        Ok(number) if code.len() < 5 => judge_sqlite(number),
        _ => judge_postgres(&code),
    }
}

/// The primary result code is in the low byte: see SQLite's "Result and Error Codes".
const fn judge_sqlite(code: u32) -> Verdict {
    match code & 0xff {
        // BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL: of the machine, or of another
        // process that holds the file.
        5..=10 | 13..=15 => Verdict::Unavailable,
        _ => Verdict::Broken,
    }
}

/// Whether another connection to the same file of SQLite's is in the way: BUSY.
pub(crate) fn is_locked(report: &dyn Report) -> bool {
    report.code().and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}

/// SQLSTATE: PostgreSQL's appendix "Error Codes".
fn judge_postgres(code: &str) -> Verdict {
    match code {
        "40001" | "40P01" => return Verdict::Contended,
        // A replica that was not promoted yet; a lock that did not come in time.
        "25006" | "55P03" => return Verdict::Unavailable,
        _ => {}
    }
    match code.get(..2).unwrap_or_default() {
        // Integrity constraints beyond the four that have a kind, such as exclusion.
        "23" => Verdict::Conflict,
        // Connections, authorization, resources, an operator's intervention, the system.
        "08" | "28" | "53" | "57" | "58" => Verdict::Unavailable,
        _ => Verdict::Broken,
    }
}

/// Why a database cannot be opened. Each says what to do about it.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file cannot be made.
    #[error("the database {path} cannot be made: {source}; its folder must exist and be writable", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not answer.
    #[error("the database {location} cannot be opened: {source}")]
    Connect {
        /// Where it is, without a password.
        location: String,
        /// What it said.
        source: DatabaseError,
    },
    /// A newer program migrated it.
    #[error(
        "the tables of {service} are at step {found}, and this program knows {known} steps: \
         run the program that wrote them, or have it take them back to step {known} first"
    )]
    Newer {
        /// Whose tables.
        service: String,
        /// The step that they are at.
        found: usize,
        /// The steps that are known.
        known: usize,
    },
    /// A migration that was applied once has another text now.
    #[error(
        "step {number} ({name}) of {service} is not what was applied to this database: it was made by another build"
    )]
    Different {
        /// Whose tables.
        service: String,
        /// Which step.
        number: usize,
        /// Its name in this program.
        name: String,
    },
    /// There are tables of a service that this program does not have.
    #[error("there are tables of {service}, which this program does not know: use the program that wrote them")]
    Foreign {
        /// Whose tables.
        service: String,
    },
    /// There are tables where none should be.
    #[error("there are tables of {service} already: name a database that is empty")]
    Occupied {
        /// Whose tables.
        service: String,
    },
    /// A migration does not work on this database. Nothing of it was done.
    #[error("step {number} ({name}) of {service} failed: {source}; nothing was changed")]
    Migration {
        /// Whose tables.
        service: String,
        /// Which step.
        number: usize,
        /// Its name.
        name: String,
        /// What the database said.
        source: DatabaseError,
    },
    /// The list of what was migrated cannot be read or written.
    #[error("the migrations of this database cannot be read: {0}")]
    List(#[source] DatabaseError),
}

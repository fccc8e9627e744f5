//! The connections: how they are set up, and statements that need no transaction.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};
use sqlx::{Connection as _, Postgres};

use crate::error::is_locked;
use crate::migrations::{self, Dialect, Migrations};
use crate::statement::Connection;
use crate::{DatabaseError, Location, OpenError, Row, Statement, Transaction, Work};

/// Connections that read at the same time from a file of SQLite's, each with a thread of its own.
const SQLITE_READERS: u32 = 8;
/// Connections to PostgreSQL, of the hundred that a server takes by default.
const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a caller waits for a connection, which is also its turn to write where only one writes.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long SQLite waits for another process that writes to the same file, such as a restore.
const OTHER_PROCESS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long PostgreSQL may take for one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection that did nothing for this long is asked whether it still lives before it is used.
const TRUSTED_WHEN_IDLE: Duration = Duration::from_secs(1);
/// Tries of a transaction that others keep getting in the way of.
const WRITE_ATTEMPTS: u32 = 10;
/// What SQLite's log of changes is cut back to once it was larger.
const WAL_SIZE_LIMIT_BYTES: &str = "67108864";

/// A database. Cheap to clone; all clones share their connections.
#[derive(Clone, Debug)]
pub struct Database {
    pub(crate) connections: Connections,
}

#[derive(Clone, Debug)]
pub(crate) enum Connections {
    /// One connection writes, so that writers queue here instead of failing there; the others cannot.
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
    Postgres(PgPool),
}

impl Database {
    /// Opens the database and brings the tables of these services to what this program knows.
    ///
    /// # Errors
    /// [`OpenError`]. When a migration fails, nothing of any was done.
    pub async fn open(location: &Location, services: &[Migrations]) -> Result<Self, OpenError> {
        let database = Self::connect(location).await?;
        migrations::bring_up_to_date(&database, services).await?;
        Ok(database)
    }

    /// Whether [`Self::open`] will refuse what is there because this program does not know it, found out without touching it.
    /// Not looked at: what a killed program left in SQLite's log of changes, and PostgreSQL, which is in no data folder.
    ///
    /// # Errors
    /// [`OpenError::Newer`] and [`OpenError::Different`].
    pub async fn foresee(location: &Location, services: &[Migrations]) -> Result<(), OpenError> {
        let Location::Sqlite(path) = location else { return Ok(()) };
        if !path.exists() {
            return Ok(());
        }
        // What else may be the matter with it is said when it is opened.
        let Ok(database) = Self::open_read_only(path).await else { return Ok(()) };
        let foreseen = migrations::foresee(&database, services).await;
        database.close().await;
        foreseen
    }

    /// Opens the database as it is.
    ///
    /// # Errors
    /// [`OpenError::File`] and [`OpenError::Connect`].
    pub async fn connect(location: &Location) -> Result<Self, OpenError> {
        let connections = match location {
            Location::Sqlite(path) => {
                make_private(path).map_err(|source| OpenError::File { path: path.clone(), source })?;
                open_sqlite(path).await
            }
            Location::Postgres(options) => open_postgres(options).await,
        };
        let failed = |source: sqlx::Error| OpenError::Connect { location: location.to_string(), source: source.into() };
        Ok(Self { connections: connections.map_err(failed)? })
    }

    /// Opens a file that is there, empty or not, and that nobody else uses: all is in it when it is closed, nothing beside it.
    pub(crate) async fn open_alone(path: &Path) -> Result<Self, DatabaseError> {
        let options = alone(path).journal_mode(SqliteJournalMode::Delete).synchronous(SqliteSynchronous::Full);
        Ok(Self::over(pool(1).connect_with(options).await?))
    }

    /// Opens a file that is whole and that nobody changes, and changes nothing of it.
    pub(crate) async fn open_read_only(path: &Path) -> Result<Self, DatabaseError> {
        Ok(Self::over(pool(1).connect_with(alone(path).read_only(true).immutable(true)).await?))
    }

    fn over(only: SqlitePool) -> Self {
        Self { connections: Connections::Sqlite { writer: only.clone(), readers: only } }
    }

    /// Takes the tables of one service to a step, forward or back; step 0 is without any. For operators, who may have
    /// to start an older program, and for tests.
    ///
    /// # Errors
    /// [`OpenError`]. Nothing is done unless all is.
    pub async fn migrate(&self, service: &Migrations, step: usize) -> Result<(), OpenError> {
        migrations::take_to(self, service, step).await
    }

    /// What this database calls things.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        match self.connections {
            Connections::Sqlite { .. } => Dialect::Sqlite,
            Connections::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Reads all rows. They are all in memory: where there may be many, the statement has a `LIMIT`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn all(&self, statement: Statement) -> Result<Vec<Row>, DatabaseError> {
        match &self.connections {
            Connections::Sqlite { readers, .. } => readers.acquire().await?.all(&statement).await,
            Connections::Postgres(pool) => pool.acquire().await?.all(&statement).await,
        }
    }

    /// Reads the first row.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn first(&self, statement: Statement) -> Result<Option<Row>, DatabaseError> {
        match &self.connections {
            Connections::Sqlite { readers, .. } => readers.acquire().await?.first(&statement).await,
            Connections::Postgres(pool) => pool.acquire().await?.first(&statement).await,
        }
    }

    /// Writes with a single statement, and says how many rows it changed. Durable when this returns.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn execute(&self, statement: Statement) -> Result<u64, DatabaseError> {
        match &self.connections {
            Connections::Sqlite { writer, .. } => writer.acquire().await?.execute(&statement).await,
            Connections::Postgres(pool) => pool.acquire().await?.execute(&statement).await,
        }
    }

    /// Writes in a transaction, which is committed when the work succeeds and rolled back when it does not. Durable
    /// when this returns `Ok`.
    ///
    /// ```no_run
    /// # use gf_database::{Database, DatabaseError, sql, work};
    /// # async fn rename(database: &Database, id: i64, name: &str) -> Result<u64, DatabaseError> {
    /// let rename = || sql("UPDATE library_shelf SET name = $1 WHERE id = $2").bind(name).bind(id);
    /// database.write(|transaction| work(async move { transaction.execute(rename()).await })).await
    /// # }
    /// ```
    ///
    /// The work may run several times, when others change the same rows at the same time: what it does beside the
    /// database must bear that, and what it does in the database should be short, since others wait for it.
    ///
    /// # Errors
    /// What the work says, or [`DatabaseError`] of beginning and committing.
    pub async fn write<'e, T, E, F>(&self, mut work: F) -> Result<T, E>
    where
        E: From<DatabaseError>,
        F: for<'t> FnMut(&'t mut Transaction) -> Work<'e, 't, T, E>,
    {
        let mut attempt = 1;
        loop {
            let mut transaction = Transaction::begin(self).await?;
            let result = match work(&mut transaction).await {
                Ok(value) => transaction.commit().await.map(|()| value).map_err(E::from),
                Err(error) => {
                    transaction.roll_back().await;
                    Err(error)
                }
            };
            if result.is_ok() || !transaction.was_contended() || attempt == WRITE_ATTEMPTS {
                return result;
            }
            tokio::time::sleep(pause(attempt)).await;
            attempt += 1;
        }
    }

    /// Closes all connections. What was committed is safe without it; SQLite folds its log into the file.
    pub async fn close(&self) {
        match &self.connections {
            Connections::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Connections::Postgres(pool) => pool.close().await,
        }
    }
}

/// What is waited after an attempt: longer each time, and not the same for two that met.
fn pause(attempt: u32) -> Duration {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    let most_ms = 1 << attempt.min(8);
    Duration::from_millis(u64::from(nanos / 1000) % most_ms + most_ms / 2)
}

/// Makes the file that is not there, for its owner alone: it holds the fingerprints of tokens. SQLite gives the files
/// beside it the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(file) => {
            file.sync_all()?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

async fn open_sqlite(path: &Path) -> Result<Connections, sqlx::Error> {
    let options = alone(path).busy_timeout(OTHER_PROCESS_TIMEOUT);
    let writing = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        // In this mode a commit is on the disk when it returns.
        .synchronous(SqliteSynchronous::Full)
        .pragma("journal_size_limit", WAL_SIZE_LIMIT_BYTES);
    let writer = connect_in_turn(writing).await?;
    let readers = pool(SQLITE_READERS).connect_with(options.pragma("query_only", "ON")).await?;
    Ok(Connections::Sqlite { writer, readers })
}

fn alone(path: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new().filename(path).foreign_keys(true);
    options.pragma("trusted_schema", "OFF").pragma("temp_store", "MEMORY")
}

/// Who is the first to open a file changes how it keeps its log. SQLite lets nobody wait for that change: it says "locked"
/// at once.
async fn connect_in_turn(options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    let deadline = Instant::now() + OTHER_PROCESS_TIMEOUT;
    let mut attempt = 1;
    loop {
        match pool(1).connect_with(options.clone()).await {
            Err(sqlx::Error::Database(report)) if is_locked(report.as_ref()) && Instant::now() < deadline => {
                tokio::time::sleep(pause(attempt)).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn open_postgres(options: &PgConnectOptions) -> Result<Connections, sqlx::Error> {
    let milliseconds = STATEMENT_TIMEOUT.as_millis().to_string();
    let options = options.clone().application_name("gf").options([("statement_timeout", milliseconds)]);
    let pool = pool::<Postgres>(POSTGRES_CONNECTIONS).before_acquire(|connection, idle| {
        Box::pin(async move {
            if idle.idle_for > TRUSTED_WHEN_IDLE {
                connection.ping().await?;
            }
            Ok(true)
        })
    });
    Ok(Connections::Postgres(pool.connect_with(options).await?))
}

fn pool<D: sqlx::Database>(connections: u32) -> PoolOptions<D> {
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(TURN_TIMEOUT)
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

//! A transaction under way.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use sqlx::{Postgres, Sqlite};

use crate::database::Connections;
use crate::statement::Connection;
use crate::{Database, DatabaseError, Dialect, Row, Statement};

/// A transaction under way: see [`Database::write`]. Only one at a time writes to a file of SQLite's; in PostgreSQL
/// they run beside each other and are serializable.
///
/// After a statement that failed, it can only be rolled back.
pub struct Transaction {
    state: State,
    failed: bool,
    contended: bool,
}

enum State {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
    Ended,
}

/// What is done in a transaction: a future over the transaction (`'t`) and what the caller lends (`'e`).
pub struct Work<'e, 't, T, E> {
    future: Pin<Box<dyn Future<Output = Result<T, E>> + Send + 't>>,
    /// Says that what is lent outlives the transaction.
    lent: PhantomData<&'t &'e ()>,
}

/// What is done in a transaction, for [`Database::write`].
pub fn work<'e, 't, T, E>(future: impl Future<Output = Result<T, E>> + Send + 't) -> Work<'e, 't, T, E> {
    Work { future: Box::pin(future), lent: PhantomData }
}

impl<T, E> Future for Work<'_, '_, T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T, E>> {
        self.future.as_mut().poll(context)
    }
}

impl Transaction {
    pub(crate) async fn begin(database: &Database) -> Result<Self, DatabaseError> {
        let state = match &database.connections {
            // At once a writer: one that became it later could meet another, and would have to begin again.
            Connections::Sqlite { writer, .. } => State::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Connections::Postgres(pool) => {
                State::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await?)
            }
        };
        Ok(Self { state, failed: false, contended: false })
    }

    /// Begins one that sees everything as it is at one moment, and writes nothing.
    pub(crate) async fn begin_reading(database: &Database) -> Result<Self, DatabaseError> {
        let state = match &database.connections {
            Connections::Sqlite { readers, .. } => State::Sqlite(readers.begin().await?),
            Connections::Postgres(pool) => {
                State::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        };
        Ok(Self { state, failed: false, contended: false })
    }

    /// Reads all rows.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn all(&mut self, statement: Statement) -> Result<Vec<Row>, DatabaseError> {
        let result = self.connection()?.all(&statement).await;
        self.note(result)
    }

    /// Reads the first row.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn first(&mut self, statement: Statement) -> Result<Option<Row>, DatabaseError> {
        let result = self.connection()?.first(&statement).await;
        self.note(result)
    }

    /// Writes, and says how many rows were changed.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn execute(&mut self, statement: Statement) -> Result<u64, DatabaseError> {
        let result = self.connection()?.execute(&statement).await;
        self.note(result)
    }

    /// Runs the statements of a migration, which have no values.
    pub(crate) async fn run_script(&mut self, script: &str) -> Result<(), DatabaseError> {
        let result = self.connection()?.run_script(script).await;
        self.note(result)
    }

    /// What the database calls things.
    pub(crate) const fn dialect(&self) -> Dialect {
        match self.state {
            State::Postgres(_) => Dialect::Postgres,
            State::Sqlite(_) | State::Ended => Dialect::Sqlite,
        }
    }

    pub(crate) async fn commit(&mut self) -> Result<(), DatabaseError> {
        if self.failed {
            // PostgreSQL would roll back and call it done.
            self.roll_back().await;
            let mistake = "a transaction cannot be committed after a statement of it failed";
            return Err(DatabaseError::Broken(sqlx::Error::Configuration(mistake.into())));
        }
        let result = match std::mem::replace(&mut self.state, State::Ended) {
            State::Sqlite(inner) => inner.commit().await,
            State::Postgres(inner) => inner.commit().await,
            State::Ended => return Err(ended()),
        };
        self.note(result.map_err(DatabaseError::from))
    }

    /// Gives up what was written. A connection that is gone has done so already.
    pub(crate) async fn roll_back(&mut self) {
        let result = match std::mem::replace(&mut self.state, State::Ended) {
            State::Sqlite(inner) => inner.rollback().await,
            State::Postgres(inner) => inner.rollback().await,
            State::Ended => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a transaction ended with its connection");
        }
    }

    /// Whether it had to give way to another.
    pub(crate) const fn was_contended(&self) -> bool {
        self.contended
    }

    fn connection(&mut self) -> Result<&mut dyn Connection, DatabaseError> {
        match &mut self.state {
            State::Sqlite(inner) => Ok(&mut **inner),
            State::Postgres(inner) => Ok(&mut **inner),
            State::Ended => Err(ended()),
        }
    }

    fn note<T>(&mut self, result: Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        self.failed |= result.is_err();
        self.contended |= matches!(result, Err(DatabaseError::Contended(_)));
        result
    }
}

fn ended() -> DatabaseError {
    DatabaseError::Broken(sqlx::Error::Configuration("the transaction has ended".into()))
}

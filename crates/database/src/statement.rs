//! Statements, the values that go into them, and the rows that come back.

use std::borrow::Cow;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;

use sqlx::database::HasStatementCache;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Arguments, Executor, IntoArguments, Postgres, Row as _, Sqlite};

use crate::DatabaseError;

/// A statement of SQL with its values.
#[derive(Clone, Debug)]
#[must_use = "a statement does nothing until a database runs it"]
pub struct Statement {
    pub(crate) text: Cow<'static, str>,
    values: Vec<Value>,
}

/// Begins a statement; `$1`, `$2`… are the places of its values. A text that is made for the occasion is not kept
/// prepared.
pub fn sql(text: impl Into<Cow<'static, str>>) -> Statement {
    Statement { text: text.into(), values: Vec::new() }
}

impl Statement {
    /// Gives the next place its value.
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Gives the next places their values, one each.
    pub fn bind_all<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.values.extend(values.into_iter().map(Into::into));
        self
    }
}

/// `$first, $first+1, …`: the places of a list of values, as after `IN`.
#[must_use]
pub fn places(first: usize, count: usize) -> String {
    let mut text = String::with_capacity(count * 5);
    for at in first..first + count {
        let comma = if at == first { "" } else { ", " };
        // Writing into a string does not fail.
        let _ = write!(text, "{comma}${at}");
    }
    text
}

/// What a column holds: a number, text or bytes, each possibly absent. Text must hold no zero character, which
/// PostgreSQL does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `BIGINT`.
    Integer(Option<i64>),
    /// `TEXT`.
    Text(Option<String>),
    /// The word `{bytes}`.
    Bytes(Option<Vec<u8>>),
}

macro_rules! values {
    ($($from:ty => $variant:ident($convert:expr)),+ $(,)?) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                let convert: fn($from) -> _ = $convert;
                Self::$variant(Some(convert(value)))
            }
        }

        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map($convert))
            }
        }
    )+};
}

values! {
    i64 => Integer(|number| number),
    i32 => Integer(i64::from),
    u32 => Integer(i64::from),
    bool => Integer(i64::from),
    String => Text(|text| text),
    &str => Text(str::to_owned),
    Vec<u8> => Bytes(|bytes| bytes),
    &[u8] => Bytes(<[u8]>::to_vec),
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Self::Bytes(Some(bytes.to_vec()))
    }
}

/// What both systems do with a statement, on one of their connections.
///
/// The futures are boxed, as they are in sqlx too: a compiler of today cannot see that a deeper one is `Send`.
pub(crate) trait Connection: Send {
    fn all<'c>(&'c mut self, statement: &'c Statement) -> Answer<'c, Vec<Row>>;
    fn first<'c>(&'c mut self, statement: &'c Statement) -> Answer<'c, Option<Row>>;
    fn execute<'c>(&'c mut self, statement: &'c Statement) -> Answer<'c, u64>;
    /// Runs several statements without values.
    fn run_script<'c>(&'c mut self, script: &'c str) -> Answer<'c, ()>;
}

pub(crate) type Answer<'c, T> = Pin<Box<dyn Future<Output = Result<T, DatabaseError>> + Send + 'c>>;

macro_rules! connections {
    ($($connection:ty, $system:ty);+ $(;)?) => {$(
        impl Connection for $connection {
            fn all<'c>(&'c mut self, statement: &'c Statement) -> Answer<'c, Vec<Row>> {
                Box::pin(async move {
                    let rows = self.fetch_all(query::<$system>(statement)?).await?;
                    Ok(rows.into_iter().map(Row::from).collect())
                })
            }

            fn first<'c>(&'c mut self, statement: &'c Statement) -> Answer<'c, Option<Row>> {
                Box::pin(async move {
                    let row = self.fetch_optional(query::<$system>(statement)?).await?;
                    Ok(row.map(Row::from))
                })
            }

            fn execute<'c>(&'c mut self, statement: &'c Statement) -> Answer<'c, u64> {
                Box::pin(async move {
                    Ok(Executor::execute(self, query::<$system>(statement)?).await?.rows_affected())
                })
            }

            fn run_script<'c>(&'c mut self, script: &'c str) -> Answer<'c, ()> {
                Box::pin(async move { Ok(Executor::execute(self, script).await.map(drop)?) })
            }
        }
    )+};
}

connections! {
    SqliteConnection, Sqlite;
    PgConnection, Postgres;
}

fn query<S: sqlx::Database + HasStatementCache>(
    statement: &Statement,
) -> Result<Query<'_, S, S::Arguments<'_>>, DatabaseError>
where
    for<'q> S::Arguments<'q>: IntoArguments<'q, S>,
    for<'q> Option<i64>: sqlx::Encode<'q, S> + sqlx::Type<S>,
    for<'q> Option<String>: sqlx::Encode<'q, S> + sqlx::Type<S>,
    for<'q> Option<Vec<u8>>: sqlx::Encode<'q, S> + sqlx::Type<S>,
{
    let mut arguments = S::Arguments::default();
    for value in statement.values.iter().cloned() {
        match value {
            Value::Integer(number) => arguments.add(number),
            Value::Text(text) => arguments.add(text),
            Value::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    // Only texts that are part of the program are worth keeping prepared: their number is bounded.
    let is_kept = matches!(statement.text, Cow::Borrowed(_));
    Ok(sqlx::query_with(&statement.text, arguments).persistent(is_kept))
}

/// One row of an answer.
pub struct Row(pub(crate) AnyRow);

pub(crate) enum AnyRow {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What a column can be read as: `i64`, `String`, `Vec<u8>`, or an `Option` of them where it may be absent.
///
/// A sum of numbers is a `NUMERIC` in PostgreSQL: read it as `CAST(SUM(…) AS BIGINT)`.
pub trait Column:
    for<'r> sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite> + for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>
{
}

impl Column for i64 {}
impl Column for String {}
impl Column for Vec<u8> {}
impl<T: Column> Column for Option<T>
where
    for<'r> Option<T>: sqlx::Decode<'r, Sqlite> + sqlx::Decode<'r, Postgres>,
    Option<T>: sqlx::Type<Sqlite> + sqlx::Type<Postgres>,
{
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// [`DatabaseError::Broken`] when there is no such column, or it holds something else.
    pub fn get<T: Column>(&self, column: &str) -> Result<T, DatabaseError> {
        Ok(match &self.0 {
            AnyRow::Sqlite(row) => row.try_get(column)?,
            AnyRow::Postgres(row) => row.try_get(column)?,
        })
    }

    /// The value of a column that holds 0 or 1.
    ///
    /// # Errors
    /// As [`Row::get`].
    pub fn flag(&self, column: &str) -> Result<bool, DatabaseError> {
        self.get::<i64>(column).map(|number| number != 0)
    }
}

impl From<SqliteRow> for Row {
    fn from(row: SqliteRow) -> Self {
        Self(AnyRow::Sqlite(row))
    }
}

impl From<PgRow> for Row {
    fn from(row: PgRow) -> Self {
        Self(AnyRow::Postgres(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_places() {
        assert_eq!(places(1, 3), "$1, $2, $3");
        assert_eq!(places(9, 2), "$9, $10");
        assert_eq!(places(1, 0), "");
    }
}

//! All rows of one database into another that has the same tables, whichever systems the two are.
//!
//! One of the two is always a file of SQLite's, which says what tables there are, what their columns hold, and which
//! refer to which. What always holds: the source is seen as it is at one moment; what the target gets, it gets whole or
//! not at all, since that is one transaction of its caller's; at most a page of rows is in memory.

use std::collections::HashSet;

use thiserror::Error;

use crate::migrations::{self, Migrations};
use crate::statement::Value;
use crate::{Database, DatabaseError, Dialect, OpenError, Row, Transaction, Work, places, sql, work};

/// Rows that are read and written with one statement.
const PAGE: usize = 200;

/// What is written into a copy at last.
pub(crate) type Last = for<'t> fn(&'t mut Transaction) -> Work<'static, 't, (), DatabaseError>;

/// Why nothing was copied.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    /// The tables cannot be made, or are none that this program knows.
    #[error(transparent)]
    Tables(#[from] OpenError),
    /// The rows cannot be read or written.
    #[error(transparent)]
    Rows(#[from] DatabaseError),
}

/// Nothing is done beside copying.
pub(crate) fn nothing_more(_: &mut Transaction) -> Work<'static, '_, (), DatabaseError> {
    work(std::future::ready(Ok(())))
}

/// Makes the tables of the source in a target that has none, fills them, brings them to what this program knows, and does
/// what is to be done at last: all of it or nothing.
pub(crate) async fn transfer(
    source: &mut Transaction,
    target: &Database,
    services: &[Migrations],
    last: Last,
) -> Result<(), CopyError> {
    let mut writing = Transaction::begin(target).await?;
    let written = match write_all(source, &mut writing, services).await {
        Ok(()) => last(&mut writing).await.map_err(CopyError::from),
        Err(error) => Err(error),
    };
    match written {
        Ok(()) => Ok(writing.commit().await?),
        Err(error) => {
            writing.roll_back().await;
            Err(error)
        }
    }
}

async fn write_all(
    source: &mut Transaction,
    target: &mut Transaction,
    services: &[Migrations],
) -> Result<(), CopyError> {
    migrations::repeat(target, services, &migrations::applied(source).await?).await?;
    let tables = match target.dialect() {
        Dialect::Sqlite => tables(target).await?,
        Dialect::Postgres => tables(source).await?,
    };
    copy(source, target, &tables).await?;
    Ok(migrations::advance(target, services).await?)
}

/// What a column holds, as far as values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Text,
    Bytes,
}

/// A table as SQLite describes it.
#[derive(Debug)]
struct Table {
    name: String,
    columns: Vec<(String, Kind)>,
    /// The tables that it refers to.
    refers_to: HashSet<String>,
    /// The column that the database counts up, if there is one.
    counter: Option<String>,
}

/// The tables of a file of SQLite's but the list of migrations, those first that others refer to.
async fn tables(sqlite: &mut Transaction) -> Result<Vec<Table>, DatabaseError> {
    let names = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name <> 'migration' \
                 AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
    let mut tables = Vec::new();
    for row in sqlite.all(sql(names)).await? {
        tables.push(describe(sqlite, row.get("name")?, &row.get::<String>("sql")?).await?);
    }
    Ok(in_order(tables))
}

async fn describe(sqlite: &mut Transaction, name: String, text: &str) -> Result<Table, DatabaseError> {
    let (mut columns, mut counter) = (Vec::new(), None);
    let described = sql("SELECT name, type, pk FROM pragma_table_info($1) ORDER BY cid");
    for row in sqlite.all(described.bind(name.as_str())).await? {
        let column: String = row.get("name")?;
        let kind = match row.get::<String>("type")?.as_str() {
            "TEXT" => Kind::Text,
            "BLOB" => Kind::Bytes,
            _ => Kind::Integer,
        };
        if row.flag("pk")? && text.contains("AUTOINCREMENT") {
            counter = Some(column.clone());
        }
        columns.push((column, kind));
    }
    let others = sql("SELECT DISTINCT \"table\" AS other FROM pragma_foreign_key_list($1)").bind(name.as_str());
    let rows = sqlite.all(others).await?;
    let refers_to = rows.iter().map(|row| row.get("other")).collect::<Result<_, _>>()?;
    Ok(Table { name, columns, refers_to, counter })
}

/// Those first that others refer to. Tables that refer to each other keep their order.
fn in_order(mut tables: Vec<Table>) -> Vec<Table> {
    let mut ordered: Vec<Table> = Vec::with_capacity(tables.len());
    while !tables.is_empty() {
        let waits = |table: &Table| {
            table.refers_to.iter().any(|other| *other != table.name && tables.iter().any(|table| table.name == *other))
        };
        let next = tables.iter().position(|table| !waits(table)).unwrap_or_default();
        ordered.push(tables.remove(next));
    }
    ordered
}

/// Copies all rows of these tables.
async fn copy(source: &mut Transaction, target: &mut Transaction, tables: &[Table]) -> Result<(), DatabaseError> {
    for table in tables {
        let mut pages = Pages::begin(source, table).await?;
        loop {
            let rows = pages.next(source).await?;
            insert(target, table, &rows).await?;
            if rows.len() < PAGE {
                break;
            }
        }
        pages.end(source).await?;
        if let Some(counter) = &table.counter {
            count_on(source, target, &table.name, counter).await?;
        }
    }
    Ok(())
}

/// The rows of a table, one page after the other: those of PostgreSQL by a cursor, those of SQLite by their numbers.
struct Pages<'t> {
    table: &'t Table,
    after: i64,
}

impl<'t> Pages<'t> {
    async fn begin(source: &mut Transaction, table: &'t Table) -> Result<Self, DatabaseError> {
        if source.dialect() == Dialect::Postgres {
            let (columns, name) = (quoted(&table.columns), &table.name);
            let cursor = format!("DECLARE copied NO SCROLL CURSOR FOR SELECT {columns} FROM \"{name}\"");
            source.run_script(&cursor).await?;
        }
        Ok(Self { table, after: i64::MIN })
    }

    async fn next(&mut self, source: &mut Transaction) -> Result<Vec<Row>, DatabaseError> {
        let Table { name, columns, .. } = self.table;
        if source.dialect() == Dialect::Postgres {
            return source.all(sql(format!("FETCH {PAGE} FROM copied"))).await;
        }
        let columns = quoted(columns);
        let text = format!(
            "SELECT rowid AS row_number_of_copy, {columns} FROM \"{name}\" WHERE rowid > $1 ORDER BY rowid LIMIT {PAGE}"
        );
        let rows = source.all(sql(text).bind(self.after)).await?;
        if let Some(last) = rows.last() {
            self.after = last.get("row_number_of_copy")?;
        }
        Ok(rows)
    }

    async fn end(self, source: &mut Transaction) -> Result<(), DatabaseError> {
        match source.dialect() {
            Dialect::Postgres => source.run_script("CLOSE copied").await,
            Dialect::Sqlite => Ok(()),
        }
    }
}

async fn insert(target: &mut Transaction, table: &Table, rows: &[Row]) -> Result<(), DatabaseError> {
    if rows.is_empty() {
        return Ok(());
    }
    let Table { name, columns, .. } = table;
    let width = columns.len();
    let places: Vec<String> = (0..rows.len()).map(|row| format!("({})", places(1 + row * width, width))).collect();
    let mut values = Vec::with_capacity(rows.len() * width);
    for row in rows {
        for (column, kind) in columns {
            values.push(match kind {
                Kind::Integer => Value::Integer(row.get(column)?),
                Kind::Text => Value::Text(row.get(column)?),
                Kind::Bytes => Value::Bytes(row.get(column)?),
            });
        }
    }
    let text = format!("INSERT INTO \"{name}\" ({}) VALUES {}", quoted(columns), places.join(", "));
    target.execute(sql(text).bind_all(values)).await.map(drop)
}

/// Lets the target count on where the source would: a number that a removed row had is not given again.
async fn count_on(
    source: &mut Transaction,
    target: &mut Transaction,
    table: &str,
    column: &str,
) -> Result<(), DatabaseError> {
    let asked = match source.dialect() {
        Dialect::Sqlite => sql("SELECT seq AS last FROM sqlite_sequence WHERE name = $1").bind(table),
        Dialect::Postgres => {
            // It says NULL when nothing was counted yet.
            let last = "SELECT pg_sequence_last_value(pg_get_serial_sequence($1, $2)::regclass) AS last";
            sql(last).bind(format!("\"{table}\"")).bind(column)
        }
    };
    let last = source.first(asked).await?.map(|row| row.get::<Option<i64>>("last")).transpose()?.flatten();
    let Some(last) = last.filter(|last| *last > 0) else { return Ok(()) };
    match target.dialect() {
        Dialect::Sqlite => {
            target.execute(sql("DELETE FROM sqlite_sequence WHERE name = $1").bind(table)).await?;
            let set = sql("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)").bind(table).bind(last);
            target.execute(set).await?;
        }
        Dialect::Postgres => {
            let set = sql("SELECT setval(pg_get_serial_sequence($1, $2)::regclass, $3)");
            target.all(set.bind(format!("\"{table}\"")).bind(column).bind(last)).await?;
        }
    }
    Ok(())
}

fn quoted(columns: &[(String, Kind)]) -> String {
    columns.iter().map(|(column, _)| format!("\"{column}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_referred_to_comes_first() {
        let table = |name: &str, others: &[&str]| Table {
            name: name.to_owned(),
            columns: Vec::new(),
            refers_to: others.iter().map(|other| (*other).to_owned()).collect(),
            counter: None,
        };
        let order = |tables: Vec<Table>| in_order(tables).into_iter().map(|table| table.name).collect::<Vec<_>>();
        assert_eq!(
            order(vec![table("book", &["shelf"]), table("shelf", &["room"]), table("room", &[])]),
            ["room", "shelf", "book"]
        );
        assert_eq!(order(vec![table("own", &["own"]), table("a", &["b"]), table("b", &["a"])]), ["own", "a", "b"]);
    }
}

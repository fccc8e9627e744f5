//! The facts of services, in SQLite or PostgreSQL: where they are, statements, transactions, migrations, backups.
//!
//! Each service owns its own SQL. It hands in its [`Migrations`] once, when the database is opened, and its statements
//! one by one; this crate knows no table but its own list of what was migrated. The same statements run on both
//! systems: values are [`Value`]s (whole numbers, text, bytes, or their absence), places in a statement are `$1`,
//! `$2`…, and what the two name differently stands as a [word](Dialect) in migrations.
//!
//! What always holds:
//! - What was committed survives a killed process and a power cut. (For PostgreSQL, as far as its own settings say so.)
//! - A transaction sees and does all or nothing, as if no other ran beside it. Where two got in each other's way, one
//!   is tried again, a bounded number of times.
//! - *Cannot say now* is told apart from *forbidden by a rule of the tables*, and both from a bug: see
//!   [`DatabaseError`].
//! - Every wait for a connection and for a turn to write is bounded, and PostgreSQL is told to give up a statement after
//!   a minute. (Not bounded: a statement on a file, and a PostgreSQL server that is there no more and does not say so.)
//!
//! Deliberately absent: an object mapper, statements of any service, large objects (bytes belong in the blob store),
//! floating point, times and Booleans as column types (a time is a number of seconds or milliseconds).

mod backup;
mod copy;
mod database;
mod error;
mod file;
mod location;
mod migrations;
mod restore;
mod statement;
mod transaction;

pub use backup::BackupError;
pub use database::Database;
pub use error::{DatabaseError, OpenError};
pub use location::{Location, LocationError};
pub use migrations::{Dialect, Migration, Migrations};
pub use restore::RestoreError;
pub use statement::{Column, Row, Statement, Value, places, sql};
pub use transaction::{Transaction, Work, work};

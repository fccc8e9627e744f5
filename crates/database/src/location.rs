//! Where a database is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use thiserror::Error;

/// Where a database is: a file of SQLite's, or a PostgreSQL server.
///
/// A PostgreSQL URL may hold a password, so this shows only user, host and database.
#[derive(Clone)]
pub enum Location {
    /// This file, which is made when it is not there. Its folder must exist.
    Sqlite(PathBuf),
    /// This server and database; the database must exist.
    Postgres(Box<PgConnectOptions>),
}

/// Why text names no database.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LocationError {
    /// Neither `sqlite:` nor `postgres:`.
    #[error("a database is `sqlite:PATH` or `postgres://USER@HOST/DATABASE`")]
    UnknownScheme,
    /// A PostgreSQL URL that cannot be read. What it was is not repeated, since a password may be part of it.
    #[error("the PostgreSQL URL cannot be read: {0}")]
    Url(String),
    /// `sqlite:` and nothing.
    #[error("`sqlite:` is followed by the path of a file")]
    NoPath,
}

impl Location {
    /// A file of SQLite's.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            // Both `sqlite:///var/lib/x` and `sqlite:/var/lib/x` name the same file; a path is taken as it stands.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(LocationError::NoPath) } else { Ok(Self::Sqlite(path.into())) };
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let options = text.parse::<PgConnectOptions>().map_err(|error| LocationError::Url(error.to_string()))?;
            return Ok(Self::Postgres(Box::new(options)));
        }
        Err(LocationError::UnknownScheme)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(options) => {
                let (user, host) = (options.get_username(), options.get_host());
                let database = options.get_database().unwrap_or(user);
                write!(f, "postgres://{user}@{host}:{port}/{database}", port = options.get_port())
            }
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let check = |text: &str, expected: Result<&str, LocationError>| {
            let shown = text.parse::<Location>().map(|location| location.to_string());
            assert_eq!(shown, expected.map(str::to_owned), "{text}");
        };
        check("sqlite:/var/lib/gf/facts.db", Ok("sqlite:/var/lib/gf/facts.db"));
        check("sqlite:///var/lib/a b%20?.db", Ok("sqlite:/var/lib/a b%20?.db"));
        check("sqlite:facts.db", Ok("sqlite:facts.db"));
        check("postgres://gf:s3cret@db.example:5433/facts", Ok("postgres://gf@db.example:5433/facts"));
        check("postgresql://gf@db.example/facts?sslmode=verify-full", Ok("postgres://gf@db.example:5432/facts"));
        check("sqlite:", Err(LocationError::NoPath));
        check("mysql://db.example/facts", Err(LocationError::UnknownScheme));
        check("/var/lib/facts.db", Err(LocationError::UnknownScheme));
    }

    #[test]
    fn a_password_is_not_shown() {
        let location: Location = "postgres://gf:s3cret@db.example/facts".parse().unwrap();
        assert!(!format!("{location:?} {location}").contains("s3cret"));
        let error = "postgres://gf:s3cret@db.example:99999/facts".parse::<Location>().unwrap_err();
        assert!(!format!("{error:?} {error}").contains("s3cret"), "{error:?}");
    }
}

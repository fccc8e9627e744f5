//! A database of its own for each test, of each kind.

use std::path::PathBuf;
use std::sync::Arc;

use gf_database::{Database, Location, Migration, Migrations};
use gf_testkit::PostgresServer;
use tempfile::TempDir;

pub(crate) const LIBRARY: Migrations = Migrations {
    service: "library",
    steps: &[
        Migration {
            name: "shelves and books",
            forward: "
                CREATE TABLE library_shelf (id {identity}, name {text} NOT NULL UNIQUE);
                CREATE TABLE library_book (
                    title {text} PRIMARY KEY,
                    shelf BIGINT NOT NULL REFERENCES library_shelf (id),
                    cover {bytes},
                    lent BIGINT NOT NULL DEFAULT 0
                );",
            back: "DROP TABLE library_book; DROP TABLE library_shelf;",
        },
        Migration {
            name: "pages",
            forward: "ALTER TABLE library_book ADD COLUMN pages BIGINT;",
            back: "ALTER TABLE library_book DROP COLUMN pages;",
        },
    ],
};

/// Where one test keeps its database.
pub(crate) struct Setting {
    pub(crate) location: Location,
    folder: TempDir,
    _server: Option<Arc<PostgresServer>>,
}

impl Setting {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { location: Location::Sqlite(folder.path().join("facts.db")), folder, _server: None }
    }

    pub(crate) fn postgres() -> Self {
        let server = PostgresServer::shared().unwrap();
        let location = server.database().unwrap().parse().unwrap();
        Self { location, folder: tempfile::tempdir().unwrap(), _server: Some(server) }
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::sqlite(), Self::postgres()]
    }

    pub(crate) async fn open(&self) -> Database {
        Database::open(&self.location, &[LIBRARY]).await.unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

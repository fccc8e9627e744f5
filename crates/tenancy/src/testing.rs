//! A database for each test.

use std::sync::Arc;

use gf_database::{Database, Location};
use gf_testkit::PostgresServer;
use tempfile::TempDir;

/// A place for a database, which is there until this is dropped.
pub(crate) struct Place {
    location: Location,
    _folder: TempDir,
    _server: Option<Arc<PostgresServer>>,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { location: Location::Sqlite(folder.path().join("facts.db")), _folder: folder, _server: None }
    }

    pub(crate) fn postgres() -> Self {
        let server = PostgresServer::shared().unwrap();
        let location = server.database().unwrap().parse().unwrap();
        Self { location, _folder: tempfile::tempdir().unwrap(), _server: Some(server) }
    }

    pub(crate) async fn open(&self) -> Database {
        Database::open(&self.location, &[crate::MIGRATIONS]).await.unwrap()
    }
}

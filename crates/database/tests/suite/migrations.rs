//! Migrations forward and back.

use gf_database::{Database, Migration, Migrations, OpenError, sql};

use crate::setting::{LIBRARY, Setting};

const fn library(steps: &'static [Migration]) -> Migrations {
    Migrations { service: "library", steps }
}

async fn has(database: &Database, statement: &'static str) -> bool {
    database.all(sql(statement)).await.is_ok()
}

const PAGES: &str = "SELECT pages FROM library_book";
const BOOKS: &str = "SELECT title FROM library_book";

#[tokio::test]
async fn forward_and_back() {
    for setting in Setting::both() {
        let database = setting.open().await;
        assert!(has(&database, PAGES).await);
        for (step, books, pages) in [(1, true, false), (0, false, false), (1, true, false), (2, true, true)] {
            database.migrate(&LIBRARY, step).await.unwrap();
            assert_eq!((has(&database, BOOKS).await, has(&database, PAGES).await), (books, pages), "step {step}");
        }
        database.close().await;
        // Opening it again does nothing, and nothing is lost.
        setting.open().await.execute(sql("INSERT INTO library_shelf (name) VALUES ('kept')")).await.unwrap();
        let again = setting.open().await;
        assert_eq!(again.all(sql("SELECT name FROM library_shelf")).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn what_fails_changes_nothing() {
    const BROKEN: Migrations = library(&[
        Migration { name: "fine", forward: "CREATE TABLE library_shelf (id BIGINT);", back: "" },
        Migration { name: "broken", forward: "CREATE TABLE library_x (id BIGINT); SELEKT 1;", back: "" },
    ]);
    const OTHER: Migrations = Migrations {
        service: "other",
        steps: &[Migration { name: "first", forward: "CREATE TABLE other (id BIGINT);", back: "DROP TABLE other;" }],
    };
    for setting in Setting::both() {
        let error = Database::open(&setting.location, &[OTHER, BROKEN]).await.unwrap_err();
        match &error {
            OpenError::Migration { service, number, name, .. } => {
                assert_eq!((service.as_str(), *number, name.as_str()), ("library", 2, "broken"));
            }
            other => panic!("{other:?}"),
        }
        let database = Database::open(&setting.location, &[]).await.unwrap();
        for table in ["SELECT * FROM other", "SELECT * FROM library_shelf", "SELECT * FROM library_x"] {
            assert!(!has(&database, table).await, "{table}");
        }
        assert!(database.all(sql("SELECT step FROM migration")).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn another_programs_tables_are_refused() {
    const CHANGED: &[Migration] = &[Migration { name: "other books", forward: "SELECT 1;", back: "" }];
    for setting in Setting::both() {
        setting.open().await;
        let older = Database::open(&setting.location, &[library(&LIBRARY.steps[..1])]).await.unwrap_err();
        assert!(matches!(older, OpenError::Newer { found: 2, known: 1, .. }), "{older:?}");
        setting.open().await.migrate(&LIBRARY, 1).await.unwrap();
        let different = Database::open(&setting.location, &[library(CHANGED)]).await.unwrap_err();
        assert!(matches!(different, OpenError::Different { number: 1, .. }), "{different:?}");
    }
}

#[tokio::test]
async fn many_that_open_at_once_migrate_once() {
    for setting in Setting::both() {
        // Who closes last tidies up, which would hold up those that open meanwhile.
        let _open = Database::connect(&setting.location).await.unwrap();
        let openings = (0..4).map(|_| {
            let location = setting.location.clone();
            tokio::spawn(async move { Database::open(&location, &[LIBRARY]).await.map(drop) })
        });
        for opening in openings.collect::<Vec<_>>() {
            opening.await.unwrap().unwrap();
        }
        let steps = setting.open().await.all(sql("SELECT step FROM migration")).await.unwrap();
        assert_eq!(steps.len(), LIBRARY.steps.len());
    }
}

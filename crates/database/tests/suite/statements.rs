//! Single statements: values there and back, and the kinds of errors.

use gf_database::{Database, DatabaseError, Location, OpenError, places, sql, work};

use crate::setting::Setting;

async fn add_shelf(database: &Database, name: &str) -> i64 {
    let insert = || sql("INSERT INTO library_shelf (name) VALUES ($1) RETURNING id").bind(name);
    let row = database.write(|transaction| work(async move { transaction.first(insert()).await }));
    let row: Result<_, DatabaseError> = row.await;
    row.unwrap().unwrap().get("id").unwrap()
}

#[tokio::test]
async fn values_come_back_as_they_went_in() {
    for setting in Setting::both() {
        let database = setting.open().await;
        let shelf = add_shelf(&database, "novels").await;
        let insert = || sql("INSERT INTO library_book (title, shelf, cover, pages) VALUES ($1, $2, $3, $4)");
        for (title, cover, pages) in [
            ("Größe", Some(vec![0, 255, 0]), Some(i64::MIN)),
            ("", Some(Vec::new()), Some(i64::MAX)),
            ("no cover", None, None),
        ] {
            let statement = insert().bind(title).bind(shelf).bind(cover.clone()).bind(pages);
            assert_eq!(database.execute(statement).await.unwrap(), 1, "{title}");
            let read = sql("SELECT title, cover, pages, lent FROM library_book WHERE title = $1").bind(title);
            let row = database.first(read).await.unwrap().unwrap();
            assert_eq!(row.get::<String>("title").unwrap(), title);
            assert_eq!(row.get::<Option<Vec<u8>>>("cover").unwrap(), cover, "{title}");
            assert_eq!(row.get::<Option<i64>>("pages").unwrap(), pages, "{title}");
            assert!(!row.flag("lent").unwrap());
        }
        let titles = ["", "no cover", "other"];
        let text = format!("SELECT title FROM library_book WHERE title IN ({})", places(1, titles.len()));
        assert_eq!(database.all(sql(text).bind_all(titles)).await.unwrap().len(), 2);
        assert!(database.first(sql("SELECT title FROM library_book WHERE title = 'x'")).await.unwrap().is_none());
        let lend = sql("UPDATE library_book SET lent = $1 WHERE pages IS NOT NULL").bind(true);
        assert_eq!(database.execute(lend).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn text_is_ordered_byte_by_byte() {
    for setting in Setting::both() {
        let database = setting.open().await;
        for name in ["b", "A", "a", "B", "ä", "a-b", "aa"] {
            add_shelf(&database, name).await;
        }
        let rows = database.all(sql("SELECT name FROM library_shelf ORDER BY name")).await.unwrap();
        let names: Vec<String> = rows.iter().map(|row| row.get("name").unwrap()).collect();
        assert_eq!(names, ["A", "B", "a", "a-b", "aa", "b", "ä"], "{:?}", setting.location);
    }
}

#[tokio::test]
async fn errors_tell_who_is_at_fault() {
    for setting in Setting::both() {
        let database = setting.open().await;
        let shelf = add_shelf(&database, "novels").await;
        let book = |title: &str, shelf: i64| {
            sql("INSERT INTO library_book (title, shelf) VALUES ($1, $2)").bind(title).bind(shelf)
        };
        database.execute(book("one", shelf)).await.unwrap();
        for conflicting in [
            book("one", shelf),
            book("two", shelf + 1),
            sql("INSERT INTO library_shelf (name) VALUES ($1)").bind("novels"),
            sql("UPDATE library_book SET lent = NULL"),
        ] {
            let error = database.execute(conflicting.clone()).await.unwrap_err();
            assert!(error.is_conflict() && !error.is_unavailable(), "{conflicting:?}: {error:?}");
        }
        for broken in ["SELECT nothing FROM library_book", "SELEKT 1"] {
            let error = database.all(sql(broken)).await.err().unwrap();
            assert!(matches!(error, DatabaseError::Broken(_)), "{error:?}");
        }
        let row = database.first(sql("SELECT title, lent FROM library_book")).await.unwrap().unwrap();
        assert!(matches!(row.get::<i64>("title"), Err(DatabaseError::Broken(_))));
        assert!(matches!(row.get::<String>("absent"), Err(DatabaseError::Broken(_))));
        database.close().await;
        let error = database.all(sql("SELECT 1")).await.err().unwrap();
        assert!(error.is_unavailable(), "{error:?}");
    }
}

#[tokio::test]
async fn what_is_read_cannot_write() {
    let setting = Setting::sqlite();
    let database = setting.open().await;
    let error = database.all(sql("INSERT INTO library_shelf (name) VALUES ('x') RETURNING id")).await.err();
    assert!(error.is_some());
    assert!(database.all(sql("SELECT id FROM library_shelf")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_database_that_is_not_there() {
    let setting = Setting::sqlite();
    let missing = Location::Sqlite(setting.file("missing/facts.db"));
    let error = Database::connect(&missing).await.unwrap_err();
    assert!(matches!(error, OpenError::File { .. }), "{error:?}");
    let nobody = setting.file("").to_string_lossy().replace('/', "%2F");
    let location: Location = format!("postgres://gf:s3cret@{nobody}/facts").parse().unwrap();
    match Database::connect(&location).await.unwrap_err() {
        OpenError::Connect { location, source } => {
            assert!(source.is_unavailable() && !location.contains("s3cret"), "{location}: {source:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let setting = Setting::sqlite();
    let database = setting.open().await;
    add_shelf(&database, "novels").await;
    for name in ["facts.db", "facts.db-wal"] {
        let mode = std::fs::metadata(setting.file(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

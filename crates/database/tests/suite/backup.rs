//! A copy is made while others write, and put back whole or not at all.

use std::os::unix::fs::PermissionsExt;

use gf_database::{Database, DatabaseError, Location, RestoreError, sql, work};

use crate::setting::{LIBRARY, Setting};

async fn shelves(database: &Database) -> i64 {
    let row = database.first(sql("SELECT COUNT(*) AS shelves FROM library_shelf")).await.unwrap();
    row.unwrap().get("shelves").unwrap()
}

/// Two shelves at a time, so that a copy which is torn has an odd number.
async fn add_pair(database: &Database, number: i64) {
    let added: Result<(), DatabaseError> = database
        .write(|transaction| {
            work(async move {
                for half in ["left", "right"] {
                    let insert = sql("INSERT INTO library_shelf (name) VALUES ($1)");
                    transaction.execute(insert.bind(format!("{half} {number}"))).await?;
                }
                Ok(())
            })
        })
        .await;
    added.unwrap();
}

#[tokio::test]
async fn a_copy_made_while_others_write_is_put_back() {
    let setting = Setting::sqlite();
    let database = setting.open().await;
    add_pair(&database, 0).await;
    let copy = setting.file("copy");
    let writing = async {
        for number in 1..100 {
            add_pair(&database, number).await;
        }
    };
    let (made, ()) = tokio::join!(database.back_up(&copy), writing);
    made.unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);

    let place = setting.file("restored.db");
    let restored = Location::file(&place);
    // What a restore that was killed left behind.
    std::fs::write(setting.file("restored.db.restoring"), "half of it").unwrap();
    Database::restore(&copy, &restored, &[LIBRARY]).await.unwrap();
    assert!(!setting.file("restored.db.restoring").exists());
    assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
    let there = Database::open(&restored, &[LIBRARY]).await.unwrap();
    let count = shelves(&there).await;
    assert!(count >= 2 && count % 2 == 0, "{count} shelves");
    let again = Database::restore(&copy, &restored, &[LIBRARY]).await;
    assert!(matches!(again, Err(RestoreError::Exists(_))), "{again:?}");
    assert_eq!(shelves(&there).await, count);
}

#[tokio::test]
async fn what_is_no_whole_copy_takes_no_place() {
    let setting = Setting::sqlite();
    let database = setting.open().await;
    for number in 0..200 {
        add_pair(&database, number).await;
    }
    let copy = setting.file("copy");
    database.back_up(&copy).await.unwrap();
    let whole = std::fs::read(&copy).unwrap();
    let place = setting.file("restored.db");
    let bad = setting.file("bad");
    let cut = whole[..whole.len() / 2].to_vec();
    let overwritten = [&whole[..5000], &[0xff; 3000], &whole[8000..]].concat();
    for bytes in [cut, overwritten, b"no database".repeat(1000), Vec::new()] {
        std::fs::write(&bad, &bytes).unwrap();
        let restored = Database::restore(&bad, &Location::file(&place), &[LIBRARY]).await;
        assert!(matches!(restored, Err(RestoreError::Damaged { .. })), "{} bytes: {restored:?}", bytes.len());
        assert!(!place.exists() && !setting.file("restored.db.restoring").exists());
    }
    let missing = Database::restore(&setting.file("none"), &Location::file(&place), &[LIBRARY]).await;
    assert!(matches!(missing, Err(RestoreError::Io(_))), "{missing:?}");
}

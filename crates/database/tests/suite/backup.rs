//! A copy is made while others write, and put back whole or not at all.

use std::os::unix::fs::PermissionsExt;

use gf_database::{
    BackupError, Database, DatabaseError, Location, Migrations, OpenError, RestoreError, Transaction, Work, sql, work,
};

use crate::setting::{LIBRARY, Setting};

/// What is written at last.
fn nothing(_: &mut Transaction) -> Work<'static, '_, (), DatabaseError> {
    work(std::future::ready(Ok(())))
}

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
async fn a_copy_made_while_others_write_is_put_back_in_either_system() {
    for setting in Setting::both() {
        let database = setting.open().await;
        add_pair(&database, 0).await;
        let copy = setting.file("copy");
        // What a copy that was killed left behind.
        std::fs::write(setting.file("copy.partial"), "half of it").unwrap();
        let writing = async {
            for number in 1..100 {
                add_pair(&database, number).await;
            }
        };
        let (made, ()) = tokio::join!(database.back_up(&copy, &[LIBRARY]), writing);
        made.unwrap();
        assert!(!setting.file("copy.partial").exists() && !setting.file("copy-wal").exists());
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let again = database.back_up(&copy, &[LIBRARY]).await;
        assert!(matches!(again, Err(BackupError::Exists(_))), "{again:?}");

        let mut counts = Vec::new();
        for (target, other) in [(Location::file(&setting.file("restored.db")), None), elsewhere()] {
            // What a restore that was killed left behind.
            std::fs::write(setting.file("restored.db.restoring"), "half of it").unwrap();
            Database::restore(&copy, &target, &[LIBRARY], nothing).await.unwrap();
            let there = Database::open(&target, &[LIBRARY]).await.unwrap();
            counts.push(shelves(&there).await);
            let again = Database::restore(&copy, &target, &[LIBRARY], nothing).await;
            let occupied = RestoreError::Open(OpenError::Occupied { service: "library".to_owned() }).to_string();
            let expected = if other.is_some() { occupied } else { "is there already".to_owned() };
            assert!(again.unwrap_err().to_string().contains(&expected));
            assert_eq!(shelves(&there).await, counts[0]);
            // Numbers go on where they were.
            add_pair(&there, 1000).await;
            there.close().await;
        }
        assert!(counts[0] >= 2 && counts[0] % 2 == 0 && counts[0] == counts[1], "{counts:?} shelves");
    }
}

/// A database of PostgreSQL's, and what keeps it there.
fn elsewhere() -> (Location, Option<Setting>) {
    let setting = Setting::postgres();
    (setting.location.clone(), Some(setting))
}

/// Everything that the library has, in order.
async fn contents(database: &Database) -> Vec<String> {
    let mut lines = Vec::new();
    for row in database.all(sql("SELECT id, name FROM library_shelf ORDER BY id")).await.unwrap() {
        lines.push(format!("{} {}", row.get::<i64>("id").unwrap(), row.get::<String>("name").unwrap()));
    }
    for row in database.all(sql("SELECT * FROM library_book ORDER BY title")).await.unwrap() {
        let numbers: [Option<i64>; 3] = ["shelf", "lent", "pages"].map(|column| row.get(column).unwrap());
        let (title, cover) = (row.get::<String>("title").unwrap(), row.get::<Option<Vec<u8>>>("cover").unwrap());
        lines.push(format!("{title} {cover:?} {numbers:?}"));
    }
    lines
}

async fn execute(database: &Database, text: &'static str) {
    database.execute(sql(text)).await.unwrap();
}

#[tokio::test]
async fn everything_is_the_same_after_going_from_one_system_to_the_other_and_back() {
    for setting in Setting::both() {
        let database = setting.open().await;
        for number in 0..350 {
            add_pair(&database, number).await;
        }
        execute(&database, "INSERT INTO library_book (title, shelf, cover) VALUES ('ä', 1, NULL)").await;
        let cover = sql("INSERT INTO library_book (title, shelf, cover, pages) VALUES ('b\nc', 700, $1, $2)");
        database.execute(cover.bind(&[0_u8, 255, 7]).bind(i64::MAX)).await.unwrap();
        // The last number was given, and is not given again.
        execute(&database, "INSERT INTO library_shelf (name) VALUES ('gone')").await;
        execute(&database, "DELETE FROM library_shelf WHERE name = 'gone'").await;
        let before = contents(&database).await;
        let mut copy = setting.file("copy");
        database.back_up(&copy, &[LIBRARY]).await.unwrap();

        let mut kept = Vec::new();
        for (number, target) in
            [elsewhere(), (Location::file(&setting.file("there.db")), None), elsewhere()].into_iter().enumerate()
        {
            Database::restore(&copy, &target.0, &[LIBRARY], nothing).await.unwrap();
            let there = Database::open(&target.0, &[LIBRARY]).await.unwrap();
            assert_eq!(contents(&there).await, before);
            copy = setting.file(&format!("copy{number}"));
            there.back_up(&copy, &[LIBRARY]).await.unwrap();
            add_pair(&there, 2000).await;
            let first = sql("SELECT id FROM library_shelf WHERE name = 'left 2000'");
            assert_eq!(there.first(first).await.unwrap().unwrap().get::<i64>("id").unwrap(), 702);
            there.close().await;
            kept.push(target);
        }
    }
}

#[tokio::test]
async fn a_copy_of_an_older_program_is_brought_to_what_this_one_knows_and_one_of_a_newer_is_refused() {
    let older = Migrations { steps: &LIBRARY.steps[..1], ..LIBRARY };
    for setting in Setting::both() {
        let database = Database::open(&setting.location, &[older]).await.unwrap();
        execute(&database, "INSERT INTO library_shelf (name) VALUES ('a')").await;
        execute(&database, "INSERT INTO library_book (title, shelf) VALUES ('b', 1)").await;
        let copy = setting.file("older");
        // Also by a program that knows more.
        database.back_up(&copy, &[LIBRARY]).await.unwrap();
        let target = elsewhere();
        Database::restore(&copy, &target.0, &[LIBRARY], nothing).await.unwrap();
        let there = Database::connect(&target.0).await.unwrap();
        assert_eq!(contents(&there).await, ["1 a", "b None [Some(1), Some(0), None]"]);

        let newer = setting.file("newer");
        there.back_up(&newer, &[LIBRARY]).await.unwrap();
        for services in [&[older][..], &[]] {
            let target = elsewhere();
            let refused = Database::restore(&newer, &target.0, services, nothing).await;
            let is_refused =
                matches!(&refused, Err(RestoreError::Open(OpenError::Newer { .. } | OpenError::Foreign { .. })));
            assert!(is_refused, "{refused:?}");
            // Nothing was done, so that the right program can.
            Database::restore(&newer, &target.0, &[LIBRARY], nothing).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_nobody_used_yet_has_nothing_to_copy() {
    let setting = Setting::postgres();
    let database = Database::connect(&setting.location).await.unwrap();
    let copied = database.back_up(&setting.file("copy"), &[LIBRARY]).await;
    assert!(matches!(copied, Err(BackupError::Empty)), "{copied:?}");
    assert!(!setting.file("copy").exists() && !setting.file("copy.partial").exists());
}

#[tokio::test]
async fn what_is_no_whole_copy_takes_no_place() {
    let setting = Setting::sqlite();
    let database = setting.open().await;
    for number in 0..200 {
        add_pair(&database, number).await;
    }
    let copy = setting.file("copy");
    database.back_up(&copy, &[LIBRARY]).await.unwrap();
    let whole = std::fs::read(&copy).unwrap();
    let place = setting.file("restored.db");
    let bad = setting.file("bad");
    let cut = whole[..whole.len() / 2].to_vec();
    let overwritten = [&whole[..5000], &[0xff; 3000], &whole[8000..]].concat();
    for bytes in [cut, overwritten, b"no database".repeat(1000), Vec::new()] {
        std::fs::write(&bad, &bytes).unwrap();
        let restored = Database::restore(&bad, &Location::file(&place), &[LIBRARY], nothing).await;
        assert!(matches!(restored, Err(RestoreError::Damaged { .. })), "{} bytes: {restored:?}", bytes.len());
        assert!(!place.exists() && !setting.file("restored.db.restoring").exists());
        let target = elsewhere();
        let restored = Database::restore(&bad, &target.0, &[LIBRARY], nothing).await;
        assert!(matches!(restored, Err(RestoreError::Damaged { .. })), "{} bytes: {restored:?}", bytes.len());
    }
    let missing = Database::restore(&setting.file("none"), &Location::file(&place), &[LIBRARY], nothing).await;
    assert!(matches!(missing, Err(RestoreError::Io(_))), "{missing:?}");
}

#[tokio::test]
async fn what_is_written_at_last_is_there_or_nothing_is() {
    let setting = Setting::sqlite();
    let copy = setting.file("copy");
    setting.open().await.back_up(&copy, &[LIBRARY]).await.unwrap();
    for (target, _kept) in [(Location::file(&setting.file("restored.db")), None), elsewhere()] {
        let refused = Database::restore(&copy, &target, &[LIBRARY], |transaction| {
            work(async move { transaction.execute(sql("INSERT INTO nowhere VALUES (1)")).await.map(drop) })
        });
        assert!(matches!(refused.await, Err(RestoreError::Database(_))));
        let restored = Database::restore(&copy, &target, &[LIBRARY], |transaction| {
            work(
                async move { transaction.execute(sql("INSERT INTO library_shelf (name) VALUES ('last')")).await.map(drop) },
            )
        });
        restored.await.unwrap();
        assert_eq!(shelves(&Database::open(&target, &[LIBRARY]).await.unwrap()).await, 1);
    }
}

#[tokio::test]
async fn a_database_that_was_in_use_is_no_copy() {
    let setting = Setting::sqlite();
    let copy = setting.file("copy");
    setting.open().await.back_up(&copy, &[LIBRARY]).await.unwrap();
    std::fs::write(setting.file("copy-wal"), "commits").unwrap();
    for (target, _kept) in [(Location::file(&setting.file("restored.db")), None), elsewhere()] {
        let refused = Database::restore(&copy, &target, &[LIBRARY], nothing).await;
        assert!(matches!(refused, Err(RestoreError::NoCopy(_))), "{refused:?}");
    }
}

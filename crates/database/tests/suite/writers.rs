//! Many that write at once, and a copy made meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gf_database::{BackupError, Database, DatabaseError, Location, Transaction, sql, work};
use tokio::sync::oneshot;

use crate::setting::{LIBRARY, Setting};

async fn prepare(setting: &Setting) -> Database {
    let database = setting.open().await;
    database.execute(sql("INSERT INTO library_shelf (id, name) VALUES (1, 'counter')")).await.unwrap();
    database.execute(sql("INSERT INTO library_book (title, shelf, pages) VALUES ('count', 1, 0)")).await.unwrap();
    database
}

async fn count(database: &Database) -> i64 {
    let row = database.first(sql("SELECT pages FROM library_book WHERE title = 'count'")).await.unwrap();
    row.unwrap().get("pages").unwrap()
}

/// Reads, then writes what follows from it: wrong as soon as two do so at once.
async fn add_one(database: &Database, runs: &AtomicU64) -> Result<(), DatabaseError> {
    database
        .write(|transaction| {
            work(async move {
                runs.fetch_add(1, Ordering::Relaxed);
                let read = sql("SELECT pages FROM library_book WHERE title = 'count'");
                let pages: i64 = transaction.first(read).await?.unwrap().get("pages")?;
                tokio::task::yield_now().await;
                let write = sql("UPDATE library_book SET pages = $1 WHERE title = 'count'").bind(pages + 1);
                transaction.execute(write).await.map(drop)
            })
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_between_writers() {
    for setting in Setting::both() {
        let database = prepare(&setting).await;
        let runs = Arc::new(AtomicU64::new(0));
        let writers = (0..16).map(|_| {
            let (database, runs) = (database.clone(), Arc::clone(&runs));
            tokio::spawn(async move {
                let mut done = 0;
                for _ in 0..5 {
                    match add_one(&database, &runs).await {
                        Ok(()) => done += 1,
                        // Bounded: PostgreSQL may choose the same one to give way too often.
                        Err(error) => assert!(matches!(error, DatabaseError::Contended(_)), "{error:?}"),
                    }
                }
                done
            })
        });
        let mut done = 0;
        for writer in writers.collect::<Vec<_>>() {
            done += writer.await.unwrap();
        }
        assert_eq!(count(&database).await, done, "{:?}", setting.location);
        assert!(done >= 40, "only {done} of 80 at {:?}", setting.location);
        if matches!(setting.location, Location::Sqlite(_)) {
            assert_eq!((done, runs.load(Ordering::Relaxed)), (80, 80), "one at a time, none twice");
        }
    }
}

#[tokio::test]
async fn what_fails_is_rolled_back() {
    #[derive(Debug)]
    struct Stop;
    impl From<DatabaseError> for Stop {
        fn from(error: DatabaseError) -> Self {
            panic!("{error:?}")
        }
    }
    for setting in Setting::both() {
        let database = prepare(&setting).await;
        let stopped: Result<(), Stop> = database
            .write(|transaction| {
                work(async move {
                    transaction.execute(sql("UPDATE library_book SET pages = 7")).await?;
                    Err(Stop)
                })
            })
            .await;
        assert!(stopped.is_err());
        assert_eq!(count(&database).await, 0);
        // A statement that failed cannot be passed over, as in PostgreSQL, which would commit nothing and say yes.
        let passed_over: Result<(), DatabaseError> = database
            .write(|transaction| {
                work(async move {
                    transaction.execute(sql("UPDATE library_book SET pages = 7")).await?;
                    let twice = sql("INSERT INTO library_shelf (id, name) VALUES (1, 'again')");
                    assert!(transaction.execute(twice).await.unwrap_err().is_conflict());
                    Ok(())
                })
            })
            .await;
        assert!(matches!(passed_over, Err(DatabaseError::Broken(_))), "{passed_over:?}");
        assert_eq!(count(&database).await, 0);
    }
}

async fn hang(transaction: &mut Transaction, entered: oneshot::Sender<()>) -> Result<(), DatabaseError> {
    transaction.execute(sql("UPDATE library_book SET pages = 7")).await?;
    entered.send(()).unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn a_transaction_that_is_dropped_holds_nobody_up() {
    for setting in Setting::both() {
        let database = prepare(&setting).await;
        let (entered, wait) = oneshot::channel();
        let mut entered = Some(entered);
        let hanging = tokio::spawn({
            let database = database.clone();
            async move {
                let hanging = database.write(|transaction| {
                    let entered = entered.take().unwrap();
                    work(async move { hang(transaction, entered).await })
                });
                hanging.await
            }
        });
        wait.await.unwrap();
        // Readers see what was there before, and are not held up either.
        assert_eq!(count(&database).await, 0);
        hanging.abort();
        assert!(hanging.await.unwrap_err().is_cancelled());
        add_one(&database, &AtomicU64::new(0)).await.unwrap();
        assert_eq!(count(&database).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_whole_while_others_write() {
    let setting = Setting::sqlite();
    let database = prepare(&setting).await;
    let runs = AtomicU64::new(0);
    for _ in 0..20 {
        add_one(&database, &runs).await.unwrap();
    }
    let writer = tokio::spawn({
        let database = database.clone();
        async move {
            for _ in 0..50 {
                add_one(&database, &AtomicU64::new(0)).await.unwrap();
            }
        }
    });
    let copy = setting.file("copy.db");
    database.back_up(&copy, &[LIBRARY]).await.unwrap();
    writer.await.unwrap();
    assert!(matches!(database.back_up(&copy, &[LIBRARY]).await, Err(BackupError::Exists(_))));
    // It holds what the original does, keys among them.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&copy).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let restored = Database::open(&Location::Sqlite(copy), &[LIBRARY]).await.unwrap();
    let found = count(&restored).await;
    assert!((20..=70).contains(&found), "{found}");
    add_one(&restored, &runs).await.unwrap();
    assert_eq!((count(&restored).await, count(&database).await), (found + 1, 70));
}

//! A process that is killed while it writes: what was committed is there.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::{env, io::Write};

use gf_database::{Database, DatabaseError, Location, sql, work};

use crate::setting::{LIBRARY, Setting};

/// Where the process that is killed finds the database.
const VICTIM: &str = "GF_DATABASE_CRASH_TEST";
/// Transactions that are acknowledged before the kill.
const ACKNOWLEDGED: usize = 60;

/// Writes until it is killed, and says what was committed.
async fn write_on(location: String) {
    let database = Database::open(&location.parse().unwrap(), &[LIBRARY]).await.unwrap();
    database.execute(sql("INSERT INTO library_shelf (id, name) VALUES (1, 'x')")).await.unwrap();
    let mut number = 0;
    loop {
        number += 1;
        let done: Result<(), DatabaseError> = database
            .write(|transaction| {
                work(async move {
                    for half in ["left", "right"] {
                        let insert = sql("INSERT INTO library_book (title, shelf, pages) VALUES ($1, 1, $2)");
                        transaction.execute(insert.bind(format!("{half} {number}")).bind(number)).await?;
                    }
                    Ok(())
                })
            })
            .await;
        done.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "\ncommitted {number}").unwrap();
        out.flush().unwrap();
    }
}

async fn check(setting: &Setting) {
    let mut victim = Command::new(env::current_exe().unwrap())
        .args(["crash::what_was_committed_survives_a_kill", "--exact", "--nocapture"])
        .env(VICTIM, url(&setting.location))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut committed = 0;
    for line in BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok) {
        if let Some(number) = line.strip_prefix("committed ") {
            committed = number.parse::<i64>().unwrap();
        }
        if committed == i64::try_from(ACKNOWLEDGED).unwrap() {
            victim.kill().unwrap();
        }
    }
    assert!(!victim.wait().unwrap().success());
    assert!(committed >= i64::try_from(ACKNOWLEDGED).unwrap());

    let database = setting.open().await;
    let rows = database.all(sql("SELECT pages, COUNT(*) AS halves FROM library_book GROUP BY pages ORDER BY pages"));
    let rows = rows.await.unwrap();
    for (at, row) in (1..).zip(&rows) {
        assert_eq!((row.get::<i64>("pages").unwrap(), row.get::<i64>("halves").unwrap()), (at, 2));
    }
    let found = i64::try_from(rows.len()).unwrap();
    assert!(found == committed || found == committed + 1, "{committed} were acknowledged, {found} are there");
    if let Location::Sqlite(_) = setting.location {
        let integrity = database.first(sql("PRAGMA integrity_check")).await.unwrap().unwrap();
        assert_eq!(integrity.get::<String>("integrity_check").unwrap(), "ok");
    }
}

fn url(location: &Location) -> String {
    match location {
        Location::Sqlite(path) => format!("sqlite:{}", path.display()),
        Location::Postgres(options) => {
            let socket = options.get_socket().unwrap().to_string_lossy().replace('/', "%2F");
            format!("postgres://{}@{socket}/{}", options.get_username(), options.get_database().unwrap())
        }
    }
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    if let Ok(location) = env::var(VICTIM) {
        return write_on(location).await;
    }
    for setting in Setting::both() {
        check(&setting).await;
    }
}

//! `gf backup` of a server that serves, and `gf restore` into an empty place.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use gf_testkit::PostgresServer;

use crate::quotas::{ask, send};
use crate::running::{Server, run, text};

#[test]
fn what_a_server_knows_is_copied_while_it_serves_and_put_back() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let hash = "cd".repeat(32);
    let remove = ["ac", "remove", &hash, "--reason", "a compiler with a bug", "--yes"];
    assert_eq!(ask(&server, home.path(), &remove).status.code(), Some(0));
    let (copy, data) = (home.path().join("copy"), home.path().join("data"));
    let (copy, data) = (copy.to_str().unwrap(), data.to_str().unwrap());
    let made = run(home.path(), &["backup", copy, "--data-dir", data]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert_eq!(fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o600);
    let again = run(home.path(), &["backup", copy, "--data-dir", data]);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("is there already"));
    let into_use = run(home.path(), &["restore", copy, "--data-dir", data]);
    assert!(into_use.status.code() == Some(1) && text(&into_use.stderr).contains("is there already"));
    drop(server);

    let other = tempfile::tempdir().unwrap();
    let place = other.path().join("data");
    let nowhere = run(home.path(), &["backup", "x", "--data-dir", place.to_str().unwrap()]);
    assert!(text(&nowhere.stderr).contains("there is no database"), "{}", text(&nowhere.stderr));
    fs::write(home.path().join("damaged"), &fs::read(copy).unwrap()[..5000]).unwrap();
    let damaged = home.path().join("damaged");
    let refused = run(home.path(), &["restore", damaged.to_str().unwrap(), "--data-dir", place.to_str().unwrap()]);
    assert!(
        refused.status.code() == Some(1) && text(&refused.stderr).contains("no whole copy"),
        "{}",
        text(&refused.stderr)
    );
    let restored = run(home.path(), &["restore", copy, "--data-dir", place.to_str().unwrap()]);
    assert_eq!(restored.status.code(), Some(0), "{}", text(&restored.stderr));
    let said = text(&restored.stderr);
    assert!(said.contains("the audit log goes on after record 1; 0 tokens are good"), "{said}");
    let server = Server::start(other.path(), &[]);
    let (status, answer) = send(&server, "PUT", &format!("/ac/{hash}"), b"");
    assert!(status == 409 && answer.contains("a compiler with a bug"), "{answer}");
}

#[test]
fn a_server_moves_from_sqlite_to_postgresql_and_back() {
    let postgres = PostgresServer::shared().unwrap();
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let hash = "ef".repeat(32);
    let remove = ["ac", "remove", &hash, "--reason", "a compiler with a bug", "--yes"];
    assert_eq!(ask(&server, home.path(), &remove).status.code(), Some(0));
    let copy = home.path().join("copy");
    let data = home.path().join("data");
    let made = run(home.path(), &["backup", copy.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    drop(server);

    let elsewhere = tempfile::tempdir().unwrap();
    let config = elsewhere.path().join("gf.toml");
    fs::write(&config, format!("[database]\nurl = \"{}\"\n", postgres.database().unwrap())).unwrap();
    let config = config.to_str().unwrap();
    let place = elsewhere.path().join("data");
    let at = ["--config", config, "--data-dir", place.to_str().unwrap()];
    let second = elsewhere.path().join("copy");
    let gf = |command: &[&str]| run(elsewhere.path(), &[command, &at[..]].concat());
    let nothing = gf(&["backup", second.to_str().unwrap()]);
    assert!(text(&nothing.stderr).contains("nothing to copy"), "{}", text(&nothing.stderr));
    let restored = gf(&["restore", copy.to_str().unwrap()]);
    assert_eq!(restored.status.code(), Some(0), "{}", text(&restored.stderr));
    assert!(text(&restored.stderr).contains("restored into postgres://"), "{}", text(&restored.stderr));
    let server = Server::start(elsewhere.path(), &["--config", config]);
    let (status, answer) = send(&server, "PUT", &format!("/ac/{hash}"), b"");
    assert!(status == 409 && answer.contains("a compiler with a bug"), "{answer}");
    let again = gf(&["restore", copy.to_str().unwrap()]);
    assert!(text(&again.stderr).contains("already"), "{}", text(&again.stderr));
    let made = gf(&["backup", second.to_str().unwrap()]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    drop(server);

    let back = tempfile::tempdir().unwrap();
    let place = back.path().join("data");
    let restored = run(back.path(), &["restore", second.to_str().unwrap(), "--data-dir", place.to_str().unwrap()]);
    assert_eq!(restored.status.code(), Some(0), "{}", text(&restored.stderr));
    let server = Server::start(back.path(), &[]);
    let (status, answer) = send(&server, "PUT", &format!("/ac/{hash}"), b"");
    assert!(status == 409 && answer.contains("a compiler with a bug"), "{answer}");
    let whole = ask(&server, back.path(), &["audit", "verify"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
    let records = text(&ask(&server, back.path(), &["audit"]).stdout);
    assert_eq!(records.matches("facts.restore").count(), 2, "{records}");
}

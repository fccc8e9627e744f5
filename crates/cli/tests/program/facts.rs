//! `gf backup` of a server that serves, and `gf restore` into an empty place.

use std::fs;
use std::os::unix::fs::PermissionsExt;

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
    let server = Server::start(other.path(), &[]);
    let (status, answer) = send(&server, "PUT", &format!("/ac/{hash}"), b"");
    assert!(status == 409 && answer.contains("a compiler with a bug"), "{answer}");
}

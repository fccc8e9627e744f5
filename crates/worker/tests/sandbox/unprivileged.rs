//! Everything else again, as a user without any rights.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use gf_testkit::skip;

use super::support::{self, LAUNCHER};

const NOBODY: u32 = 65_534;

#[test]
fn the_same_holds_for_a_worker_that_is_not_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("this user is not root, so all other tests have shown it already");
        return;
    }
    // Where the programs are built, nobody may have to pass.
    let folder = tempfile::tempdir().unwrap();
    let (tests, launcher) = (folder.path().join("tests"), folder.path().join("gf-launcher"));
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    fs::copy(support::launcher_program(), &launcher).unwrap();
    let temporary = folder.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    for path in [folder.path(), &tests, &launcher, &temporary] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(&temporary, Some(NOBODY), Some(NOBODY)).unwrap();
    let output = Command::new(&tests)
        .args(["--skip", "unprivileged::", "--test-threads", "2"])
        .env(LAUNCHER, &launcher)
        .env("TMPDIR", &temporary)
        // What only root may do was tried by root.
        .env_remove("GF_REQUIRE_ALL")
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if said.contains("user namespace") && said.contains("refuses sandboxes") {
        skip(format_args!("this kernel gives user namespaces to root alone:\n{said}"));
        return;
    }
    assert!(output.status.success(), "{said}");
    eprintln!("{said}");
}

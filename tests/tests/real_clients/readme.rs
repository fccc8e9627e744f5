//! What the README tells people to write is accepted.

use std::{fs, path::Path, process::Command};

use gf_tests::{GfServer, run_within};

use crate::{CLIENT_LIMIT, secured::make_certificate};

#[test]
fn the_configuration_of_the_readme_is_right() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (configuration, _) = rest.split_once("```").unwrap();

    let folder = tempfile::tempdir().unwrap();
    make_certificate(folder.path());
    fs::rename(folder.path().join("cert.pem"), folder.path().join("server.crt")).unwrap();
    fs::rename(folder.path().join("key.pem"), folder.path().join("server.key")).unwrap();
    fs::write(folder.path().join("token"), "0123456789abcdef").unwrap();
    fs::write(folder.path().join("gf.toml"), configuration).unwrap();
    let mut check = Command::new(GfServer::binary().unwrap());
    check.args(["config", "check", "gf.toml"]).current_dir(folder.path());
    run_within(check, CLIENT_LIMIT).unwrap().success().unwrap();
}

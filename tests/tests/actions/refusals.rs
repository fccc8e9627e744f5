//! Kernels that refuse a part of what sandboxes are made of: it is said, and nothing runs without it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gf_tests::GfServer;

use crate::client::Job;
use crate::farm::Farm;

/// A `gf` for which the kernel makes no namespaces of this kind. None if that cannot be arranged here, which was said then.
fn gf_without(namespaces: &str, folder: &Path) -> Option<PathBuf> {
    let program = folder.join(format!("gf-without-{namespaces}"));
    let gf = GfServer::binary().unwrap();
    // An ordinary user, as far as the worker can see, in a user namespace whose limits are its own.
    let script = format!(
        "#!/bin/sh\nexec unshare --user --map-user=1000 --map-group=1000 --keep-caps sh -c \
         'echo 0 >/proc/sys/user/max_{namespaces}_namespaces && \
         exec setpriv --inh-caps=-all --ambient-caps=-all \"$0\" \"$@\"' '{}' \"$@\"\n",
        gf.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let tried = Command::new(&program).arg("--version").output().unwrap();
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        gf_testkit::skip(format!("no kernel that refuses {namespaces} namespaces can be arranged here: {said}"));
        return None;
    }
    Some(program)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_can_make_no_sandbox_says_why_and_does_not_attach() {
    let folder = tempfile::tempdir().unwrap();
    let Some(gf) = gf_without("user", folder.path()) else { return };
    let farm = Farm::without_worker();
    let mut worker = Command::new(&gf);
    worker.args(["worker", "--server", farm.server.url(), "--name", "one", "--data-dir"]).arg(farm.data().join("one"));
    let ended = worker.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success(), "{said}");
    assert!(said.contains("this system refuses sandboxes") && said.contains("user.max_user_namespaces"), "{said}");
    assert_eq!(farm.ask(&["workers"])["workers"].as_array().map(Vec::len), Some(0));
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_worker_can_make_no_sandbox_says_why_and_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let Some(gf) = gf_without("user", folder.path()) else { return };
    let farm = Farm::of(&gf, "");
    farm.wait_until("the worker inside gives up", || farm.ask(&["workers"])["own_worker"]["state"] == "given_up");
    let report = farm.ask(&["workers"]);
    assert!(report["own_worker"]["reason"].as_str().unwrap().contains("user.max_user_namespaces"), "{report}");
    let shown = farm.gf(&["status"]);
    assert!(shown.contains("the server's own worker cannot run here"), "{shown}");
    assert_eq!(report["workers"].as_array().map(Vec::len), Some(0));
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_take_the_network_away_runs_only_what_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(gf) = gf_without("net", folder.path()) else { return };
    let farm = Farm::without_worker();
    let one = farm.worker_of(&gf, "one", &["--network"]);
    let limitations = farm.ask(&["workers"])["workers"][0]["limitations"].to_string();
    assert!(limitations.contains("no network namespaces"), "{limitations}");
    let client = farm.client().await;
    let without = client.run(Job { script: "echo ran", ..Job::default() }).await;
    assert!(without.code != tonic::Code::Ok && without.stdout().is_empty(), "it ran with the network: {without:?}");
    assert!(without.words.contains("network"), "{without:?}");
    let with = client.run(Job { script: "echo ran", platform: &[("network", "on")], ..Job::default() }).await;
    assert_eq!(with.ok(), "ran\n");
    assert!(one.stop().unwrap().success());
    farm.stop();
}

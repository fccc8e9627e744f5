//! ccache with Bazel's layout of an HTTP cache.

use std::{fs, path::Path, process::Command};

use gf_tests::run_within;

use crate::{CLIENT_LIMIT, Fixture};

/// Compiles one file with a ccache that has nothing of its own, and reads its counters.
fn compile(folder: &Path, remote: &str, name: &str) -> String {
    let ccache = |arguments: &[&str]| {
        let mut command = Command::new("ccache");
        command.args(arguments).current_dir(folder).env("CCACHE_DIR", folder.join(name));
        command.env("CCACHE_REMOTE_STORAGE", remote).env("CCACHE_CONFIGPATH", "/dev/null");
        run_within(command, CLIENT_LIMIT).unwrap().success().unwrap()
    };
    ccache(&["gcc", "-c", "wheel.c", "-o", "wheel.o"]);
    ccache(&["--print-stats"]).stdout
}

fn counter(statistics: &str, name: &str) -> u32 {
    let line = statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

#[test]
fn a_second_ccache_hits_the_remote_storage() {
    let fixture = Fixture::start();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("wheel.c"), "int rpm(int load) { return 16000 - load; }\n").unwrap();
    let remote = format!("{}|layout=bazel", fixture.server.url());

    let first = compile(folder.path(), &remote, "first");
    assert_eq!((counter(&first, "remote_storage_hit"), counter(&first, "remote_storage_error")), (0, 0), "{first}");
    let compiled = fs::read(folder.path().join("wheel.o")).unwrap();

    let second = compile(folder.path(), &remote, "second");
    assert_eq!(counter(&second, "remote_storage_error"), 0, "{second}");
    assert!(counter(&second, "remote_storage_hit") >= 1, "{second}");
    assert_eq!(counter(&second, "direct_cache_hit") + counter(&second, "preprocessed_cache_hit"), 1, "{second}");
    assert_eq!(fs::read(folder.path().join("wheel.o")).unwrap(), compiled);
    fixture.stop();
}

//! Bazel 7.7 from Debian sid.

use std::path::{Path, PathBuf};
use std::process::Command;

use gf_tests::{Bazel, Built, Glue, Place, copy_tree, source_folder};

use crate::{CLIENT_LIMIT, Fixture, chroot};

/// A place with the demo's workspace in it.
pub(crate) struct Workshop {
    pub(crate) place: Place,
    glue: Glue,
    workspace: PathBuf,
}

impl Workshop {
    pub(crate) fn new() -> Self {
        let place = chroot();
        let workspace = place.work().join("flywheel_day");
        copy_tree(&source_folder("demo"), &place.on_host(&workspace)).unwrap();
        let glue = Glue::lay_out(&place).unwrap();
        glue.apply(&place, &workspace).unwrap();
        Self { place, glue, workspace }
    }

    pub(crate) fn bazel(&self, name: &str) -> Bazel<'_> {
        Bazel::new(&self.place, &self.glue, &self.workspace, name)
    }

    /// A command of a Bazel of its own, not yet started.
    pub(crate) fn command(&self, name: &str) -> Command {
        self.bazel(name).command()
    }

    /// A path of the workspace on the host.
    pub(crate) fn on_host(&self, path: &str) -> PathBuf {
        self.place.on_host(&self.workspace.join(path))
    }

    /// An output on the host, whether it is there or not.
    pub(crate) fn output(&self, bazel: &Bazel, path: &str) -> PathBuf {
        let folder = bazel.run(&["info", "bazel-bin"], CLIENT_LIMIT).unwrap().stdout;
        self.place.on_host(&Path::new(folder.trim()).join(path))
    }
}

/// The workspace without Rust, whose standard library alone is 165 MB of inputs.
pub(crate) const WITHOUT_RUST: &[&str] = &["//telemetry/...", "//rotor/..."];

pub(crate) fn build(bazel: &Bazel, options: &[&str]) -> Built {
    bazel.build("build", WITHOUT_RUST, options, CLIENT_LIMIT).unwrap()
}

/// Builds, then builds again with a Bazel that has nothing: everything cacheable must be a remote hit.
fn second_client_hits(fixture: &Fixture, startup: Option<&str>, options: &[&str]) -> [Built; 2] {
    let workshop = Workshop::new();
    let built = ["first", "second"].map(|name| {
        let bazel = workshop.bazel(name);
        let bazel = match startup {
            Some(option) => bazel.with_startup(option),
            None => bazel,
        };
        build(&bazel, options)
    });
    let [first, second] = &built;
    assert_eq!(first.log.remote_hits(), 0, "an empty cache cannot hit");
    assert!(first.log.cacheable() >= 12, "{:?}", first.log.mnemonics());
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable(), "{}", second.finished.tail());
    assert!(!second.finished.stderr.contains("WARNING: Remote Cache"), "{}", second.finished.stderr);
    let hits = u32::try_from(second.log.remote_hits()).unwrap();
    let counted = fixture.hits("ac") + fixture.hits("http");
    assert!(counted >= f64::from(hits), "the server knows of {counted} hits");
    built
}

fn grpc(fixture: &Fixture) -> String {
    format!("--remote_cache={}", fixture.server.grpc())
}

#[test]
fn every_action_of_four_languages_and_every_test_is_a_hit() {
    let fixture = Fixture::start();
    let workshop = Workshop::new();
    let cache = grpc(&fixture);
    let test = |name| workshop.bazel(name).build("test", &["//..."], &[&cache], CLIENT_LIMIT).unwrap();
    let (first, second) = (test("first"), test("second"));
    // Each test is two spawns: the test itself, and the making of its XML.
    assert_eq!(first.log.mnemonics()["TestRunner"], 8);
    assert!(first.log.mnemonics().contains_key("Rustc"));
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());
    fixture.stop();
}

#[test]
fn a_clean_client_hits_over_grpc_with_sha256() {
    let fixture = Fixture::start();
    second_client_hits(&fixture, None, &[&grpc(&fixture)]);
    fixture.stop();
}

#[test]
fn a_clean_client_hits_over_grpc_with_blake3() {
    let fixture = Fixture::start();
    second_client_hits(&fixture, Some("--digest_function=blake3"), &[&grpc(&fixture)]);
    fixture.stop();
}

#[test]
fn a_clean_client_hits_over_http() {
    let fixture = Fixture::start();
    let cache = format!("--remote_cache={}", fixture.server.url());
    second_client_hits(&fixture, None, &[&cache]);
    fixture.stop();
}

#[test]
fn a_clean_client_hits_over_http_with_an_instance() {
    let fixture = Fixture::start();
    let cache = format!("--remote_cache={}/default", fixture.server.url());
    second_client_hits(&fixture, None, &[&cache]);
    fixture.stop();
}

#[test]
fn a_clean_client_hits_in_the_instance_default() {
    let fixture = Fixture::start();
    second_client_hits(&fixture, None, &[&grpc(&fixture), "--remote_instance_name=default"]);
    fixture.stop();
}

#[test]
fn a_clean_client_hits_with_compression() {
    let fixture = Fixture::start();
    let options = [grpc(&fixture), "--remote_cache_compression".into(), "--remote_download_all".into()];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let [_, second] = second_client_hits(&fixture, None, &options);
    assert!(!second.finished.stderr.contains("does not support compression"), "{}", second.finished.stderr);
    let sent = fixture.metrics().sum("gf_sent_bytes_total", &[]);
    let outputs = second.log.hit_bytes() as f64;
    assert!(sent > 0.0 && sent < 0.7 * outputs, "{sent} bytes sent for {outputs} bytes of outputs");
    fixture.stop();
}

#[test]
fn minimal_downloads_leave_outputs_away_until_they_are_wanted() {
    let fixture = Fixture::start();
    let workshop = Workshop::new();
    let cache = grpc(&fixture);
    let first = build(&workshop.bazel("first"), &[&cache]);

    let second = workshop.bazel("second");
    let minimal = build(&second, &[&cache, "--remote_download_minimal"]);
    assert_eq!(minimal.log.all_remote_hits().unwrap(), first.log.cacheable());
    let output = workshop.output(&second, "rotor/hourly");
    assert!(!output.exists(), "a minimal build downloaded {}", output.display());

    second.clean(CLIENT_LIMIT).unwrap();
    let toplevel = build(&second, &[&cache, "--remote_download_toplevel"]);
    assert_eq!(toplevel.log.all_remote_hits().unwrap(), first.log.cacheable());
    assert!(output.exists(), "a top-level build did not download {}", output.display());
    fixture.stop();
}

#[test]
fn a_server_that_restarts_still_hits() {
    let data = tempfile::tempdir().unwrap();
    let workshop = Workshop::new();
    let round = |name: &str| {
        let server = gf_tests::GfServer::start(data.path()).unwrap();
        let cache = format!("--remote_cache={}", server.grpc());
        let built = build(&workshop.bazel(name), &[&cache]);
        assert!(server.stop().unwrap().success());
        built
    };
    let (first, second) = (round("first"), round("second"));
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());
}

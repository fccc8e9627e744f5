//! Bookworm's Bazel 4.2.3 on this machine: REAPI 2.0 only, no digest function in its requests.

use std::path::Path;

use gf_tests::{Bazel, Built, Glue, Place, copy_tree, source_folder};

use crate::{CLIENT_LIMIT, Fixture};

fn build(place: &Place, workspace: &Path, name: &str, cache: &str) -> Built {
    let bazel = Bazel::new(place, &Glue::Registry, workspace, name);
    // Not `test`: this Bazel puts a test's duration into the key of the spawn that makes its XML.
    bazel.build("build", &["//..."], &[cache], CLIENT_LIMIT).unwrap()
}

fn second_client_hits(cache: impl FnOnce(&Fixture) -> String) {
    let fixture = Fixture::start();
    let place = Place::host().unwrap();
    let workspace = place.work().join("bazel4");
    copy_tree(&source_folder("bazel4"), &workspace).unwrap();
    let cache = format!("--remote_cache={}", cache(&fixture));
    let first = build(&place, &workspace, "first", &cache);
    assert!(first.log.cacheable() >= 8, "{:?}", first.log.mnemonics());
    let second = build(&place, &workspace, "second", &cache);
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());
    fixture.stop();
}

#[test]
fn an_old_bazel_hits_over_grpc() {
    second_client_hits(|fixture| fixture.server.grpc());
}

#[test]
fn an_old_bazel_hits_over_http() {
    second_client_hits(|fixture| fixture.server.url().to_owned());
}

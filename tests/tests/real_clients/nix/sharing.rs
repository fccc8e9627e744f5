//! Bytes that Nix and Bazel share are stored once.

use std::fs;

use gf_tests::{Nix, Place};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::main_cache;
use crate::bazel::Workshop;
use crate::{CLIENT_LIMIT, Fixture};

/// Of bytes that no compression makes fewer.
const SIZE: usize = 12 << 20;

/// What all else of a push and of a build may take: narinfos, folders, action results, logs.
const SMALL: f64 = 1_000_000.0;

/// Bazel writes its output, which is the file of a store path too, after Nix pushed it.
#[test]
fn a_file_of_a_store_path_is_not_stored_again_when_bazel_uploads_it() {
    let fixture = Fixture::start();
    let used = || fixture.metrics().sum("gf_store_used_bytes", &[]);
    let mut bytes = vec![0; SIZE];
    StdRng::seed_from_u64(5).fill(&mut bytes[..]);

    let place = Place::host().unwrap();
    let builder = Nix::machine(&place, "builder").unwrap();
    fs::create_dir(builder.on_host("shared")).unwrap();
    fs::write(builder.on_host("shared/data"), &bytes).unwrap();
    let folder = builder.path("shared").display().to_string();
    let path = builder.output("nix-store", &["--add", &folder]).unwrap();
    let empty = used();
    builder
        .output("nix", &["copy", "--to", &format!("{}?compression=none", main_cache(&fixture.server)), &path])
        .unwrap();
    let pushed = used();
    let size = f64::from(u32::try_from(SIZE).unwrap());
    assert!(pushed - empty >= size && pushed - empty < size + SMALL, "a push took {} bytes", pushed - empty);

    let workshop = Workshop::new();
    let package = workshop.on_host("shared");
    fs::create_dir(&package).unwrap();
    fs::write(package.join("data"), &bytes).unwrap();
    let rule = r#"genrule(name = "copy", srcs = ["data"], outs = ["copied"], cmd = "cat $< > $@")"#;
    fs::write(package.join("BUILD.bazel"), format!("{rule}\n")).unwrap();
    let cache = format!("--remote_cache={}", fixture.server.grpc());
    let before = fixture.metrics().sum("gf_received_bytes_total", &[]);
    let build = |name: &str| workshop.bazel(name).build("build", &["//shared:copy"], &[&cache], CLIENT_LIMIT).unwrap();
    let first = build("first");
    assert_eq!(first.log.remote_hits(), 0);
    assert!(used() - pushed < SMALL, "a build took {} bytes", used() - pushed);
    // Nor was it sent: the server had it, and said so.
    let received = fixture.metrics().sum("gf_received_bytes_total", &[]) - before;
    assert!(received < SMALL, "{received} bytes were sent");
    // It is in the cache of Bazel all the same.
    let second = build("second");
    assert_eq!(second.log.all_remote_hits().unwrap(), 1);
    fixture.stop();
}

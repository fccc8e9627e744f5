//! Outputs of layers that were made by hand.

use std::fs;
use std::os::unix::fs::symlink;

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::Tree;
use prost::Message;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
use tempfile::TempDir;

use super::*;
use crate::blobs::Source;

const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// An upper layer and one below it, with a folder `d` in both.
fn layers() -> (TempDir, View) {
    let dir = tempfile::tempdir().unwrap();
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    for layer in [&upper, &lower] {
        fs::create_dir_all(layer.join("d")).unwrap();
    }
    fs::write(lower.join("d/old"), "old").unwrap();
    fs::write(lower.join("d/gone"), "gone").unwrap();
    fs::write(lower.join("d/changed"), "before").unwrap();
    fs::write(upper.join("d/changed"), "after").unwrap();
    fs::write(upper.join("d/new"), "new").unwrap();
    mknodat(CWD, upper.join("d/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    (dir, View::of_layers(vec![upper, lower]))
}

fn asked(path: &str) -> Asked {
    Asked::of(
        &Command { output_paths: vec![path.to_owned()], ..Command::default() },
        &InsidePath::parse("", "").unwrap(),
    )
    .unwrap()
}

fn names(view: &View, path: &str) -> Option<Vec<String>> {
    let found = collect(&asked(path), view, u64::MAX, FUNCTION).unwrap();
    let digest = found.result.output_directories.first()?.tree_digest.clone()?.to_digest(FUNCTION).unwrap();
    let Source::Bytes(bytes) = &found.blobs[&digest] else { panic!("a tree is in memory") };
    let root = Tree::decode(bytes.clone()).unwrap().root.unwrap();
    Some(root.files.into_iter().map(|file| file.name).collect())
}

#[test]
fn an_upper_layer_adds_changes_and_removes() {
    let (_dir, view) = layers();
    assert_eq!(names(&view, "d").unwrap(), ["changed", "new", "old"]);
    let changed = collect(&asked("d/changed"), &view, u64::MAX, FUNCTION).unwrap();
    let digest = Digest::of(FUNCTION, b"after");
    assert_eq!(changed.result.output_files[0].digest, Some(digest.into()));
    for absent in ["d/gone", "d/never", "nothing/at/all", "d/old/below-a-file"] {
        assert!(collect(&asked(absent), &view, u64::MAX, FUNCTION).unwrap().blobs.is_empty(), "{absent}");
    }
}

#[test]
fn opaque_folders_and_the_other_white_out() {
    let (dir, view) = layers();
    let upper = dir.path().join("upper");
    fs::write(upper.join("d/old"), "").unwrap();
    if let Err(error) = setxattr(upper.join("d/old"), c"user.overlay.whiteout", b"y", XattrFlags::empty()) {
        assert_eq!(error, rustix::io::Errno::NOTSUP);
        eprintln!("not tried: the file system of temporary files has no attributes of users");
        return;
    }
    assert_eq!(names(&view, "d").unwrap(), ["changed", "new"]);
    fs::remove_file(upper.join("d/old")).unwrap();
    setxattr(upper.join("d"), c"user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    assert_eq!(names(&view, "d").unwrap(), ["changed", "new"]);
}

#[test]
fn no_link_is_followed() {
    let (dir, view) = layers();
    let upper = dir.path().join("upper");
    fs::write(dir.path().join("secret"), "secret").unwrap();
    symlink(dir.path(), upper.join("up")).unwrap();
    assert!(collect(&asked("up/secret"), &view, u64::MAX, FUNCTION).unwrap().blobs.is_empty());
    symlink("..", upper.join("d/parent")).unwrap();
    assert_eq!(names(&view, "d").unwrap(), ["changed", "new", "old"]);
    let link = collect(&asked("up"), &view, u64::MAX, FUNCTION).unwrap();
    assert_eq!(link.result.output_symlinks[0].target, dir.path().to_str().unwrap());
}

#[test]
fn depth_is_bounded() {
    let (dir, view) = layers();
    let mut path = dir.path().join("upper/deep");
    for _ in 0..300 {
        path.push("d");
    }
    fs::create_dir_all(path).unwrap();
    assert!(matches!(collect(&asked("deep"), &view, u64::MAX, FUNCTION), Err(Failure::Refused { .. })));
}

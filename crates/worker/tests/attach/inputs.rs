//! What actions find, and that they cannot change it for others.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use gf_reapi::execution::{ActionResult, Directory, DirectoryNode, FileNode, NodeProperties};
use gf_reapi::worker::finished::Verdict;
use prost::Message;

use crate::fixture::{Case, Input, completed, ended_with, file};

fn said(result: &ActionResult) -> String {
    String::from_utf8(result.stdout_raw.to_vec()).unwrap()
}

/// The one file of the worker's cache that has this content.
fn cached(case: &Case, content: &str) -> Vec<u8> {
    let mut folders = vec![case.dir.path().join("data/cache")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let digest = gf_digest::Digest::of(gf_digest::DigestFunction::Sha256, content.as_bytes());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains(digest.hash_hex().as_str()) {
                return fs::read(entry.path()).unwrap();
            }
        }
    }
    panic!("not in the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_links_folders_and_large_blobs_are_there() {
    let mut case = Case::start().await;
    let large = "0123456789abcdef".repeat(10_000);
    let inputs = [
        ("a/b/file", file("content")),
        ("tool", Input::Executable(b"#!/bin/sh\necho tool\n".to_vec())),
        ("link", Input::Link("a/b/file".to_owned())),
        ("empty", file("")),
        ("folder/empty", Input::Folder),
        ("large", file(&large)),
    ];
    let script =
        "cat a/b/file link; ./tool; wc -c <empty; wc -c <large; test -d folder/empty && test ! -x a/b/file; echo $?";
    let finished = case.run(script, &inputs, &[]).await;
    assert_eq!(said(completed(&finished)), "contentcontenttool\n0\n160000\n0\n");
    // What was fetched once is not fetched again.
    case.store.take_read();
    completed(&case.run(script, &inputs, &[]).await);
    assert_eq!(case.store.take_read(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_directory_on_many_paths_does_not_fill_the_disk() {
    let mut case = Case::start_with(|config| {
        config.cache_bytes = 1 << 20;
        config.bounds.disk_bytes = 1 << 20;
    })
    .await;
    let content = case.store.put(vec![b'x'; 1000]);
    let properties = NodeProperties { unix_mode: Some(0o600), ..NodeProperties::default() };
    let node = FileNode {
        name: "file".to_owned(),
        digest: Some(content.into()),
        is_executable: false,
        node_properties: Some(properties),
    };
    let mut root = case.store.put(Directory { files: vec![node], ..Directory::default() }.encode_to_vec());
    for _ in 0..12 {
        let twice = ["a", "b"].map(|name| DirectoryNode { name: name.to_owned(), digest: Some(root.into()) });
        root = case.store.put(Directory { directories: twice.to_vec(), ..Directory::default() }.encode_to_vec());
    }
    let (command, _) = case.script("true", &[]);
    let finished = case.execute(&command, root).await;
    ended_with(&finished, Verdict::Refused, tonic::Code::InvalidArgument);
    assert!(finished.message.contains("4096000 bytes") && finished.message.contains("1048576"), "{finished:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_cannot_change_a_cached_input() {
    let mut case = Case::start().await;
    let inputs = || [("input", file("original")), ("sub/other", file("other"))];
    let script = "chmod u+w input; echo more >>input; rm sub/other; cat input";
    let changed = case.run(script, &inputs(), &["input", "sub"]).await;
    let result = completed(&changed);
    assert_eq!(said(result), "originalmore\n");
    assert_eq!(case.store.get(result.output_files[0].digest.as_ref().unwrap()), "originalmore\n");
    let next = case.run("cat input sub/other", &inputs(), &[]).await;
    assert_eq!(said(completed(&next)), "originalother");
    assert_eq!(cached(&case, "original"), b"original");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_for_a_moment_is_asked_again() {
    let mut case = Case::start().await;
    let large = "0123456789abcdef".repeat(10_000);
    let inputs = || [("small", file("small")), ("large", file(&large))];
    for refused in 1..=3 {
        case.store.unavailable.store(refused, Ordering::Relaxed);
        completed(&case.run(&format!("cat small large >out; echo {refused} >>out"), &inputs(), &["out"]).await);
    }
    case.store.unavailable.store(usize::MAX, Ordering::Relaxed);
    let finished = case.run("true", &[("other", file("other"))], &[]).await;
    assert_eq!(finished.verdict(), Verdict::WorkerFailed, "not for ever");
}

/// Large enough to be kept.
fn large_root(changed: &str) -> Vec<(String, Input)> {
    let mut inputs: Vec<(String, Input)> = Vec::new();
    for folder in 0..40 {
        for name in 0..20 {
            inputs.push((format!("d{folder}/e/f{name}"), file(&format!("{folder}/{name}"))));
        }
    }
    inputs.push(("d7/e/changed".to_owned(), file(changed)));
    inputs
}

fn with_paths(inputs: &[(String, Input)]) -> Vec<(&str, Input)> {
    let copy = |input: &Input| match input {
        Input::File(bytes) => Input::File(bytes.clone()),
        Input::Executable(bytes) => Input::Executable(bytes.clone()),
        Input::Link(target) => Input::Link(target.clone()),
        Input::Folder => Input::Folder,
    };
    inputs.iter().map(|(path, input)| (path.as_str(), copy(input))).collect()
}

fn bases(case: &Case) -> usize {
    fs::read_dir(Path::new(case.dir.path()).join("data/bases")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_differs_a_little_stands_on_the_one_before() {
    let mut case = Case::start().await;
    let look =
        "find . -type f | wc -l; cat d7/e/changed; ls d3/e | wc -l; test -e d9 && echo d9; test -d out/sub && echo sub";
    let first = large_root("first");
    let finished = case.run(look, &with_paths(&first), &["out/sub/file"]).await;
    assert_eq!(said(completed(&finished)), "801\nfirst20\nd9\nsub\n");

    case.store.take_read();
    let mut second = large_root("second");
    second.retain(|(path, _)| !path.starts_with("d9/") && path != "d3/e/f4");
    second.push(("d3/e/f4/now/a-folder".to_owned(), file("x")));
    second.push(("new/file".to_owned(), file("new")));
    let finished = case.run(look, &with_paths(&second), &["out/sub/file"]).await;
    assert_eq!(said(completed(&finished)), "782\nsecond20\nsub\n");
    let read = case.store.take_read().len();
    assert!(read < 20, "{read} blobs were read for a few changes");
    // Whoever cannot have overlays has no bases either.
    assert!(bases(&case) <= 1, "one base for both");

    let finished = case.run("rm -r d7; find . -type f | wc -l", &with_paths(&first), &["d7", "d8"]).await;
    let result = completed(&finished);
    assert_eq!(said(result), "780\n");
    assert_eq!(result.output_directories.iter().map(|output| output.path.as_str()).collect::<Vec<_>>(), ["d8"]);
    let finished = case.run(look, &with_paths(&first), &["out/sub/file"]).await;
    assert_eq!(said(completed(&finished)), "801\nfirst20\nd9\nsub\n", "nobody else sees what one removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_may_lie_where_the_root_before_had_inputs() {
    let mut case = Case::start().await;
    completed(&case.run("true", &with_paths(&large_root("first")), &["out"]).await);
    let mut second = large_root("second");
    second.retain(|(path, _)| !path.starts_with("d9/"));
    let script = "ls d9/e | wc -l; echo made >d9/e/f3";
    let finished = case.run(script, &with_paths(&second), &["d9/e/f3", "d9/e/f4"]).await;
    let result = completed(&finished);
    assert_eq!(said(result), "0\n", "what the base had there is hidden");
    assert_eq!(result.output_files.iter().map(|output| output.path.as_str()).collect::<Vec<_>>(), ["d9/e/f3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_of_nodes_are_given_to_them() {
    let mut case = Case::start().await;
    let digest = case.store.put("x");
    let properties = NodeProperties {
        properties: Vec::new(),
        mtime: Some(prost_types::Timestamp { seconds: 1_234_567_890, nanos: 0 }),
        unix_mode: Some(0o640),
    };
    let node = FileNode {
        name: "f".to_owned(),
        digest: Some(digest.into()),
        node_properties: Some(properties),
        ..FileNode::default()
    };
    let plain = FileNode { name: "g".to_owned(), digest: Some(digest.into()), ..FileNode::default() };
    let directory = Directory { files: vec![node, plain], ..Directory::default() };
    let root = case.store.put(directory.encode_to_vec());
    let (command, _) = case.script("stat -c '%a %Y' f g", &[]);
    let finished = case.execute(&command, root).await;
    assert_eq!(said(completed(&finished)), "640 1234567890\n444 946684800\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_bounded() {
    let mut case = Case::start_with(|config| config.cache_bytes = 100_000).await;
    for number in 0..20 {
        let content = format!("{number}").repeat(9_000);
        completed(&case.run("cat f >/dev/null", &[("f", file(&content))], &[]).await);
    }
    let used = disk_bytes(&case.dir.path().join("data/cache"));
    assert!(used <= 100_000, "{used} bytes are kept");
}

fn disk_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            found if found.is_dir() => disk_bytes(&entry.path()),
            found => found.len(),
        })
        .sum()
}

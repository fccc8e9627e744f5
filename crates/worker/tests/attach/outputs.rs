//! What actions leave behind.

use gf_digest::{Digest, DigestFunction};
use gf_reapi::execution::command::OutputDirectoryFormat;
use gf_reapi::execution::{Command, Directory, Tree};
use gf_reapi::worker::finished::Verdict;
use prost::Message;
use tonic::Code;

use crate::fixture::{Case, completed, ended_with, file};

#[tokio::test(flavor = "multi_thread")]
async fn files_folders_and_links_are_stored() {
    let mut case = Case::start().await;
    let script = "mkdir -p out/b/c out/d/c; echo 1 >out/b/c/f; echo 1 >out/d/c/f; ln -s ../f out/b/l; \
                  echo file >file; chmod +x file; ln -s /etc/passwd abs; echo in-parent >deep/er/o";
    let outputs = ["out", "file", "abs", "deep/er/o", "absent"];
    let finished = case.run(script, &[], &outputs).await;
    let result = completed(&finished);
    let files: Vec<_> = result.output_files.iter().map(|file| (file.path.as_str(), file.is_executable)).collect();
    assert_eq!(files, [("file", true), ("deep/er/o", false)]);
    let links: Vec<_> = result.output_symlinks.iter().map(|link| (link.path.as_str(), link.target.as_str())).collect();
    assert_eq!(links, [("abs", "/etc/passwd")]);
    let directory = &result.output_directories[0];
    assert!(directory.is_topologically_sorted && directory.root_directory_digest.is_none());
    let tree = Tree::decode(case.store.get(directory.tree_digest.as_ref().unwrap())).unwrap();
    let root = tree.root.unwrap();
    assert_eq!(root.directories.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["b", "d"]);
    assert_eq!(tree.children.len(), 3, "b, d, and their c once");
    let last = &tree.children[2];
    assert_eq!(last.files[0].name, "f");
    assert_eq!(case.store.get(last.files[0].digest.as_ref().unwrap()), "1\n");

    let again = case.run(script, &[], &outputs).await;
    assert_eq!(completed(&again).output_directories, result.output_directories, "the same files, the same digest");
    let digest = Digest::of(DigestFunction::Sha256, b"1\n");
    assert_eq!(case.store.times_written(&digest), 1, "what the server has is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_output_goes_by_itself() {
    let mut case = Case::start().await;
    let finished = case.run("head -c 1000000 /dev/zero >large; head -c 100000 /dev/zero", &[], &["large"]).await;
    let result = completed(&finished);
    assert_eq!(case.store.get(result.output_files[0].digest.as_ref().unwrap()).len(), 1_000_000);
    assert_eq!(case.store.get(result.stdout_digest.as_ref().unwrap()).len(), 100_000);
    assert!(result.stdout_raw.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_and_the_whole_working_directory() {
    let mut case = Case::start().await;
    let (command, root) = case.script("echo new >new; rm gone", &[("w/old", file("old")), ("w/gone", file("x"))]);
    for (format, with_tree, with_root) in [
        (OutputDirectoryFormat::TreeOnly, true, false),
        (OutputDirectoryFormat::DirectoryOnly, false, true),
        (OutputDirectoryFormat::TreeAndDirectory, true, true),
    ] {
        let command = Command {
            working_directory: "w".to_owned(),
            output_paths: vec![String::new()],
            output_directory_format: format as i32,
            ..command.clone()
        };
        let finished = case.execute(&command, root).await;
        let directory = &completed(&finished).output_directories[0];
        assert_eq!(
            (directory.tree_digest.is_some(), directory.root_directory_digest.is_some()),
            (with_tree, with_root)
        );
        let found = match &directory.root_directory_digest {
            Some(digest) => Directory::decode(case.store.get(digest)).unwrap(),
            None => Tree::decode(case.store.get(directory.tree_digest.as_ref().unwrap())).unwrap().root.unwrap(),
        };
        assert_eq!(found.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["new", "old"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(deprecated, reason = "older clients ask this way")]
async fn the_older_way_to_ask() {
    let mut case = Case::start().await;
    let (command, root) = case.script("echo f >p/f; mkdir q/d; ln -s x q/l; ln -s y m", &[]);
    let command = Command {
        output_files: vec!["p/f".to_owned(), "m".to_owned()],
        output_directories: vec!["q/d".to_owned(), "q/l".to_owned()],
        ..command
    };
    let finished = case.execute(&command, root).await;
    let result = completed(&finished);
    assert_eq!((result.output_files.len(), result.output_directories.len(), result.output_symlinks.len()), (1, 1, 0));
    assert_eq!(result.output_file_symlinks[0].path, "m");
    assert_eq!(result.output_directory_symlinks[0].path, "q/l");

    let (command, root) = case.script("mkdir p/f", &[]);
    let wrong = Command { output_files: vec!["p/f".to_owned()], ..command };
    ended_with(&case.execute(&wrong, root).await, Verdict::Refused, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_store_can_hold_is_refused_by_name() {
    let mut case = Case::start().await;
    let finished = case.run("echo said; mkfifo pipe", &[], &["pipe"]).await;
    ended_with(&finished, Verdict::Refused, Code::FailedPrecondition);
    assert!(finished.message.contains("\"pipe\""), "{}", finished.message);
    assert_eq!(finished.result.as_ref().unwrap().stdout_raw, "said\n", "what was said is kept");
    let finished = case.run("mkdir d; mkfifo d/pipe", &[], &["d"]).await;
    ended_with(&finished, Verdict::Refused, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_bounded_even_where_they_take_no_disk() {
    let mut case = Case::start_with(|config| config.bounds.disk_bytes = 50 << 20).await;
    let finished = case.run("truncate -s 40M a b", &[], &["a", "b"]).await;
    ended_with(&finished, Verdict::Refused, Code::FailedPrecondition);
    assert!(finished.message.contains("disk limit of 52428800 bytes"), "{}", finished.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_leads_nowhere_out_of_the_root() {
    let mut case = Case::start().await;
    let finished = case.run("rmdir up; ln -s /etc up; ln -s /etc/passwd leak", &[], &["up/passwd", "leak"]).await;
    let result = completed(&finished);
    assert_eq!((result.output_files.len(), result.output_symlinks.len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_properties_are_reported() {
    let mut case = Case::start().await;
    let (command, root) = case.script("echo x >f; chmod 640 f; touch -d @1234567890 f", &[]);
    let properties = ["mtime", "unix_mode"].map(str::to_owned).to_vec();
    let command = Command { output_paths: vec!["f".to_owned()], output_node_properties: properties, ..command };
    let finished = case.execute(&command, root).await;
    let properties = completed(&finished).output_files[0].node_properties.as_ref().unwrap();
    assert_eq!(properties.mtime.as_ref().unwrap().seconds, 1_234_567_890);
    assert_eq!(properties.unix_mode.unwrap() & 0o777, 0o640);
}

//! Nix store paths: fetched once, shown to actions, and kept within a bound.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gf_digest::Digest;
use gf_reapi::worker::finished::Verdict;
use gf_reapi::worker::{StoreFile, StorePath, progress::Stage, store_path::Root};
use gf_worker::{ServerConnection, Token, WorkerConfig};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::fixture::{Case, Input, completed, ended_with, file, put_root};
use crate::server::TOKEN;

fn path(name: &str, root: Root) -> StorePath {
    StorePath { name: name.to_owned(), root: Some(root) }
}

fn folder(case: &Case, name: &str, contents: &[(&str, Input)]) -> StorePath {
    path(name, Root::Directory(put_root(&case.store, contents).into()))
}

fn program(text: &str) -> Input {
    Input::Executable(text.as_bytes().to_vec())
}

async fn says(case: &mut Case, script: &str) -> String {
    let finished = case.run(script, &[], &[]).await;
    String::from_utf8(completed(&finished).stdout_raw.to_vec()).unwrap()
}

/// What is laid out on the disk of the worker.
fn laid_out(data_dir: &Path) -> usize {
    fs::read_dir(data_dir.join("store/paths")).map_or(0, Iterator::count)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_runs_tools_that_the_machine_does_not_have() {
    let mut case = Case::start().await;
    assert!(case.hello.properties.iter().any(|offer| offer.name == "nix-closure" && offer.value == "supported"));
    let shell = case.store.put("#!/bin/sh\necho shell runs $1\nexec /bin/sh \"$@\"\n");
    let shell = StoreFile { digest: Some(shell.into()), is_executable: true };
    case.store_paths = vec![
        // A script whose interpreter is another path of the closure.
        folder(
            &case,
            "aa-tool",
            &[
                ("bin/tool", program("#!/nix/store/bb-wrapper/bin/interpreter\necho the tool\n")),
                ("share/doc", file("text")),
                ("link", Input::Link("share/doc".to_owned())),
            ],
        ),
        folder(&case, "bb-wrapper", &[("bin/interpreter", Input::Link("../../cc-shell".to_owned()))]),
        path("cc-shell", Root::File(shell)),
        path("dd-link", Root::SymlinkTarget("aa-tool/bin".to_owned())),
    ];
    assert_eq!(says(&mut case, "ls /nix/store").await, "aa-tool\nbb-wrapper\ncc-shell\ndd-link\n");
    assert_eq!(says(&mut case, "/nix/store/dd-link/tool").await, "shell runs /nix/store/dd-link/tool\nthe tool\n");
    let looks = "stat -c '%a %Y %F' /nix/store/aa-tool /nix/store/aa-tool/bin/tool /nix/store/aa-tool/share/doc \
                 /nix/store/aa-tool/link /nix/store/cc-shell";
    assert_eq!(
        says(&mut case, looks).await,
        "555 1 directory\n555 1 regular file\n444 1 regular file\n777 1 symbolic link\n555 1 regular file\n"
    );
    case.store_paths.clear();
    assert_eq!(says(&mut case, "ls /nix/store").await, "", "the next action sees what it asks for");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_or_laid_out_twice() {
    let mut case = Case::start().await;
    let contents: Vec<(String, Input)> = (0..300).map(|n| (format!("d{}/f{n}", n % 7), file(&n.to_string()))).collect();
    let contents: Vec<(&str, Input)> = contents.iter().map(|(path, _)| (&**path, file(path))).collect();
    let one = folder(&case, "aa-one", &contents);
    let same = StorePath { name: "bb-other-name".to_owned(), ..one.clone() };
    let other = folder(&case, "cc-other", &[("file", file("d0/f0")), ("more", file("more"))]);
    case.store_paths = vec![one.clone(), other];
    // Several actions at one time, before any of it is here.
    let (command, root) = case.script("cat /nix/store/aa-one/d0/f0 /nix/store/cc-other/file", &[]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(case.assign(&command, root, Duration::from_secs(30)).await);
    }
    let mut finished = HashSet::new();
    while finished.len() < ids.len() {
        if let Some(gf_reapi::worker::from_worker::Message::Finished(ended)) = case.hear().await {
            assert_eq!(completed(&ended).stdout_raw, "d0/f0d0/f0");
            finished.insert(ended.assignment_id);
        }
    }
    let read = case.store.take_read();
    let distinct: HashSet<Digest> = read.iter().copied().collect();
    let again = read.len() - distinct.len();
    assert!(again == 0, "{again} blobs were read twice");
    assert_eq!(laid_out(&case.dir.path().join("data")), 2);
    case.store_paths = vec![same];
    assert_eq!(says(&mut case, "cat /nix/store/bb-other-name/d0/f0").await, "d0/f0");
    assert_eq!((case.store.take_read(), laid_out(&case.dir.path().join("data"))), (vec![], 2), "it is the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_cannot_change_what_others_see() {
    let mut case = Case::start().await;
    case.store_paths = vec![folder(&case, "aa-tool", &[("bin/tool", program("original")), ("file", file("original"))])];
    let hostile = "cd /nix/store/aa-tool; chmod u+w . bin file; echo x >file; echo x >>bin/tool; rm -rf file bin; \
                   mv bin other; touch file new; ln -f file /build/own; cat file bin/tool; ls -A";
    assert_eq!(says(&mut case, hostile).await, "originaloriginalbin\nfile\n");
    assert_eq!(
        says(&mut case, "cd /nix/store/aa-tool; cat file bin/tool; stat -c %a file .").await,
        "originaloriginal444\n555\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_least_recently_goes_and_comes_back() {
    let mut case = Case::start_with(|config| config.cache_bytes = 300_000).await;
    let data_dir = case.dir.path().join("data");
    let large = |n: u32| format!("{n}").repeat(100_000);
    let tools: Vec<StorePath> =
        (1..=5).map(|n| folder(&case, &format!("tool-{n}"), &[("f", file(&large(n)))])).collect();
    for n in [1, 2, 3, 4, 5, 1] {
        case.store_paths = vec![tools[n - 1].clone()];
        assert_eq!(says(&mut case, &format!("head -c 1 /nix/store/tool-{n}/f")).await, n.to_string());
        until("there is no more than the bound", || laid_out(&data_dir) <= 2).await;
    }
    case.store.take_read();
    case.store_paths = vec![tools[0].clone()];
    says(&mut case, "true").await;
    assert_eq!(case.store.take_read(), [], "what was used last is here");

    // What is seen stays, whatever it takes.
    let (command, root) =
        case.script("until test -e /tmp/go; do sleep 0.05; cat /nix/store/tool-*/f >/dev/null || exit 1; done", &[]);
    let holding = case.assign(&command, root, Duration::from_secs(60)).await;
    case.reached(&holding, Stage::Running).await;
    for n in [2, 3, 4] {
        case.store_paths = vec![tools[n - 1].clone()];
        let finished = case.run("true", &[], &[]).await;
        completed(&finished);
    }
    case.store_paths = vec![tools[0].clone()];
    case.store.take_read();
    says(&mut case, "true").await;
    assert_eq!(case.store.take_read(), [], "it was in use all the time");
    case.cancel(&holding).await;
    assert_eq!(case.finished(&holding).await.verdict(), Verdict::Cancelled, "it saw its path until then");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shown_is_said_and_for_good() {
    let mut case = Case::start_with(|config| config.cache_bytes = 100_000).await;
    let gone = folder(&case, "aa-gone", &[("file", file("gone"))]);
    let digest = case.store.put("gone");
    case.store.remove(&digest);
    case.store_paths = vec![gone];
    let finished = case.run("true", &[], &[]).await;
    ended_with(&finished, Verdict::Refused, Code::FailedPrecondition);
    // A client would try to upload blobs that are named as missing.
    assert!(finished.status.as_ref().unwrap().details.is_empty(), "{finished:?}");
    assert!(finished.message.contains("aa-gone"), "{finished:?}");

    case.store_paths = vec![folder(&case, "bb-large", &[("file", file(&"x".repeat(200_000)))])];
    let finished = case.run("true", &[], &[]).await;
    ended_with(&finished, Verdict::Refused, Code::FailedPrecondition);
    assert!(finished.message.contains("200000 bytes"), "{finished:?}");

    case.store_paths = vec![path("../escape", Root::SymlinkTarget("x".to_owned()))];
    assert_eq!(case.run("true", &[], &[]).await.verdict(), Verdict::WorkerFailed, "no server says that");
    case.store_paths = vec![folder(&case, "cc-small", &[("file", file("small"))])];
    assert_eq!(says(&mut case, "cat /nix/store/cc-small/file").await, "small");
}

const ROLE: &str = "GF_TEST_DOOMED_WORKER";

/// Not a test: the process that the test below kills, which is this one only when asked.
#[tokio::test(flavor = "multi_thread")]
async fn doomed_worker() {
    let (Some(data_dir), Ok(url)) = (env::var_os(ROLE), env::var("SERVER")) else { return };
    let connection = ServerConnection::Url { url, ca_pem: None };
    let mut config = WorkerConfig::new("doomed".to_owned(), data_dir.into(), connection, Token::new(TOKEN));
    config.sandbox.program = env!("CARGO_BIN_EXE_gf-launcher").into();
    gf_worker::run(config, CancellationToken::new()).await.unwrap();
}

impl Case {
    /// Another worker, in a process of its own.
    async fn spawn_worker(&mut self, data_dir: &Path) -> Child {
        let worker = Command::new(env::current_exe().unwrap())
            .args(["--exact", "store_paths::doomed_worker", "--nocapture"])
            .env(ROLE, data_dir)
            .env("SERVER", &self.url)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.await_another().await;
        worker
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_while_it_lays_out_leaves_nothing_half_done() {
    let mut case = Case::start().await;
    case.stop.cancel();
    (&mut case.worker).await.unwrap().unwrap();
    let data_dir = case.dir.path().join("doomed");
    let names: Vec<String> = (0..3000).map(|n| format!("d{}/f{n}", n % 50)).collect();
    let contents: Vec<(&str, Input)> = names.iter().map(|name| (name.as_str(), file(name))).collect();
    case.store_paths = vec![folder(&case, "aa-tool", &contents)];
    let count = "cd /nix/store/aa-tool && find -type f | wc -l && cat d7/f7 d49/f2999";

    let mut worker = case.spawn_worker(&data_dir).await;
    let (command, root) = case.script(count, &[]);
    case.assign(&command, root, Duration::from_secs(60)).await;
    until("it lays out", || laid_out(&data_dir) > 0).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    let files = data_dir.join("store/files");
    let torn = files_below(&files).into_iter().find(|path| fs::read(path).unwrap() == b"d7/f7").unwrap();
    fs::set_permissions(&torn, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&torn, "d7/").unwrap();
    fs::create_dir_all(data_dir.join("store/paths/77/d7")).unwrap();

    case.store.take_read();
    let mut worker = case.spawn_worker(&data_dir).await;
    assert_eq!(says(&mut case, count).await, "3000\nd7/f7d49/f2999");
    assert_eq!(laid_out(&data_dir), 1);
    let fetched = case.store.take_read().len();
    assert!((1..1500).contains(&fetched), "{fetched} blobs were fetched again, though nearly all of them were whole");
    worker.kill().unwrap();
    worker.wait().unwrap();
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

//! Actions that mean harm: none does any, and the report says which limit ended it.

use gf_reapi::execution::Tree;
use prost::Message;
use tonic::Code;

use crate::client::{Job, wire};
use crate::farm::Farm;

/// Small enough to be reached at once. With four cores for sale, two actions run at a time on every machine.
const WORKER: &str = "cores = 4\naction_disk = \"64MiB\"\naction_log = \"1MiB\"\naction_processes = 64\n";

const FORK_BOMB: &str = "exec nice -n 19 python3 -c 'import os\nwhile True:\n try: os.fork()\n except OSError: pass'";
const DEAF: &str = "trap '' TERM INT HUP; while :; do sleep 1000; done";
const FILL: &str = "i=0; while :; do i=$((i+1)); head -c 1000000 /dev/zero >$i; done";

/// What it is called, its script, its platform, how it ends and which words say so.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], Code, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_much_is_ended_by_the_limit_that_the_report_names() {
    let Some(farm) = Farm::with_worker(WORKER) else { return };
    let client = farm.client().await;
    let in_tmp = format!("cd /tmp; {FILL}");
    let in_memory = format!("cd /dev/shm; {FILL}");
    let memory: &[(&str, &str)] = &[("memory", "128M")];
    let cases: [Case<'_>; 9] = [
        ("a fork bomb", FORK_BOMB, &[], Code::Ok, "more than 64 processes and threads"),
        ("10 GB at once", "exec truncate -s 10G out", &[], Code::Ok, "disk limit of 67108864 bytes"),
        ("10 GB bit by bit", "exec cat /dev/zero >out", &[], Code::Ok, "disk limit of 67108864 bytes"),
        ("10 GB in many files", FILL, &[], Code::Ok, "disk limit of 67108864 bytes"),
        ("a full /tmp", &in_tmp, &[], Code::Ok, "disk limit of 67108864 bytes"),
        ("a full /dev/shm", &in_memory, &[], Code::Ok, "disk limit of 67108864 bytes"),
        ("10 GB of words", "yes", &[], Code::Ok, "stdout or stderr grew beyond the limit of 1048576 bytes"),
        ("deaf to SIGTERM", DEAF, &[], Code::DeadlineExceeded, "time limit of 1s"),
        ("all memory", "head -c 2G /dev/zero | tail", memory, Code::Ok, "memory limit of 134217728 bytes"),
    ];
    for (what, script, platform, code, words) in cases {
        let seconds = (what == "deaf to SIGTERM").then_some(1);
        let ended = client.run(Job { script, platform, seconds, outputs: &["out"], ..Job::default() }).await;
        assert!(ended.code == code && ended.words.contains(words), "{what}: {ended:?}");
        assert!(ended.result.exit_code > 128, "{what}: {ended:?}");
        assert_eq!(farm.processes(), Vec::<String>::new(), "{what}: it is over before that is said");
        let small = client.run(Job { script: "echo well", ..Job::default() }).await;
        assert_eq!(small.ok(), "well\n", "after {what}");
    }
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_written_to_stays_as_it_is() {
    let Some(farm) = Farm::with_worker(WORKER) else { return };
    let client = farm.client().await;
    let inputs: &[(&str, &str)] = &[("input", "original\n"), ("other", "another\n")];
    let script = "echo no >>input; chmod 777 input; echo appended >>input; rm other; ln input linked; echo more >>linked; cat input";
    let changed = client.run(Job { script, inputs, outputs: &["input"], ..Job::default() }).await;
    assert_eq!(changed.ok(), "original\nappended\nmore\n");
    assert_eq!(changed.result.output_files[0].digest, Some(wire(b"original\nappended\nmore\n")));

    assert_eq!(client.get(&wire(b"original\n")).await.unwrap(), b"original\n", "the blob");
    let again = client.run(Job { script: "cat input other; ls -l input", inputs, ..Job::default() }).await;
    assert!(again.ok().starts_with("original\nanother\n-r"), "the next action sees {again:?}");
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_lead_nowhere() {
    let Some(farm) = Farm::with_worker(WORKER) else { return };
    let client = farm.client().await;
    // A link is a link: what it points to is neither read nor stored.
    let script = "ln -s /etc/passwd out; mkdir folder; ln -s /etc folder/etc; ln -s ../../../etc/hostname folder/up; \
                  rm -r etc; ln -s /etc etc";
    let linked = client.run(Job { script, outputs: &["out", "folder", "etc/passwd"], ..Job::default() }).await;
    linked.ok();
    let links: Vec<_> = linked.result.output_symlinks.iter().map(|link| (&*link.path, &*link.target)).collect();
    assert_eq!(links, [("out", "/etc/passwd")]);
    assert!(linked.result.output_files.is_empty(), "{linked:?}");
    let tree = linked.result.output_directories[0].tree_digest.clone().unwrap();
    let tree = Tree::decode(client.get(&tree).await.unwrap().as_slice()).unwrap().root.unwrap();
    assert_eq!((tree.files.len(), tree.directories.len(), tree.symlinks.len()), (0, 0, 2));
    for outside in ["/etc/passwd", "/etc/hostname"] {
        let Ok(text) = std::fs::read(outside) else { continue };
        assert!(text.is_empty() || client.get(&wire(&text)).await.is_none(), "{outside} was stored");
    }

    for path in ["../out", "a/../../out", "/etc/out", "a/.."] {
        let ended = client.run(Job { script: "echo ran", outputs: &[path], ..Job::default() }).await;
        assert!(ended.code == Code::InvalidArgument && ended.words.contains(path), "{path}: {ended:?}");
    }
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_network() {
    let Some(farm) = Farm::with_worker(WORKER) else { return };
    let client = farm.client().await;
    let port = farm.server.address().rsplit_once(':').unwrap().1.to_owned();
    let script = format!(
        "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '
        for address in 127.0.0.1/{port} 192.0.2.1/80; do
            bash -c \"exec 3<>/dev/tcp/$address\" && echo connected
        done; true"
    );
    let ended = client.run(Job { script: &script, ..Job::default() }).await;
    assert_eq!(ended.ok(), "lo\n");
    let said = ended.stderr();
    assert!(said.contains("Connection refused") && said.contains("Network is unreachable"), "{said}");
    farm.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_another_action_is_seen() {
    let Some(farm) = Farm::with_worker(WORKER) else { return };
    let client = farm.client().await;
    let secret = "for folder in . /tmp /dev/shm; do echo hidden >$folder/secret; done; exec sleep 1000.4711";
    let other = client.begin(Job { script: secret, ..Job::default() }).await;
    farm.wait_until("the other has hidden its secret", || {
        farm.processes().iter().any(|command| command.contains("1000.4711"))
    });
    let look = "ls -A /tmp /dev/shm .; find / -path /usr -prune -o -name secret -print 2>/dev/null; cat /proc/*/cmdline | tr '\\0' ' '; \
                ls /proc | grep -c '^[0-9]'; kill -9 -1; echo alone";
    let ended = client.run(Job { script: look, ..Job::default() }).await;
    let seen = format!("{}{}", ended.stdout(), ended.stderr());
    assert!(seen.contains("/dev/shm:") && !seen.contains("1000.4711"), "{seen}");
    assert!(!seen.lines().any(|line| line.ends_with("secret")), "{seen}");
    assert_eq!(farm.processes().len(), 1, "the other goes on");
    drop(other);
    farm.stop();
}

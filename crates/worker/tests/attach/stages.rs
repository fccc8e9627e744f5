//! What a worker says, and how assignments end.

use std::time::Duration;

use gf_reapi::execution::Command;
use gf_reapi::rpc::PreconditionFailure;
use gf_reapi::worker::finished::Verdict;
use gf_reapi::worker::progress::Stage;
use gf_reapi::worker::{ResourceUsage, from_worker};
use prost::Message;
use tokio::time::timeout;
use tonic::Code;

use crate::fixture::{Case, PATIENCE, completed, ended_with, file, put_root};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_what_it_has_and_runs_what_it_is_given() {
    let mut case = Case::start_with(|config| config.properties.push(("pool".to_owned(), "a".to_owned()))).await;
    assert_eq!(case.hello.name, "tested");
    let properties: Vec<_> =
        case.hello.properties.iter().map(|property| (property.name.as_str(), property.value.as_str())).collect();
    assert!(properties.contains(&("OSFamily", "linux")) && properties.contains(&("pool", "a")), "{properties:?}");
    assert_eq!(case.hello.capacity.as_ref().unwrap().milli_cores, 4000);

    let finished = case.run("echo hello; echo oops >&2", &[], &[]).await;
    let result = completed(&finished);
    assert_eq!((&result.stdout_raw[..], &result.stderr_raw[..]), (&b"hello\n"[..], &b"oops\n"[..]));
    assert_eq!(case.store.get(result.stdout_digest.as_ref().unwrap()), "hello\n");

    let metadata = result.execution_metadata.as_ref().unwrap();
    assert_eq!(metadata.worker, "tested");
    let times = [
        metadata.queued_timestamp,
        metadata.worker_start_timestamp,
        metadata.input_fetch_start_timestamp,
        metadata.input_fetch_completed_timestamp,
        metadata.execution_start_timestamp,
        metadata.execution_completed_timestamp,
        metadata.output_upload_start_timestamp,
        metadata.output_upload_completed_timestamp,
        metadata.worker_completed_timestamp,
    ];
    let times: Vec<_> =
        times.iter().map(|time| time.as_ref().map(|time| (time.seconds, time.nanos)).unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(metadata.virtual_execution_duration.is_some());
    let usage = &metadata.auxiliary_metadata[0];
    assert!(usage.type_url.ends_with("/gloriousflywheel.worker.v1.ResourceUsage"), "{}", usage.type_url);
    assert!(ResourceUsage::decode(usage.value.as_slice()).unwrap().peak_memory_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_command_is_a_result() {
    let mut case = Case::start().await;
    let finished = case.run("echo no >&2; exit 7", &[], &["never-made"]).await;
    assert_eq!(finished.verdict(), Verdict::Completed, "{finished:?}");
    let result = finished.result.unwrap();
    assert_eq!((result.exit_code, result.output_files.len()), (7, 0));
    let missing = Command { arguments: vec!["no-such-program".to_owned()], ..Command::default() };
    let root = put_root(&case.store, &[]);
    assert_eq!(case.execute(&missing, root).await.result.unwrap().exit_code, 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_missing_inputs_are_named_at_once() {
    let mut case = Case::start().await;
    let inputs = [("a/one", file("one")), ("b/two", file("two")), ("three", file("three"))];
    let (command, root) = case.script("cat a/one", &inputs);
    let lost = [case.store.put("one"), case.store.put("two")];
    lost.iter().for_each(|digest| case.store.remove(digest));
    let finished = case.execute(&command, root).await;
    ended_with(&finished, Verdict::Refused, Code::FailedPrecondition);
    let details = &finished.status.as_ref().unwrap().details[0];
    let mut subjects: Vec<_> = PreconditionFailure::decode(details.value.as_slice()).unwrap().violations;
    subjects.sort_by(|one, other| one.subject.cmp(&other.subject));
    let mut expected = lost.map(|digest| format!("blobs/{}/3", digest.hash_hex()));
    expected.sort();
    assert_eq!(subjects.iter().map(|violation| violation.subject.clone()).collect::<Vec<_>>(), expected);
    // The same action runs once they are back.
    case.store.put("one");
    case.store.put("two");
    completed(&case.execute(&command, root).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_leaves_what_was_said() {
    let mut case = Case::start().await;
    let (command, root) = case.script("echo begun; sleep 600", &[]);
    let id = case.assign(&command, root, Duration::from_secs(3)).await;
    let finished = case.finished(&id).await;
    ended_with(&finished, Verdict::Ended, Code::DeadlineExceeded);
    assert!(finished.message.contains("time limit of 3s"), "{}", finished.message);
    assert_eq!(finished.result.unwrap().stdout_raw, "begun\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_limit_is_named() {
    let mut case = Case::start_with(|config| config.bounds.log_bytes = 100_000).await;
    let finished = case.run("while :; do echo 0123456789012345678901234567890123456789; done", &[], &[]).await;
    ended_with(&finished, Verdict::Ended, Code::ResourceExhausted);
    assert!(finished.message.contains("100000 bytes"), "{}", finished.message);
    let said = String::from_utf8(finished.result.unwrap().stderr_raw.to_vec()).unwrap();
    assert!(said.ends_with("write large output to a file\n"), "clients that show only logs are told: {said:?}");
}

/// Keeps all that it reads, which never ends.
const MEMORY_HOG: &str = "tail /dev/zero";

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_limit_is_named() {
    let mut case = Case::start().await;
    case.reserved.memory_bytes = 64 << 20;
    let finished = case.run(MEMORY_HOG, &[], &[]).await;
    ended_with(&finished, Verdict::Ended, Code::ResourceExhausted);
    assert!(finished.message.contains("memory limit of 67108864 bytes"), "{}", finished.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_names_no_memory_gets_no_more_than_the_worker_has() {
    let mut case = Case::start_with(|config| config.memory_bytes = 128 << 20).await;
    case.reserved.memory_bytes = 0;
    let finished = case.run(MEMORY_HOG, &[], &[]).await;
    ended_with(&finished, Verdict::Ended, Code::ResourceExhausted);
    assert!(finished.message.contains("memory") && finished.message.contains("134217728 bytes"), "{finished:?}");
    completed(&case.run("true", &[], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_action_ends_at_once_and_leaves_nothing() {
    let mut case = Case::start().await;
    let (command, root) = case.script("sleep 600", &[]);
    let id = case.assign(&command, root, Duration::from_secs(600)).await;
    case.reached(&id, Stage::Running).await;
    case.cancel(&id).await;
    ended_with(&case.finished(&id).await, Verdict::Cancelled, Code::Cancelled);
    case.is_tidied().await;
    completed(&case.run("true", &[], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_was_offered_is_handed_back() {
    let mut case = Case::start_with(|config| config.cores = 1).await;
    let (command, root) = case.script("sleep 600", &[]);
    let running = case.assign(&command, root, Duration::from_secs(600)).await;
    case.reached(&running, Stage::Running).await;
    let id = case.assign(&command, root, Duration::from_secs(600)).await;
    assert_eq!(case.finished(&id).await.verdict(), Verdict::HandedBack);
    case.cancel(&running).await;
    assert_eq!(case.finished(&running).await.verdict(), Verdict::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_stream_is_cut_ends_its_actions_and_comes_back() {
    let mut case = Case::start().await;
    let (command, root) = case.script("sleep 600", &[]);
    let id = case.assign(&command, root, Duration::from_secs(600)).await;
    case.reached(&id, Stage::Running).await;
    case.cut().await;
    case.is_tidied().await;
    completed(&case.run("true", &[], &[]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_runs() {
    let mut case = Case::start().await;
    let (command, root) =
        case.script("while ! test -e /tmp/never; do echo x; sleep 1; test $((n+=1)) -lt 5 || exit 0; done", &[]);
    let id = case.assign(&command, root, Duration::from_secs(60)).await;
    case.reached(&id, Stage::Running).await;
    case.stop.cancel();
    let mut said = Vec::new();
    while let Some(message) = case.hear().await {
        match message {
            from_worker::Message::Draining(_) => {
                said.push("draining");
                // The server may not have heard yet.
                case.assign(&command, root, Duration::from_secs(60)).await;
            }
            from_worker::Message::Finished(finished) if finished.assignment_id == id => {
                completed(&finished);
                said.push("finished");
            }
            from_worker::Message::Finished(finished) => {
                ended_with(&finished, Verdict::HandedBack, Code::Unavailable);
                said.push("handed back");
            }
            _ => {}
        }
    }
    assert_eq!(said, ["draining", "handed back", "finished"]);
    let worker = &mut case.worker;
    timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused() {
    let mut case = Case::start().await;
    let (command, root) = case.script("true", &[("sub/x", file("x"))]);
    let check = |change: fn(&mut Command)| {
        let mut command = command.clone();
        change(&mut command);
        command
    };
    for wrong in [
        check(|command| command.working_directory = "nowhere".to_owned()),
        check(|command| command.working_directory = "sub/x".to_owned()),
        check(|command| command.working_directory = "../..".to_owned()),
        check(|command| command.output_paths = vec!["../out".to_owned()]),
        check(|command| command.output_node_properties = vec!["colour".to_owned()]),
    ] {
        ended_with(&case.execute(&wrong, root).await, Verdict::Refused, Code::InvalidArgument);
    }
    let no_directory = case.store.put("\u{1}this is no directory");
    ended_with(&case.execute(&command, no_directory).await, Verdict::Refused, Code::InvalidArgument);
}

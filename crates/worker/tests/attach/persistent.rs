//! Processes that stay: one for many requests, and never for two that must not meet.

use std::fs;
use std::time::Duration;

use gf_digest::Digest;
use gf_reapi::execution::platform::Property;
use gf_reapi::execution::{ActionResult, Command, Directory, FileNode, NodeProperties, NodeProperty, Platform};
use gf_reapi::worker::finished::Verdict;
use gf_reapi::worker::progress::Stage;
use gf_reapi::worker::{Finished, ResourceUsage};
use gf_worker::PersistentPolicy;
use prost::Message;
use tonic::Code;

use crate::fixture::{Case, PATIENCE, completed, ended_with};

/// A tool that speaks both languages, protobuf by its shape, and runs the first argument of a request as a script.
const TOOL: &str = r##"
import json, os, subprocess, sys

def varint():
    value, shift = 0, 0
    while True:
        byte = sys.stdin.buffer.read(1)
        if not byte:
            sys.exit(0)
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return value

def number(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])

def read_proto():
    body = sys.stdin.buffer.read(varint())
    at, arguments = 0, []
    while at < len(body):
        tag, length = body[at], body[at + 1]
        at += 2
        if length > 127:
            length = length & 127 | body[at] << 7
            at += 1
        if tag == 10:
            arguments.append(body[at:at + length].decode())
        at += length
    return arguments

def read_json():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)["arguments"]

def answer_proto(code, output):
    body = b"\x08" + number(code) + b"\x12" + number(len(output)) + output
    sys.stdout.buffer.write(number(len(body)) + body)
    sys.stdout.buffer.flush()

def answer_json(code, output):
    print(json.dumps({"exitCode": code, "output": output.decode()}), flush=True)

is_json = "--json" in sys.argv
assert "--persistent_worker" in sys.argv, "only as a persistent worker"
count = 0
while True:
    arguments = read_json() if is_json else read_proto()
    count += 1
    environment = dict(os.environ, PID=str(os.getpid()), COUNT=str(count), WORKER=str(os.getpid()))
    ran = subprocess.run(["/bin/sh", "-c", arguments[0]], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sys.stderr)
    (answer_json if is_json else answer_proto)(ran.returncode, ran.stdout)
"##;

/// What a test asks of a process.
struct Request<'a> {
    script: &'a str,
    tool: &'a str,
    json: bool,
    instance: &'a str,
    limit: Duration,
    inputs: &'a [(&'a str, &'a str)],
    outputs: &'a [&'a str],
}

impl Default for Request<'_> {
    fn default() -> Self {
        let (script, inputs, outputs) = ("printf $PID", &[], &[]);
        Self { script, tool: TOOL, json: false, instance: "", limit: Duration::from_secs(60), inputs, outputs }
    }
}

fn file(case: &Case, name: &str, text: &str, is_tool: bool) -> FileNode {
    let mark = NodeProperty { name: "bazel_tool_input".to_owned(), value: String::new() };
    let properties = NodeProperties { properties: vec![mark], ..NodeProperties::default() };
    FileNode {
        name: name.to_owned(),
        digest: Some(case.store.put(text.as_bytes().to_vec()).into()),
        is_executable: is_tool,
        node_properties: is_tool.then_some(properties),
    }
}

fn root(case: &Case, request: &Request<'_>) -> Digest {
    let mut files = vec![file(case, "flags", request.script, false), file(case, "tool.py", request.tool, true)];
    files.extend(request.inputs.iter().map(|(name, text)| file(case, name, text, false)));
    files.sort_by(|one, other| one.name.cmp(&other.name));
    case.store.put(Directory { files, ..Directory::default() }.encode_to_vec())
}

fn command(request: &Request<'_>) -> Command {
    let protocol = if request.json { "json" } else { "proto" };
    let property = |(name, value): (&str, &str)| Property { name: name.to_owned(), value: value.to_owned() };
    let properties = [("persistentWorkerKey", "key"), ("persistentWorkerProtocol", protocol)].map(property).to_vec();
    let language = if request.json { "--json" } else { "--proto" };
    #[expect(deprecated, reason = "the fixture makes actions without a platform")]
    Command {
        arguments: ["/usr/bin/python3", "tool.py", language, "@flags"].map(str::to_owned).to_vec(),
        output_paths: request.outputs.iter().map(|path| (*path).to_owned()).collect(),
        platform: Some(Platform { properties }),
        ..Command::default()
    }
}

async fn assign(case: &mut Case, request: &Request<'_>) -> String {
    let root = root(case, request);
    case.assign_for(request.instance, &command(request), root, request.limit).await
}

async fn ask(case: &mut Case, request: &Request<'_>) -> Finished {
    let id = assign(case, request).await;
    case.finished(&id).await
}

fn output(result: &ActionResult) -> String {
    String::from_utf8(result.stderr_raw.to_vec()).unwrap()
}

async fn said(case: &mut Case, request: &Request<'_>) -> String {
    output(completed(&ask(case, request).await))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_the_same_tool_share_a_process_in_both_languages() {
    for json in [false, true] {
        let mut case = Case::start().await;
        let script = "printf '%s ' $PID $COUNT $(ls | tr '\\n' ,); cat in* >out; printf made >made";
        let inputs = [("in1", "one")];
        let first = Request { script, json, inputs: &inputs, outputs: &["out"], ..Request::default() };
        let finished = ask(&mut case, &first).await;
        let result = completed(&finished);
        let text = output(result);
        let [pid, count, seen] = text.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!((count, seen), ("1", "flags,in1,tool.py,"), "json: {json}");
        let usage = &result.execution_metadata.as_ref().unwrap().auxiliary_metadata[0];
        let usage = ResourceUsage::decode(usage.value.as_slice()).unwrap();
        assert!(usage.peak_memory_bytes > 1 << 20 && usage.peak_memory_is_of_largest_process, "{usage:?}");
        assert_eq!(case.store.get(result.output_files[0].digest.as_ref().unwrap()), "one");

        // What was there for the first, or left by it, is gone.
        let second = Request { inputs: &[("in2", "two")], ..first };
        let finished = ask(&mut case, &second).await;
        let result = completed(&finished);
        assert_eq!(output(result), format!("{pid} 2 flags,in2,tool.py, "), "json: {json}");
        assert_eq!(case.store.get(result.output_files[0].digest.as_ref().unwrap()), "two");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tool_another_tenant_and_another_language_have_processes_of_their_own() {
    let mut case = Case::start_with(|config| config.memory_bytes = 64 << 30).await;
    let other_tool = format!("{TOOL}\n# another");
    said(&mut case, &Request::default()).await;
    let count = Request { script: "printf $COUNT", ..Request::default() };
    assert_eq!(said(&mut case, &count).await, "2");
    assert_eq!(said(&mut case, &Request { tool: &other_tool, ..count }).await, "1");
    let count = Request { script: "printf $COUNT", ..Request::default() };
    assert_eq!(said(&mut case, &Request { instance: "another", ..count }).await, "1");
    let count = Request { script: "printf $COUNT", ..Request::default() };
    assert_eq!(said(&mut case, &Request { json: true, ..count }).await, "1");
    let count = Request { script: "printf $COUNT", ..Request::default() };
    assert_eq!(said(&mut case, &count).await, "3", "the first is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_longest_goes_when_too_many_wait_or_have_too_much_memory() {
    let bounds: [(u32, u64); 2] = [(1, 64 << 30), (4, 1 << 30)];
    for (cores, memory_bytes) in bounds {
        let mut case = Case::start_with(|config| (config.cores, config.memory_bytes) = (cores, memory_bytes)).await;
        let other_tool = format!("{TOOL}\n# another");
        let count = |tool| Request { script: "printf $COUNT", tool, ..Request::default() };
        for (tool, expected) in [(TOOL, "1"), (TOOL, "2"), (&other_tool, "1"), (&other_tool, "2"), (TOOL, "1")] {
            assert_eq!(said(&mut case, &count(tool)).await, expected);
        }
        assert_nothing_stays(&mut case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_request_is_a_result() {
    let mut case = Case::start().await;
    let finished = ask(&mut case, &Request { script: "echo wrong; exit 3", ..Request::default() }).await;
    assert_eq!(finished.verdict(), Verdict::Completed, "{finished:?}");
    let result = finished.result.unwrap();
    assert_eq!((result.exit_code, output(&result).as_str()), (3, "wrong\n"));
    assert_eq!(said(&mut case, &Request { script: "printf $COUNT", ..Request::default() }).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_is_replaced_once() {
    let mut case = Case::start().await;
    said(&mut case, &Request::default()).await;
    // The second request of a process kills it, the first of the next is answered.
    let script = "test $COUNT = 1 || kill -9 $WORKER; printf $COUNT";
    assert_eq!(said(&mut case, &Request { script, ..Request::default() }).await, "1");
    let script = "echo the last words >&2; kill -9 $WORKER";
    let finished = ask(&mut case, &Request { script, ..Request::default() }).await;
    ended_with(&finished, Verdict::WorkerFailed, Code::Unavailable);
    assert!(finished.message.contains("the last words") && finished.message.contains("137"), "{finished:?}");
    assert_nothing_stays(&mut case).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_hangs_is_ended_by_the_time_limit() {
    let mut case = Case::start().await;
    let hang = Request { script: "echo soon >&2; sleep 1000", limit: Duration::from_secs(10), ..Request::default() };
    let finished = ask(&mut case, &hang).await;
    ended_with(&finished, Verdict::Ended, Code::DeadlineExceeded);
    assert_eq!(output(finished.result.as_ref().unwrap()), "soon");
    assert_eq!(processes(&case), 0, "it is gone before that is said");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_ends_its_process() {
    let mut case = Case::start().await;
    let id = assign(&mut case, &Request { script: "sleep 1000", ..Request::default() }).await;
    case.reached(&id, Stage::Running).await;
    case.cancel(&id).await;
    let finished = case.finished(&id).await;
    ended_with(&finished, Verdict::Cancelled, Code::Cancelled);
    assert_eq!(processes(&case), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_ends_the_process() {
    let mut case = Case::start().await;
    let tool = "import sys\nprint('complaint', file=sys.stderr, flush=True)\nprint('not json', flush=True)\nsys.stdin.read()\n";
    let finished = ask(&mut case, &Request { tool, json: true, ..Request::default() }).await;
    ended_with(&finished, Verdict::WorkerFailed, Code::Unavailable);
    assert!(finished.message.contains("complaint"), "{finished:?}");
    assert_eq!(processes(&case), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn words_between_answers_are_for_nobody() {
    let mut case = Case::start().await;
    let tool = TOOL.replace("flush=True)\n\nis_json", "flush=True)\n    print('{}', flush=True)\n\nis_json");
    assert_ne!(tool, TOOL);
    let request = || Request { tool: &tool, json: true, script: "printf $COUNT", ..Request::default() };
    // Whether the second answer comes with the first or after it: no request is answered by it.
    for _ in 0..3 {
        let finished = ask(&mut case, &request()).await;
        match finished.verdict() {
            Verdict::Completed => assert_eq!(output(completed(&finished)), "1"),
            _ => ended_with(&finished, Verdict::WorkerFailed, Code::Unavailable),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_cannot_lead_the_worker_out_of_its_folder() {
    let mut case = Case::start().await;
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("folder")).unwrap();
    fs::write(outside.path().join("folder/secret"), "secret").unwrap();
    let script = format!("ln -s {}/folder out; mkdir deep; ln -s {0} deep/link", outside.path().display());
    let outputs = ["out/secret", "deep", "out/below/file"];
    let finished = ask(&mut case, &Request { script: &script, outputs: &outputs, ..Request::default() }).await;
    // The folder of an output is there before; the link goes into it and is no output.
    let result = completed(&finished);
    assert!(result.output_files.is_empty(), "{result:?}");
    said(&mut case, &Request::default()).await;
    assert_eq!(fs::read_dir(outside.path().join("folder")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_or_without_a_mark_an_action_runs_alone() {
    let mut refused = Case::start_with(|config| config.persistent = PersistentPolicy::Refused).await;
    let finished = ask(&mut refused, &Request::default()).await;
    assert!(finished.result.as_ref().unwrap().exit_code != 0, "the tool wants to stay: {finished:?}");

    let mut case = Case::start().await;
    let mut command = command(&Request::default());
    command.arguments = ["/bin/sh", "-c", "echo alone", "@flags"].map(str::to_owned).to_vec();
    let files = vec![file(&case, "flags", "x", false)];
    let root = case.store.put(Directory { files, ..Directory::default() }.encode_to_vec());
    let finished = case.execute(&command, root).await;
    assert_eq!(&completed(&finished).stdout_raw[..], b"alone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_outlives_its_server_or_its_worker() {
    let mut case = Case::start().await;
    said(&mut case, &Request::default()).await;
    assert_eq!(processes(&case), 1);
    case.cut().await;
    assert_eq!(processes(&case), 0);
    assert_eq!(said(&mut case, &Request { script: "printf $COUNT", ..Request::default() }).await, "1");
    assert_nothing_stays(&mut case).await;
}

/// The processes that have a folder, whether they wait or not.
fn processes(case: &Case) -> usize {
    fs::read_dir(case.dir.path().join("data/persistent")).unwrap().count()
}

async fn assert_nothing_stays(case: &mut Case) {
    case.stop.cancel();
    tokio::time::timeout(PATIENCE, &mut case.worker).await.unwrap().unwrap().unwrap();
    assert_eq!(processes(case), 0);
}

//! Persistent workers, as Bazel asks for them: one process does what would be one process each.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use gf_tests::{Chroot, GfServer};

use crate::CLIENT_LIMIT;
use crate::bazel::Workshop;

const TARGETS: usize = 4;

/// A tool that writes how often it was asked, and copies its input behind that. It speaks protobuf, which is what Bazel
/// takes for granted, and JSON where it is told to.
const TOOL: &str = r#"#!/usr/bin/python3
import json
import sys

count = 0


def work(arguments):
    global count
    count += 1
    source, out = arguments
    with open(source) as source, open(out, "w") as out:
        out.write(f"{count} {source.read()}")


def varint(read):
    value, shift = 0, 0
    while True:
        byte = read(1)
        if not byte:
            sys.exit(0)
        value |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            return value


def arguments(body):
    at = 0

    def read(length):
        nonlocal at
        at += length
        return body[at - length : at]

    found = []
    while at < len(body):
        tag, value = varint(read), read(varint(read))
        if tag == 10:
            found.append(value.decode())
    return found


if "--persistent_worker" in sys.argv and "--json" in sys.argv:
    for line in sys.stdin:
        work(json.loads(line)["arguments"])
        print(json.dumps({"exitCode": 0, "output": ""}), flush=True)
elif "--persistent_worker" in sys.argv:
    while True:
        length = varint(sys.stdin.buffer.read)
        work(arguments(sys.stdin.buffer.read(length)))
        sys.stdout.buffer.write(b"\x00")
        sys.stdout.buffer.flush()
else:
    with open(sys.argv[-1][1:]) as flags:
        work(flags.read().split())
"#;

const RULE: &str = r#"
def _counted(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".txt")
    args = ctx.actions.args()
    args.add(ctx.file.src)
    args.add(out)
    args.use_param_file("@%s", use_always = True)
    args.set_param_file_format("multiline")
    ctx.actions.run(
        executable = ctx.executable._tool,
        arguments = (["--json"] if ctx.attr.json else []) + [args],
        inputs = [ctx.file.src],
        outputs = [out],
        mnemonic = "Counted",
        execution_requirements = {
            "supports-workers": "1",
            "requires-worker-protocol": "json" if ctx.attr.json else "proto",
        },
    )
    return DefaultInfo(files = depset([out]))

counted = rule(
    implementation = _counted,
    attrs = {
        "json": attr.bool(),
        "src": attr.label(allow_single_file = True),
        "_tool": attr.label(
            default = "//persistent:tool.py",
            allow_single_file = True,
            executable = True,
            cfg = "exec",
        ),
    },
)
"#;

/// Bazel tells a remote worker which process an action wants, but not what it speaks: a target says so itself.
const JSON: &str = ", json = True, exec_properties = {\"persistentWorkerProtocol\": \"json\"}";

fn workspace(workshop: &Workshop, attributes: &str) {
    let folder = workshop.on_host("persistent");
    fs::create_dir_all(&folder).unwrap();
    let mut build = "load(\":counted.bzl\", \"counted\")\n".to_owned();
    for number in 0..TARGETS {
        build.push_str(&format!("counted(name = \"out{number}\", src = \"in{number}\"{attributes})\n"));
        fs::write(folder.join(format!("in{number}")), format!("input {number}")).unwrap();
    }
    fs::write(folder.join("BUILD.bazel"), build).unwrap();
    fs::write(folder.join("counted.bzl"), RULE).unwrap();
    fs::write(folder.join("tool.py"), TOOL).unwrap();
    fs::set_permissions(folder.join("tool.py"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// What differs from test to test.
#[derive(Default)]
struct Case<'a> {
    options: &'a [&'a str],
    /// More of every target.
    attributes: &'a str,
    /// More of the configuration of the worker.
    worker: &'a str,
}

/// Builds one target after the other, and says how often the process of each had been asked.
fn counts(case: &Case<'_>) -> Vec<u32> {
    let data = tempfile::tempdir().unwrap();
    let config = data.path().join("gf.toml");
    let tools = Chroot::find().unwrap().root().display().to_string();
    fs::write(&config, format!("[worker]\nroot = {tools:?}\n{}", case.worker)).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let address = ([127, 0, 0, 1], 0).into();
    let server = GfServer::start_with(&GfServer::binary().unwrap(), address, data.path(), &arguments).unwrap();

    let workshop = Workshop::new();
    workspace(&workshop, case.attributes);
    let bazel = workshop.bazel("first");
    let executor = format!("--remote_executor={}", server.grpc());
    let common = [&executor, "--spawn_strategy=remote", "--remote_local_fallback=false", "--remote_download_all"];
    let options = [common.as_slice(), &["--jobs=1"], case.options].concat();
    let built = bazel.build("build", &["//persistent:all"], &options, CLIENT_LIMIT).unwrap();
    assert_eq!(built.log.all_remote_runs().unwrap()["Counted"], TARGETS);

    let mut counts = Vec::new();
    for number in 0..TARGETS {
        let text = fs::read_to_string(workshop.output(&bazel, &format!("persistent/out{number}.txt"))).unwrap();
        let (count, copied) = text.split_once(' ').unwrap();
        assert_eq!(copied, format!("input {number}"));
        counts.push(count.parse().unwrap());
    }
    counts.sort_unstable();
    drop(bazel);
    assert!(server.stop().unwrap().success(), "the server did not stop well");
    counts
}

const MARK_TOOLS: &[&str] = &["--experimental_remote_mark_tool_inputs"];

#[test]
fn actions_of_a_tool_share_a_process_where_bazel_marks_the_tool() {
    assert_eq!(counts(&Case { options: MARK_TOOLS, ..Case::default() }), [1, 2, 3, 4]);
}

#[test]
fn actions_of_a_tool_that_speaks_json_share_a_process() {
    assert_eq!(counts(&Case { options: MARK_TOOLS, attributes: JSON, ..Case::default() }), [1, 2, 3, 4]);
}

#[test]
fn actions_run_alone_where_bazel_marks_no_tool() {
    assert_eq!(counts(&Case::default()), [1, 1, 1, 1]);
}

#[test]
fn actions_run_alone_where_the_operator_says_so() {
    let case = Case { options: MARK_TOOLS, worker: "persistent = false\n", ..Case::default() };
    assert_eq!(counts(&case), [1, 1, 1, 1]);
}

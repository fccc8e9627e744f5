//! Everything that CI runs.

use std::{
    env,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use gf_tests::GfServer;

use crate::{
    cargo::{build_binary, cargo, checkout, show, without_own_package},
    chroot_recipe, packages,
    steps::Steps,
    test_list, tidy, tools,
};

/// What the real clients of `tests/` need beside the chroot, and the database that tests start.
const CLIENT_PACKAGES: &[&str] = &[
    "bazel-bootstrap",
    "bazel-platforms",
    "bazel-rules-java",
    "bazel-rules-proto",
    "bazel-skylib",
    "ccache",
    "g++",
    "nix-bin",
    "openssl",
    "postgresql",
    "python-is-python3",
];

/// The case that is asked of a server with readers.
const READER: &str = "32-read-only-caller";
/// Cases that no client can bring about at will, and the one that is asked by itself. Any other that is skipped fails.
const MAY_SKIP: &[&str] = &[READER, "58-worker-dies", "63-input-lost-while-executing"];

/// Runs all checks, or with a filter only the tests whose names contain it.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let mut steps = Steps::new();
    let (nextest, binary) = prepare(&mut steps, filter.is_none())?;
    // Later programs, here and below nextest, find the server by this.
    let binary_variable = ("GF_BINARY", binary.as_path());
    let mut flaky = Vec::new();
    if filter.is_none() {
        steps.check("every test program lists its tests", || test_list::check(nextest_command(&nextest)));
    }
    steps.check("unit tests, integration tests, real clients", || {
        tests(nextest_command(&nextest), binary_variable, filter, &mut flaky)
    });
    if filter.is_none() {
        steps.check("conformance suite", || conformance(&binary));
        steps.check("licences", licences);
        steps.check("the tree's own rules", tidy::tree);
    }
    let finished = steps.finish();
    print!("{}", report_flaky(&flaky));
    finished
}

/// Clients and tools come over the network while the compiler works.
fn prepare(steps: &mut Steps, with_lints: bool) -> Result<(PathBuf, PathBuf)> {
    thread::scope(|scope| {
        let tools = scope.spawn(|| {
            let begin = Instant::now();
            (install(), begin.elapsed())
        });
        if with_lints {
            steps.check("format", || show(cargo(&["fmt", "--all", "--check"])));
            steps.check("clippy", || {
                show(cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]))
            });
        }
        let binary = steps.run("build gf", || build_binary("gf-cli", "gf", &[]))?;
        let compile = ["test", "--workspace", "--locked", "--no-run", "--quiet"];
        steps.run("build the tests", || show(cargo(&compile)))?;
        let (nextest, took) = tools.join().map_err(|_| anyhow::anyhow!("installing tools panicked"))?;
        steps.record("install tools and clients, at the same time", took, nextest.is_err());
        Ok((nextest?, binary))
    })
}

fn install() -> Result<PathBuf> {
    let nextest = tools::nextest()?;
    packages::install(CLIENT_PACKAGES)?;
    tools::sccache()?;
    chroot_recipe::find_or_make()?;
    Ok(nextest)
}

fn nextest_command(nextest: &Path) -> Command {
    let mut command = Command::new(nextest);
    without_own_package(&mut command);
    command.arg("nextest").current_dir(checkout()).stdin(Stdio::null());
    command
}

/// Runs nextest, says its summary line once more at the end, and takes note of the tests that failed at first and passed
/// then.
fn tests(
    mut nextest: Command,
    (name, binary): (&str, &Path),
    filter: Option<&str>,
    flaky: &mut Vec<String>,
) -> Result<()> {
    nextest.args(["run", "--workspace", "--locked", "--no-fail-fast"]).args(filter);
    if env::var_os("CI").is_some() {
        nextest.args(["--profile", "ci"]);
    }
    let mut child = nextest.env(name, binary).stderr(Stdio::piped()).spawn().context("cannot start nextest")?;
    let mut summary = Summary::default();
    let shown = each_line(child.stderr.take().context("nextest has no output")?, |line| {
        summary.hear(line);
        println!("{line}");
    });
    // Also when its output cannot be read: nothing may run on.
    let status = child.wait()?;
    shown?;
    println!("{}", summary.line);
    *flaky = summary.flaky;
    if !status.success() {
        bail!("some tests failed ({status})");
    }
    Ok(())
}

/// What nextest says at its end.
#[derive(Default)]
struct Summary {
    line: String,
    /// Each as nextest says it: which try passed, how long that took, and the test.
    flaky: Vec<String>,
}

impl Summary {
    fn hear(&mut self, line: &str) {
        let line = line.trim();
        if line.starts_with("Summary [") {
            line.clone_into(&mut self.line);
            self.flaky.clear();
        } else if !self.line.is_empty() && line.starts_with("FLAKY ") {
            self.flaky.push(line.to_owned());
        }
    }
}

/// A test that passes now and then is a defect, of itself or of what it tests.
fn report_flaky(flaky: &[String]) -> String {
    if flaky.is_empty() {
        return String::new();
    }
    let tests: String = flaky.iter().map(|line| format!("!!!   {line}\n")).collect();
    let count = flaky.len();
    format!("\n!!! FLAKY: {count} failed at first and passed when tried again. Mend what makes them fail.\n{tests}\n")
}

/// Tests print whatever bytes they like, and nextest hands them on.
fn each_line(output: impl Read, mut show: impl FnMut(&str)) -> io::Result<()> {
    for line in BufReader::new(output).split(b'\n') {
        show(&String::from_utf8_lossy(&line?));
    }
    Ok(())
}

/// Everything, of a server as it comes; and the case of a caller who may only read, of one that has such callers.
fn conformance(binary: &Path) -> Result<()> {
    let suite = build_binary("gf-conformance", "gf-conformance", &[])?;
    let may_skip = MAY_SKIP.iter().flat_map(|case| ["--may-skip", case]);
    let all: Vec<&str> = ["--platform", "OSFamily=linux"].into_iter().chain(may_skip).collect();
    conforms(&suite, binary, None, &all)?;

    let folder = tempfile::tempdir()?;
    let token = "conformance-writes";
    std::fs::write(folder.path().join("token"), token)?;
    let config = folder.path().join("gf.toml");
    std::fs::write(&config, "[access]\ntoken_file = \"token\"\nanonymous_read = true\n")?;
    let reader = ["--token", token, "--read-only-token", "", "--case", READER, "--may-skip", "none"];
    conforms(&suite, binary, Some(&config), &reader)
}

fn conforms(suite: &Path, binary: &Path, config: Option<&Path>, arguments: &[&str]) -> Result<()> {
    let data = tempfile::tempdir()?;
    let config = config.map(|config| config.display().to_string());
    let serve: Vec<&str> = config.iter().flat_map(|config| ["--config", config]).collect();
    let server = GfServer::start_with(binary, ([127, 0, 0, 1], 0).into(), data.path(), &serve)?;
    let mut command = Command::new(suite);
    // CI may be busy with more than this.
    command.args(["--endpoint", &server.grpc(), "--patience", "90"]).args(arguments);
    show(command)?;
    if !server.stop()?.success() {
        bail!("the server did not end well");
    }
    Ok(())
}

/// Licences, bans and sources; advisories need a database from the network and are not asked.
pub(crate) fn licences() -> Result<()> {
    // It looks at all platforms, so it wants more crates than were built.
    show(cargo(&["fetch", "--locked", "--quiet"]))?;
    let mut command = Command::new(tools::deny()?);
    command.args([
        "--offline",
        "--locked",
        "--all-features",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);
    command.current_dir(checkout());
    show(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of what nextest 0.9 said of a test that failed at its first try.
    const SAID: &str = "  TRY 1 FAIL [   0.756s] (────) sometimes it_works
   DELAY 2/3 by   5.000s (────) sometimes it_works
  TRY 2 PASS [   0.052s] (3/3) sometimes it_works
────────────
     Summary [  10.034s] 2 tests run: 2 passed (1 flaky), 0 skipped
   FLAKY 2/3 [   0.052s] (3/3) sometimes it_works
";

    #[test]
    fn bytes_that_are_no_text_end_nothing() {
        let mut lines = Vec::new();
        each_line(&b"one\ntw\xff\nSummary [ 1 s]\n"[..], |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "tw\u{fffd}", "Summary [ 1 s]"]);
    }

    #[test]
    fn what_passed_only_when_tried_again_is_named() {
        let mut summary = Summary::default();
        summary.hear("FLAKY is what a test may say too");
        SAID.lines().for_each(|line| summary.hear(line));
        assert_eq!(summary.line, "Summary [  10.034s] 2 tests run: 2 passed (1 flaky), 0 skipped");
        let report = report_flaky(&summary.flaky);
        assert!(report.contains("FLAKY: 1 failed") && report.contains("sometimes it_works"), "{report}");
        assert_eq!(report_flaky(&[]), "");
    }
}

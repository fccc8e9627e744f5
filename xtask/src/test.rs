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
    cargo::{build_binary, cargo, checkout, show},
    chroot_recipe, packages,
    steps::Steps,
    tidy, tools,
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
    steps.check("unit tests, integration tests, real clients", || tests(&nextest, binary_variable, filter));
    if filter.is_none() {
        steps.check("conformance suite", || conformance(&binary));
        steps.check("licences", licences);
        steps.check("the tree's own rules", tidy::tree);
    }
    steps.finish()
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

/// Runs nextest and says its summary line once more at the end.
fn tests(nextest: &Path, (name, binary): (&str, &Path), filter: Option<&str>) -> Result<()> {
    let mut command = Command::new(nextest);
    command.args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]).args(filter);
    if env::var_os("CI").is_some() {
        command.args(["--profile", "ci"]);
    }
    command.current_dir(checkout()).env(name, binary).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start nextest")?;
    let mut summary = String::new();
    let shown = each_line(child.stderr.take().context("nextest has no output")?, |line| {
        if line.contains("Summary [") {
            line.trim().clone_into(&mut summary);
        }
        println!("{line}");
    });
    // Also when its output cannot be read: nothing may run on.
    let status = child.wait()?;
    shown?;
    println!("{summary}");
    if !status.success() {
        bail!("some tests failed ({status})");
    }
    Ok(())
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
    command.args(["--endpoint", &server.grpc()]).args(arguments);
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

    #[test]
    fn bytes_that_are_no_text_end_nothing() {
        let mut lines = Vec::new();
        each_line(&b"one\ntw\xff\nSummary [ 1 s]\n"[..], |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "tw\u{fffd}", "Summary [ 1 s]"]);
    }
}

//! Cargo, run from within cargo.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The root of the checkout.
pub(crate) fn checkout() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

/// A cargo command in the checkout.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    without_own_package(&mut command);
    command.args(arguments).current_dir(checkout());
    command
}

/// Hides what cargo set for this program from a cargo that runs below it, whose packages it is not meant for: some build
/// scripts read it, and what depends on them would be compiled twice.
pub(crate) fn without_own_package(command: &mut Command) {
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
}

/// Runs a command whose output is for the person who waits; an error when it fails.
pub(crate) fn show(mut command: Command) -> Result<()> {
    let name = format!("{:?}", command.get_program());
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Runs the program of a package in release mode, and hands its exit code on.
pub(crate) fn run_package(package: &str, arguments: &[&str]) -> Result<()> {
    let mut command = cargo(&["run", "--release", "--quiet", "--locked", "--package", package, "--manifest-path"]);
    // Paths on the command line are the caller's.
    command.arg(checkout().join("Cargo.toml")).arg("--").args(arguments).current_dir(env::current_dir()?);
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// Builds one program of a package and says where it is.
pub(crate) fn build_binary(package: &str, name: &str, options: &[&str]) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--locked", "--message-format=json-render-diagnostics", "--package", package]);
    command.args(["--bin", name]).args(options).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let messages = BufReader::new(child.stdout.take().context("cargo has no output")?);
    let mut executable = None;
    for line in messages.lines() {
        let message: Value = serde_json::from_str(&line?)?;
        if message["target"]["name"] == name && message["executable"].is_string() {
            executable = message["executable"].as_str().map(PathBuf::from);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo could not build {package} ({status})");
    }
    executable.with_context(|| format!("cargo built no program {name} in {package}"))
}

//! The tree's own rules, as far as a program can check them.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    cargo::{cargo, checkout, show},
    steps::Steps,
};

const LONGEST_FILE_LINES: usize = 600;
/// Hosts that files may name. Anything else is a private address, or wants a line here.
const KNOWN_HOSTS: &[&str] = &[
    "agent.buildkite.com",
    "bazel.build",
    "codeberg.org",
    "github.com",
    "gitlab.com",
    "jwt.attic.rs",
    "keepachangelog.com",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "semver.org",
    "token.actions.githubusercontent.com",
    "www.apache.org",
];
/// Which of our crates each crate may use, as far as the strata bind it; tests, tools and the program are free.
const STRATA: &[(&str, &[&str])] = &[
    ("gf-digest", &[]),
    ("gf-reapi", &["gf-digest"]),
    ("gf-nix-formats", &[]),
    ("gf-database", &[]),
    ("gf-fetch", &[]),
    ("gf-tenancy", &["gf-digest", "gf-database"]),
    ("gf-blobstore", &["gf-digest", "gf-tenancy"]),
    ("gf-execution", &["gf-digest", "gf-reapi", "gf-nix-formats", "gf-tenancy", "gf-blobstore", "gf-database"]),
    (
        "gf-nix-cache",
        &["gf-digest", "gf-reapi", "gf-nix-formats", "gf-tenancy", "gf-blobstore", "gf-database", "gf-fetch"],
    ),
    ("gf-worker", &["gf-digest", "gf-reapi"]),
];
/// Crates that only tests may use: the ends of the house, and what tests share.
const TOPMOST: &[&str] = &["gf-cli", "gf-testkit"];
/// Who may use the worker: the program that runs it, and what measures it.
const WITH_WORKER: &[&str] = &["gf-cli", "gf-bench"];
const COMMANDS: &[&str] = &["demo", "test", "conformance", "bench", "tidy"];

/// Formats, lints, and checks the tree.
pub(crate) fn run() -> Result<()> {
    let mut steps = Steps::new();
    steps.check("format", || show(cargo(&["fmt", "--all"])));
    steps.check("clippy", || {
        show(cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]))
    });
    steps.check("the tree's own rules", tree);
    steps.finish()
}

/// The checks that need no compiler.
pub(crate) fn tree() -> Result<()> {
    let files = tracked_files()?;
    let mut wrong = Vec::new();
    for (path, text) in &files {
        wrong.extend(too_long(path, text));
        wrong.extend(own_place(path, text));
        wrong.extend(unknown_hosts(path, text));
    }
    wrong.extend(wrong_dependencies(&metadata()?));
    let readme = fs::read_to_string(checkout().join("README.md")).context("there is no README.md")?;
    for command in COMMANDS.iter().filter(|command| !readme.contains(&format!("cargo xtask {command}"))) {
        wrong.push(format!("README.md does not mention `cargo xtask {command}`"));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

fn tracked_files() -> Result<BTreeMap<PathBuf, String>> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(checkout()).output()?;
    if !listed.status.success() {
        bail!("git cannot list the tree: {}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    let names = String::from_utf8(listed.stdout)?;
    let read = |name: &str| {
        // What is not text has no lines to judge; what is listed but gone is being removed.
        let text = fs::read_to_string(checkout().join(name)).ok()?;
        Some((PathBuf::from(name), text))
    };
    Ok(names.split_terminator('\0').filter_map(read).collect())
}

fn too_long(path: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let is_code = path.extension().is_some_and(|extension| extension == "rs");
    (is_code && lines > LONGEST_FILE_LINES)
        .then(|| format!("{} has {lines} lines, more than {LONGEST_FILE_LINES}: find the seam", path.display()))
}

/// A path into one person's checkout works for nobody else.
fn own_place(path: &Path, text: &str) -> Option<String> {
    let place = checkout().display().to_string();
    text.contains(&format!("{place}/")).then(|| format!("{} names this checkout's own path {place}", path.display()))
}

fn unknown_hosts(path: &Path, text: &str) -> Vec<String> {
    if path.file_name().is_some_and(|name| name == "Cargo.lock" || name == "LICENSE") {
        return Vec::new();
    }
    let starts =
        text.match_indices("://").filter(|(at, _)| text[..*at].ends_with("http") || text[..*at].ends_with("https"));
    let hosts = starts.map(|(at, separator)| host(&text[at + separator.len()..]));
    hosts
        .filter(|host| !is_known(host))
        .map(|host| format!("{} names the unknown host {host}", path.display()))
        .collect()
}

fn host(rest: &str) -> &str {
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !".-".contains(c)).unwrap_or(rest.len());
    rest[..end].trim_end_matches('.')
}

fn is_known(host: &str) -> bool {
    // Placeholders have no dot or are in capitals; names under .example and .test lead nowhere, by specification.
    let is_placeholder = !host.contains('.') || host.chars().all(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let is_reserved =
        [".example", ".test", ".invalid", ".localhost", "example.com"].iter().any(|end| host.ends_with(end));
    let is_nobodys = host
        .parse::<Ipv4Addr>()
        .is_ok_and(|address| address.is_loopback() || address.is_private() || address.is_link_local());
    is_placeholder || is_reserved || is_nobodys || KNOWN_HOSTS.iter().any(|known| known.eq_ignore_ascii_case(host))
}

fn metadata() -> Result<Value> {
    let output = cargo(&["metadata", "--no-deps", "--locked", "--format-version", "1"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn wrong_dependencies(metadata: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let allowed = STRATA.iter().find(|(bound, _)| *bound == name).map(|(_, allowed)| *allowed);
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let shipped = dependencies.filter(|dependency| dependency["kind"].is_null());
        for ours in shipped.filter_map(|dependency| dependency["name"].as_str()).filter(|name| name.starts_with("gf-"))
        {
            let is_topmost = TOPMOST.contains(&ours) || (ours == "gf-worker" && !WITH_WORKER.contains(&name));
            let climbs = is_topmost || allowed.is_some_and(|allowed| !allowed.contains(&ours));
            if climbs {
                wrong.push(format!("{name} depends on {ours}, against the strata"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_and_judged() {
        let scheme = "https:";
        let text = format!("see {scheme}//private.corp.net/x and {scheme}//github.com/y, {scheme}//HOST:PORT.");
        let found = unknown_hosts(Path::new("a.md"), &text);
        assert_eq!(found, ["a.md names the unknown host private.corp.net"]);
        for (address, is_nobodys) in
            [("127.0.0.1", true), ("10.0.0.5", true), ("169.254.169.254", true), ("1.1.1.1", false)]
        {
            assert_eq!(is_known(address), is_nobodys, "{address}");
        }
    }

    #[test]
    fn a_dependency_that_climbs_is_named() {
        let metadata = serde_json::json!({"packages": [
            {"name": "gf-digest", "dependencies": [{"name": "gf-blobstore", "kind": null}, {"name": "gf-cli", "kind": "dev"}]},
            {"name": "gf-server", "dependencies": [{"name": "gf-digest", "kind": null}]},
        ]});
        assert_eq!(wrong_dependencies(&metadata), ["gf-digest depends on gf-blobstore, against the strata"]);
    }

    #[test]
    fn long_files_are_named() {
        let text = "x\n".repeat(LONGEST_FILE_LINES + 1);
        assert!(too_long(Path::new("a.rs"), &text).is_some());
        assert!(too_long(Path::new("a.md"), &text).is_none());
    }
}

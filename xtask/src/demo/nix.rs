//! The third part of the demo: Nix pushes to the same server and substitutes from it, and Bazel's actions use a compiler
//! that no worker has, out of that cache.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gf_tests::{Bazel, GfServer, Glue, Metrics, Nix, Place, copy_tree, http_get, source_folder};

use super::{BUILD_LIMIT, MEBIBYTE, Workspace, mebibytes, remote};
use crate::{cargo, packages, steps::Steps, tools};

/// A C and C++ compiler that runs from any folder.
const ZIG: &str = "ziglang==0.17.0";
const PATHS: u32 = 20;
const TARGET: &str = "//:flywheel";
const OPTIONS: [&str; 5] = [
    "--spawn_strategy=remote",
    "--remote_local_fallback=false",
    "--noremote_accept_cached",
    "--extra_toolchains=//:zig_toolchain",
    "--extra_execution_platforms=//:zig_platform",
];
/// A compiler of 400 MB is added, packed and pushed.
const PUSH_LIMIT: Duration = Duration::from_secs(300);
/// What may be new of a path that is made of Bazel's outputs, as a share: folders, and what Bazel itself wrote.
const MOST_NEW: f64 = 0.1;

/// What Nix did, to be shown.
pub(super) struct Closures {
    version: String,
    paths: usize,
    compiler: String,
    runs: BTreeMap<String, usize>,
    pushed_bytes: f64,
    shared: Shared,
}

/// What Bazel made and Nix pushed again.
struct Shared {
    pushed_mebibytes: f64,
    stored_mebibytes: f64,
}

/// Why this part cannot be shown here, if so: each machine of Nix has a `/nix` of its own, which takes root.
pub(super) fn why_not() -> Option<&'static str> {
    let is_root = rustix::process::geteuid().is_root();
    (!is_root).then_some("the part with Nix takes root: every one of its machines has a /nix of its own")
}

/// Pushes and substitutes a closure, then what `bazel` has built, then builds with a compiler that is in the cache alone.
pub(super) fn run(
    steps: &mut Steps,
    binary: &Path,
    server: &GfServer,
    data: &Path,
    workspace: &Workspace<'_>,
    bazel: &Bazel<'_>,
) -> Result<Closures> {
    let Workspace { place, glue, .. } = workspace;
    if let Place::Host(_) = place {
        packages::install(&["nix-bin"])?;
    }
    let cache = format!("{}/nix/main", server.url());
    let builder = Nix::machine(place, "builder")?;
    let version = builder.output("nix", &["--version"])?;
    let before = received_bytes(server)?;
    let top = steps.run("build a closure with Nix, and push it with nix copy", || {
        let top = builder.build_closure(PATHS, "demo")?;
        builder.output("nix", &["copy", "--to", &format!("{cache}?compression=zstd"), &top])?;
        Ok(top)
    })?;
    let paths = steps.run("another machine substitutes it, and checks the signatures", || {
        substitute(server, &cache, place, &builder, &top)
    })?;
    let shared =
        steps.run("push what Bazel built with Nix, too", || push_outputs(server, &cache, place, &builder, bazel))?;
    let zig = steps.run("fetch a compiler, and push it as a store path", || {
        let compiler = zig(place)?;
        let path = compiler.display().to_string();
        let path = builder.run_within("nix", &["store", "add-path", "--name", "zig", &path], PUSH_LIMIT)?.success()?;
        let path = path.stdout.trim().to_owned();
        let target = format!("{cache}?compression=zstd");
        builder.run_within("nix", &["copy", "--to", &target, &path], PUSH_LIMIT)?.success()?;
        Ok(path)
    })?;
    let pushed_bytes = received_bytes(server)? - before;
    let runs = steps.run("compile remotely with it, on a worker that lacks it", || {
        let worker = remote::start_worker(binary, server, data, place, "without-a-compiler")?;
        let runs = compile(server, place, glue, &zig)?;
        let ended = worker.stop()?;
        if ended.success() { Ok(runs) } else { bail!("the worker ended with {ended}") }
    })?;
    Ok(Closures { version, paths, compiler: zig, runs, pushed_bytes, shared })
}

/// What came to another machine, all of it signed.
fn substitute(server: &GfServer, cache: &str, place: &Place, builder: &Nix<'_>, top: &str) -> Result<usize> {
    let facts: serde_json::Value = serde_json::from_str(&http_get(server.address(), "/nix/main/attic-cache-info")?)?;
    let key = facts["public_key"].as_str().context("the server names no key")?;
    let user = Nix::machine(place, "user")?;
    let options = ["--realise", top, "--option", "substituters", cache, "--option", "trusted-public-keys", key];
    user.output("nix-store", &options)?;
    let closure = user.closure(top)?;
    if closure != builder.closure(top)? {
        bail!("the closure that came is another one");
    }
    for path in &closure {
        if user.archive(path)? != builder.archive(path)? {
            bail!("{path} came with other contents");
        }
    }
    Ok(closure.len())
}

/// Pushes the files that Bazel made as one store path, and says by how much the store grew: it has them already.
fn push_outputs(server: &GfServer, cache: &str, place: &Place, nix: &Nix<'_>, bazel: &Bazel<'_>) -> Result<Shared> {
    let made = place.on_host(Path::new(bazel.run(&["info", "bazel-bin"], BUILD_LIMIT)?.stdout.trim()));
    let outputs = place.work().join("outputs");
    let copied_bytes = copy_files(&made, &place.on_host(&outputs))?;
    let path = nix.output("nix", &["store", "add-path", "--name", "outputs", &outputs.display().to_string()])?;
    let before = stored_bytes(server)?;
    nix.output("nix", &["copy", "--to", &format!("{cache}?compression=none"), &path])?;
    let (pushed_mebibytes, stored_mebibytes) = (mebibytes(copied_bytes), (stored_bytes(server)? - before) / MEBIBYTE);
    if stored_mebibytes >= pushed_mebibytes * MOST_NEW {
        bail!("the store grew by {stored_mebibytes:.2} MiB for {pushed_mebibytes:.2} MiB that it has already");
    }
    Ok(Shared { pushed_mebibytes, stored_mebibytes })
}

/// Copies the files below a folder that are no links, and says how many bytes they have.
fn copy_files(from: &Path, to: &Path) -> Result<u64> {
    fs::create_dir_all(to)?;
    let mut bytes = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            bytes += copy_files(&entry.path(), &target)?;
        } else if kind.is_file() {
            bytes += fs::copy(entry.path(), target)?;
        }
    }
    Ok(bytes)
}

/// The folder of the compiler, as clients of the place see it.
fn zig(place: &Place) -> Result<PathBuf> {
    let inside = place.work().join("ziglang");
    copy_tree(&tools::python_package(ZIG, "ziglang")?, &place.on_host(&inside))?;
    Ok(inside)
}

fn compile(server: &GfServer, place: &Place, glue: &Glue, zig: &str) -> Result<BTreeMap<String, usize>> {
    let (workspace, rules) = (place.work().join("zig_day"), place.work().join("rules"));
    let here = place.on_host(&workspace);
    copy_tree(&source_folder("zig"), &here)?;
    copy_tree(&cargo::checkout().join("rules"), &place.on_host(&rules))?;
    fill_in(&here.join("MODULE.bazel"), "@RULES@", &rules.display().to_string())?;
    fill_in(&here.join("BUILD.bazel"), "@ZIG@", zig)?;
    let bazel = Bazel::new(place, glue, &workspace, "zig");
    let executor = format!("--remote_executor={}", server.grpc());
    let options = [&[executor.as_str()], OPTIONS.as_slice()].concat();
    let built = bazel.build("build", &[TARGET], &options, BUILD_LIMIT)?;
    built.log.all_remote_runs()?;
    Ok(built.log.mnemonics().into_iter().map(|(name, count)| (name.to_owned(), count)).collect())
}

fn fill_in(file: &Path, name: &str, value: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    Ok(fs::write(file, text.replace(name, value))?)
}

fn stored_bytes(server: &GfServer) -> Result<f64> {
    Ok(Metrics::read(server.address())?.sum("gf_store_used_bytes", &[]))
}

fn received_bytes(server: &GfServer) -> Result<f64> {
    Ok(Metrics::read(server.address())?.sum("gf_received_bytes_total", &[]))
}

impl Closures {
    pub(super) fn print(&self) {
        let Self { version, paths, compiler, runs, pushed_bytes, shared } = self;
        println!(
            "nix          {version}: {paths} paths pushed, substituted elsewhere and verified by their signatures"
        );
        println!(
            "shared       {:.2} MiB that Bazel had built, pushed by Nix: the store grew by {:.2} MiB",
            shared.pushed_mebibytes, shared.stored_mebibytes
        );
        println!("compiler     {compiler}, which is on no worker; {:.1} MiB pushed with it", pushed_bytes / MEBIBYTE);
        let runs: Vec<_> = runs.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("             compiled with it remotely: {}", runs.join(", "));
    }
}

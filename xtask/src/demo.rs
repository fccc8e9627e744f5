//! The demo: a real build through a server that nobody configured, then again out of its cache, then on its
//! workers, and Nix beside it.
//!
//! It claims a hit, or a remote run, only where Bazel's own execution log says so, and fails when an action that could
//! have been one was none.

mod nix;
mod remote;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use gf_tests::{Bazel, Built, GfServer, Glue, Metrics, Place, copy_tree, free_address, source_folder};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    cargo,
    clients::{self, Client},
    steps::Steps,
};

const BUILD_LIMIT: Duration = Duration::from_secs(600);
const SMALL: &str = "//rotor:energy";
const ALL: &str = "//...";
const MEBIBYTE: f64 = 1_048_576.0;

/// Runs the demo. With `once`, and in CI, where nobody is there to interrupt it, the server is stopped at the end.
pub(crate) fn run(once: bool) -> Result<()> {
    let once = once || std::env::var_os("CI").is_some();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends this program at once; the kernel then takes its servers down.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut steps = Steps::new();
    let (binary, client) = prepare(&mut steps)?;
    let data = tempfile::Builder::new().prefix("gf-demo-").tempdir()?;
    let server = steps.run("start gf serve", || GfServer::start_with(&binary, free_address(), data.path(), &[]))?;
    println!("    {} with its data in {}", server.url(), data.path().display());
    match client {
        Client::Bazel { version, place } => {
            println!("    bazel {version} in {}", place.on_host(place.work()).display());
            let workspace = Workspace::lay_out(&place)?;
            let cached = builds(&mut steps, &server, &workspace, &interrupted)?;
            let bazel = workspace.bazel("remote");
            let remote = remote::run(&mut steps, &binary, &server, data.path(), &place, &bazel)?;
            let closures = match nix::why_not() {
                None => Some(nix::run(&mut steps, &binary, &server, data.path(), &workspace, &bazel)?),
                Some(reason) => {
                    println!("==> {reason}");
                    None
                }
            };
            cached.print();
            remote.print();
            if let Some(closures) = closures {
                closures.print();
            }
        }
        Client::BuiltIn { reason } => {
            println!("    {reason}\n    so the built-in client asks the server the conformance suite");
            steps.run("built-in client", || conformance(&server.grpc()))?;
        }
    }
    steps.finish()?;
    if !once {
        wait(server, &interrupted)?;
    } else if !server.stop()?.success() {
        bail!("the server did not end well");
    }
    Ok(())
}

/// The binary and the client, made at the same time: one waits for the compiler, the other for the network.
fn prepare(steps: &mut Steps) -> Result<(PathBuf, Client)> {
    println!("==> build gf (release) and find clients");
    thread::scope(|scope| {
        let client = scope.spawn(|| timed(clients::find));
        let (binary, took) = timed(|| cargo::build_binary("gf-cli", "gf", &["--release"]));
        steps.record("build gf (release)", took, binary.is_err());
        let (client, took) = client.join().map_err(|_| anyhow::anyhow!("finding clients panicked"))?;
        steps.record("find or make clients, at the same time", took, client.is_err());
        Ok((binary?, client?))
    })
}

fn timed<T>(step: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = step();
    (result, begin.elapsed())
}

/// What the builds did, to be shown.
struct Outcome {
    first: Built,
    again: Vec<Built>,
    first_hit: FirstHit,
    received_bytes: f64,
    sent_bytes: f64,
}

struct FirstHit {
    after_demo: Duration,
    after_build: Duration,
}

/// What is built.
struct Workspace<'a> {
    place: &'a Place,
    glue: Glue,
    folder: PathBuf,
}

impl<'a> Workspace<'a> {
    fn lay_out(place: &'a Place) -> Result<Self> {
        let folder = place.work().join("flywheel_day");
        copy_tree(&source_folder("demo"), &place.on_host(&folder))?;
        let glue = Glue::lay_out(place)?;
        glue.apply(place, &folder)?;
        Ok(Self { place, glue, folder })
    }

    /// A Bazel that has nothing of its own yet.
    fn bazel(&self, name: &str) -> Bazel<'a> {
        Bazel::new(self.place, &self.glue, &self.folder, name)
    }
}

fn builds(
    steps: &mut Steps,
    server: &GfServer,
    workspace: &Workspace<'_>,
    interrupted: &AtomicBool,
) -> Result<Outcome> {
    let started = Instant::now();
    let cache = format!("--remote_cache={}", server.grpc());
    let ask = |bazel: &Bazel, targets: &str, name: &str, steps: &mut Steps| {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let built = steps.run(name, || bazel.build("build", &[targets], &[&cache], BUILD_LIMIT))?;
        println!("    {} cacheable actions, {} remote cache hits", built.log.cacheable(), built.log.remote_hits());
        Ok(built)
    };

    let bazel = workspace.bazel("first");
    let clean = |steps: &mut Steps| steps.run("bazel clean", || bazel.clean(BUILD_LIMIT));
    // Something small first: whoever watches sees a hit within seconds of Bazel's start.
    ask(&bazel, SMALL, "a library, with an empty cache", steps)?;
    clean(steps)?;
    let (small, first_hit) = watch_for_hit(server, || ask(&bazel, SMALL, "the library again, after the clean", steps))?;
    small.log.all_remote_hits()?;
    let first_hit = FirstHit {
        after_demo: first_hit.saturating_duration_since(steps.began()),
        after_build: first_hit.saturating_duration_since(started),
    };
    clean(steps)?;
    let first = ask(&bazel, ALL, "everything in four languages", steps)?;
    clean(steps)?;
    let cleaned = ask(&bazel, ALL, "everything again, after a clean", steps)?;
    let other = workspace.bazel("other");
    let elsewhere = ask(&other, ALL, "everything, by another Bazel with nothing of its own", steps)?;

    let again = vec![cleaned, elsewhere];
    for built in &again {
        let hits = built.log.all_remote_hits()?;
        if hits != first.log.cacheable() {
            bail!("{hits} hits, but the first build ran {} cacheable actions", first.log.cacheable());
        }
    }
    let metrics = Metrics::read(server.address()).context("the builds went well, but the server shows no metrics")?;
    let (received_bytes, sent_bytes) =
        (metrics.sum("gf_received_bytes_total", &[]), metrics.sum("gf_sent_bytes_total", &[]));
    Ok(Outcome { first, again, first_hit, received_bytes, sent_bytes })
}

/// Runs a build and says when the server's action cache first answered with a result, or when the build ended.
fn watch_for_hit<T>(server: &GfServer, build: impl FnOnce() -> Result<T>) -> Result<(T, Instant)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) && !has_hit(server) {
                thread::sleep(Duration::from_millis(50));
            }
            Instant::now()
        });
        let built = build();
        is_over.store(true, Ordering::Relaxed);
        let first_hit = watcher.join().map_err(|_| anyhow::anyhow!("watching the metrics panicked"))?;
        Ok((built?, first_hit))
    })
}

fn has_hit(server: &GfServer) -> bool {
    let metrics = Metrics::read(server.address()).unwrap_or_default();
    metrics.sum("gf_cache_lookups_total", &["kind=\"ac\"", "result=\"hit\""]) > 0.0
}

impl Outcome {
    fn print(&self) {
        let kinds = self.first.log.mnemonics();
        let kinds: Vec<_> = kinds.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let hits: usize = self.again.iter().map(|built| built.log.remote_hits()).sum();
        let asked: usize = self.again.iter().map(|built| built.log.cacheable()).sum();
        let saved_bytes: f64 = self.again.iter().map(|built| mebibytes(built.log.hit_bytes())).sum();
        let rounds = self.again.iter().map(|_| self.first.log.process_seconds());
        println!("\nactions      {}", kinds.join(", "));
        println!("hits         {hits} of {asked} cacheable actions, by Bazel's execution log");
        println!(
            "bytes moved  {:.1} MiB to the server, {:.1} MiB from it",
            self.received_bytes / MEBIBYTE,
            self.sent_bytes / MEBIBYTE
        );
        println!("bytes saved  {saved_bytes:.1} MiB of outputs not made again");
        println!("time saved   {:.1} s of compilers and other processes not run again", rounds.sum::<f64>());
        println!(
            "first hit    {:.1} s after the demo began, {:.1} s after the first build began",
            self.first_hit.after_demo.as_secs_f64(),
            self.first_hit.after_build.as_secs_f64()
        );
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / MEBIBYTE
}

fn conformance(endpoint: &str) -> Result<()> {
    let program = cargo::build_binary("gf-conformance", "gf-conformance", &["--release"])?;
    let mut command = std::process::Command::new(program);
    command.args(["--endpoint", endpoint]).current_dir(Path::new("/"));
    cargo::show(command)
}

/// Leaves the server up until someone interrupts, or until it ends by itself.
fn wait(mut server: GfServer, interrupted: &AtomicBool) -> Result<()> {
    println!("\nThe server is up at {}. Build with it:", server.url());
    println!("    bazel build --remote_cache={} //...       (run here, keep results there)", server.grpc());
    println!("    bazel build --remote_executor={} //...    (run on its workers)", server.grpc());
    println!("Ctrl-C stops it and removes its data.");
    while !interrupted.load(Ordering::Relaxed) {
        if let Some(status) = server.ended()? {
            bail!("the server ended by itself ({status})");
        }
        thread::sleep(Duration::from_millis(100));
    }
    server.stop()?;
    println!("stopped");
    Ok(())
}

//! A closure of real store paths, on a machine that has Nix.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gf_tests::{Chroot, Nix, Place, run_within};

use crate::data::Source;
use crate::report::Absent;

/// A GiB takes half a minute; what needs more hangs.
const LIMIT: Duration = Duration::from_secs(600);
/// Files in a path; each has the same part of it.
const FILES: usize = 8;

/// Where Nix is: on this machine, or in the chroot.
pub(super) fn place() -> Result<Place, Absent> {
    let here =
        std::env::var_os("PATH").is_some_and(|all| std::env::split_paths(&all).any(|path| path.join("nix").is_file()));
    if here {
        return Ok(Place::host()?);
    }
    let chroot = Chroot::find().map_err(|missing| Absent::Skipped(format!("no Nix: {missing:#}")))?;
    Ok(Place::Chroot(chroot.enter()?))
}

/// A machine, and a path whose closure is so many paths of so many bytes each.
pub(super) struct Closure<'a> {
    nix: Nix<'a>,
    /// The path that refers to all others.
    pub(super) top: String,
    /// Bytes of all of it.
    pub(super) bytes: u64,
}

impl<'a> Closure<'a> {
    /// Adds paths of random bytes to the store of a new machine, and one that refers to them.
    pub(super) fn make(place: &'a Place, paths: usize, bytes: usize) -> anyhow::Result<Self> {
        let nix = Nix::machine(place, "pusher")?;
        let mut source = Source::fresh();
        let folder = nix.on_host("paths");
        for number in 0..paths {
            let path = folder.join(format!("part-{number}"));
            std::fs::create_dir_all(&path)?;
            for file in 0..FILES {
                std::fs::write(path.join(file.to_string()), source.blob(bytes / FILES).bytes)?;
            }
        }
        let script = r#"cd "$0"; for part in *; do nix-store --add "$part"; done > ../parts; cat ../parts"#;
        let inside = nix.path("paths").display().to_string();
        let parts = run_within(nix.command("sh", &["-c", script, &inside]), LIMIT)?.success()?.stdout;
        ensure!(parts.lines().count() == paths, "not all paths were added");
        let expression = format!(
            "derivation {{ name = \"closure\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
             args = [ \"-c\" \"echo $parts > $out\" ]; parts = [ {} ]; }}",
            parts.lines().map(|path| format!("(builtins.storePath {path})")).collect::<Vec<_>>().join(" "),
        );
        std::fs::write(nix.on_host("closure.nix"), expression)?;
        let file = nix.path("closure.nix").display().to_string();
        let top = nix.output("nix-build", &["--no-out-link", &file]).context("build the closure")?;
        std::fs::remove_dir_all(folder)?;
        let all = u64::try_from(paths * bytes)?;
        Ok(Self { nix, top, bytes: all })
    }

    /// How long copying all of it takes, to a store named as Nix names stores.
    pub(super) fn copy_to(&self, store: &str) -> anyhow::Result<Duration> {
        // It remembers what it asked a server; another one has another address.
        let command = self.nix.command("nix", &["copy", "--to", store, &self.top]);
        let begun = Instant::now();
        run_within(command, LIMIT)?.success()?;
        Ok(begun.elapsed())
    }

    /// How long a program of ours takes that reads this machine's store.
    pub(super) fn run(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<Duration> {
        let command = self.nix.command(&program.display().to_string(), arguments);
        let begun = Instant::now();
        run_within(command, LIMIT)?.success()?;
        Ok(begun.elapsed())
    }

    /// A folder of the machine as its clients see it, emptied.
    pub(super) fn empty_folder(&self, name: &str) -> anyhow::Result<String> {
        let folder = self.nix.on_host(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        Ok(self.nix.path(name).display().to_string())
    }
}

//! Nix on a machine of its own.
//!
//! Store paths carry the folder of their store, so two machines cannot be two folders with other names: each machine
//! has a folder of its own at `/nix`, mounted for its clients alone, and a home, without which Nix would remember what
//! another server answered. There is no daemon; it takes root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{Finished, Place, copy_tree, run_within, source_folder};

const LIMIT: Duration = Duration::from_secs(600);

/// Shows `$0/nix` at `/nix` to the program that it becomes.
const ENTER: &str = r#"mkdir -p /nix && mount --bind "$0/nix" /nix && exec "$@""#;

const CONFIGURATION: &str = "\
sandbox = false
build-users-group =
experimental-features = nix-command
substituters =
max-jobs = 2
connect-timeout = 10
download-attempts = 2
fsync-metadata = false
";

/// A machine with Nix and an empty store.
#[derive(Debug)]
pub struct Nix<'a> {
    place: &'a Place,
    folder: PathBuf,
}

impl<'a> Nix<'a> {
    /// Makes a machine of this name, with the Nix of a place.
    pub fn machine(place: &'a Place, name: &str) -> Result<Self> {
        let nix = Self { place, folder: place.work().join(name) };
        for folder in ["nix", "home", "conf"] {
            fs::create_dir_all(nix.on_host(folder))?;
        }
        fs::write(nix.on_host("conf/nix.conf"), CONFIGURATION)?;
        copy_tree(&source_folder("nix"), &nix.on_host("src"))?;
        Ok(nix)
    }

    /// A path of this machine's own folder as its clients see it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The same on the host.
    pub fn on_host(&self, name: &str) -> PathBuf {
        self.place.on_host(&self.path(name))
    }

    /// A command of Nix on this machine.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let text = |name: &str| self.path(name).display().to_string();
        let (home, configuration, cache) = (text("home"), text("conf"), text("home/.cache"));
        let environment = [
            ("HOME", home.as_str()),
            ("XDG_CACHE_HOME", &cache),
            ("NIX_CONF_DIR", &configuration),
            ("NIX_USER_CONF_FILES", ""),
            ("NIX_REMOTE", ""),
        ];
        let mut command = self.place.command(&self.folder, &environment, "unshare");
        let propagation = match self.place {
            Place::Host(_) => "private",
            // The root of a chroot is no mount, so nothing can be said of it; its session keeps its mounts already.
            Place::Chroot(_) => "unchanged",
        };
        command.args(["--mount", "--propagation", propagation, "sh", "-c", ENTER]).arg(&self.folder);
        command.arg(program).args(arguments);
        command
    }

    /// Runs a command of Nix to its end, whatever that is.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        self.run_within(program, arguments, LIMIT)
    }

    /// The same for what may take longer.
    pub fn run_within(&self, program: &str, arguments: &[&str], limit: Duration) -> Result<Finished> {
        run_within(self.command(program, arguments), limit)
    }

    /// Runs a command that must succeed, and gives its output without the last new line.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        Ok(self.run(program, arguments)?.success()?.stdout.trim_end().to_owned())
    }

    /// Builds a closure of so many paths, and gives the path that refers to all others.
    pub fn build_closure(&self, count: u32, salt: &str) -> Result<String> {
        let expression = self.path("src/closure.nix").display().to_string();
        let count = count.to_string();
        self.output("nix-build", &["--no-out-link", &expression, "--argstr", "count", &count, "--argstr", "salt", salt])
    }

    /// The closure of a path, references first.
    pub fn closure(&self, path: &str) -> Result<Vec<String>> {
        let text = self.output("nix-store", &["--query", "--requisites", path])?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The archive of a path, as Nix writes it.
    pub fn archive(&self, path: &str) -> Result<Vec<u8>> {
        let name = "archive.nar";
        let target = self.path(name).display().to_string();
        self.output("sh", &["-c", r#"nix-store --dump "$0" > "$1""#, path, &target])?;
        Ok(fs::read(self.on_host(name))?)
    }

    /// What a file of the store holds.
    pub fn read(&self, path: &str) -> Result<String> {
        let below = Path::new(path).strip_prefix("/")?;
        Ok(fs::read_to_string(self.on_host("").join(below))?)
    }
}

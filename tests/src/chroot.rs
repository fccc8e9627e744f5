//! The chroot with newer clients than Debian 12 has, and sessions in it.
//!
//! `cargo xtask clients` makes the chroot; here it is only entered. A session holds its mounts in a mount namespace and
//! its processes in a pid namespace of its own, both tied to a pipe of this process: when the session is dropped, or
//! this process dies in any way, the kernel takes down every client (Bazel's server too) and every mount with it.
//! The network is the host's: clients reach servers on 127.0.0.1.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

/// The version of the recipe that the chroot must have been made by.
pub const RECIPE: &str = "3";
/// Where the chroot keeps the recipe's version; written last.
pub const RECIPE_STAMP: &str = "etc/gloriousflywheel-recipe";

const WORK_PREFIX: &str = "gf-session-";

/// The first process of the session. Its standard input is the life of the session.
const INIT: &str = r#"
set -e
mount -t proc proc "$0/proc"
for folder in sys dev; do mount --rbind "/$folder" "$0/$folder"; done
echo ready
while read -r _; do :; done
"#;

/// Where tools and clients are kept between runs: `GF_CACHE_DIR`, or a folder outside every checkout.
pub fn cache_folder() -> PathBuf {
    if let Some(folder) = env::var_os("GF_CACHE_DIR") {
        return PathBuf::from(folder);
    }
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/cache/gloriousflywheel");
    }
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    home.join(".cache/gloriousflywheel")
}

/// A finished chroot.
#[derive(Clone, Debug)]
pub struct Chroot {
    root: PathBuf,
}

impl Chroot {
    /// The chroot in the cache folder, if it is complete and of this recipe.
    pub fn find() -> Result<Self> {
        let root = cache_folder().join("sid");
        let made_by = fs::read_to_string(root.join(RECIPE_STAMP)).unwrap_or_default();
        if made_by.trim() != RECIPE {
            bail!("there is no client chroot of recipe {RECIPE} at {}: run `cargo xtask clients`", root.display());
        }
        Ok(Self { root })
    }

    /// A chroot that is still being made, for the one who makes it.
    pub fn unfinished(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Its root folder on the host.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Starts a session with an empty work folder of its own.
    pub fn enter(&self) -> Result<Session> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        remove_orphans(&self.root.join("var/tmp"));
        let work = PathBuf::from(format!("/var/tmp/{WORK_PREFIX}{}-{number}", std::process::id()));
        fs::create_dir_all(under(&self.root, &work))?;
        // The guard comes first: a session that fails to start leaves no folder.
        let mut session = Session { root: self.root.clone(), work, holder: None };
        session.start()?;
        Ok(session)
    }
}

/// A running set of namespaces in a chroot, with a work folder that goes with it.
#[derive(Debug)]
pub struct Session {
    root: PathBuf,
    work: PathBuf,
    holder: Option<Child>,
}

impl Session {
    fn start(&mut self) -> Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL"]);
        command.args(["bash", "-c", INIT]).arg(&self.root);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run unshare")?;
        let stdout = holder.stdout.take().context("unshare has no output")?;
        self.holder = Some(holder);
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer)?;
        if answer.trim() != "ready" {
            bail!("cannot make namespaces for {} (they need root, and a kernel that allows them)", self.root.display());
        }
        Ok(())
    }

    /// The work folder as the clients see it.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The same path on the host.
    pub fn on_host(&self, path: &Path) -> PathBuf {
        under(&self.root, path)
    }

    /// A command that runs `program` in `folder` with a small clean environment: what the caller's shell has set must
    /// not reach action keys.
    pub fn command(&self, folder: &Path, environment: &[(&str, &str)], program: &str) -> Command {
        let holder = self.holder.as_ref().map_or(0, Child::id);
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{holder}/ns/mnt"));
        command.arg(format!("--pid=/proc/{holder}/ns/pid_for_children"));
        command.args(["env", "-i", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=dumb"]);
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg("chroot").arg(&self.root).args(["/bin/sh", "-c", r#"cd "$0" && exec "$@""#]);
        command.arg(folder).arg(program);
        command
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(mut holder) = self.holder.take() {
            // With its parent killed, the first process dies, and with it everything in the namespace.
            let _ = holder.kill();
            let _ = holder.wait();
        }
        let _ = remove_when_quiet(&under(&self.root, &self.work));
    }
}

/// Processes that are just being torn down can still make files for a moment.
fn remove_when_quiet(folder: &Path) -> std::io::Result<()> {
    let mut result = Ok(());
    for _ in 0..50 {
        result = fs::remove_dir_all(folder);
        if result.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    result
}

/// Removes work folders whose process died before it could.
fn remove_orphans(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(WORK_PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another session may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

//! A PostgreSQL server for tests, of the machine's own package (Debian: `postgresql`), on a Unix socket in a temporary
//! folder. It ends, and its folder goes, when nobody holds it any more.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

/// How long it may take to come up, on a machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(300);

/// A running server. Databases in it are empty, and each is its caller's alone.
pub struct PostgresServer {
    folder: PathBuf,
    tools: PathBuf,
    server: Child,
    databases: Mutex<u32>,
    /// Held for the thread that started the server, which ends when this goes.
    _starter: Sender<()>,
}

impl PostgresServer {
    /// The server that all tests of this process share, which is started when there is none.
    ///
    /// # Errors
    /// Says what is missing: the programs of PostgreSQL, or a user to run them as.
    pub fn shared() -> Result<Arc<Self>, String> {
        static SHARED: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// Makes an empty database and returns its URL.
    ///
    /// # Errors
    /// What `createdb` said.
    pub fn database(&self) -> Result<String, String> {
        let name = {
            let mut databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
            *databases += 1;
            format!("test{databases}")
        };
        let mut create = Command::new(self.tools.join("createdb"));
        run(create.arg("-h").arg(&self.folder).args(["-U", "tester", "-T", "template0", &name]))?;
        let socket = self.folder.to_string_lossy().replace('/', "%2F");
        Ok(format!("postgresql://tester@{socket}/{name}"))
    }

    fn start() -> Result<Self, String> {
        let tools = tools()?;
        let user = user()?;
        let folder = make_folder(&user).map_err(|error| format!("no folder for PostgreSQL: {error}"))?;
        let data = folder.join("data");
        let mut initialize = user.command(&tools.join("initdb"), &folder);
        let locale = ["--locale=C", "--encoding=UTF8", "--no-sync"];
        run(initialize.args(["-A", "trust", "-U", "tester"]).args(locale).arg("-D").arg(&data))?;
        let log = fs::File::create(folder.join("log")).map_err(|error| error.to_string())?;
        // The kernel ends it when this process dies before it could.
        let mut server = user.command(Path::new("setpriv"), &folder);
        server
            .args(["--pdeathsig", "QUIT"])
            .arg(tools.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&folder)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200"])
            .stdout(Stdio::null())
            .stderr(log);
        let (server, starter) = spawn_from_a_thread(server)?;
        let mut started = Self { folder, tools, server, databases: Mutex::new(0), _starter: starter };
        started.wait()?;
        Ok(started)
    }

    /// Until it takes connections.
    fn wait(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        let said = |folder: &Path| fs::read_to_string(folder.join("log")).unwrap_or_default();
        loop {
            let mut ask = Command::new(self.tools.join("pg_isready"));
            if run(ask.arg("-q").arg("-h").arg(&self.folder)).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.server.try_wait() {
                return Err(format!("postgres ended with {status}:\n{}", said(&self.folder)));
            }
            if begin.elapsed() > START_LIMIT {
                return Err(format!("postgres does not answer:\n{}", said(&self.folder)));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // Nothing of it is worth keeping: it is stopped at once, and its own processes follow it.
        let mut stop = Command::new(self.tools.join("pg_ctl"));
        let stopped = user().and_then(|user| {
            stop = user.command(&self.tools.join("pg_ctl"), &self.folder);
            run(stop.arg("stop").args(["-m", "immediate", "-D"]).arg(self.folder.join("data")))
        });
        if stopped.is_err() {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Starts it from a thread that lasts: for the kernel a process loses its parent with the thread that made it, and that
/// of a test ends with its test.
fn spawn_from_a_thread(mut command: Command) -> Result<(Child, Sender<()>), String> {
    let ((starter, end), (send, spawned)) = (channel::<()>(), channel());
    thread::spawn(move || {
        let _ = send.send(command.spawn());
        let _ = end.recv();
    });
    let spawned = spawned.recv().map_err(|error| format!("postgres: {error}"))?;
    Ok((spawned.map_err(|error| format!("postgres: {error}"))?, starter))
}

/// Where the programs are: on the PATH, or where Debian puts the newest version.
fn tools() -> Result<PathBuf, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    debian.sort();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = debian.into_iter().rev().chain(env::split_paths(&path));
    folders
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .ok_or_else(|| "PostgreSQL is not on this machine; on Debian: apt-get install postgresql".to_owned())
}

/// PostgreSQL refuses to run as root, so that root runs it as a user that is made for it, or as nobody.
struct User(Option<(u32, u32)>);

fn user() -> Result<User, String> {
    let own = fs::metadata("/proc/self").map_err(|error| error.to_string())?;
    if std::os::unix::fs::MetadataExt::uid(&own) != 0 {
        return Ok(User(None));
    }
    let passwords = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    let find = |name: &str| {
        let fields = passwords.lines().map(|line| line.split(':').collect::<Vec<_>>());
        fields
            .filter(|fields| fields.first() == Some(&name))
            .find_map(|fields| Some((fields.get(2)?.parse::<u32>().ok()?, fields.get(3)?.parse::<u32>().ok()?)))
    };
    let ids = find("postgres").or_else(|| find("nobody"));
    ids.map(|ids| User(Some(ids))).ok_or_else(|| "there is no user that PostgreSQL could run as".to_owned())
}

impl User {
    fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null()).env("LC_ALL", "C");
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
        command
    }
}

fn make_folder(user: &User) -> io::Result<PathBuf> {
    // A socket's path is short.
    let folder = env::temp_dir().join(format!("gf-pg-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    fs::create_dir(&folder)?;
    if let Some((uid, gid)) = user.0 {
        std::os::unix::fs::chown(&folder, Some(uid), Some(gid))?;
    }
    Ok(folder)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

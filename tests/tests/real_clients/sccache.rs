//! sccache, which speaks WebDAV.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use gf_tests::{Finished, GfServer, SCCACHE, run_within};
use serde_json::Value;

use crate::{CLIENT_LIMIT, Fixture};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// An sccache with nothing of its own: its server, which is killed when this is dropped, and what belongs to it.
struct Sccache {
    server: Child,
    settings: Settings,
}

/// What an sccache is told.
struct Settings {
    folder: PathBuf,
    endpoint: String,
    token: Option<String>,
}

impl Settings {
    fn new(folder: &Path, server: &GfServer, token: Option<&str>) -> Self {
        fs::create_dir_all(folder).unwrap();
        let endpoint = format!("{}/webdav", server.url());
        Self { folder: folder.to_owned(), endpoint, token: token.map(str::to_owned) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// A command of this sccache, which hears of nothing that the caller's shell has set for another one, or for cargo.
    fn command(&self, program: &Path) -> Command {
        // The kernel ends it when this process dies before it could.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program).env_clear();
        command.env("PATH", env::var_os("PATH").unwrap_or_default()).env("HOME", &self.folder);
        command.env("SCCACHE_WEBDAV_ENDPOINT", &self.endpoint).env("SCCACHE_SERVER_UDS", self.socket());
        command.env("SCCACHE_DIR", self.folder.join("none")).env("SCCACHE_CONF", "/dev/null");
        for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            // They are found by the home folder, which is another one here.
            let home = || env::var_os("HOME").map(|home| Path::new(&home).join(folder).into_os_string());
            command.env(name, env::var_os(name).or_else(home).unwrap_or_default());
        }
        if let Some(token) = &self.token {
            command.env("SCCACHE_WEBDAV_TOKEN", token);
        }
        command
    }

    /// Starts the server of this sccache, which asks ours first. What it said where it did not.
    fn start(self) -> Result<Sccache, String> {
        let log = self.folder.join("log");
        let mut command = self.command(&SCCACHE.find().unwrap());
        command.env("SCCACHE_START_SERVER", "1").env("SCCACHE_NO_DAEMON", "1").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut sccache = Sccache { server: command.spawn().unwrap(), settings: self };
        let until = Instant::now() + CLIENT_LIMIT;
        while !sccache.settings.socket().exists() {
            if sccache.server.try_wait().unwrap().is_some() {
                return Err(fs::read_to_string(log).unwrap());
            }
            assert!(Instant::now() < until, "sccache does not start: {}", fs::read_to_string(log).unwrap());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(sccache)
    }
}

impl Sccache {
    fn start(folder: &Path, server: &GfServer, token: Option<&str>) -> Self {
        Settings::new(folder, server, token).start().unwrap()
    }

    fn run(&self, workshop: &Path, arguments: &[&str]) -> Finished {
        let mut command = self.settings.command(&SCCACHE.find().unwrap());
        command.args(arguments).current_dir(workshop);
        run_within(command, CLIENT_LIMIT).unwrap().success().unwrap()
    }

    /// Compiles a file with gcc.
    fn compile_c(&self, workshop: &Path) {
        self.run(workshop, &["gcc", "-c", "wheel.c", "-o", "wheel.o"]);
    }

    /// Compiles a library with cargo, from its beginning.
    fn compile_rust(&self, workshop: &Path) {
        let _fresh = fs::remove_dir_all(workshop.join("target"));
        let mut command = self.settings.command(Path::new("cargo"));
        command
            .args(["build", "--offline", "--quiet"])
            .current_dir(workshop)
            .env("RUSTC_WRAPPER", SCCACHE.find().unwrap());
        command.env("CARGO_INCREMENTAL", "0").env("CARGO_TARGET_DIR", workshop.join("target"));
        run_within(command, CLIENT_LIMIT).unwrap().success().unwrap();
    }

    /// Its counters, once nothing is being written any more: it stores results behind the back of who compiles.
    fn counters(&self) -> Counters {
        let until = Instant::now() + CLIENT_LIMIT;
        loop {
            let shown = self.run(Path::new("/"), &["--show-stats", "--stats-format", "json"]).stdout;
            let stats = serde_json::from_str::<Value>(&shown).unwrap()["stats"].take();
            let all = |name: &str| {
                let counts = stats[name]["counts"].as_object().unwrap().values();
                counts.map(|count| count.as_u64().unwrap()).sum::<u64>()
            };
            let number = |name: &str| stats[name].as_u64().unwrap();
            let counters = Counters {
                hits: all("cache_hits"),
                misses: all("cache_misses"),
                written: number("cache_writes"),
                failed: number("cache_write_errors"),
                other_errors: all("cache_errors") + number("cache_read_errors") + number("cache_timeouts"),
            };
            if counters.misses == counters.written + counters.failed {
                return counters;
            }
            assert!(Instant::now() < until, "not all that was compiled is stored: {counters:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Sccache {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counters {
    hits: u64,
    misses: u64,
    written: u64,
    failed: u64,
    other_errors: u64,
}

/// So many compilations that were all hits, or none and stored.
const fn hits(hits: u64) -> Counters {
    Counters { hits, misses: 0, written: 0, failed: 0, other_errors: 0 }
}

const fn stored(misses: u64) -> Counters {
    Counters { hits: 0, misses, written: misses, failed: 0, other_errors: 0 }
}

/// A C file, and a library of Rust.
fn lay_out(workshop: &Path) {
    fs::create_dir_all(workshop.join("src")).unwrap();
    fs::write(workshop.join("wheel.c"), "int rpm(int load) { return 16000 - load; }\n").unwrap();
    let manifest = "[package]\nname = \"wheel\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    fs::write(workshop.join("Cargo.toml"), manifest).unwrap();
    fs::write(workshop.join("src/lib.rs"), "pub fn rpm(load: u32) -> u32 { 16000 - load }\n").unwrap();
}

fn start(folder: &Path, access: &str) -> GfServer {
    fs::write(folder.join("token"), TOKEN).unwrap();
    let file = folder.join("gf.toml");
    fs::write(&file, format!("[worker]\nenabled = false\n{access}")).unwrap();
    let arguments = ["--config", file.to_str().unwrap()];
    let binary = GfServer::binary().unwrap();
    GfServer::start_with(&binary, ([127, 0, 0, 1], 0).into(), &folder.join("data"), &arguments).unwrap()
}

#[test]
fn what_was_compiled_once_is_not_compiled_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (workshop, path) = (folder.path().join("workshop"), folder.path());
    lay_out(&workshop);

    let server = start(path, "");
    let first = Sccache::start(&path.join("first"), &server, None);
    first.compile_c(&workshop);
    first.compile_rust(&workshop);
    assert_eq!(first.counters(), stored(2));
    drop(first);
    let compiled = fs::read(workshop.join("wheel.o")).unwrap();
    fs::remove_file(workshop.join("wheel.o")).unwrap();
    assert!(server.stop().unwrap().success());

    let server = start(path, "");
    let second = Sccache::start(&path.join("second"), &server, None);
    second.compile_c(&workshop);
    second.compile_rust(&workshop);
    assert_eq!(second.counters(), hits(2));
    assert_eq!(fs::read(workshop.join("wheel.o")).unwrap(), compiled);
    drop(second);
    assert!(server.stop().unwrap().success());
}

/// A token that may read what `default` has.
fn issue_reader(server: &GfServer) -> String {
    let mut issue = Command::new(GfServer::binary().unwrap());
    issue.args(["token", "issue", "reader", "--grant", "viewer@default", "--lifetime", "1h", "--server", server.url()]);
    issue.env("GF_TOKEN", TOKEN);
    run_within(issue, CLIENT_LIMIT).unwrap().success().unwrap().stdout.trim().to_owned()
}

#[test]
fn a_token_opens_as_much_as_it_grants() {
    let folder = tempfile::tempdir().unwrap();
    let (workshop, path) = (folder.path().join("workshop"), folder.path());
    lay_out(&workshop);
    let server = start(path, "[access]\ntoken_file = \"token\"\n");

    for (name, token) in [("nobody", None), ("stranger", Some("not-the-token"))] {
        let said = Settings::new(&path.join(name), &server, token).start().err().unwrap();
        assert!(said.contains("401"), "{name}: {said}");
    }
    // Who may only read finds nothing, and stores nothing.
    let token = issue_reader(&server);
    let reader = Sccache::start(&path.join("early"), &server, Some(&token));
    reader.compile_c(&workshop);
    let nothing = reader.counters();
    assert_eq!((nothing.hits, nothing.misses, nothing.written), (0, 1, 0), "{nothing:?}");

    let writer = Sccache::start(&path.join("writer"), &server, Some(TOKEN));
    writer.compile_c(&workshop);
    assert_eq!(writer.counters(), stored(1));

    let reader = Sccache::start(&path.join("late"), &server, Some(&token));
    reader.compile_c(&workshop);
    assert_eq!(reader.counters(), hits(1));
    assert!(server.stop().unwrap().success());
}

/// A second instance of a tenant has values of its own, and a prefix makes nothing that another one finds.
#[test]
fn instances_and_prefixes_are_kept_apart() {
    let folder = tempfile::tempdir().unwrap();
    let workshop = folder.path().join("workshop");
    lay_out(&workshop);
    let fixture = Fixture::start();
    let compile = |name: &str, instance: &str, prefix: &str| {
        let mut settings = Settings::new(&folder.path().join(name), &fixture.server, None);
        settings.endpoint = format!("{}{instance}/webdav/{prefix}", fixture.server.url());
        let sccache = settings.start().unwrap();
        sccache.compile_c(&workshop);
        sccache.counters()
    };
    assert_eq!(compile("first", "", ""), stored(1));
    assert_eq!(compile("other-instance", "/default", ""), stored(1));
    assert_eq!(compile("other-prefix", "", "team/linux"), stored(1));
    assert_eq!(compile("again", "", ""), hits(1));
    fixture.stop();
}

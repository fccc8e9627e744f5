//! Actions run by our workers, for unmodified clients. The workers show actions the tools of the chroot, as an operator
//! would show them those of a root file system of his choice.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use gf_tests::{Built, Chroot, Finished, GfServer, GfWorker, Metrics, Place, processes_of, run_within};
use tempfile::TempDir;

use crate::bazel::{WITHOUT_RUST, Workshop};
use crate::{CLIENT_LIMIT, chroot};

/// Everything runs remotely or not at all.
const REMOTE_ONLY: [&str; 3] = ["--spawn_strategy=remote", "--remote_local_fallback=false", "--jobs=8"];

/// What must be the case soon: a cold Bazel on a busy machine needs a while until the first action runs.
const SOON: Duration = Duration::from_secs(600);

struct Farm {
    server: GfServer,
    data: TempDir,
    tools: PathBuf,
}

impl Farm {
    /// A server with a worker of its own.
    fn start() -> Self {
        Self::with("")
    }

    /// A server that leaves the work to others.
    fn without_worker() -> Self {
        Self::with("enabled = false\n")
    }

    fn with(worker: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let tools = Chroot::find().unwrap().root().to_path_buf();
        let config = data.path().join("gf.toml");
        fs::write(&config, format!("[worker]\nroot = {:?}\n{worker}", tools.display().to_string())).unwrap();
        let server = start_server(data.path(), 0);
        Self { server, data, tools }
    }

    /// A worker of two cores.
    fn worker(&self, name: &str) -> GfWorker {
        let binary = GfServer::binary().unwrap();
        let data = self.data.path().join(name);
        GfWorker::start_with(&binary, &self.server, &data, name, &self.tools, &["--cores", "2"]).unwrap()
    }

    fn executor(&self) -> String {
        format!("--remote_executor={}", self.server.grpc())
    }

    fn metric(&self, name: &str) -> f64 {
        Metrics::read(self.server.address()).unwrap().sum(name, &[])
    }

    fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what} within {} s", SOON.as_secs());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the test: nothing of what ran may be left.
    fn stop(self) {
        assert!(self.server.stop().unwrap().success(), "the server did not stop well");
        assert_nothing_is_left(self.data.path());
    }
}

fn start_server(data: &Path, port: u16) -> GfServer {
    let config = data.join("gf.toml").display().to_string();
    let address = ([127, 0, 0, 1], port).into();
    GfServer::start_with(&GfServer::binary().unwrap(), address, data, &["--config", &config]).unwrap()
}

/// No mount of `folder` or below it, in whichever mount namespace, and no process that was started there.
fn assert_nothing_is_left(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.to_str().unwrap()), "something is still mounted below {}", folder.display());
    // A worker that was killed at its deadline is the kernel's to clear away.
    let deadline = Instant::now() + SOON;
    loop {
        let left = processes_of(folder);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "still running: {left:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn options<'a>(executor: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[executor], REMOTE_ONLY.as_slice(), more].concat()
}

fn build(workshop: &Workshop, name: &str, farm: &Farm, more: &[&str]) -> Built {
    let executor = farm.executor();
    workshop.bazel(name).build("build", WITHOUT_RUST, &options(&executor, more), CLIENT_LIMIT).unwrap()
}

#[test]
fn every_action_and_every_test_of_five_languages_runs_remotely() {
    let farm = Farm::start();
    let workshop = Workshop::new();
    let executor = farm.executor();
    let bazel = workshop.bazel("first");
    let built = bazel.build("test", &["//..."], &options(&executor, &[]), CLIENT_LIMIT).unwrap();
    let runs = built.log.all_remote_runs().unwrap();
    assert_eq!(runs["TestRunner"], 8, "{runs:?}");
    for mnemonic in ["CppCompile", "CppLink", "Rustc", "Genrule"] {
        assert!(runs.contains_key(mnemonic), "{runs:?}");
    }
    drop(bazel);
    farm.stop();
}

#[test]
fn actions_run_remotely_with_blake3_and_with_compression() {
    let farm = Farm::start();
    let workshop = Workshop::new();
    let executor = farm.executor();
    let bazel = workshop.bazel("first").with_startup("--digest_function=blake3");
    let more = ["--remote_cache_compression", "--remote_download_minimal"];
    let built = bazel.build("build", WITHOUT_RUST, &options(&executor, &more), CLIENT_LIMIT).unwrap();
    built.log.all_remote_runs().unwrap();
    drop(bazel);
    farm.stop();
}

#[test]
fn a_build_goes_on_when_a_worker_is_killed() {
    let farm = Farm::without_worker();
    let (doomed, other) = (farm.worker("doomed"), farm.worker("other"));
    farm.wait_until("two workers attach", |farm| farm.metric("gf_workers") == 2.0);
    let workshop = Workshop::new();
    let built = thread::scope(|scope| {
        let build = scope.spawn(|| build(&workshop, "first", &farm, &[]));
        // From the third action on both have work.
        farm.wait_until("both workers run something", |farm| farm.metric("gf_executions_running") >= 3.0);
        let of_the_doomed = farm.data.path().join("doomed");
        // The worker, its launcher, and a sandbox: it would be found if it were left.
        farm.wait_until("a sandbox is seen", |_| processes_of(&of_the_doomed).len() > 2);
        doomed.kill().unwrap();
        assert_nothing_is_left(&of_the_doomed);
        build.join().unwrap()
    });
    built.log.all_remote_runs().unwrap();
    assert_eq!(farm.metric("gf_workers"), 1.0);
    assert!(other.stop().unwrap().success());
    farm.stop();
}

#[test]
fn what_a_killed_client_wanted_is_not_run_to_its_end() {
    let farm = Farm::start();
    let workshop = Workshop::new();
    slow_workspace(&workshop);
    let executor = farm.executor();
    let mut command = workshop.command("first");
    command.args(["build", "//slow"]).args(options(&executor, &[]));
    let mut client = command.spawn().unwrap();
    farm.wait_until("the slow action runs", |farm| farm.metric("gf_executions_running") == 1.0);
    drop(workshop);
    let _ = client.wait();
    farm.wait_until("the slow action is cancelled", |farm| farm.metric("gf_executions_running") == 0.0);
    farm.stop();
}

#[test]
fn a_build_whose_client_was_killed_succeeds_when_it_is_tried_again() {
    let farm = Farm::start();
    let workshop = Workshop::new();
    let executor = farm.executor();
    let mut command = workshop.command("first");
    command.arg("build").args(options(&executor, &[])).arg("//...");
    let mut client = command.spawn().unwrap();
    farm.wait_until("something runs", |farm| farm.metric("gf_executions_running") >= 1.0);
    // Its session is killed with all that is in it.
    drop(workshop);
    assert!(!client.wait().unwrap().success(), "it was killed in the middle of its build");
    farm.wait_until("nothing runs for it any more, and nothing waits", |farm| {
        farm.metric("gf_executions_running") + farm.metric("gf_executions_queued") == 0.0
    });
    farm.wait_until("nothing of it is left", |farm| sandboxed(&farm.server) == 0);

    let workshop = Workshop::new();
    let bazel = workshop.bazel("second");
    let built = bazel.build("build", &["//..."], &options(&executor, &[]), CLIENT_LIMIT).unwrap();
    let remote = built.log.spawns.iter().filter(|spawn| spawn.is_remote_run() || spawn.is_remote_hit()).count();
    assert!(remote == built.log.spawns.len() && built.log.spawns.iter().any(|spawn| spawn.is_remote_run()));
    drop(bazel);
    farm.stop();
}

/// The processes of actions: below a server is its worker, below that its launcher, and below that the first processes of
/// sandboxes, one of which waits for the next action.
fn sandboxed(server: &GfServer) -> usize {
    let below = |parents: &[u32]| -> Vec<u32> {
        let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            parents.contains(&parent).then(|| entry.file_name().to_str()?.parse().ok())?
        });
        processes.collect()
    };
    let launchers = below(&below(&[server.id()]));
    assert!(!launchers.is_empty(), "there is no launcher");
    below(&below(&launchers)).len()
}

#[test]
fn a_build_survives_a_server_that_is_killed() {
    let farm = Farm::start();
    let Farm { server, data, tools } = farm;
    let port: u16 = server.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let workshop = Workshop::new();
    let (built, server) = thread::scope(|scope| {
        let executor = format!("--remote_executor={}", server.grpc());
        let bazel = workshop.bazel("first");
        let build = scope.spawn(move || {
            let more = ["--remote_retries=20", "--remote_retry_max_delay=2s"];
            bazel.build("build", WITHOUT_RUST, &options(&executor, &more), CLIENT_LIMIT).unwrap()
        });
        let deadline = Instant::now() + SOON;
        let is_busy = || Metrics::read(server.address()).unwrap().sum("gf_executions_running", &[]) >= 1.0;
        // The server, its worker, its launcher, and a sandbox: it would be found if it were left.
        while !is_busy() || processes_of(data.path()).len() < 4 {
            assert!(Instant::now() < deadline, "nothing was run");
            thread::sleep(Duration::from_millis(20));
        }
        drop(server);
        assert_nothing_is_left(data.path());
        let server = start_server(data.path(), port);
        (build.join().unwrap(), server)
    });
    built.log.all_remote_runs().unwrap();
    Farm { server, data, tools }.stop();
}

/// A target that takes longer than any test.
fn slow_workspace(workshop: &Workshop) {
    let folder = workshop.on_host("slow");
    fs::create_dir_all(&folder).unwrap();
    let text = "genrule(name = \"slow\", outs = [\"out\"], cmd = \"sleep 600; touch $@\")\n";
    fs::write(folder.join("BUILD.bazel"), text).unwrap();
}

fn run(place: &Place, environment: &[(&str, &str)], program: &str, arguments: &[&str]) -> Finished {
    let mut command = place.command(place.work(), environment, program);
    command.args(arguments);
    run_within(command, CLIENT_LIMIT).unwrap().success().unwrap()
}

#[test]
fn recc_compiles_remotely() {
    let farm = Farm::start();
    let place = chroot();
    fs::write(place.on_host(&place.work().join("wheel.c")), "int rpm(int load) { return 16000 - load; }\n").unwrap();
    let url = farm.server.url().to_owned();
    let environment = [("RECC_SERVER", url.as_str()), ("RECC_REMOTE_PLATFORM_OSFamily", "linux")];
    run(&place, &environment, "recc", &["/usr/bin/gcc", "-c", "wheel.c", "-o", "wheel.o"]);
    assert!(place.on_host(&place.work().join("wheel.o")).is_file());
    assert_eq!(farm.metric("gf_executions_total"), 1.0);
    farm.stop();
}

#[test]
fn trexe_runs_a_command_remotely() {
    let farm = Farm::start();
    let place = chroot();
    fs::write(place.on_host(&place.work().join("in.txt")), "flywheel\n").unwrap();
    let remote = format!("--remote={}", farm.server.url());
    let arguments = [
        remote.as_str(),
        "--input-path=in.txt",
        "--output-path=out.txt",
        "--d=got",
        "--platform-properties=OSFamily=linux",
        "/bin/sh",
        "-c",
        "tr a-z A-Z <in.txt >out.txt",
    ];
    run(&place, &[], "trexe", &arguments);
    let got = fs::read_to_string(place.on_host(&place.work().join("got/out.txt"))).unwrap();
    assert_eq!(got, "FLYWHEEL\n");
    farm.stop();
}

/// It is told to stop while an action runs: the action ends, its output is stored, and who asks again gets it.
#[test]
fn a_server_that_is_stopped_keeps_what_its_worker_was_about_to_make() {
    let farm = Farm::start();
    let place = chroot();
    let Farm { server, data, tools } = farm;
    let port: u16 = server.address().rsplit_once(':').unwrap().1.parse().unwrap();
    let remote = format!("--remote={}", server.url());
    let trexe = |after: &str| {
        let mut command = place.command(place.work(), &[], "trexe");
        let action = "sleep 2; echo spinning >out.txt";
        command.args([&remote, "--output-path=out.txt", after, "/bin/sh", "-c", action]);
        run_within(command, CLIENT_LIMIT).unwrap()
    };
    thread::scope(|scope| {
        let asked = scope.spawn(|| trexe("--d=first"));
        let deadline = Instant::now() + SOON;
        while Metrics::read(server.address()).unwrap().sum("gf_executions_running", &[]) < 1.0 {
            assert!(Instant::now() < deadline, "nothing was run");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(server.stop().unwrap().success(), "the server did not stop well");
        // Whether it was still told depends on when its connection ended.
        let _ = asked.join().unwrap();
    });
    let farm = Farm { server: start_server(data.path(), port), data, tools };
    trexe("--d=second").success().unwrap();
    assert_eq!(farm.metric("gf_executions_total"), 0.0, "the action was run again");
    farm.stop();
}

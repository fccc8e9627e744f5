//! Tools that exist only as Nix store paths in a cache of the server, used by Bazel on a worker that has none of them.

use std::fs;
use std::path::{Path, PathBuf};

use gf_tests::{Bazel, Chroot, GfServer, Glue, Nix, Place, copy_tree, run_within, source_folder};
use tempfile::TempDir;

use crate::{CLIENT_LIMIT, chroot};

const REMOTE_ONLY: [&str; 2] = ["--spawn_strategy=remote", "--remote_local_fallback=false"];

/// A server whose worker shows actions the tools of the chroot.
struct Farm {
    server: GfServer,
    _data: TempDir,
}

impl Farm {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let tools = Chroot::find().unwrap().root().display().to_string();
        let config = data.path().join("gf.toml");
        fs::write(&config, format!("[worker]\nroot = {tools:?}\n")).unwrap();
        let arguments = ["--config", &config.display().to_string()];
        let server =
            GfServer::start_with(&GfServer::binary().unwrap(), ([127, 0, 0, 1], 0).into(), data.path(), &arguments);
        Self { server: server.unwrap(), _data: data }
    }
}

/// A workspace whose tools were built and pushed by a machine with Nix, which is gone.
struct Workshop {
    place: Place,
    glue: Glue,
    workspace: PathBuf,
    compiler: String,
}

impl Workshop {
    fn new(farm: &Farm) -> Self {
        let place = chroot();
        let workspace = place.work().join("store_paths");
        let here = place.on_host(&workspace);
        copy_tree(&source_folder("store_paths"), &here).unwrap();
        let rules = place.work().join("rules");
        copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../rules"), &place.on_host(&rules)).unwrap();
        let [greeter, compiler] = push_tools(&place, &workspace, farm);
        fill_in(&here.join("MODULE.bazel"), &[("@RULES@", &rules.display().to_string())]);
        fill_in(&here.join("BUILD.bazel"), &[("@GREETER@", &greeter), ("@COMPILER@", &compiler)]);
        let glue = Glue::lay_out(&place).unwrap();
        Self { place, glue, workspace, compiler }
    }

    fn bazel(&self, name: &str) -> Bazel<'_> {
        Bazel::new(&self.place, &self.glue, &self.workspace, name)
    }

    fn output(&self, bazel: &Bazel<'_>, name: &str) -> PathBuf {
        let folder = bazel.run(&["info", "bazel-bin"], CLIENT_LIMIT).unwrap().stdout;
        self.place.on_host(&Path::new(folder.trim()).join(name))
    }
}

fn push_tools(place: &Place, workspace: &Path, farm: &Farm) -> [String; 2] {
    let nix = Nix::machine(place, "builder").unwrap();
    let expression = workspace.join("tools.nix").display().to_string();
    ["greeter", "compiler"].map(|tool| {
        let path = nix.output("nix-build", &["--no-out-link", &expression, "--attr", tool]).unwrap();
        let cache = format!("{}/nix/main?compression=zstd", farm.server.url());
        nix.output("nix", &["copy", "--to", &cache, &path]).unwrap();
        assert!(!Path::new(&path).exists() && !place.on_host(Path::new(&path)).exists(), "no worker has {path}");
        path
    })
}

fn fill_in(file: &Path, values: &[(&str, &str)]) {
    let text = fs::read_to_string(file).unwrap();
    fs::write(file, values.iter().fold(text, |text, (name, value)| text.replace(name, value))).unwrap();
}

#[test]
fn a_tool_and_a_compiler_that_no_worker_has_run_remotely() {
    let farm = Farm::start();
    let workshop = Workshop::new(&farm);
    let executor = format!("--remote_executor={}", farm.server.grpc());
    let toolchain = ["--extra_toolchains=//:cc_toolchain", "--extra_execution_platforms=//:cc_platform"];
    let options = [&[executor.as_str()], REMOTE_ONLY.as_slice(), toolchain.as_slice()].concat();

    let bazel = workshop.bazel("first");
    let built = bazel.build("build", &["//:greeting", "//:whole"], &options, CLIENT_LIMIT).unwrap();
    let runs = built.log.all_remote_runs().unwrap();
    assert_eq!((runs["Genrule"], runs["CppCompile"], runs["CppLink"]), (1, 2, 1), "{runs:?}");
    let greeting = fs::read_to_string(workshop.output(&bazel, "greeting.txt")).unwrap();
    let mut lines = greeting.lines();
    assert_eq!(lines.next(), Some("greetings from the store to flywheel"));
    // It, what it refers to, and nothing else of any store.
    let names: Vec<&str> = lines.map(|name| name.split_once('-').unwrap().1).collect();
    assert_eq!(names.len(), 2, "{greeting}");
    assert!(names.contains(&"greeter") && names.contains(&"words"), "{greeting}");
    let program = fs::read(workshop.output(&bazel, "whole")).unwrap();
    for (words, compiler) in [("whole", "g++"), ("half", "gcc")] {
        let said = format!("{words} by {}/bin/{compiler}", workshop.compiler);
        assert!(program.windows(said.len()).any(|bytes| bytes == said.as_bytes()), "the program does not say {said}");
    }

    // What store paths are made of has digests of one kind, actions may have others.
    let other = workshop.bazel("blake3").with_startup("--digest_function=blake3");
    let built = other.build("build", &["//:greeting"], &options, CLIENT_LIMIT).unwrap();
    assert_eq!(built.log.all_remote_runs().unwrap()["Genrule"], 1);
    assert_eq!(fs::read_to_string(workshop.output(&other, "greeting.txt")).unwrap(), greeting);
    drop((bazel, other));
    assert!(farm.server.stop().unwrap().success(), "the server did not stop well");
}

#[test]
fn a_path_that_is_in_no_cache_fails_at_once_by_its_name() {
    let farm = Farm::start();
    let workshop = Workshop::new(&farm);
    let bazel = workshop.bazel("first");
    let mut command = bazel.command();
    command.args(["build", "--color=no", &format!("--remote_executor={}", farm.server.grpc())]).args(REMOTE_ONLY);
    let failed = run_within(
        {
            command.arg("//:lost");
            command
        },
        CLIENT_LIMIT,
    )
    .unwrap();
    assert!(!failed.status.success());
    let lost = "/nix/store/2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-lost is not in the Nix caches of this server";
    assert!(failed.stderr.contains(&format!("Failed Precondition: {lost}")), "{}", failed.stderr);
    drop(bazel);
    assert!(farm.server.stop().unwrap().success(), "the server did not stop well");
}

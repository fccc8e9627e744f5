//! What a command sees of the machine and of others, and what it can change.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use gf_testkit::skip;
use gf_worker::sandbox::{Launcher, Network, Root, remove_scratch};

use super::support::Bench;

#[tokio::test]
async fn of_the_machine_only_tools_are_seen() {
    let bench = Bench::new().await;
    let said = bench.sh("look", "ls -A / /var /dev").await;
    let tools = ["bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt"];
    // Where the configuration of name servers is a link to `/run`, that one file is there.
    let allowed = [&tools[..], &["build", "dev", "nix", "proc", "tmp", "var", "run"]].concat();
    let (root, rest) = said.split_once("\n\n").unwrap();
    for name in root.lines().skip(1).chain(rest.lines().filter(|line| line.starts_with('/'))) {
        assert!(allowed.contains(&name.trim_matches(['/', ':'])), "{name} is seen: {said}");
    }
    assert!(rest.ends_with("/var:\ntmp\n") || rest.contains("/var:\ntmp\n"), "{said}");
    for device in ["null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "fd", "stdin"] {
        assert!(said.lines().any(|line| line == device), "{device} is missing: {said}");
    }
}

#[tokio::test]
async fn others_are_not_seen() {
    let bench = Bench::new().await;
    let other = bench.command("other", &["/bin/true"]);
    let secret = other.scratch.join("secret");
    fs::write(&secret, "secret").unwrap();
    let script =
        format!("cat {0} /proc/1/root{0} /proc/self/root{0} /proc/1/cwd/secret ..{0} ../../..{0}", secret.display());
    let said = bench.run(bench.script("spy", &script)).await;
    assert_ne!(said.ran.exit_code, 0);
    assert!(!said.stdout.contains("secret"), "{said:?}");
    // The first process, which knows more, is out of reach.
    let said = bench.run(bench.script("first", "ls /proc/1/fd /proc/1/cwd/ || cat /proc/1/environ || kill -9 1")).await;
    assert_eq!(said.stdout, "", "{said:?}");
}

#[tokio::test]
async fn tools_cannot_be_changed() {
    let bench = Bench::new().await;
    for (n, place) in ["/usr/x", "/etc/x", "/bin/x", "/x", "/dev/x", "/var/x"].iter().enumerate() {
        let said = bench.run(bench.script(&format!("write-{n}"), &format!("echo x >{place}"))).await;
        assert_ne!(said.ran.exit_code, 0, "{place}: {said:?}");
    }
}

#[tokio::test]
async fn a_changed_input_is_a_copy() {
    let bench = Bench::new().await;
    let run = bench.script("change", "echo more >>input; rm -r folder; mkdir new; echo x >new/file; cat input");
    let (root, upper) = (run.root.clone(), run.upper());
    let Root::Layers(layers) = root else {
        skip(format_args!("no overlays here, and private inputs may be changed: {:?}", bench.report));
        return;
    };
    assert_eq!(bench.run(run).await.ok(), "original\nmore\n");
    assert_eq!(fs::read_to_string(layers[0].join("input")).unwrap(), "original\n");
    assert!(layers[0].join("folder").is_dir());
    assert_eq!(fs::read_to_string(upper.join("input")).unwrap(), "original\nmore\n");
    assert_eq!(fs::read_to_string(upper.join("new/file")).unwrap(), "x\n");
}

#[tokio::test]
async fn a_private_root_may_be_changed() {
    let bench = Bench::new().await;
    let mut run = bench.script("private", "echo more >>input; echo x >folder/file");
    if let Root::Layers(layers) = &run.root {
        run.root = Root::Private(layers[0].clone());
    }
    let Root::Private(root) = run.root.clone() else { panic!("it was just made so") };
    bench.run(run).await.ok();
    assert_eq!(fs::read_to_string(root.join("input")).unwrap(), "original\nmore\n");
    assert_eq!(fs::read_to_string(root.join("folder/file")).unwrap(), "x\n");
}

#[tokio::test]
async fn temporary_files_are_its_own() {
    let bench = Bench::new().await;
    let script = "ls -A /tmp /var/tmp /dev/shm; echo x >/tmp/a; cat /var/tmp/a; echo y >/dev/shm/b; cat /dev/shm/b";
    for name in ["one", "two"] {
        assert_eq!(bench.sh(name, script).await, "/dev/shm:\n\n/tmp:\n\n/var/tmp:\nx\ny\n");
    }
}

#[tokio::test]
async fn only_its_own_loopback_is_reached() {
    let bench = Bench::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let python = |name: &str, script: &str| bench.command(name, &["python3", "-c", script]);
    let connect = format!("import socket; socket.create_connection(('127.0.0.1', {port}), 5); print('reached')");
    let said = bench.run(python("machine", &connect)).await;
    assert!(said.stderr.contains("Connection refused"), "{said:?}");
    let out = "import socket; socket.create_connection(('192.0.2.1', 80), 5)";
    let said = bench.run(python("out", out)).await;
    assert!(said.stderr.contains("Network is unreachable"), "{said:?}");
    let own = "import socket; s = socket.create_server(('127.0.0.1', 0)); \
               socket.create_connection(s.getsockname(), 5); print('reached')";
    assert_eq!(bench.run(python("own", own)).await.ok(), "reached\n");
    let mut run = python("host", &connect);
    run.network = Network::Host;
    assert_eq!(bench.run(run).await.ok(), "reached\n");
}

#[tokio::test]
async fn a_port_that_one_used_is_free_for_the_next() {
    let bench = Bench::new().await;
    // Closed by the server first, so that the port lingers where it was.
    let script = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 4321)); s.listen(); \
                  c = socket.create_connection(('127.0.0.1', 4321), 5); a = s.accept()[0]; a.close(); c.recv(1); c.close()";
    for name in ["one", "two", "three"] {
        bench.run(bench.command(name, &["python3", "-c", script])).await.ok();
    }
}

#[tokio::test]
async fn it_is_nobody() {
    let bench = Bench::new().await;
    let said = bench.sh("status", "id -u; id -g; hostname; grep -E '^(Cap|NoNewPrivs)' /proc/self/status").await;
    assert!(said.starts_with("1000\n1000\ngf-worker\n"), "{said}");
    let none = |set: &str| said.contains(&format!("{set}:\t0000000000000000\n"));
    assert!(["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].into_iter().all(none), "{said}");
    assert!(said.contains("NoNewPrivs:\t1\n"), "{said}");
    if bench.launcher.action_owner().is_some() {
        // Whoever is not root cannot leave its groups.
        assert_eq!(bench.sh("groups", "id -G").await, "1000\n");
    }
}

#[tokio::test]
async fn a_set_user_id_program_helps_nobody() {
    let bench = Bench::new().await;
    let run = bench.command("setuid", &["./id", "-u"]);
    let (Root::Layers(inputs), program) = (run.root.clone(), "id") else {
        skip(format_args!("no overlays here: {:?}", bench.report));
        return;
    };
    // Owned by whoever tests, which is root in a pipeline.
    fs::copy("/usr/bin/id", inputs[0].join(program)).unwrap();
    fs::set_permissions(inputs[0].join(program), fs::Permissions::from_mode(0o6755)).unwrap();
    assert_eq!(bench.run(run).await.ok(), "1000\n");
}

#[tokio::test]
async fn only_its_own_processes_and_mounts_are_seen() {
    let bench = Bench::new().await;
    let said = bench.sh("processes", "echo /proc/[0-9]*; cat /proc/self/mountinfo").await;
    let processes = said.lines().next().unwrap().split(' ').count();
    assert!(processes <= 3, "{said}");
    let outside = bench.folder.path().to_str().unwrap();
    assert!(!said.lines().any(|line| line.split(' ').nth(4).is_some_and(|place| place.starts_with(outside))), "{said}");
}

#[tokio::test]
async fn nothing_stays_mounted_outside() {
    let bench = Bench::new().await;
    bench.sh("mounts", "true").await;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(bench.folder.path().to_str().unwrap()), "{mounts}");
    remove_scratch(&bench.folder.path().join("mounts")).unwrap();
    assert!(!bench.folder.path().join("mounts").exists());
}

#[tokio::test]
async fn keys_are_not_shared() {
    let bench = Bench::new().await;
    // Where there is no keyring, there is none to share.
    let script = "import ctypes; l = ctypes.CDLL(None); \
                  print(l.syscall(250, 10, -3, b'user', b'gf-test', 0) < 0); \
                  l.syscall(248, b'user', b'gf-test', b'secret', 6, -3)";
    for name in ["writer", "reader"] {
        let said = bench.run(bench.command(name, &["python3", "-c", script])).await;
        assert_eq!(said.stdout, "True\n", "{name}: {said:?}");
    }
}

#[tokio::test]
async fn only_the_standard_streams_are_open() {
    let bench = Bench::new().await;
    let script = "import os; print([n for n in range(3, 4096) if os.path.exists(f'/proc/self/fd/{n}')])";
    assert_eq!(bench.run(bench.command("descriptors", &["python3", "-c", script])).await.ok(), "[]\n");
}

#[tokio::test]
async fn another_root_file_system_is_shown_instead() {
    use gf_worker::sandbox::SandboxConfig;
    let bench = Bench::new().await;
    let tools = tempfile::tempdir().unwrap();
    fs::create_dir_all(tools.path().join("usr/share")).unwrap();
    fs::write(tools.path().join("usr/share/tool"), "ours").unwrap();
    std::os::unix::fs::symlink("usr/share", tools.path().join("opt")).unwrap();
    let config = SandboxConfig { tool_root: Some(tools.path().into()), ..super::support::config(bench.folder.path()) };
    let (launcher, _) = Launcher::start(config).await.unwrap();
    let run = bench.command("tools", &["/usr/bin/true"]);
    let stderr = run.stderr.clone();
    let ran = launcher.run(run, tokio_util::sync::CancellationToken::new()).await.unwrap();
    assert_eq!(ran.exit_code, 127, "the machine's own tools are not there");
    let mut said = String::new();
    fs::File::open(stderr).unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("/usr/bin/true"), "{said}");
    launcher.stop().await;
}

#[tokio::test]
async fn the_data_of_the_worker_is_never_shown() {
    use gf_worker::sandbox::{LauncherError, SandboxConfig};
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let config = SandboxConfig { shown: vec!["/usr".into(), folder.path().into()], ..super::support::config(&data) };
    let refused = Launcher::start(config).await.map(|(_, report)| report).unwrap_err();
    assert!(matches!(&refused, LauncherError::Refused { doing, .. } if doing.starts_with("hide ")), "{refused}");
}

#[tokio::test]
async fn root_that_cannot_become_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        skip("this user is not root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let weak = folder.path().join("weak-launcher");
    let launcher = super::support::launcher_program();
    let script = format!("#!/bin/sh\nexec setpriv --bounding-set -sys_admin {} \"$@\"\n", launcher.display());
    fs::write(&weak, script).unwrap();
    fs::set_permissions(&weak, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = super::support::config(folder.path());
    config.program = weak;
    let refused = Launcher::start(config).await.map(|(_, report)| report).unwrap_err();
    assert!(refused.to_string().contains("as an ordinary user"), "{refused}");
}

#[tokio::test]
async fn the_kernel_is_not_lent_out() {
    let bench = Bench::new().await;
    bench
        .sh("namespaces", "! unshare --user true 2>/dev/null && ! unshare --map-root-user --net true 2>/dev/null")
        .await;
    // One byte, unless this machine allows none: neither a file nor a crash handler.
    bench.sh("core", "grep -Eq '^Max core file size +[01] +[01] ' /proc/self/limits").await;
    bench.sh("memory", "test $(cat /proc/self/oom_score_adj) -ge 500").await;
}

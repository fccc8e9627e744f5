//! The BuildBox tools: casupload and casdownload, recc, and casd as a proxy that uploads in chunks.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use gf_tests::{Finished, Place, run_within};

use crate::{CLIENT_LIMIT, Fixture, chroot};

fn run(place: &Place, environment: &[(&str, &str)], program: &str, arguments: &[&str]) -> Finished {
    let mut command = place.command(place.work(), environment, program);
    command.args(arguments);
    run_within(command, CLIENT_LIMIT).unwrap().success().unwrap()
}

fn remote(fixture: &Fixture) -> String {
    format!("--remote={}", fixture.server.url())
}

/// A folder with what gets lost easily: odd names, modes, links, an empty file and folder, a file larger than a batch.
fn make_odd_tree(folder: &Path) {
    fs::create_dir_all(folder.join("deep/er/and deeper")).unwrap();
    fs::create_dir(folder.join("empty folder")).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    fs::write(folder.join("grüße, 世界.txt"), "names are UTF-8\n").unwrap();
    fs::write(folder.join("deep/er/and deeper/-rf"), "looks like an option\n").unwrap();
    fs::write(folder.join("same"), "equal bytes\n").unwrap();
    fs::write(folder.join("deep/same"), "equal bytes\n").unwrap();
    fs::write(folder.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(folder.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("deep/same", folder.join("link")).unwrap();
    symlink("no/such/file", folder.join("dangling")).unwrap();
    fs::write(folder.join("big"), pseudo_random(20 << 20)).unwrap();
}

/// Bytes that do not compress, the same each time.
fn pseudo_random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::from_fn(|| Some(next())).flatten().take(length).collect()
}

/// Every path below `folder` with what it is and holds.
fn listing(folder: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().to_path_buf();
            if kind.is_symlink() {
                found.push((name, format!("link to {}", fs::read_link(&path).unwrap().display()), Vec::new()));
            } else if kind.is_dir() {
                found.push((name, "folder".to_owned(), Vec::new()));
                folders.push(path);
            } else {
                let executable = kind.permissions().mode() & 0o100 != 0;
                found.push((name, format!("file, executable: {executable}"), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn assert_same(place: &Place, given: &str, got: &str) {
    let of = |name: &str| listing(&place.on_host(&place.work().join(name)));
    let (given, got) = (of(given), of(got));
    let names = |entries: &[(PathBuf, String, Vec<u8>)]| {
        entries
            .iter()
            .map(|(path, kind, bytes)| format!("{} {kind} {}", path.display(), bytes.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&given), names(&got));
    assert!(given == got, "same names and sizes, other bytes");
}

#[test]
fn an_uploaded_tree_comes_back_as_it_was() {
    let fixture = Fixture::start();
    let place = chroot();
    make_odd_tree(&place.on_host(&place.work().join("in")));
    run(&place, &[], "casupload", &[&remote(&fixture), "--output-digest-file=digest", "in"]);
    let digest = fs::read_to_string(place.on_host(&place.work().join("digest"))).unwrap();
    let root = format!("--root-digest={}", digest.trim());
    run(&place, &[], "casdownload", &[&remote(&fixture), "--destination-dir=out", &root]);
    assert_same(&place, "in", "out");
    fixture.stop();
}

#[test]
fn a_digest_that_nobody_uploaded_is_not_found() {
    let fixture = Fixture::start();
    let place = chroot();
    let absent = format!("--root-digest={}/42", "ab".repeat(32));
    let mut command = place.command(place.work(), &[], "casdownload");
    command.args([&remote(&fixture), "--destination-dir=out", &absent]);
    let finished = run_within(command, CLIENT_LIMIT).unwrap();
    assert!(!finished.status.success() && finished.stderr.contains("is not here"), "{}", finished.tail());
    fixture.stop();
}

#[test]
fn recc_compiles_once() {
    let fixture = Fixture::start();
    let place = chroot();
    fs::write(place.on_host(&place.work().join("wheel.c")), "int rpm(int load) { return 16000 - load; }\n").unwrap();
    let url = fixture.server.url().to_owned();
    let environment = [
        ("RECC_SERVER", url.as_str()),
        ("RECC_CACHE_ONLY", "1"),
        ("RECC_CACHE_UPLOAD_LOCAL_BUILD", "1"),
        ("RECC_VERBOSE", "1"),
    ];
    let compile = || run(&place, &environment, "recc", &["/usr/bin/gcc", "-c", "wheel.c", "-o", "wheel.o"]);
    compile();
    assert_eq!(fixture.hits("ac"), 0.0);
    let object = place.on_host(&place.work().join("wheel.o"));
    let compiled = fs::read(&object).unwrap();
    fs::remove_file(&object).unwrap();

    let second = compile();
    assert_eq!(fixture.hits("ac"), 1.0, "{}", second.tail());
    assert_eq!(fs::read(&object).unwrap(), compiled);
    fixture.stop();
}

/// casd between the tools and our server, with chunking on: uploads become SpliceBlob, downloads SplitBlob.
struct Proxy {
    place: Place,
    child: Child,
    url: String,
}

impl Proxy {
    fn start(fixture: &Fixture) -> Self {
        let place = chroot();
        let mut command = place.command(place.work(), &[], "buildbox-casd");
        let address = free_loopback_address();
        command.args(["--bind", &address, &remote(fixture), "--proxy-instance=", "--enable-chunking-for-instance="]);
        let log = fs::File::create(place.on_host(&place.work().join("casd.log"))).unwrap();
        // A daemon: relative paths are lost when it leaves the folder that it was started in.
        command
            .arg("--verbose")
            .arg(place.work().join("casd-data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        let deadline = Instant::now() + CLIENT_LIMIT;
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "casd does not listen on {address}");
            thread::sleep(Duration::from_millis(20));
        }
        Self { place, child, url: format!("--remote=http://{address}") }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        let mut all = vec!["--use-localcas", &self.url];
        all.extend(arguments);
        let mut command = self.place.command(self.place.work(), &[], program);
        command.args(all);
        let finished = run_within(command, CLIENT_LIMIT).unwrap();
        assert!(finished.status.success(), "{}\n--- casd\n{}", finished.tail(), self.log());
        finished
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.on_host(&self.place.work().join("casd.log"))).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_loopback_address() -> String {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string()
}

fn calls(fixture: &Fixture, method: &str) -> f64 {
    fixture.metrics().sum("gf_requests_total", &[&format!("method=\"{method}\""), "code=\"OK\""])
}

#[test]
fn a_proxy_moves_blobs_in_chunks() {
    let fixture = Fixture::start();
    let proxy = Proxy::start(&fixture);
    let given = proxy.place.on_host(&proxy.place.work().join("in"));
    make_odd_tree(&given);
    proxy.run("casupload", &["--output-digest-file=digest", "in"]);
    assert!(calls(&fixture, "SpliceBlob") >= 1.0, "the proxy spliced nothing");

    // The second proxy has nothing of its own, so it asks our server for chunks.
    let digest = fs::read_to_string(proxy.place.on_host(&proxy.place.work().join("digest"))).unwrap();
    let other = Proxy::start(&fixture);
    other.run("casdownload", &["--destination-dir=out", &format!("--root-digest={}", digest.trim())]);
    assert!(calls(&fixture, "SplitBlob") >= 1.0, "the proxy split nothing");
    let got = other.place.on_host(&other.place.work().join("out"));
    assert!(listing(&given) == listing(&got), "the tree came back changed");
    drop((proxy, other));
    fixture.stop();
}

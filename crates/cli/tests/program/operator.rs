//! `gf status` and `gf store`: against a running server, and on the files of a stopped one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use gf_blobstore::{BlobStore, DiskBlobStore, Encoding, NewBlob, OwnerId, StoreConfig};
use gf_database::{Database, sql};
use gf_digest::{Digest, DigestFunction};
use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, run, text};

fn ask(server: &Server, home: &Path, args: &[&str]) -> Output {
    gf(home).args(args).args(["--server", &server.url]).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_running_server_tells_its_state() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let status = json(&ask(&server, home.path(), &["status", "--json"]));
    assert_eq!(status["tenants"][0], "default");
    assert_eq!(status["store"]["lease_seconds"], 6 * 3600);
    assert!(status.get("not_ready").is_none());

    let shown = text(&ask(&server, home.path(), &["status"]).stdout);
    assert!(shown.contains("ready") && shown.contains("kept for 6 h"), "{shown}");
    let stats = json(&ask(&server, home.path(), &["store", "stats", "--json"]));
    assert!(stats["capacity_bytes"].as_u64().unwrap() > 0);
    let verified = json(&ask(&server, home.path(), &["store", "verify", "--json"]));
    assert_eq!(verified["clean"], true);
    let planned = json(&ask(&server, home.path(), &["store", "gc", "--dry-run", "--free", "1GiB", "--json"]));
    assert_eq!((&planned["dry_run"], &planned["evicted_blobs"]), (&Value::Bool(true), &Value::from(0)));

    fs::rename(home.path().join("data"), home.path().join("gone")).unwrap();
    let until = Instant::now() + DEADLINE;
    // The last verdict may be given again for a second.
    while ask(&server, home.path(), &["status"]).status.code() != Some(3) {
        assert!(Instant::now() < until, "a server without its folder still counts as ready");
    }
}

#[test]
fn nobody_there_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let asked = run(home.path(), &["status", "--server", "http://127.0.0.1:1"]);
    assert_eq!(asked.status.code(), Some(1));
    assert!(text(&asked.stderr).contains("gf serve"), "{}", text(&asked.stderr));
    for wrong in ["ftp://x", "127.0.0.1:8980", "http://", "http://user:secret@127.0.0.1:1"] {
        let asked = run(home.path(), &["status", "--server", wrong]);
        assert_eq!(asked.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn operating_needs_the_token() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, "[access]\ntoken_file = \"token\"\nanonymous_read = true\n").unwrap();
    fs::write(home.path().join("token"), "opensesame\n").unwrap();
    let server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
    for command in [&["status"][..], &["store", "stats"], &["store", "verify"], &["store", "gc"]] {
        let asked = ask(&server, home.path(), command);
        assert_eq!(asked.status.code(), Some(1), "{command:?}");
        assert!(text(&asked.stderr).contains("GF_TOKEN"), "{}", text(&asked.stderr));
        let mut with_token = gf(home.path());
        with_token.args(command).args(["--server", &server.url]).env("GF_TOKEN", "opensesame");
        assert_eq!(with_token.output().unwrap().status.code(), Some(0), "{command:?}");
        with_token.env("GF_TOKEN", "wrong");
        assert_eq!(with_token.output().unwrap().status.code(), Some(1), "{command:?}");
    }
    // A health check has no token.
    assert_eq!(server.get("/readyz").0, 200);
}

#[test]
fn a_folder_belongs_to_one_server() {
    let home = tempfile::tempdir().unwrap();
    let _first = Server::start(home.path(), &[]);
    let data = home.path().join("data");
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["store", "verify"]] {
        let second = gf(home.path()).args(command).arg("--data-dir").arg(&data).output().unwrap();
        assert_eq!(second.status.code(), Some(1));
        assert!(text(&second.stderr).contains("in use by another process"), "{}", text(&second.stderr));
    }
}

#[test]
fn a_folder_of_a_newer_version_is_not_touched() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let format = data.join("blobs/FORMAT");
    fs::create_dir_all(format.parent().unwrap()).unwrap();
    fs::write(&format, "gloriousflywheel store\nversion 999\nsomething new\n").unwrap();
    let refused = gf(home.path()).args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("newer version"), "{}", text(&refused.stderr));
    assert_eq!(fs::read_dir(format.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(&format).unwrap(), "gloriousflywheel store\nversion 999\nsomething new\n");
}

/// Files and what is in them.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All files below a folder.
fn everything(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(everything(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

#[test]
fn facts_of_a_newer_version_keep_the_whole_folder_untouched() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let mut server = Server::start(home.path(), &[]);
    server.signal("-TERM");
    assert_eq!(server.wait_for_end().code(), Some(0));
    let location = format!("sqlite:{}", data.join("facts.sqlite").display()).parse().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let database = Database::connect(&location).await.unwrap();
        let newer = "INSERT INTO migration (service, step, name, script) VALUES ('tenancy', 999, 'new', 'NEW')";
        database.execute(sql(newer)).await.unwrap();
        database.close().await;
    });
    // Closing goes on for a moment on a thread of its own.
    let until = Instant::now() + DEADLINE;
    while ["wal", "shm"].iter().any(|log| data.join(format!("facts.sqlite-{log}")).exists()) {
        assert!(Instant::now() < until, "the database is not closed");
        std::thread::sleep(Duration::from_millis(5));
    }
    let before = everything(&data);
    let refused = gf(home.path()).args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("run the program that wrote them"), "{}", text(&refused.stderr));
    let after = everything(&data);
    let all: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let changed: Vec<_> = all.into_iter().filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn over_tls_the_authority_must_be_known() {
    let home = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = home.path().join("cert.pem");
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(home.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n").unwrap();
    let server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
    assert!(server.url.starts_with("https://"), "{}", server.url);

    let known = ask(&server, home.path(), &["status", "--ca", certificate.to_str().unwrap()]);
    assert_eq!(known.status.code(), Some(0), "{}", text(&known.stderr));
    let unknown = ask(&server, home.path(), &["status"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("--ca FILE"), "{}", text(&unknown.stderr));
    let clear = run(home.path(), &["status", "--server", &server.url.replace("https", "http")]);
    assert_eq!(clear.status.code(), Some(1));
    let no_file = ask(&server, home.path(), &["status", "--ca", "/no/such.pem"]);
    assert_eq!(no_file.status.code(), Some(2));
}

/// A closed store in `data` that holds `count` blobs of about 1000 bytes.
fn fill(data: &Path, count: u8) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = DiskBlobStore::open(StoreConfig::new(data.join("blobs"))).await.unwrap();
        let blobs = (0..count).map(|number| {
            // Noise, so that the bytes are held as they are.
            let bytes: Vec<u8> =
                (0..31).flat_map(|part| *Digest::of(DigestFunction::Sha256, &[number, part]).hash()).collect();
            NewBlob {
                digest: Digest::of(DigestFunction::Sha256, &bytes),
                bytes: bytes.into(),
                encoding: Encoding::Identity,
            }
        });
        let written = store.write_batch(OwnerId(1), blobs.collect()).await;
        assert!(written.iter().all(Result::is_ok));
        tokio::task::spawn_blocking(move || store.close()).await.unwrap().unwrap();
    });
}

#[test]
fn damage_is_told_and_exits_3() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    fill(&data, 20);
    let verify = |more: &[&str]| {
        gf(home.path()).args(["store", "verify", "--json", "--data-dir"]).arg(&data).args(more).output().unwrap()
    };
    assert_eq!(json(&verify(&[]))["blobs"], 20);

    let segment = fs::read_dir(data.join("blobs/segments")).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let damaged = verify(&["--repair"]);
    assert_eq!(damaged.status.code(), Some(3), "{}", text(&damaged.stderr));
    let report: Value = serde_json::from_slice(&damaged.stdout).unwrap();
    assert_eq!((&report["clean"], &report["lost_count"]), (&Value::Bool(false), &Value::from(1)));
    assert_eq!(json(&verify(&[]))["blobs"], 19, "what was lost is gone, and the rest is right");
}

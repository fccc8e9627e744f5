//! `gf init`, `login`, `whoami`, `token`, `access why` and `audit`, against a server that was set up by them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::running::{DEADLINE, Server, gf, run, text};

/// A server that `gf init` set up, and the token of its administrator.
struct Setting {
    home: tempfile::TempDir,
    server: Server,
    admin: String,
}

impl Setting {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (config, data) = (home.path().join("gf.toml"), home.path().join("data"));
        let made = run(home.path(), &["init", "--config", path(&config), "--data-dir", path(&data)]);
        assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
        let admin = text(&made.stdout).trim().to_owned();
        let server = Server::start(home.path(), &["--config", path(&config)]);
        Self { home, server, admin }
    }

    /// Runs a command as whoever has this token.
    fn with(&self, token: &str, args: &[&str]) -> Output {
        gf(self.home.path()).args(args).args(["--server", &self.server.url]).env("GF_TOKEN", token).output().unwrap()
    }

    fn admin(&self, args: &[&str]) -> Output {
        let output = self.with(&self.admin, args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        output
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.admin(args).stdout).unwrap()
    }

    fn issue(&self, grants: &[&str]) -> (String, String) {
        let mut args = vec!["token", "issue", "a test", "--json"];
        grants.iter().for_each(|grant| args.extend(["--grant", grant]));
        let issued = self.json(&args);
        (issued["token"].as_str().unwrap().to_owned(), issued["id"].as_str().unwrap().to_owned())
    }

    /// The records of a search, once there is one: what requests did is written within a second or so.
    fn records(&self, args: &[&str]) -> Vec<Value> {
        let until = Instant::now() + DEADLINE;
        loop {
            let output = self.admin(&[&["audit", "--json"], args].concat());
            let records: Vec<Value> =
                text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            if !records.is_empty() {
                return records;
            }
            assert!(Instant::now() < until, "no record of {args:?}");
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_server_is_set_up_and_nobody_gets_in_without_the_token() {
    let setting = Setting::start();
    let config = setting.home.path().join("gf.toml");
    assert!(!fs::read_to_string(&config).unwrap().contains(&setting.admin), "no file holds the token");
    let again = run(setting.home.path(), &["init", "--config", path(&config)]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("is not written over"), "{}", text(&again.stderr));

    let nobody = run(setting.home.path(), &["status", "--server", &setting.server.url]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("gf login"), "{}", text(&nobody.stderr));
    let who = setting.json(&["whoami", "--json"]);
    assert_eq!(
        (&who["name"], &who["grants"][0], &who["is_open"]),
        (&"first administrator".into(), &"admin".into(), &false.into())
    );
    setting.admin(&["status"]);
}

#[test]
fn an_open_server_says_so() {
    let home = tempfile::tempdir().unwrap();
    let mut command = gf(home.path());
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(home.path().join("data"));
    let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    // Logs have a thread of their own: only among themselves are they in order.
    let mut logged = lines.map_while(Result::ok);
    let told = logged.find(|line| line.contains("OPEN: whoever reaches this address") || line.contains(" serving "));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(told.is_some_and(|line| line.contains("OPEN")));

    let exposed = run(home.path(), &["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(exposed.status.code(), Some(2));
    for way_out in ["gf init --listen 0.0.0.0:0", "GF_TOKEN=", "gf serve --listen 127.0.0.1:0"] {
        assert!(text(&exposed.stderr).contains(way_out), "{way_out} in\n{}", text(&exposed.stderr));
    }
}

#[test]
fn a_login_is_stored_for_every_command() {
    let setting = Setting::start();
    let home = setting.home.path();
    let login = |token: &str| {
        let mut command = gf(home);
        command.args(["login", "--server", &setting.server.url]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let wrong = login("gf-token-wrong\n");
    assert_eq!(wrong.status.code(), Some(1), "{}", text(&wrong.stderr));
    let file = home.join(".config/gloriousflywheel/logins.json");
    assert!(!file.exists(), "what does not work is not stored");
    let right = login(&format!("{}\n", setting.admin));
    assert_eq!(right.status.code(), Some(0), "{}", text(&right.stderr));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let plain = |args: &[&str]| gf(home).args(args).args(["--server", &setting.server.url]).output().unwrap();
    assert_eq!(plain(&["status"]).status.code(), Some(0));
    assert_eq!(plain(&["login", "--forget"]).status.code(), Some(0));
    assert_eq!(plain(&["status"]).status.code(), Some(1));
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let setting = Setting::start();
    let issued = setting.admin(&["token", "issue", "ci", "--grant", "viewer@default", "--lifetime", "2h"]);
    let token = text(&issued.stdout).trim().to_owned();
    assert!(token.starts_with("gf-token-") && !text(&issued.stderr).contains(&token));
    let who: Value = serde_json::from_slice(&setting.with(&token, &["whoami", "--json"]).stdout).unwrap();
    assert_eq!(who["grants"], serde_json::json!(["viewer@default"]));
    let listed = setting.json(&["token", "list", "--json"]);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 2);
    let own = listed.iter().find(|one| one["name"] == "ci").unwrap();
    assert!(own["last_used"].is_u64() && !text(&setting.admin(&["token", "list"]).stdout).contains(&token));
    // Whoever may not hand out more than they hold cannot.
    let more = setting.with(&token, &["token", "issue", "x", "--grant", "viewer"]);
    assert_eq!(more.status.code(), Some(1));
    let workers = setting.with(&setting.admin, &["token", "issue", "x", "--grant", "workers:attach"]);
    assert!(text(&workers.stderr).contains("more than what you hold"), "{}", text(&workers.stderr));

    let id = own["id"].as_str().unwrap();
    setting.admin(&["token", "revoke", id]);
    let refused = setting.with(&token, &["whoami"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("does not accept the token"), "{}", text(&refused.stderr));
    let again = setting.with(&setting.admin, &["token", "revoke", id]);
    assert_eq!(again.status.code(), Some(3), "{}", text(&again.stderr));
}

#[test]
fn a_decision_names_its_rule() {
    let setting = Setting::start();
    let (_, id) = setting.issue(&["cas:read@default", "nix:push@default/ci-*"]);
    let check = |args: &[&str], code: i32, rule: &str| {
        let answer = setting.with(&setting.admin, &[&["access", "why"], args].concat());
        assert_eq!(answer.status.code(), Some(code), "{args:?}: {}", text(&answer.stderr));
        assert!(text(&answer.stdout).contains(rule), "{args:?}: {}", text(&answer.stdout));
    };
    let principal = format!("token:{id}");
    check(&[&principal, "cas:read", "default"], 0, "grants cas:read@default");
    check(&[&principal, "cas:write", "default"], 3, "has no grant for it");
    check(&[&principal, "nix:pull", "main"], 0, "the cache is public");
    check(&[&principal, "nix:push", "main"], 3, "has no grant for it");
    check(&["anonymous", "cas:read", "default"], 3, "nothing is granted without a credential");
    check(&["me", "admin:access", "default"], 0, "grants admin");
    let unknown = setting.with(&setting.admin, &["access", "why", "token:0123456789", "cas:read", "default"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", text(&unknown.stderr));
}

#[test]
fn what_was_done_and_refused_is_in_the_log() {
    let setting = Setting::start();
    let (reader, id) = setting.issue(&["viewer@default"]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let who = format!("token:{id}");

    // Administration: at once.
    let issued = &setting.records(&["--action", "token", "--subject", &id])[0];
    assert_eq!(
        (&issued["action"], &issued["outcome"], &issued["source"]),
        (&"token.issue".into(), &"done".into(), &"127.0.0.1".into())
    );
    // A denial, with the trace of the caller; the answer says the trace too.
    let header = format!("00-{trace}-00f067aa0ba902b7-01");
    let (status, answer) = raw(&setting.server, "PUT", &format!("/cas/{}", "0".repeat(64)), &reader, &header, b"x");
    assert_eq!(status, 403);
    assert!(answer.contains(&format!("traceparent: 00-{trace}-")), "{answer}");
    let denied = &setting.records(&["--principal", &who, "--outcome", "denied"])[0];
    assert_eq!((&denied["action"], &denied["trace"]), (&"cas:write".into(), &trace.into()));
    // Writes of the same kind are one record.
    let hash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    for _ in 0..3 {
        let (status, _) = raw(&setting.server, "PUT", &format!("/cas/{hash}"), &setting.admin, &header, b"x");
        assert_eq!(status, 200);
    }
    let writes = setting.records(&["--action", "cas.write"]);
    assert!(writes.iter().all(|write| write["detail"].as_str().unwrap().ends_with("bytes")), "{writes:?}");
    // Administrative reads are counted.
    setting.records(&["--action", "admin.read"]);
    // No token, and no part of one that would help, is in it.
    let all = text(&setting.admin(&["audit", "export"]).stdout);
    assert!(!all.contains(&reader) && !all.contains(&setting.admin));
    let numbers: Vec<u64> =
        all.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());

    let verdict = setting.json(&["audit", "verify", "--json"]);
    assert_eq!(verdict["is_whole"], true);
    let shown = text(&setting.admin(&["audit", "--principal", &who]).stdout);
    assert!(shown.starts_with("WHEN") && shown.contains("denied"), "{shown}");
}

#[test]
fn a_stopped_server_has_written_everything() {
    let mut setting = Setting::start();
    let (reader, _) = setting.issue(&["viewer@default"]);
    let (status, _) = raw(&setting.server, "PUT", &format!("/cas/{}", "1".repeat(64)), &reader, "", b"x");
    assert_eq!(status, 403);
    setting.server.signal("-TERM");
    assert!(setting.server.wait_for_end().success());
    let config = setting.home.path().join("gf.toml");
    setting.server = Server::start(setting.home.path(), &["--config", path(&config)]);
    let output = setting.admin(&["audit", "--json", "--outcome", "denied"]);
    assert!(text(&output.stdout).contains("cas:write"), "{}", text(&output.stdout));
    assert_eq!(setting.json(&["audit", "verify", "--json"])["is_whole"], true);
}

/// Status and head of the answer to a request.
fn raw(server: &Server, verb: &str, path: &str, token: &str, traceparent: &str, body: &[u8]) -> (u16, String) {
    use std::io::Read;
    let head = format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\ntraceparent: \
         {traceparent}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = server.connect();
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    let _cut_off = stream.read_to_end(&mut answer);
    let answer = text(&answer);
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer.to_lowercase())
}

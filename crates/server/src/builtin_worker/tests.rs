//! A shell script stands in for `gf worker`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use axum::Router;
use axum::routing::get;
use gf_execution::scheduler::Property;
use gf_tenancy::{AccessConfig, Principal};
use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::config::ActionBounds;
use crate::listen::Listener;

const PATIENCE: Duration = Duration::from_secs(120);

/// A worker that is a script in a folder of its own, which is the script's data folder too.
struct Case {
    dir: TempDir,
    access: Arc<Access>,
    worker: BuiltinWorker,
    condition: Condition,
}

impl Case {
    /// `$dir` in the script is the folder; `$1` and so on are the arguments.
    fn start(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("gf");
        fs::write(&program, format!("#!/bin/sh\ndir={}\n{script}", dir.path().display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let access = AccessConfig { tenants: Vec::new(), token: None, anonymous_read: false };
        let access = Arc::new(Access::new(access).unwrap());
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let router = Router::new().route("/hello", get(async || "hello, worker"));
        let settings = WorkerSettings {
            cores: Some(2),
            memory_bytes: Some(1 << 30),
            properties: vec![Property { name: "pool".into(), value: "a b".into() }],
            network: Network::OnRequest,
            persistent: Persistent::Refused,
            bounds: ActionBounds { disk_bytes: Some(1 << 30), processes: Some(99), ..ActionBounds::default() },
            ..WorkerSettings::default()
        };
        let condition = Condition::default();
        let worker = BuiltinWorker::start(Blueprint {
            program,
            data_dir: dir.path().to_owned(),
            settings,
            access: Arc::clone(&access),
            connections: listener.serve(router),
            condition: condition.clone(),
        });
        Self { dir, access, worker: worker.unwrap(), condition }
    }

    /// What the script wrote to a file, once `is_enough`.
    async fn wrote(&self, file: &str, is_enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(self.dir.path().join(file)).unwrap_or_default();
            if is_enough(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{file} holds {text:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_worker_is_told_what_it_needs_and_is_served() {
    let case = Case::start(
        r#"for argument; do echo "$argument"; done >"$dir/arguments.part"; mv "$dir/arguments.part" "$dir/arguments"
        env >"$dir/environment.part"; mv "$dir/environment.part" "$dir/environment"
        printf 'GET /hello HTTP/1.1\r\nHost: server\r\n\r\n' >&0
        exec cat <&0 >"$dir/answer""#,
    );
    let arguments = case.wrote("arguments", |text| !text.is_empty()).await;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let data_dir = case.dir.path().join("worker").display().to_string();
    let expected = [
        "worker --inherited-connection 0 --data-dir",
        &data_dir,
        "--name",
        &name,
        "--cores 2 --memory 1073741824B --action-disk 1073741824B --action-processes 99 --property pool=a b --network --no-persistent\n",
    ];
    assert_eq!(arguments.replace('\n', " ").trim_end(), expected.join(" ").trim_end());

    let environment = case.wrote("environment", |text| !text.is_empty()).await;
    let token = environment.lines().find_map(|line| line.strip_prefix("GF_WORKER_TOKEN=")).unwrap();
    assert_eq!(case.access.authenticate(Some(token)), Ok(Principal::WorkerHost));
    assert!(!environment.contains("CARGO"), "{environment}");
    case.wrote("answer", |text| text.starts_with("HTTP/1.1 200") && text.ends_with("hello, worker")).await;

    case.worker.stop().await;
    assert!(case.access.authenticate(Some(token)).is_err(), "its credential ends with it");
}

#[tokio::test]
async fn a_worker_that_ends_is_followed_by_another_unless_that_is_hopeless() {
    let mut case = Case::start(
        "echo run >>$dir/runs; test $(wc -l <$dir/runs) -lt 3 || { echo gf: there are no namespaces >&2; exit 3; }; kill -KILL $$",
    );
    timeout(PATIENCE, &mut case.worker.ended).await.unwrap().unwrap();
    assert_eq!(fs::read_to_string(case.dir.path().join("runs")).unwrap(), "run\n".repeat(3));
    assert_eq!(case.condition.get(), OwnWorker::GivenUp { reason: "there are no namespaces".to_owned() });
}

#[tokio::test]
async fn while_it_is_away_it_is_known_why() {
    let case = Case::start("echo 'INFO at work' >&2; test -e $dir/again && exec cat <&0; kill -KILL $$");
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        assert!(Instant::now() < deadline, "{seen:?}");
        match case.condition.get() {
            OwnWorker::Restarting { reason } if seen.is_empty() => {
                seen.push(reason);
                fs::write(case.dir.path().join("again"), "").unwrap();
            }
            OwnWorker::Running if seen.len() == 1 => seen.push("running".to_owned()),
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
    assert!(seen[0].contains("signal: 9"), "{seen:?}");
    case.worker.stop().await;
}

#[tokio::test]
async fn stopping_asks_first_and_kills_then() {
    let wait = r#"echo up >>"$dir/up"; while :; do read _ || exit 0; done"#;
    let asked = Case::start(&format!(r#"trap 'echo asked >>"$dir/asked"; exit 0' TERM; {wait}"#));
    asked.wrote("up", |text| !text.is_empty()).await;
    asked.worker.stop_within(PATIENCE).await;
    assert_eq!(fs::read_to_string(asked.dir.path().join("asked")).unwrap(), "asked\n");

    let deaf = Case::start(&format!("trap '' TERM; {wait}"));
    deaf.wrote("up", |text| !text.is_empty()).await;
    let began = Instant::now();
    deaf.worker.stop_within(Duration::from_millis(100)).await;
    assert!(began.elapsed() < KILL_DEADLINE, "killed at once");
}

#[tokio::test]
async fn a_program_that_is_not_there_keeps_nobody_from_stopping() {
    let case = Case::start("exit 0");
    fs::remove_file(case.dir.path().join("gf")).unwrap();
    timeout(PATIENCE, case.worker.stop()).await.unwrap();
}

//! What concerns all tenants is for whoever holds the right to it for all of them: through the port of a whole server.

use std::path::Path;
use std::time::Duration;

use gf_database::{Database, Location, sql};
use gf_digest::InstanceName;
use gf_reapi::worker::workers_client::WorkersClient;
use gf_reapi::worker::{FromWorker, Hello, Resources, ToWorker, from_worker};
use gf_server::App;
use gf_server::config::{Config, Environment, Overrides};
use gf_tenancy::audit::{Event, Origin, Search};
use gf_tenancy::{Access, AccessConfig, AuditLog, IssuedToken, NewToken, Principal, TenantConfig, TenantName, Tokens};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::server::{Answer, request};

const CONFIG: &str = r#"
    [access]
    require_token = true
    [worker]
    enabled = false
    [[tenant]]
    name = "default"
    instances = ["default"]
    [[tenant]]
    name = "org-acme"
    instances = ["acme"]
    "#;
/// No such blob, and no such action.
const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// A server of two tenants, and a token for each grant.
struct Setting {
    app: App,
    tokens: Vec<IssuedToken>,
    folder: TempDir,
}

impl Setting {
    async fn start(grants: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let tokens = issue(&facts(folder.path()), grants).await;
        let overrides = Overrides { listen: Some("127.0.0.1:0".parse().unwrap()), data_dir: Some(data) };
        let file = folder.path().join("gf.toml");
        let config = Config::parse(Some(&file), CONFIG, overrides, &Environment::default()).unwrap();
        Self { app: App::start(config).await.unwrap(), tokens, folder }
    }

    async fn ask(&self, token: Option<usize>, verb: &str, path: &str, body: &str) -> Answer {
        let credential = token.map(|at| format!("Bearer {}", self.tokens[at].secret.expose()));
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(credential.as_ref().map(|credential| ("Authorization", credential.as_str())));
        request(self.app.address(), verb, path, &headers, body.as_bytes()).await
    }

    /// Attaches a worker that says no more than who it is.
    async fn attach(&self, token: usize) -> Result<Streaming<ToWorker>, Status> {
        let channel = Channel::from_shared(self.app.url()).unwrap().connect().await.unwrap();
        let capacity = Some(Resources { milli_cores: 1000, memory_bytes: 1 << 30 });
        let hello = Hello { name: "a test".to_owned(), capacity, ..Hello::default() };
        let hello = FromWorker { message: Some(from_worker::Message::Hello(hello)) };
        let mut request = Request::new(tokio_stream::iter([hello]).chain(tokio_stream::pending()));
        let credential = format!("Bearer {}", self.tokens[token].secret.expose());
        request.metadata_mut().insert("authorization", credential.parse().unwrap());
        Ok(WorkersClient::new(channel).attach(request).await?.into_inner())
    }

    /// Stops the server, and says what is recorded of an action, the oldest first.
    async fn stop(self, action: &str) -> Vec<Event> {
        self.app.stop(Duration::from_secs(5)).await.unwrap();
        let log = AuditLog::new(Database::connect(&facts(self.folder.path())).await.unwrap());
        let search = Search { action: Some(action.to_owned()), ..Search::default() };
        log.search(&search).await.unwrap().into_iter().rev().map(|record| record.event).collect()
    }
}

fn facts(folder: &Path) -> Location {
    Location::file(&folder.join("data/facts.sqlite"))
}

/// Tokens as only the server itself can make them, before it starts: one for each text, in which spaces part grants.
async fn issue(facts: &Location, grants: &[&str]) -> Vec<IssuedToken> {
    let database = Database::open(facts, &[gf_tenancy::MIGRATIONS]).await.unwrap();
    let tokens = Tokens::open(database.clone()).await.unwrap();
    let instances = vec![InstanceName::new("default").unwrap()];
    let tenants = vec![TenantConfig { name: TenantName::new("default").unwrap(), instances }];
    let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
    let server = access.authorize_somewhere(Principal::Server).unwrap();
    let mut issued = Vec::new();
    for grant in grants {
        let lifetime = Duration::from_secs(600);
        let grants = grant.split(' ').map(|grant| grant.parse().unwrap()).collect();
        let new = NewToken { name: (*grant).to_owned(), grants, lifetime };
        issued.push(tokens.issue(&server, new, &Origin::default()).await.unwrap());
    }
    database.close().await;
    issued
}

#[tokio::test]
async fn the_server_is_run_by_whoever_operates_all_tenants() {
    let grants = ["admin:operate", "admin:operate@default", "operator", "admin@default"];
    let setting = Setting::start(&grants).await;
    for (verb, path, body) in [
        ("GET", "/api/v1/status", ""),
        ("GET", "/api/v1/execution", ""),
        ("GET", "/api/v1/store/stats", ""),
        ("POST", "/api/v1/store/verify", r#"{"repair":false}"#),
        ("POST", "/api/v1/store/gc", r#"{"free_bytes":0,"dry_run":true}"#),
    ] {
        assert_eq!(setting.ask(Some(0), verb, path, body).await.status, 200, "{path}");
        for (lesser, grant) in grants.iter().enumerate().skip(1) {
            let answer = setting.ask(Some(lesser), verb, path, body).await;
            assert_eq!(answer.status, 403, "{path} with {grant}: {}", answer.text());
        }
    }
    let partial = setting.ask(Some(1), "GET", "/api/v1/status", "").await.text();
    assert!(partial.contains("needs it on all"), "{partial}");
    for (token, names_tenants) in [(Some(0), true), (None, false), (Some(1), false), (Some(3), false)] {
        let metrics = setting.ask(token, "GET", "/metrics", "").await;
        assert_eq!(metrics.status, 200);
        assert_eq!(metrics.text().contains("org-acme"), names_tenants, "{token:?}");
    }
}

#[tokio::test]
async fn a_worker_is_let_in_for_all_tenants_and_stays_while_its_token_is_good() {
    let setting = Setting::start(&["admin workers:attach", "workers:attach@default", "workers:attach"]).await;
    let refused = setting.attach(1).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let mut told = setting.attach(2).await.unwrap();
    assert!(told.message().await.unwrap().is_some(), "it is welcome");
    let path = format!("/api/v1/access/tokens/{}", setting.tokens[2].report.token.id());
    assert_eq!(setting.ask(Some(0), "DELETE", &path, "").await.status, 204);
    let sent_away = timeout(Duration::from_secs(20), told.message()).await.expect("it stays").unwrap_err();
    assert_eq!(sent_away.code(), Code::Unauthenticated, "{sent_away}");
    let who = format!("token:{}", setting.tokens[2].report.token.id());
    let records = setting.stop("worker").await;
    let shown: Vec<&str> = records.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(shown, ["worker.attach", "worker.leave"]);
    assert!(records.iter().all(|event| event.who == who && event.subject == "a test"), "{records:?}");
}

#[tokio::test]
async fn what_is_not_done_is_not_recorded_as_done() {
    let setting = Setting::start(&["admin"]).await;
    let body = |reason: &str| {
        format!(
            r#"{{"instance":"default","action":"{HASH}","reason":"{reason}","quarantine_seconds":60,"dry_run":false}}"#
        )
    };
    let remove = "/api/v1/action-results/remove";
    assert_eq!(setting.ask(Some(0), "POST", remove, &body("  ")).await.status, 400);
    let answer = setting.ask(Some(0), "POST", remove, &body("it is wrong")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let records = setting.stop("actioncache").await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].detail, "it is wrong");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let setting = Setting::start(&["admin"]).await;
    let database = Database::connect(&facts(setting.folder.path())).await.unwrap();
    database.execute(sql("DROP TABLE tenancy_audit")).await.unwrap();
    let answer = setting.ask(Some(0), "POST", "/api/v1/store/gc", r#"{"free_bytes":0,"dry_run":false}"#).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("nothing was done"), "{}", answer.text());
    // Nor is anything of a Nix cache.
    let (attic, own) = ("/nix/_api/v1/cache-config", "/api/v1/nix/caches/main");
    let pin = r#"{"path":"s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1"}"#;
    for (verb, path, body) in [
        ("POST", format!("{attic}/new"), r#"{"is_public":false}"#),
        ("PATCH", format!("{attic}/main"), r#"{"is_public":false}"#),
        ("PATCH", own.to_owned(), r#"{"is_public":false}"#),
        ("PATCH", own.to_owned(), r#"{"retention_seconds":60}"#),
        ("POST", format!("{own}/collect"), r#"{"dry_run":false}"#),
        ("POST", format!("{own}/verify"), "{}"),
        ("PUT", format!("{own}/pins/p"), pin),
        ("DELETE", format!("{own}/pins/p"), ""),
        ("DELETE", format!("{attic}/main"), ""),
    ] {
        let answer = setting.ask(Some(0), verb, &path, body).await;
        assert_eq!(answer.status, 503, "{verb} {path}: {}", answer.text());
    }
    let caches = setting.ask(None, "GET", "/api/v1/nix/caches", "").await.text();
    assert!(
        caches.contains("\"main\"") && !caches.contains("\"new\"") && caches.contains("\"is_public\":true"),
        "{caches}"
    );
}

#[tokio::test]
async fn what_was_administered_of_a_nix_cache_is_in_the_log_with_what_became_of_it() {
    let setting = Setting::start(&["admin"]).await;
    let attic = "/nix/_api/v1/cache-config/new";
    for (verb, path, body, status) in [
        ("POST", attic, r#"{"is_public":false}"#, 200),
        // What is there already is not made, and what is not there not destroyed: nothing is to be recorded.
        ("POST", attic, r#"{"is_public":true}"#, 400),
        ("DELETE", "/nix/_api/v1/cache-config/absent", "", 404),
        ("PATCH", attic, r#"{"retention_period":{"Period":60}}"#, 200),
        ("POST", "/api/v1/nix/caches/new/collect", r#"{"dry_run":false}"#, 200),
        ("DELETE", "/api/v1/nix/caches/new/pins/p", "", 404),
        ("DELETE", attic, "", 200),
    ] {
        let answer = setting.ask(Some(0), verb, path, body).await;
        assert_eq!(answer.status, status, "{verb} {path}: {}", answer.text());
    }
    let records = setting.stop("cache").await;
    let mut shown: Vec<String> =
        records.iter().map(|event| format!("{} {} {}", event.action, event.outcome.as_str(), event.detail)).collect();
    // What became of something is written within a second, beside the rest.
    shown.sort();
    let expected = [
        "cache.collect done ",
        "cache.collected done 0 paths removed",
        "cache.create done it is private",
        "cache.destroy done ",
        "cache.retention done ",
        "cache.unpin done p",
        "cache.unpin failed new has no pin of this name",
    ];
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn who_administers_a_tenant_is_shown_its_records_and_no_others() {
    let grants =
        ["admin", "admin@org-acme", "viewer@org-acme", "viewer@default", "admin@org-acme/acme", "operator@default"];
    let setting = Setting::start(&grants).await;
    let name = |at: usize| format!("token:{}", setting.tokens[at].report.token.id());
    // Things of both tenants, by callers of both, and what is no tenant's.
    for (instance, who) in [("acme", 2), ("acme", 3), ("default", 2), ("default", 3)] {
        let refused = setting.ask(Some(who), "PUT", &format!("/{instance}/cas/{HASH}"), "x").await;
        assert!(matches!(refused.status, 403 | 404), "{instance} {who}: {}", refused.status);
    }
    // What is another tenant's and what is not there leave the same in one's own log: nothing.
    for instance in ["default", "nowhere"] {
        setting.ask(Some(1), "PUT", &format!("/{instance}/cas/{HASH}"), "x").await;
    }
    for (grant, status) in [("viewer@org-acme", 201), ("viewer@default", 201), ("viewer", 201)] {
        let body = format!(r#"{{"name":"x","grants":["{grant}"],"lifetime_seconds":60}}"#);
        assert_eq!(setting.ask(Some(0), "POST", "/api/v1/access/tokens", &body).await.status, status);
    }
    assert_eq!(setting.ask(Some(0), "GET", "/api/v1/status", "").await.status, 200);
    assert_eq!(setting.ask(None, "DELETE", "/nix/_api/v1/cache-config/main", "").await.status, 401);
    let records = async |at: usize| {
        let answer = setting.ask(Some(at), "GET", "/api/v1/access/audit", "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let field = |record: &serde_json::Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let records = page["records"].as_array().unwrap().iter();
        let fields = ["tenant", "who", "action", "subject", "detail"];
        records.map(|record| fields.map(|name| field(record, name))).collect::<Vec<_>>()
    };
    // What requests did is written within a second or so.
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while records(0).await.iter().filter(|[_, _, action, ..]| action.ends_with(":write")).count() < 6 {
        assert!(std::time::Instant::now() < until, "{:?}", records(0).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (all, own) = (records(0).await, records(1).await);
    assert!(own.iter().all(|[tenant, ..]| tenant == "org-acme"), "{own:?}");
    let has = |who: &str, action: &str| own.iter().any(|[_, found, what, ..]| found == who && what == action);
    assert!(has(&name(2), "cas:write") && has(&name(0), "token.issue"), "{own:?}");
    let text = format!("{own:?}");
    assert!(!text.contains("nowhere"), "{text}");
    assert!(!text.contains("default") && !text.contains("admin.read /api/v1/status"), "{text}");
    for [tenant, who, action, ..] in &all {
        assert!(action != "admin.read" || *who != name(0) || tenant.is_empty(), "{all:?}");
    }
    // A part of a tenant is not the tenant; all of it is for all tenants.
    for at in [4, 5] {
        assert_eq!(setting.ask(Some(at), "GET", "/api/v1/access/audit", "").await.status, 403, "{}", grants[at]);
    }
    for path in ["/api/v1/access/audit/export", "/api/v1/access/audit/verify"] {
        let verb = if path.ends_with("verify") { "POST" } else { "GET" };
        assert_eq!(setting.ask(Some(1), verb, path, "{}").await.status, 403, "{path}");
    }
    let verdict = setting.ask(Some(0), "POST", "/api/v1/access/audit/verify", "{}").await.text();
    assert!(verdict.contains("\"is_whole\":true"), "{verdict}");
}

#[tokio::test]
async fn who_asks_about_others_that_they_may_not_know_is_recorded() {
    let setting = Setting::start(&["admin@default", "viewer@org-acme"]).await;
    let id = setting.tokens[1].report.token.id().to_string();
    let path = format!("/api/v1/access/why?principal=token:{id}&permission=cas:read&instance=default");
    assert_eq!(setting.ask(Some(0), "GET", &path, "").await.status, 404);
    let records = setting.stop("access.why").await;
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(records[0].subject.ends_with(&id) && records[0].outcome.as_str() == "denied", "{records:?}");
}

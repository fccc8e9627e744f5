//! Identities of an issuer for tokens of the server: who gets one, who does not, and what each is told.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use gf_database::{Database, Location};
use gf_server::App;
use gf_server::config::{Config, Environment, Overrides};
use gf_tenancy::AuditLog;
use gf_tenancy::audit::Search;
use gf_testkit::{IssuerFault, OidcIssuer, RSA_PUBLIC_PEM};
use ring::hmac;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The blob of nothing, which every instance has.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

struct Forge {
    app: App,
    issuer: OidcIssuer,
    folder: TempDir,
}

impl Forge {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = OidcIssuer::start().unwrap();
        let app = start(folder.path(), &rules(issuer.url())).await;
        Self { app, issuer, folder }
    }

    /// What an identity comes to: the status, and the answer.
    async fn exchange(&self, token: &str) -> (u16, Value) {
        let (status, head, body) = post(&self.app, token).await;
        if status == 200 {
            assert!(head.to_ascii_lowercase().contains("cache-control: no-store"), "{head}");
        }
        (status, serde_json::from_str(&body).unwrap())
    }

    /// The token of a job that may write.
    async fn token(&self) -> Value {
        let (status, answer) = self.exchange(&self.issuer.token(&job()).unwrap()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Stops the server, and says what its operator reads about exchanges: the outcomes and the reasons.
    async fn stop(self) -> Vec<(String, String, String)> {
        self.app.stop(std::time::Duration::from_secs(5)).await.unwrap();
        let file = Location::file(&self.folder.path().join("data/facts.sqlite"));
        let log = AuditLog::new(Database::connect(&file).await.unwrap());
        let search = Search { action: Some("token.exchange".to_owned()), ..Search::default() };
        let records = log.search(&search).await.unwrap();
        let event = |record: gf_tenancy::audit::Record| {
            let event = record.event;
            (event.outcome.as_str().to_owned(), event.detail, event.trace)
        };
        records.into_iter().map(event).collect()
    }
}

async fn start(folder: &Path, text: &str) -> App {
    let overrides = Overrides { listen: Some("127.0.0.1:0".parse().unwrap()), data_dir: Some(folder.join("data")) };
    let config = Config::parse(Some(&folder.join("gf.toml")), text, overrides, &Environment::default()).unwrap();
    App::start(config).await.unwrap()
}

fn rules(issuer: &str) -> String {
    format!(
        r#"
        [worker]
        enabled = false
        [[tenant]]
        name = "default"
        [[tenant]]
        name = "org-acme"
        instances = ["acme", "acme-ci"]
        [[access.trust]]
        name = "main"
        issuer = "{issuer}"
        audience = "https://build.example"
        claims = {{ repository = "acme/*", ref = "refs/heads/main" }}
        tenant = "org-acme"
        instance = "acme-ci"
        grants = ["operator"]
        lifetime = "10min"
        [[access.trust]]
        name = "all"
        issuer = "{issuer}"
        audience = "https://build.example"
        claims = {{ repository = "acme/*" }}
        tenant = "org-acme"
        grants = ["viewer"]
        "#
    )
}

fn job() -> Value {
    json!({"aud": "https://build.example", "sub": "repo:acme/app", "repository": "acme/app", "ref": "refs/heads/main"})
}

fn with(changes: Value) -> Value {
    let mut claims = job();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

async fn post(app: &App, token: &str) -> (u16, String, String) {
    send(app, "POST", "/v1/token/exchange", Some(token)).await
}

async fn send(app: &App, verb: &str, path: &str, token: Option<&str>) -> (u16, String, String) {
    send_text(app, verb, path, token, "").await
}

async fn send_text(app: &App, verb: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String, String) {
    let credential = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let length = body.len();
    let request = format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{credential}Content-Length: {length}\r\n\r\n{body}"
    );
    let mut stream = TcpStream::connect(app.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

async fn read(app: &App, instance: &str, token: Option<&str>) -> u16 {
    send(app, "GET", &format!("/{instance}/cas/{EMPTY}"), token).await.0
}

fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn a_job_gets_what_the_rules_give() {
    let forge = Forge::start().await;
    let answer = forge.token().await;
    let token = answer["token"].as_str().unwrap();
    let told = ["instance_name", "tenant", "mode"].map(|name| answer[name].as_str().unwrap());
    assert_eq!(told, ["acme-ci", "org-acme", "execute"]);
    assert!(answer["expires_at"].as_str().unwrap().ends_with('Z'), "{answer}");
    assert_eq!(read(&forge.app, "acme-ci", Some(token)).await, 200);
    assert_eq!(read(&forge.app, "default", Some(token)).await, 404, "of another tenant there is nothing");
    assert_eq!(read(&forge.app, "acme-ci", None).await, 401);

    // A pull request reads, and is told so. It is told the first instance, since its rule names none.
    let request = forge.issuer.token(&with(json!({"ref": "refs/pull/7/merge"}))).unwrap();
    let (status, answer) = forge.exchange(&request).await;
    assert_eq!(
        (status, answer["mode"].as_str(), answer["instance_name"].as_str()),
        (200, Some("read-only"), Some("acme"))
    );
    let token = answer["token"].as_str().unwrap();
    assert_eq!(read(&forge.app, "acme", Some(token)).await, 200);
    let (status, ..) = send(&forge.app, "PUT", &format!("/acme/cas/{EMPTY}"), Some(token)).await;
    assert_eq!(status, 403);

    let records = forge.stop().await;
    assert!(records.iter().all(|(outcome, detail, _)| outcome == "done" && !detail.contains("eyJ")), "{records:?}");
    assert!(records.iter().any(|(_, detail, _)| detail.contains("operator@org-acme")), "{records:?}");
}

#[tokio::test]
async fn a_new_cache_is_of_the_only_tenant_where_its_maker_may_make_it() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = OidcIssuer::start().unwrap();
    let text = rules(issuer.url()).replace("[\"operator\"]", "[\"operator\", \"nix:create\"]");
    let forge = Forge { app: start(folder.path(), &text).await, issuer, folder };
    let answer = forge.token().await;
    let token = answer["token"].as_str();
    let config = "/nix/_api/v1/cache-config/team";
    let (status, _, told) = send_text(&forge.app, "POST", config, token, "{\"is_public\":false}").await;
    assert_eq!(status, 200, "{told}");
    let (_, _, shown) = send(&forge.app, "GET", "/api/v1/nix/caches/team", token).await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["tenant"], "org-acme", "{shown}");
}

/// A token that is wrong in one way, and what its operator reads.
async fn refused(forge: &Forge, token: &str, told: &str) -> String {
    let (status, answer) = forge.exchange(token).await;
    let error = answer["error"].as_str().unwrap().to_owned();
    assert_eq!(status, 401, "{error}");
    assert!(error.starts_with(told), "{error}");
    for secret in ["acme", "main", "build.example", forge.issuer.url()] {
        assert!(!error.contains(secret), "an attacker learns {secret:?} of {error}");
    }
    error.rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_a_reason_for_the_operator() {
    let forge = Forge::start().await;
    let now = now_s();
    let signed = |changes: Value| forge.issuer.token(&with(changes)).unwrap();
    let unsigned = |header: Value| forge.issuer.unsigned(&header, &job());
    let hmac = |header: Value, secret: &[u8]| {
        let signed = unsigned(header);
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.as_ref()))
    };
    let (bad, old, early) =
        ("the credential is not valid:", "the credential has expired", "the credential is not valid yet");
    let other = OidcIssuer::start().unwrap();
    other.rotate().unwrap();
    let strangers_key = other.token(&with(json!({"iss": forge.issuer.url()}))).unwrap();
    let good = signed(json!({}));
    let tampered = good.rsplit_once('.').unwrap().0.to_owned() + ".AAAA";
    let cases = [
        (signed(json!({"aud": "https://other.example"})), bad, "it is for [\"https://other.example\"]"),
        (signed(json!({"aud": null})), bad, "it is for []"),
        (other.token(&job()).unwrap(), bad, "no rule is about the issuer"),
        (strangers_key, bad, "its issuer publishes no such key"),
        (tampered, bad, "its signature is not of the key"),
        (signed(json!({"exp": now - 61, "iat": now - 400, "nbf": now - 400})), old, "it expired "),
        (signed(json!({"nbf": now + 120})), early, "it is not valid for another 1"),
        (signed(json!({"iat": now + 120})), early, "it is not valid for another 1"),
        (signed(json!({"exp": null})), bad, "its claims cannot be read: missing field `exp`"),
        (signed(json!({"repository": "evil/app"})), bad, "where repository is \"evil/app\" and not acme/*"),
        (unsigned(json!({"alg": "none", "kid": "rsa"})) + ".", bad, "another algorithm"),
        (hmac(json!({"alg": "HS256", "kid": "rsa"}), RSA_PUBLIC_PEM.as_bytes()), bad, "another algorithm"),
        (
            hmac(json!({"alg": "RS256", "kid": "rsa"}), RSA_PUBLIC_PEM.as_bytes()),
            bad,
            "its signature is not of the key",
        ),
        ("gf-token-0123456789-x".to_owned(), bad, "it does not have the form of a token"),
    ];
    let mut expected = Vec::new();
    for (token, told, reason) in cases {
        expected.push((refused(&forge, &token, told).await, reason));
    }
    let (status, _, body) = send(&forge.app, "POST", "/v1/token/exchange", None).await;
    assert!(status == 401 && body.contains("Authorization: Bearer"), "{status} {body}");
    // Clocks may differ by a minute.
    let now = now_s();
    let skewed = signed(json!({"iat": now + 50, "nbf": now + 50}));
    assert_eq!(forge.exchange(&skewed).await.0, 200);
    let now = now_s();
    let late = signed(json!({"exp": now - 30, "iat": now - 400, "nbf": now - 400}));
    assert_eq!(forge.exchange(&late).await.0, 200);

    let records = forge.stop().await;
    for (trace, reason) in expected {
        let found = records.iter().find(|(.., own)| *own == trace);
        let (outcome, detail, _) = found.unwrap_or_else(|| panic!("{reason}: no record of {trace} in {records:?}"));
        assert!(outcome == "denied" && detail.contains(reason), "{reason}: {detail}");
    }
}

#[tokio::test]
async fn keys_change_and_an_issuer_may_be_away() {
    let forge = Forge::start().await;
    forge.token().await;
    let asked = forge.issuer.asked();
    forge.issuer.misbehave(Some(IssuerFault::HangsUp));
    forge.token().await;
    assert_eq!(forge.issuer.asked(), asked, "keys that are known are not asked for");

    // A key that nobody knows is asked for once in half a minute, which has not passed.
    forge.issuer.misbehave(None);
    forge.issuer.rotate().unwrap();
    let (status, _) = forge.exchange(&forge.issuer.token(&job()).unwrap()).await;
    assert_eq!((status, forge.issuer.asked()), (401, asked));

    // A server that begins anew knows the new one, however many jobs begin at once.
    let folder = tempfile::tempdir().unwrap();
    let app = start(folder.path(), &rules(forge.issuer.url())).await;
    let token = forge.issuer.token(&job()).unwrap();
    let jobs = (0..8).map(|_| post(&app, &token));
    for (status, _, body) in futures::future::join_all(jobs).await {
        assert_eq!(status, 200, "{body}");
    }
    assert_eq!(forge.issuer.asked(), asked + 2, "one for discovery, one for keys");
    forge.stop().await;
}

#[tokio::test]
async fn an_issuer_that_does_wrong_costs_a_try() {
    let faults = [
        (IssuerFault::Hangs, "no answer in 10s"),
        (IssuerFault::Fails, "it answers 500"),
        (IssuerFault::Babbles, "is no document of discovery"),
        (IssuerFault::SendsMuch, "it sent more than 65536 bytes"),
        (IssuerFault::RedirectsInCircles, "it redirects more than 5 times"),
        (IssuerFault::RedirectsTo("http://elsewhere.example/x".to_owned()), "only https is trusted"),
        (IssuerFault::IsAnother, "is about the issuer \"https://other.example\""),
        (IssuerFault::NamesKeysInTheClear, "http://elsewhere.example/keys is not over TLS"),
        (IssuerFault::HangsUp, "openid-configuration: "),
    ];
    // All before the first is asked: a start holds up whoever waits for an answer meanwhile.
    let mut cases = Vec::new();
    for (fault, reason) in faults {
        cases.push((Forge::start().await, fault, reason));
    }
    let runs = cases.into_iter().map(|(forge, fault, reason)| async move {
        forge.issuer.misbehave(Some(fault.clone()));
        let (status, head, body) = post(&forge.app, &forge.issuer.token(&job()).unwrap()).await;
        assert!(status == 503 && head.to_ascii_lowercase().contains("retry-after: 30"), "{fault:?}: {head}");
        assert!(
            body.contains("the identity cannot be checked now") && !body.contains("127.0.0.1"),
            "{fault:?}: {body}"
        );
        let records = forge.stop().await;
        let [(outcome, detail, _)] = records.as_slice() else { panic!("{fault:?}: {records:?}") };
        assert!(outcome == "failed" && detail.contains(reason), "{fault:?}: {detail}");
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn a_server_without_rules_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let app = start(folder.path(), "[worker]\nenabled = false").await;
    let (status, _, body) = post(&app, "x").await;
    assert!(status == 404 && body.contains("[[access.trust]]"), "{status} {body}");
}

#[tokio::test]
async fn an_issuer_may_want_to_know_who_asks_and_keys_may_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = OidcIssuer::start().unwrap();
    std::fs::write(folder.path().join("pod-token"), "s3cret\n").unwrap();
    let more = format!("[[access.issuer]]\nurl = \"{}\"\ntoken_file = \"pod-token\"\n", issuer.url());
    let app = start(folder.path(), &(rules(issuer.url()) + &more)).await;
    assert_eq!(post(&app, &issuer.token(&job()).unwrap()).await.0, 200);
    let shown = Some("Bearer s3cret".to_owned());
    assert_eq!(issuer.credentials(), [shown.clone(), shown]);

    let asked = issuer.asked();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("keys.json"), issuer.key_set()).unwrap();
    let more = format!("[[access.issuer]]\nurl = \"{}\"\nkeys_file = \"keys.json\"\n", issuer.url());
    let app = start(other.path(), &(rules(issuer.url()) + &more)).await;
    assert_eq!(post(&app, &issuer.token(&job()).unwrap()).await.0, 200);
    assert_eq!(issuer.asked(), asked);
}

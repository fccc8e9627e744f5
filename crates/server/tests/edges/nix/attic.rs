//! Attic's interface, driven as its client drives it.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use gf_tenancy::{AtticConfig, JwtKey};
use serde_json::{Value, json};

use super::path::TestPath;
use super::{NixServer, bearer};
use crate::server::{Answer, Door, noise};

const SECRET: &[u8] = b"a secret of a test, as long as it should be";

/// How the server of these tests checks tokens.
pub(crate) fn key() -> AtticConfig {
    let key = JwtKey::hs256(&BASE64_STANDARD.encode(SECRET)).unwrap();
    AtticConfig { key, issuer: None, audiences: Vec::new() }
}

/// An `Authorization` with a token that grants these letters on this pattern, as `atticadm make-token` makes it.
pub(crate) fn token(pattern: &str, letters: &[&str]) -> String {
    let permissions: serde_json::Map<String, Value> =
        letters.iter().map(|letter| ((*letter).to_owned(), json!(1))).collect();
    let claims = json!({
        "sub": "tester", "exp": 4_102_444_800_u64, "nbf": 1_600_000_000,
        "https://jwt.attic.rs/v1": {"caches": {pattern: permissions}},
    });
    let encode = |text: String| BASE64_URL_SAFE_NO_PAD.encode(text);
    let signed =
        format!("{}.{}", encode(json!({"alg": "HS256", "typ": "JWT"}).to_string()), encode(claims.to_string()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET);
    let signature = BASE64_URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes()));
    format!("bearer {signed}.{signature}")
}

/// A client with a token.
struct Client<'a> {
    server: &'a NixServer,
    authorization: String,
}

impl Client<'_> {
    async fn call(&self, verb: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers = [&[("Authorization", self.authorization.as_str())], headers].concat();
        self.server.call(verb, &format!("/nix/{path}"), &headers, body).await
    }

    async fn json(&self, verb: &str, path: &str, body: &Value) -> Answer {
        self.call(verb, &format!("_api/v1/{path}"), &[], body.to_string().as_bytes()).await
    }

    async fn config(&self, cache: &str) -> Value {
        let answer = self.call("GET", &format!("_api/v1/cache-config/{cache}"), &[], b"").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// As `attic push` does for one path.
    async fn upload(&self, cache: &str, path: &TestPath) -> Answer {
        self.upload_info(&info(cache, path), path).await
    }

    async fn upload_info(&self, info: &Value, path: &TestPath) -> Answer {
        let text = info.to_string();
        let chunked = [format!("{:x}\r\n", path.archive.len()).as_bytes(), &path.archive, b"\r\n0\r\n\r\n"].concat();
        let headers = [("Transfer-Encoding", "chunked"), ("X-Attic-Nar-Info", text.as_str())];
        self.call("PUT", "_api/v1/upload-path", &headers, &chunked).await
    }
}

fn info(cache: &str, path: &TestPath) -> Value {
    let nar_hash = gf_nix_formats::Hash::from(path.nar_hash()).base16();
    json!({
        "cache": cache, "store_path_hash": path.hash(), "store_path": format!("/nix/store/{}", path.base_name),
        "references": path.references, "system": null, "deriver": null, "sigs": [], "ca": null,
        "nar_hash": format!("sha256:{nar_hash}"), "nar_size": path.archive.len(),
    })
}

/// What a refusal says in Attic's form: the name of the error.
fn error_of(answer: &Answer) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["code"], answer.status);
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    body["error"].as_str().unwrap().to_owned()
}

fn create() -> Value {
    json!({"keypair": "Generate", "is_public": false, "store_dir": "/nix/store", "priority": 41,
           "upstream_cache_key_names": ["cache.nixos.org-1"]})
}

#[tokio::test]
async fn a_cache_is_made_changed_and_destroyed() {
    let server = NixServer::start(Door::Closed).await;
    let client = Client { server: &server, authorization: token("team-*", &["r", "cc", "cr", "cd"]) };
    assert_eq!(client.json("POST", "cache-config/team-a", &create()).await.status, 200);
    let config = client.config("team-a").await;
    assert_eq!((&config["is_public"], &config["priority"]), (&json!(false), &json!(41)));
    assert_eq!(config["substituter_endpoint"], "http://t/nix/team-a");
    assert_eq!(config["api_endpoint"], "http://t/nix/");
    assert!(config["public_key"].as_str().unwrap().contains(':') && config.get("keypair").is_none());
    assert_eq!(config["retention_period"], "Global");
    let again = client.json("POST", "cache-config/team-a", &create()).await;
    assert_eq!((again.status, error_of(&again).as_str()), (400, "CacheAlreadyExists"));
    let alias = client.call("GET", "team-a/attic-cache-info", &[], b"").await;
    assert_eq!(serde_json::from_slice::<Value>(&alias.body).unwrap(), config);

    // As `attic cache configure` does, which always says something of the retention.
    let patch = json!({"is_public": true, "priority": 30, "retention_period": "Global"});
    assert_eq!(client.json("PATCH", "cache-config/team-a", &patch).await.status, 200);
    let changed = client.config("team-a").await;
    assert_eq!((&changed["is_public"], &changed["priority"]), (&json!(true), &json!(30)));
    assert_eq!(changed["public_key"], config["public_key"]);
    assert!(server.get("/nix/team-a/nix-cache-info").await.text().contains("Priority: 30\n"));
    for (wrong, status) in [
        (json!({}), 400),
        (json!({"priority": -1}), 400),
        (json!({"priority": "high"}), 400),
        (json!({"store_dir": "/gnu/store"}), 400),
        (json!({"keypair": {"Keypair": "k:AAAA"}}), 400),
        (json!({"retention_period": {"Period": 3600}}), 403),
    ] {
        let answer = client.json("PATCH", "cache-config/team-a", &wrong).await;
        assert_eq!(answer.status, status, "{wrong}");
        error_of(&answer);
    }
    // Who changes the retention alone needs no other right, and has no other.
    let keeper = Client { server: &server, authorization: token("team-*", &["r", "cq"]) };
    let patch = json!({"retention_period": {"Period": 3600}});
    assert_eq!(keeper.json("PATCH", "cache-config/team-a", &patch).await.status, 200);
    let both = json!({"retention_period": {"Period": 7200}, "priority": 1});
    assert_eq!(keeper.json("PATCH", "cache-config/team-a", &both).await.status, 403);
    assert_eq!(client.config("team-a").await["retention_period"], json!({"Period": 3600}));

    assert_eq!(client.call("DELETE", "_api/v1/cache-config/team-a", &[], b"").await.status, 200);
    let gone = client.call("GET", "_api/v1/cache-config/team-a", &[], b"").await;
    assert_eq!((gone.status, error_of(&gone).as_str()), (404, "NoSuchCache"));
}

#[tokio::test]
async fn paths_are_pushed_in_any_order_and_pulled_by_nix() {
    let server = NixServer::start(Door::Closed).await;
    let client = Client { server: &server, authorization: token("main", &["r", "w"]) };
    let dependency = TestPath::file("dependency", &noise(1, 100_000));
    let path = TestPath::file("program", b"a program").refers_to(&dependency);
    let question = json!({"cache": "main", "store_path_hashes": [path.hash(), dependency.hash()]});
    let answer = client.json("POST", "get-missing-paths", &question).await;
    let missing: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(missing, json!({"missing_paths": [path.hash(), dependency.hash()]}));

    let uploaded = client.upload("main", &path).await;
    assert_eq!(uploaded.status, 200, "{}", uploaded.text());
    assert_eq!(serde_json::from_slice::<Value>(&uploaded.body).unwrap()["kind"], "Uploaded");
    assert_eq!(server.get(&path.narinfo_url()).await.status, 404, "what it refers to is missing");
    assert_eq!(client.upload("main", &dependency).await.status, 200);
    for path in [&path, &dependency] {
        assert_eq!(server.get(&path.narinfo_url()).await.status, 200);
        assert_eq!(server.get(&format!("/nix/main/nar/{}.nar", path.hash())).await.body, path.archive);
    }
    let answer = client.json("POST", "get-missing-paths", &question).await;
    assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap(), json!({"missing_paths": []}));

    let twin = TestPath::with_archive("twin", path.archive.clone());
    let deduplicated = client.upload("main", &twin).await;
    assert_eq!(serde_json::from_slice::<Value>(&deduplicated.body).unwrap()["kind"], "Deduplicated");
}

#[tokio::test]
async fn what_is_said_of_a_path_may_stand_in_front_of_it() {
    let server = NixServer::start(Door::Closed).await;
    let client = Client { server: &server, authorization: token("*", &["r", "w"]) };
    let path = TestPath::file("preamble", &noise(2, 200_000));
    let text = info("main", &path).to_string();
    let body = [text.as_bytes(), &path.archive].concat();
    let size = text.len().to_string();
    let upload = async |size: &str, body: &[u8]| {
        client.call("PUT", "_api/v1/upload-path", &[("X-Attic-Nar-Info-Preamble-Size", size)], body).await
    };
    for (size, body, status) in [
        ("2000000", &body[..], 413),
        ("7", &body[..], 400),
        ("-1", &body[..], 400),
        (size.as_str(), &body[..100], 400),
        (size.as_str(), &body[..body.len() - 8], 400),
        (size.as_str(), &body[..], 200),
    ] {
        assert_eq!(upload(size, body).await.status, status, "{size}");
    }
    assert_eq!(client.call("PUT", "_api/v1/upload-path", &[], &body).await.status, 400, "nothing is said of it");
    assert_eq!(server.get(&path.archive_url()).await.body, path.archive);
}

#[tokio::test]
async fn what_is_said_of_a_path_must_be_so() {
    let server = NixServer::start(Door::Closed).await;
    let client = Client { server: &server, authorization: token("*", &["r", "w"]) };
    let path = TestPath::file("honest", b"contents");
    let right = info("main", &path);
    for (field, wrong) in [
        ("nar_hash", json!(format!("sha256:{}", "0".repeat(64)))),
        ("nar_size", json!(7)),
        ("store_path_hash", json!("2s4rw9nqymidjbnrk72ccxyn6yxcjdf4")),
        ("store_path", json!("/etc/passwd")),
        ("references", json!(["../x"])),
        ("sigs", json!(["none"])),
        ("ca", json!("fixed:nonsense")),
        ("cache", json!("../..")),
        ("cache", json!(null)),
    ] {
        let mut info = right.clone();
        info[field] = wrong.clone();
        let answer = client.upload_info(&info, &path).await;
        assert_eq!((answer.status, error_of(&answer).as_str()), (400, "RequestError"), "{field}: {wrong}");
    }
    assert_eq!(server.get(&path.narinfo_url()).await.status, 404);
    assert_eq!(client.upload("main", &path).await.status, 200);
}

#[tokio::test]
async fn names_of_caches_cannot_be_probed() {
    let server = NixServer::start(Door::Closed).await;
    let owner = Client { server: &server, authorization: bearer() };
    assert_eq!(owner.json("POST", "cache-config/hidden", &create()).await.status, 200);
    let path = TestPath::file("secret", b"contents");
    assert_eq!(owner.upload("hidden", &path).await.status, 200);
    let anonymous = Client { server: &server, authorization: "Basic Og==".to_owned() };
    let stranger = Client { server: &server, authorization: token("elsewhere", &["r", "w", "cc", "cr", "cd"]) };
    for client in [&anonymous, &stranger] {
        for (verb, rest, body) in [
            ("GET", "_api/v1/cache-config/CACHE", ""),
            ("PATCH", "_api/v1/cache-config/CACHE", r#"{"priority":1}"#),
            ("DELETE", "_api/v1/cache-config/CACHE", ""),
            ("POST", "_api/v1/get-missing-paths", r#"{"cache":"CACHE","store_path_hashes":[]}"#),
            ("GET", "CACHE/nix-cache-info", ""),
            ("GET", "CACHE/attic-cache-info", ""),
            ("PUT", "CACHE/nix-cache-info", ""),
            ("HEAD", "CACHE/HASH.narinfo", ""),
            ("GET", "CACHE/HASH.narinfo", ""),
            ("GET", "CACHE/nar/HASH.nar", ""),
        ] {
            let ask = async |cache: &str| {
                let fill = |text: &str| text.replace("CACHE", cache).replace("HASH", path.hash());
                let answer = client.call(verb, &fill(rest), &[], fill(body).as_bytes()).await;
                (answer.status, answer.text().replace(cache, "CACHE"))
            };
            let (there, nowhere) = (ask("hidden").await, ask("nothing").await);
            assert_eq!(there, nowhere, "{verb} {rest}");
            assert!(matches!(there.0, 401 | 403), "{verb} {rest}: {there:?}");
        }
    }
}

//! `gf token revoke` of what identities of others were exchanged for.

use std::fs;
use std::io::{Read, Write};

use gf_testkit::OidcIssuer;
use serde_json::{Value, json};

use crate::running::{Server, gf, text};

const AUDIENCE: &str = "https://build.example";

/// The status and the body that a request is answered with.
fn http(server: &Server, verb: &str, path: &str, token: &str) -> (u16, String) {
    let mut stream = server.connect();
    let head = format!(
        "{verb} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\
         Content-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let body = answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

#[test]
fn what_an_identity_was_exchanged_for_ends_at_once() {
    let (home, issuer) = (tempfile::tempdir().unwrap(), OidcIssuer::start().unwrap());
    let config = home.path().join("gf.toml");
    let rule = format!(
        "[worker]\nenabled = false\n[access]\ntoken_file = \"token\"\n[[access.trust]]\nname = \"main\"\n\
         issuer = \"{}\"\naudience = \"{AUDIENCE}\"\nclaims = {{ repository = \"acme/*\" }}\ngrants = [\"viewer\"]\n",
        issuer.url()
    );
    fs::write(home.path().join("token"), "opensesame").unwrap();
    fs::write(&config, rule).unwrap();
    let server = Server::start(home.path(), &["--config", config.to_str().unwrap()]);
    let exchange = |subject: &str| {
        let identity = issuer.token(&json!({"aud": AUDIENCE, "sub": subject, "repository": "acme/app"})).unwrap();
        let (status, body) = http(&server, "POST", "/v1/token/exchange", &identity);
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let token = |subject: &str| exchange(subject).1["token"].as_str().unwrap().to_owned();
    let knows = |token: &str| http(&server, "GET", "/api/v1/access/whoami", token).0;
    let revoke = |more: &[&str]| {
        let mut command = gf(home.path());
        command.args(["token", "revoke", "--server", &server.url]).args(more).env("GF_TOKEN", "opensesame");
        command.output().unwrap()
    };
    let (app, again, other) = (token("repo:acme/app: a&b"), token("repo:acme/app: a&b"), token("repo:acme/other"));
    let which = ["--issuer", issuer.url(), "--subject", "repo:acme/app: a&b"];
    let revoked = revoke(&which);
    assert!(text(&revoked.stderr).contains("2 tokens are revoked"), "{}", text(&revoked.stderr));
    assert_eq!([knows(&app), knows(&again), knows(&other)], [401, 401, 200]);
    // What was signed before is exchanged no more.
    assert_eq!(exchange("repo:acme/app: a&b").0, 401);
    // Nor by what one of its tokens is called.
    let third = token("repo:acme/third");
    let id = third.strip_prefix("gf-token-").unwrap().split('-').next().unwrap();
    let cut_off = revoke(&[id, "--cut-off"]);
    assert!(text(&cut_off.stderr).contains("1 tokens are revoked"), "{}", text(&cut_off.stderr));
    assert_eq!((knows(&third), exchange("repo:acme/third").0), (401, 401));
    let by_rule = revoke(&["--rule", "main"]);
    assert!(text(&by_rule.stderr).contains("1 tokens are revoked"), "{}", text(&by_rule.stderr));
    assert_eq!(knows(&other), 401);
    for wrong in [&[][..], &["0123456789", "--rule", "main"]] {
        assert_eq!(revoke(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

//! Tokens in Attic's format, as whoever operates a server meets them.

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::running::{Server, gf, text};

/// 32 zeros, as `openssl rand -base64 32` would write them.
const SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const CLAIMS: &str = r#"{"sub":"SUBJECT","https://jwt.attic.rs/v1":{"caches":{"*":{"r":1,"w":1}}}}"#;
const STATIC: &str = "opensesame";

/// A token of this subject, as `atticadm make-token` makes it.
fn token_of(subject: &str) -> String {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let claims = CLAIMS.replace("SUBJECT", subject);
    let signed = format!("{}.{}", encode(br#"{"alg":"HS256","typ":"JWT"}"#), encode(claims.as_bytes()));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &[0; 32]);
    format!("{signed}.{}", encode(ring::hmac::sign(&key, signed.as_bytes()).as_ref()))
}

struct Setting {
    home: tempfile::TempDir,
    server: Server,
}

impl Setting {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("gf.toml");
        let config = "[access]\ntoken_file = \"token\"\n[access.attic]\nhs256_secret_file = \"secret\"\n\
                      [worker]\nenabled = false\n[log]\nlevel = \"debug\"\n";
        fs::write(&file, config).unwrap();
        fs::write(home.path().join("token"), STATIC).unwrap();
        fs::write(home.path().join("secret"), SECRET).unwrap();
        let server = Server::start(home.path(), &["--config", file.to_str().unwrap()]);
        Self { home, server }
    }

    /// Runs a command of the operator with this on its standard input.
    fn gf(&self, args: &[&str], input: &str) -> Output {
        let mut command = gf(self.home.path());
        command.args(args).args(["--server", &self.server.url]).env("GF_TOKEN", STATIC);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _not_read = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// What the holder of a token is answered.
    fn ask(&self, token: &str) -> (u16, String) {
        let head = format!(
            "GET /api/v1/access/whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer \
             {token}\r\n\r\n"
        );
        let mut stream = self.server.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }
}

#[test]
fn a_stolen_token_is_revoked_and_its_text_is_nowhere() {
    let setting = Setting::start();
    let (stolen, kept) = (token_of("ci"), token_of("laptop"));
    assert_eq!(setting.ask(&stolen).0, 200);

    let pasted_wrong = setting.gf(&["token", "revoke", "--attic"], &stolen[..stolen.len() - 9]);
    assert_eq!(pasted_wrong.status.code(), Some(1));
    assert!(text(&pasted_wrong.stderr).contains("nothing was revoked"), "{}", text(&pasted_wrong.stderr));
    let argument = setting.gf(&["token", "revoke", "--attic", &stolen], "");
    assert_eq!(argument.status.code(), Some(2), "{}", text(&argument.stderr));
    assert_eq!(setting.ask(&stolen).0, 200);

    let revoked = setting.gf(&["token", "revoke", "--attic"], &format!("{stolen}\n"));
    assert_eq!(revoked.status.code(), Some(0), "{}", text(&revoked.stderr));
    assert!(text(&revoked.stderr).contains(" of ci is revoked"), "{}", text(&revoked.stderr));
    assert_eq!((setting.ask(&stolen).0, setting.ask(&kept).0), (401, 200));

    // By its fingerprint, as who watches the log would.
    let log = text(&setting.gf(&["audit", "export"], "").stdout);
    let signed = stolen.rsplit_once('.').unwrap().0;
    assert!(log.contains("\"attic:") && !log.contains(signed), "{log}");
    let digest = ring::digest::digest(&ring::digest::SHA256, kept.rsplit_once('.').unwrap().0.as_bytes());
    let fingerprint: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let revoked = setting.gf(&["token", "revoke", "--attic", &fingerprint], "");
    assert_eq!(revoked.status.code(), Some(0), "{}", text(&revoked.stderr));
    assert_eq!(setting.ask(&kept).0, 401);
}

//! Clients without a secret: Bazel with the credential helper, which exchanges the identity of its job, and curl with a
//! certificate. Each is let in, and each learns what to do when it is not.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, iter};

use gf_testkit::OidcIssuer;
use gf_tests::{Finished, GfServer, run_within};
use serde_json::{Value, json};

use crate::CLIENT_LIMIT;
use crate::bazel::{Workshop, build};

const AUDIENCE: &str = "https://build.example";
/// The blob of nothing, which is always there.
const EMPTY: &str = "default/cas/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn start(folder: &Path, configuration: &str) -> GfServer {
    let file = folder.join("gf.toml");
    fs::write(&file, configuration).unwrap();
    let arguments = ["--config", file.to_str().unwrap()];
    GfServer::start_with(&GfServer::binary().unwrap(), ([127, 0, 0, 1], 0).into(), &folder.join("data"), &arguments)
        .unwrap()
}

fn start_trusting(folder: &Path, issuer: &OidcIssuer) -> GfServer {
    let rule = format!(
        "[worker]\nenabled = false\n[[access.trust]]\nname = \"main\"\nissuer = \"{}\"\naudience = \"{AUDIENCE}\"\n\
         claims = {{ repository = \"acme/*\", ref = \"refs/heads/main\" }}\ngrants = [\"operator\"]\n",
        issuer.url()
    );
    start(folder, &rule)
}

fn job(reference: &str) -> Value {
    json!({"aud": AUDIENCE, "sub": "repo:acme/app", "repository": "acme/app", "ref": reference})
}

/// The helper as a client finds it: a file of that name, which sets what a CI sets.
fn install_helper(workshop: &Workshop, server: &GfServer, token: &str) -> PathBuf {
    let folder = workshop.place.work().join("tools");
    let on_host = workshop.place.on_host(&folder);
    fs::create_dir_all(&on_host).unwrap();
    fs::copy(GfServer::binary().unwrap(), on_host.join("gf")).unwrap();
    if !on_host.join("gf-credential-helper").exists() {
        symlink("gf", on_host.join("gf-credential-helper")).unwrap();
    }
    fs::write(on_host.join("id-token"), token).unwrap();
    let script = format!(
        "#!/bin/sh\nexport GF_SERVER={} GF_ID_TOKEN_FILE={tools}/id-token HOME={tools}\nexec {tools}/gf-credential-helper \"$@\"\n",
        server.url(),
        tools = folder.display()
    );
    let helper = on_host.join("helper");
    fs::write(&helper, script).unwrap();
    let mut executable = Command::new("chmod");
    executable.arg("755").arg(&helper);
    run_within(executable, CLIENT_LIMIT).unwrap().success().unwrap();
    folder.join("helper")
}

#[test]
fn bazel_presents_what_its_job_was_given() {
    let (folder, issuer) = (tempfile::tempdir().unwrap(), OidcIssuer::start().unwrap());
    let server = start_trusting(folder.path(), &issuer);
    let workshop = Workshop::new();
    let cache = format!("--remote_cache={}", server.grpc());
    let helper = install_helper(&workshop, &server, &issuer.token(&job("refs/heads/main")).unwrap());
    let helper = format!("--credential_helper=127.0.0.1={}", helper.display());
    let first = build(&workshop.bazel("first"), &[&cache, &helper]);
    let second = build(&workshop.bazel("second"), &[&cache, &helper]);
    assert_eq!(second.log.all_remote_hits().unwrap(), first.log.cacheable());
    assert_eq!(issuer.asked(), 2, "one exchange was enough: discovery, and keys");

    // Bazel goes on without its cache, and shows what the helper said.
    install_helper(&workshop, &server, &issuer.token(&job("refs/pull/7/merge")).unwrap());
    let refused =
        workshop.bazel("third").run(&["build", "//telemetry:wheel_1", &cache, &helper], CLIENT_LIMIT).unwrap();
    for part in ["does not take the identity of this job: the credential is not valid", "[[access.trust]]"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    // Without a helper it is told what is missing.
    let without = workshop.bazel("fourth").run(&["build", "//telemetry:wheel_1", &cache], CLIENT_LIMIT).unwrap();
    assert!(without.stderr.contains("needs a credential: send `Authorization: Bearer"), "{}", without.stderr);
    assert!(server.stop().unwrap().success());
}

/// Asks the helper as Bazel does.
fn ask(folder: &Path, server: &GfServer, environment: &[(&str, &str)], uri: &str) -> Finished {
    let link = folder.join("gf-credential-helper");
    if !link.exists() {
        symlink(GfServer::binary().unwrap(), &link).unwrap();
    }
    let question = folder.join("question");
    fs::File::create(&question).unwrap().write_all(json!({"uri": uri}).to_string().as_bytes()).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", r#"exec "$0" get <"$1""#]).arg(&link).arg(&question).stdin(Stdio::null());
    command.env_clear().env("HOME", folder).env("GF_SERVER", server.url()).envs(environment.iter().copied());
    run_within(command, CLIENT_LIMIT).unwrap()
}

fn authorization(answer: &Finished) -> String {
    assert!(answer.status.success(), "{}", answer.tail());
    let answer: Value = serde_json::from_str(&answer.stdout).unwrap();
    answer["headers"]["Authorization"][0].as_str().unwrap().to_owned()
}

#[test]
fn the_helper_says_what_is_missing_and_keeps_what_it_got() {
    let (folder, issuer) = (tempfile::tempdir().unwrap(), OidcIssuer::start().unwrap());
    let server = start_trusting(folder.path(), &issuer);
    let uri = server.url().replace("http://", "https://") + "/build.bazel.remote.execution.v2.Capabilities";
    let ask = |environment: &[(&str, &str)]| ask(folder.path(), &server, environment, &uri);

    let none = ask(&[]);
    assert!(none.status.code() == Some(1) && none.stdout.is_empty(), "{}", none.tail());
    for part in ["there is nothing to present", "gf login --server http://127.0.0.1", "id-token: write", "GF_ID_TOKEN"]
    {
        assert!(none.stderr.contains(part), "{part}: {}", none.stderr);
    }
    assert_eq!(authorization(&ask(&[("GF_TOKEN", "s3cret")])), "Bearer s3cret");

    let token = issuer.token(&job("refs/heads/main")).unwrap();
    let first = ask(&[("GF_ID_TOKEN", &token)]);
    let presented = authorization(&first);
    assert!(presented.starts_with("Bearer gf-token-"), "{presented}");
    assert!(first.stdout.contains("\"expires\": \"2"), "{}", first.stdout);
    assert_eq!(authorization(&ask(&[("GF_ID_TOKEN", &token)])), presented, "what it got is kept");
    let kept = fs::read_dir(folder.path().join(".cache/gloriousflywheel/tokens")).unwrap();
    for file in kept {
        let about = file.unwrap().metadata().unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o777, 0o600);
    }
    // Another job of the same machine is somebody else.
    let other = issuer.token(&job("refs/pull/7/merge")).unwrap();
    let other = ask(&[("GF_ID_TOKEN", &other)]);
    assert!(
        other.stderr.contains("does not take the identity of this job: the credential is not valid"),
        "{}",
        other.stderr
    );

    let expired = job("refs/heads/main").as_object().unwrap().clone();
    let expired =
        iter::once(("exp".to_owned(), json!(1_600_000_000))).chain(expired).collect::<serde_json::Map<_, _>>();
    let expired = issuer.token(&Value::Object(expired)).unwrap();
    let expired = ask(&[("GF_ID_TOKEN", &expired)]);
    assert!(expired.stderr.contains("the credential has expired: get a new one"), "{}", expired.stderr);
    // Bazel may ask for every host that it downloads from: those get nothing of ours.
    for environment in [[("GF_TOKEN", "s3cret")], [("GF_ID_TOKEN", &*token)]] {
        let elsewhere = self::ask(folder.path(), &server, &environment, "https://evil.example/x");
        assert!(elsewhere.status.success(), "{}", elsewhere.tail());
        assert_eq!(serde_json::from_str::<Value>(&elsewhere.stdout).unwrap(), json!({"headers": {}}));
        // And while nobody has said which server is ours, none does.
        let environment = [environment[0], ("GF_SERVER", "")];
        let unnamed = self::ask(folder.path(), &server, &environment, "https://evil.example/x");
        assert!(unnamed.status.code() == Some(1) && unnamed.stdout.is_empty(), "{}", unnamed.tail());
        assert!(unnamed.stderr.contains("GF_SERVER=https://evil.example"), "{}", unnamed.stderr);
    }
    assert!(server.stop().unwrap().success());
}

/// Authorities, and certificates that they signed, all in PEM files of the folder.
fn make_certificates(folder: &Path) {
    let run = |line: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", line]).current_dir(folder);
        run_within(command, CLIENT_LIMIT).unwrap().success().unwrap();
    };
    crate::secured::make_certificate(folder);
    for (authority, client, name) in [
        ("ca", "ci", "URI:spiffe://acme.example/ci/app"),
        ("ca", "stranger", "DNS:x.example"),
        ("other", "forged", "URI:spiffe://acme.example/ci/app"),
    ] {
        run(&format!(
            "test -e {authority}.pem || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -subj /CN={authority} -keyout {authority}.key -out {authority}.pem\n\
             openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={client} -keyout {client}.key \
             -out {client}.csr\n\
             echo subjectAltName={name} >{client}.ext\n\
             openssl x509 -req -in {client}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 \
             -extfile {client}.ext -out {client}.pem"
        ));
    }
}

fn curl(folder: &Path, server: &GfServer, client: Option<&str>, more: &[&str]) -> Finished {
    let mut command = Command::new("curl");
    command.current_dir(folder).args([
        "--silent",
        "--show-error",
        "--cacert",
        "cert.pem",
        "--write-out",
        " %{http_code}",
    ]);
    if let Some(client) = client {
        command.args(["--cert", &format!("{client}.pem"), "--key", &format!("{client}.key")]);
    }
    command.args(more).arg(format!("{}/{EMPTY}", server.url()));
    run_within(command, CLIENT_LIMIT).unwrap()
}

const CERTIFICATES: &str = "[worker]\nenabled = false\n[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n\
    client_ca_file = \"ca.pem\"\nclient_certificates = \"PRESENCE\"\n\
    [[tls.client]]\nname = \"ci\"\nuri = \"spiffe://acme.example/ci/*\"\ngrants = [\"viewer\"]\n";

#[test]
fn curl_presents_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let server = start(folder.path(), &CERTIFICATES.replace("PRESENCE", "optional"));
    let check = |client: Option<&str>, more: &[&str], expected: &str| {
        let answer = curl(folder.path(), &server, client, more);
        assert!(answer.stdout.ends_with(expected), "{client:?} {more:?}: {}", answer.tail());
        answer.stdout
    };
    check(Some("ci"), &[], " 200");
    check(Some("ci"), &["--http1.1"], " 200");
    let refused = check(Some("ci"), &["--upload-file", "ci.pem"], " 403");
    assert!(refused.contains("this credential does not grant cas:write"), "{refused}");
    let stranger = check(Some("stranger"), &[], " 403");
    assert!(stranger.contains("this credential does not grant cas:read"), "{stranger}");
    let none = check(None, &[], " 401");
    assert!(none.contains("needs a credential"), "{none}");
    // What is presented with the request is what counts.
    check(Some("ci"), &["--header", "Authorization: Bearer wrong"], " 401");
    let forged = curl(folder.path(), &server, Some("forged"), &[]);
    assert!(!forged.status.success() && forged.stdout == " 000", "{}", forged.tail());
    assert!(server.stop().unwrap().success());
}

#[test]
fn a_certificate_may_be_required() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let server = start(folder.path(), &CERTIFICATES.replace("PRESENCE", "required"));
    assert_eq!(curl(folder.path(), &server, Some("ci"), &[]).stdout, " 200");
    // In TLS 1.3 a client has ended its handshake before it is refused: it reads the alert, or meets the closed connection first.
    let none = curl(folder.path(), &server, None, &[]);
    assert!(!none.status.success() && none.stdout == " 000", "{}", none.tail());
    assert_eq!(curl(folder.path(), &server, Some("ci"), &[]).stdout, " 200", "the server serves on");
    assert!(server.stop().unwrap().success());
}

//! `gf` with a certificate of its own, at a server that wants one of every client.

use std::fs;
use std::path::Path;
use std::process::Output;

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::running::{Server, gf, text};

const CONFIG: &str = "[worker]\nenabled = false\n[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n\
    client_ca_file = \"ca.pem\"\nclient_certificates = \"required\"\n\
    [[tls.client]]\nname = \"ann\"\nuri = \"spiffe://acme.example/ann\"\ngrants = [\"admin\"]\n";

/// A server's certificate, an authority of clients, and two certificates, one by that authority and one by another.
fn make_certificates(folder: &Path) {
    let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    write("cert.pem", own.cert.pem());
    write("key.pem", own.signing_key.serialize_pem());
    for (file, client) in [("ca.pem", "ann"), ("other.pem", "forged")] {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        write(file, authority.self_signed(&authority_key).unwrap().pem());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = Ia5String::try_from("spiffe://acme.example/ann").unwrap();
        params.subject_alt_names = vec![SanType::URI(name)];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
        write(&format!("{client}.pem"), certificate.pem());
        write(&format!("{client}.key"), key.serialize_pem());
    }
}

struct Setting {
    folder: tempfile::TempDir,
    server: Server,
}

impl Setting {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        make_certificates(folder.path());
        fs::write(folder.path().join("gf.toml"), CONFIG).unwrap();
        let config = folder.path().join("gf.toml");
        let server = Server::start(folder.path(), &["--config", config.to_str().unwrap()]);
        Self { folder, server }
    }

    /// Runs a command at this server.
    fn gf(&self, args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = gf(self.folder.path());
        command.args(args).args(["--server", &self.server.url, "--ca", "cert.pem"]).current_dir(self.folder.path());
        command.envs(environment.iter().copied()).output().unwrap()
    }
}

#[test]
fn a_certificate_is_presented_and_kept() {
    let setting = Setting::start();
    let (cert, key) = ("ann.pem", "ann.key");
    let said = |output: Output, code: i32, stdout: &str, stderr: &str| {
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.code() == Some(code) && out.contains(stdout) && err.contains(stderr), "{out}{err}");
    };
    let ann = "certificate:uri:spiffe://acme.example/ann";
    said(setting.gf(&["whoami", "--client-cert", cert, "--client-key", key], &[]), 0, ann, "");
    said(setting.gf(&["whoami"], &[("GF_CLIENT_CERT", cert), ("GF_CLIENT_KEY", key)]), 0, ann, "");
    // Whichever of the two sees first that the connection is over.
    assert_eq!(setting.gf(&["whoami"], &[]).status.code(), Some(1));
    let forged = setting.gf(&["whoami", "--client-cert", "forged.pem", "--client-key", "forged.key"], &[]);
    assert_eq!(forged.status.code(), Some(1), "{}", text(&forged.stdout));
    said(setting.gf(&["whoami", "--client-cert", cert], &[]), 2, "", "--client-key");
    said(setting.gf(&["whoami", "--client-cert", cert, "--client-key", cert], &[]), 2, "", "no key in PEM form");
    said(setting.gf(&["whoami", "--client-cert", "none", "--client-key", key], &[]), 2, "", "none: no certificate");
    said(
        setting.gf(&["whoami", "--client-cert", cert, "--client-key", "forged.key"], &[]),
        2,
        "",
        "cannot be presented",
    );

    said(setting.gf(&["login", "--client-cert", cert, "--client-key", key], &[]), 0, "", ann);
    said(setting.gf(&["whoami"], &[]), 0, ann, "");
    // Also by who administers, and with a token beside it.
    let issued = setting.gf(&["token", "issue", "ci", "--grant", "viewer@default", "--lifetime", "1h"], &[]);
    let token = text(&issued.stdout).trim().to_owned();
    assert!(token.starts_with("gf-token-"), "{}", text(&issued.stderr));
    said(setting.gf(&["whoami"], &[("GF_TOKEN", &token)]), 0, "token:", "");
    said(setting.gf(&["login", "--forget"], &[]), 0, "", "nothing is stored");
    assert_eq!(setting.gf(&["whoami"], &[]).status.code(), Some(1));
}

#[test]
fn a_token_goes_to_no_server_that_nobody_named() {
    let home = tempfile::tempdir().unwrap();
    let output = gf(home.path()).arg("whoami").env("GF_TOKEN", "s3cret").output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("for which server"), "{said}");
    let plain = ["whoami", "--server", "http://127.0.0.1:1", "--client-cert", "a", "--client-key", "b"];
    let output = gf(home.path()).args(plain).output().unwrap();
    assert!(text(&output.stderr).contains("over https"), "{}", text(&output.stderr));
}

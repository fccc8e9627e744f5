//! Rules, right and wrong, through [`Config::parse`].

use super::super::{Config, Environment, Overrides};

const GITHUB: &str = "https://token.actions.githubusercontent.com";

/// A configuration beside the files `ca.pem`, `token`, `cert.pem` and `key.pem`.
fn parse(text: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    for (name, contents) in [("ca.pem", &cert), ("cert.pem", &cert), ("key.pem", &key), ("token", &"x".to_owned())] {
        std::fs::write(folder.path().join(name), contents).unwrap();
    }
    let environment = Environment { state_dir: Some("/state".into()), ..Environment::default() };
    let config = Config::parse(Some(&folder.path().join("gf.toml")), text, Overrides::default(), &environment);
    config.map_err(|errors| errors.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn rule(changes: &str) -> String {
    let mut lines = vec![
        ("name", r#"name = "ci""#.to_owned()),
        ("issuer", format!("issuer = \"{GITHUB}\"")),
        ("audience", r#"audience = "https://build.example""#.to_owned()),
        ("claims", r#"claims = { repository = "acme/*", ref = "refs/heads/main" }"#.to_owned()),
        ("grants", r#"grants = ["operator"]"#.to_owned()),
    ];
    for change in changes.lines() {
        let key = change.split(' ').next().unwrap();
        lines.retain(|(name, _)| *name != key.trim_start_matches('-'));
        if !change.starts_with('-') {
            lines.push(("", change.to_owned()));
        }
    }
    let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    format!("[[access.trust]]\n{}\n", lines.join("\n"))
}

fn check_mistake(text: &str, expected: &str) {
    let error = parse(text).unwrap_err();
    assert!(error.lines().count() == 1 && error.starts_with(expected), "expected {expected:?} in\n{error}\nof\n{text}");
}

#[test]
fn a_rule_is_read() {
    let config =
        parse(&(rule("lifetime = \"15min\"") + "[[tenant]]\nname = \"org-acme\"\ninstances = [\"a\", \"b\"]")).unwrap();
    let [rule] = config.trust.rules.as_slice() else { panic!("{:?}", config.trust) };
    assert_eq!(
        (rule.name.as_str(), rule.issuer.as_str(), rule.audience.as_str()),
        ("ci", GITHUB, "https://build.example")
    );
    assert_eq!((rule.tenant.as_str(), rule.instance.as_str(), rule.lifetime.as_secs()), ("org-acme", "a", 900));
    let claims: Vec<(&str, &str)> =
        rule.claims.iter().map(|(name, pattern)| (name.as_str(), pattern.as_str())).collect();
    assert_eq!(claims, [("ref", "refs/heads/main"), ("repository", "acme/*")]);
    let grants = |rule: &gf_tenancy::trust::TrustRule| rule.grants.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(grants(rule), ["operator@org-acme"], "what names no place is for the tenant of the rule");

    let several = self::rule("tenant = \"org-b\"\ninstance = \"y\"\ngrants = [\"viewer\", \"nix:push@*/ci-*\"]")
        + "[[tenant]]\nname = \"org-a\"\n[[tenant]]\nname = \"org-b\"\ninstances = [\"x\", \"y\"]";
    let config = parse(&several).unwrap();
    let rule = &config.trust.rules[0];
    assert_eq!((rule.tenant.as_str(), rule.instance.as_str()), ("org-b", "y"));
    assert_eq!(grants(rule), ["viewer@org-b", "nix:push@*/ci-*"]);
    // Claims may stand in a table of their own, and be numbers and flags.
    let table = self::rule("-claims") + "[access.trust.claims]\nref_protected = true\nproject_id = 7";
    let config = parse(&table).unwrap();
    let claims: Vec<&str> = config.trust.rules[0].claims.iter().map(|(_, pattern)| pattern.as_str()).collect();
    assert_eq!(claims, ["7", "true"]);
}

#[test]
fn mistakes_in_rules() {
    for key in ["name", "issuer", "audience", "grants"] {
        check_mistake(&rule(&format!("-{key}")), &format!("gf.toml:1: access.trust.{key}: is missing"));
    }
    check_mistake(&rule("-claims"), "gf.toml:1: access.trust.claims: names nobody");
    check_mistake(&rule("claims = { repository = \"*\" }"), "gf.toml:6: access.trust.claims: names nobody");
    check_mistake(&rule("claims = {}"), "gf.toml:6: access.trust.claims: names nobody");
    check_mistake(&rule("claims = { environment = \"prod\" }"), "gf.toml:6: access.trust.claims: names no owner");
    check_mistake(
        &rule("claims = { sub = \"repo:*:ref:refs/heads/main\" }"),
        "gf.toml:6: access.trust.claims: sub = \"repo:*:ref:refs/heads/main\" fits all owners",
    );
    check_mistake(
        &rule("claims = { repository = \"acme*\" }"),
        "gf.toml:6: access.trust.claims: repository = \"acme*\" also fits",
    );
    check_mistake(
        &rule("claims = { repository_owner = \"acme*\" }"),
        "gf.toml:6: access.trust.claims: repository_owner",
    );
    check_mistake(
        &rule("claims = { repository = [\"a\"] }"),
        "gf.toml:6: access.trust.claims: repository: expected text",
    );
    check_mistake(&rule("claims = \"x\""), "gf.toml:6: access.trust.claims: expected a table");
    check_mistake(&rule("grants = []"), "gf.toml:6: access.trust.grants: is empty");
    check_mistake(&rule("grants = [\"root\"]"), "gf.toml:6: access.trust.grants: \"root\" is neither a role");
    check_mistake(
        &rule("issuer = \"http://forge.example\""),
        "gf.toml:6: access.trust.issuer: http://forge.example/ is not over TLS",
    );
    check_mistake(&rule("name = \"a b\""), "gf.toml:6: access.trust.name: write 1 to 64");
    check_mistake(&rule("lifetime = \"2h\""), "gf.toml:7: access.trust.lifetime: 2 h is too much: at most 1 h");
    check_mistake(&rule("tenant = \"org-x\""), "gf.toml:7: access.trust.tenant: there is no [[tenant]] called org-x");
    check_mistake(&rule("instance = \"x\""), "gf.toml:7: access.trust.instance: \"x\" is no instance of default");
    check_mistake(&(rule("") + &rule("")), "gf.toml:7: access.trust.name: another rule is called \"ci\"");
    let tenants = "[[tenant]]\nname = \"org-a\"\n[[tenant]]\nname = \"org-b\"";
    check_mistake(&(rule("") + tenants), "gf.toml:1: access.trust.tenant: is missing: there are several");
}

#[test]
fn issuers_of_which_more_is_known() {
    let issuer = format!("[[access.issuer]]\nurl = \"{GITHUB}\"\n");
    let config = parse(&(rule("") + &issuer + "ca_file = \"ca.pem\"\ntoken_file = \"token\"")).unwrap();
    let [known] = config.trust.issuers.as_slice() else { panic!("{:?}", config.trust) };
    assert!(known.ca_file.is_some() && known.token_file.is_some() && known.keys_file.is_none());
    check_mistake(&issuer, "gf.toml:1: access.issuer.url: no [[access.trust]] is about");
    check_mistake(&(rule("") + &issuer + &issuer), "gf.toml:9: access.issuer.url: https");
    check_mistake(
        &(rule("") + &issuer + "keys_file = \"no\""),
        "gf.toml:9: access.issuer.keys_file: no cannot be read",
    );
    check_mistake(&(rule("") + "[[access.issuer]]\nca_file = \"ca.pem\""), "gf.toml:7: access.issuer.url: is missing");
}

#[test]
fn certificates_of_clients() {
    let tls = "[tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    let clients = format!("{tls}client_ca_file = \"ca.pem\"\n");
    let person = "[[tls.client]]\nname = \"ann\"\ncommon_name = \"ann\"\ngrants = [\"admin\"]\n";
    let config = parse(&format!("{clients}client_certificates = \"required\"\n{person}")).unwrap();
    assert_eq!(config.certificates.len(), 1);
    assert_eq!(config.tls.unwrap().clients.unwrap().presence, crate::listen::Presence::Required);
    // Who has rules about certificates tells callers apart, so it may be reached from elsewhere.
    assert!(parse(&format!("listen = \"0.0.0.0:1\"\n{clients}{person}")).is_ok());
    check_mistake(&format!("{tls}{person}"), "gf.toml:4: tls.client_ca_file: is missing");
    check_mistake("[tls]\nclient_ca_file = \"ca.pem\"", "gf.toml:2: tls.cert: is missing: certificates of clients");
    check_mistake(&format!("{tls}client_certificates = \"optional\""), "gf.toml:4: tls.client_ca_file: is missing");
    check_mistake(
        &format!("{clients}client_certificates = \"yes\""),
        "gf.toml:5: tls.client_certificates: \"yes\" is neither",
    );
    check_mistake(&format!("{clients}client_crl_file = \"key.pem\""), "gf.toml:2: tls.cert: ");
    let both = person.replace("common_name", "dns = \"x\"\ncommon_name");
    check_mistake(&format!("{clients}{both}"), "gf.toml:5: tls.client.uri: say one of");
    check_mistake(
        &format!("{clients}{}", person.replace("\"ann\"\ngr", "\"*\"\ngr")),
        "gf.toml:7: tls.client.common_name: names nobody",
    );
}

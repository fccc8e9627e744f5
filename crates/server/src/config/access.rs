//! `[access]`: the static token, tokens in Attic's format, and whose identities are trusted. Secrets are in files or in
//! the environment, never in the text of the configuration.

use std::fmt;
use std::path::Path;

use gf_tenancy::{AtticConfig, JwtKey, JwtKeyError, Secret};

use super::reader::{At, Section};
use super::trust::{self, IssuerSettings, ReadRule};
use super::{parse_path, read_text};

/// What `[access]` says.
#[derive(Default)]
pub(super) struct AccessSection {
    pub(super) token: Option<Secret>,
    pub(super) anonymous_read: Option<At<bool>>,
    pub(super) require_token: bool,
    pub(super) attic: AtticSection,
    pub(super) rules: Vec<ReadRule>,
    pub(super) issuers: Vec<At<IssuerSettings>>,
}

/// What `[access.attic]` says.
#[derive(Default)]
pub(super) struct AtticSection {
    /// Whether a file was named, with or without a key in it.
    names_file: bool,
    key: Option<JwtKey>,
    issuer: Option<String>,
    audiences: Vec<String>,
}

/// What the environment says of keys for Attic's tokens, by the names that Attic's own server takes them.
#[derive(Clone, Default)]
pub struct AtticEnvironment {
    /// `ATTIC_SERVER_TOKEN_RS256_PUBKEY_BASE64`.
    pub rs256_public: Option<String>,
    /// `ATTIC_SERVER_TOKEN_RS256_SECRET_BASE64`.
    pub rs256_private: Option<String>,
    /// `ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64`.
    pub hs256: Option<String>,
}

const RS256_PUBLIC: &str = "ATTIC_SERVER_TOKEN_RS256_PUBKEY_BASE64";
const RS256_PRIVATE: &str = "ATTIC_SERVER_TOKEN_RS256_SECRET_BASE64";
const HS256: &str = "ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64";

type ReadKey = fn(&str) -> Result<JwtKey, JwtKeyError>;

impl AtticEnvironment {
    pub(super) fn of_process() -> Self {
        let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        Self { rs256_public: variable(RS256_PUBLIC), rs256_private: variable(RS256_PRIVATE), hs256: variable(HS256) }
    }

    /// The key that is there; of several, the one that Attic's server would take.
    fn key(&self) -> Option<Result<JwtKey, String>> {
        let given: [(&str, &Option<String>, ReadKey); 3] = [
            (RS256_PUBLIC, &self.rs256_public, JwtKey::rs256_public),
            (RS256_PRIVATE, &self.rs256_private, JwtKey::rs256_private),
            (HS256, &self.hs256, JwtKey::hs256),
        ];
        let (name, text, read) = given.into_iter().find_map(|(name, text, read)| Some((name, text.as_ref()?, read)))?;
        Some(read(text).map_err(|error| format!("{name} holds no key: {error}")))
    }
}

/// Shows no secret.
impl fmt::Debug for AtticEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtticEnvironment")
    }
}

impl AtticSection {
    /// How Attic's tokens are checked, if they are; the environment wins over files.
    ///
    /// # Errors
    /// What is wrong, and was not reported with its line.
    pub(super) fn settle(self, environment: &AtticEnvironment) -> Result<Option<AtticConfig>, String> {
        let key = environment.key().transpose()?.or(self.key);
        match key {
            Some(key) => Ok(Some(AtticConfig { key, issuer: self.issuer, audiences: self.audiences })),
            None if !self.names_file && (self.issuer.is_some() || !self.audiences.is_empty()) => Err(format!(
                "access.attic: name the key of the tokens with rs256_public_key_file, rs256_private_key_file or \
                 hs256_secret_file, or put it into the environment variable {RS256_PUBLIC}, {RS256_PRIVATE} or {HS256}"
            )),
            None => Ok(None),
        }
    }
}

pub(super) fn read(access: &mut Section<'_, '_>, folder: &Path) -> AccessSection {
    let token = read_token_file(access, folder);
    let anonymous_read = access.placed_flag("anonymous_read");
    let require_token = access.flag("require_token").unwrap_or(false);
    let attic = access.section("attic", |attic| read_attic(attic, folder));
    let rules = access.sections("trust", trust::read_rule);
    let issuers = access.sections("issuer", |issuer, place| trust::read_issuer(issuer, place, folder));
    AccessSection { token, anonymous_read, require_token, attic, rules, issuers }
}

fn read_attic(attic: &mut Section<'_, '_>, folder: &Path) -> AtticSection {
    let files: [(&'static str, ReadKey); 3] = [
        ("rs256_public_key_file", JwtKey::rs256_public),
        ("rs256_private_key_file", JwtKey::rs256_private),
        ("hs256_secret_file", JwtKey::hs256),
    ];
    let mut names_file = false;
    let mut key = None;
    for (name, read) in files {
        let found = attic.text(name, |text| read_key(folder, text, read));
        if let (true, Some(at)) = (names_file, &found) {
            attic.mistake(name, at.place.clone(), "another file is named already: all tokens are checked with one key");
        }
        names_file |= attic.was_given(name);
        key = key.or(found.map(|at| at.value));
    }
    let text = |text: &str| if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) };
    let issuer = attic.text("issuer", text).map(|at| at.value);
    let audiences = attic.texts("audiences", text).map(|at| at.value).unwrap_or_default();
    let audiences = audiences.into_iter().map(|at| at.value).collect();
    AtticSection { names_file, key, issuer, audiences }
}

fn read_key(folder: &Path, text: &str, read: ReadKey) -> Result<JwtKey, String> {
    let path = parse_path(folder, text)?;
    let name = path.display().to_string();
    let text = read_text(&path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    read(&text).map_err(|error| format!("{name} holds no key: {error}"))
}

pub(super) fn read_token_file(section: &mut Section<'_, '_>, folder: &Path) -> Option<Secret> {
    let token = section.text("token_file", |text| {
        let path = parse_path(folder, text)?;
        let name = path.display().to_string();
        let text = read_text(&path).map_err(|error| format!("{name} cannot be read: {error}"))?;
        check_token(&name, &text)
    });
    token.map(|at| at.value)
}

/// A token travels in a header, so it is visible ASCII without spaces. Messages never show it.
pub(super) fn check_token(origin: &str, text: &str) -> Result<Secret, String> {
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("{origin} holds no token: fill it with `openssl rand -hex 32`"));
    }
    if token.len() > 4096 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{origin} holds no token: expected one line of visible ASCII, at most 4096 characters"));
    }
    // Somebody's token of a server lies in GF_TOKEN for other commands: it would open everything here, and for good.
    if token.starts_with("gf-token-") || token.starts_with("gf-loan-") || token.starts_with("eyJ") {
        return Err(format!(
            "{origin} holds a token that a server or an issuer made for somebody, and none that opens this server: for that, \
             make one with `openssl rand -hex 32`, or unset it"
        ));
    }
    Ok(Secret::new(token.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment, Overrides};
    use super::*;

    #[test]
    fn what_was_made_for_somebody_does_not_open_the_server() {
        assert!(check_token("GF_TOKEN", " s3cret\n").is_ok());
        for made in ["gf-token-0123456789-00", "gf-loan-00", "eyJhbGciOiJub25lIn0.e30."] {
            let refused = check_token("GF_TOKEN", made).unwrap_err();
            assert!(
                refused.starts_with("GF_TOKEN holds a token that a server") && !refused.contains(made),
                "{refused}"
            );
        }
    }

    /// 32 zeros, and 32 other bytes.
    const SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const PUBLIC: &str = include_str!("../../../tenancy/src/jwt/golden/rsa-public.pem");
    const PRIVATE: &str = include_str!("../../../tenancy/src/jwt/golden/rsa-private-pkcs1.pem");

    /// What a configuration beside these files comes to, with these keys in the environment.
    fn parse(text: &str, attic: AtticEnvironment) -> Result<Option<AtticConfig>, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in [("secret", SECRET), ("public", PUBLIC), ("private", PRIVATE), ("bad", "AAAA")] {
            std::fs::write(folder.path().join(name), contents).unwrap();
        }
        let environment = Environment { attic, state_dir: Some("/state".into()), ..Environment::default() };
        let file = folder.path().join("gf.toml");
        let config = Config::parse(Some(&file), text, Overrides::default(), &environment);
        config.map(|config| config.attic).map_err(|errors| errors.to_string())
    }

    fn environment(public: Option<&str>, private: Option<&str>, hs256: Option<&str>) -> AtticEnvironment {
        let [rs256_public, rs256_private, hs256] = [public, private, hs256].map(|text| text.map(str::to_owned));
        AtticEnvironment { rs256_public, rs256_private, hs256 }
    }

    #[test]
    fn keys_of_attic_tokens() {
        let check = |text: &str, environment: AtticEnvironment, expected: &str| {
            let attic = parse(text, environment).unwrap();
            assert_eq!(attic.map_or_else(String::new, |attic| format!("{:?}", attic.key)), expected, "{text}");
        };
        let none = AtticEnvironment::default;
        check("", none(), "");
        check("[access.attic]", none(), "");
        check("[access.attic]\nhs256_secret_file = \"secret\"", none(), "JwtKey(HS256)");
        check("[access.attic]\nrs256_public_key_file = \"public\"", none(), "JwtKey(RS256)");
        check("[access.attic]\nrs256_private_key_file = \"private\"", none(), "JwtKey(RS256)");
        check("", environment(None, None, Some(SECRET)), "JwtKey(HS256)");
        check("", environment(Some(PUBLIC), None, Some(SECRET)), "JwtKey(RS256)");
        check(
            "[access.attic]\nhs256_secret_file = \"secret\"",
            environment(None, Some(PRIVATE), None),
            "JwtKey(RS256)",
        );
        check("listen = \"0.0.0.0:1\"", environment(None, None, Some(SECRET)), "JwtKey(HS256)");
    }

    #[test]
    fn issuer_and_audiences() {
        let text = "[access.attic]\nissuer = \"https://a.example\"\naudiences = [\"nix\", \"ci\"]";
        let attic = parse(text, environment(None, None, Some(SECRET))).unwrap().unwrap();
        assert_eq!(attic.issuer.as_deref(), Some("https://a.example"));
        assert_eq!(attic.audiences, ["nix", "ci"]);
    }

    #[test]
    fn mistakes_name_their_place_and_no_secret() {
        let check = |text: &str, environment: AtticEnvironment, expected: &[&str]| {
            let error = parse(text, environment).unwrap_err();
            for part in expected {
                assert!(error.contains(part), "expected {part:?} in\n{error}");
            }
            assert!(!error.contains("AAAA"), "{error}");
        };
        let none = AtticEnvironment::default;
        let bad = "[access.attic]\nhs256_secret_file = \"bad\"";
        check(bad, none(), &["gf.toml:2: access.attic.hs256_secret_file: ", "the secret has 3 bytes"]);
        let missing = "[access.attic]\nrs256_public_key_file = \"missing\"";
        check(missing, none(), &[":2: access.attic.rs256_public_key_file: ", "cannot be read"]);
        let two = "[access.attic]\nrs256_public_key_file = \"public\"\nhs256_secret_file = \"secret\"";
        check(two, none(), &[":3: access.attic.hs256_secret_file: another file is named already"]);
        check("[access.attic]\nissuer = \"a\"", none(), &["access.attic: name the key", HS256]);
        check("", environment(None, None, Some("AAAA")), &[HS256, "holds no key: the secret has 3 bytes"]);
        check("", environment(None, None, Some("")), &[HS256, "holds no key"]);
        check("[access.attic]\nsecret = \"AAAA\"", none(), &["access.attic.secret: there is no such key"]);
        check("listen = \"0.0.0.0:1\"", none(), &["listening on 0.0.0.0:1 without a token"]);
    }
}

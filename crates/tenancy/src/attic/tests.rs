//! Tokens as `atticadm` makes them, and others.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::jwt::tests::hs256;

/// 32 zeros.
pub(crate) const SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const NOW_S: u64 = 1_800_000_000;

/// A token with these claims.
pub(crate) fn signed(claims: &str) -> String {
    hs256(&BASE64_STANDARD.decode(SECRET).unwrap(), r#"{"alg":"HS256","typ":"JWT"}"#, claims)
}

fn tokens(issuer: Option<&str>, audiences: &[&str]) -> AtticTokens {
    AtticTokens::new(AtticConfig {
        key: JwtKey::hs256(SECRET).unwrap(),
        issuer: issuer.map(str::to_owned),
        audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
    })
}

fn verify_with(tokens: &AtticTokens, claims: &str) -> Result<Arc<AtticToken>, Denied> {
    let text = signed(claims);
    tokens.verify(&text, Fingerprint::of(&text), NOW_S)
}

fn verify(claims: &str) -> Result<Arc<AtticToken>, Denied> {
    verify_with(&tokens(None, &[]), claims)
}

/// What a token with these caches grants on a cache, in Attic's letters.
fn check(caches: &str, cache: &str, expected: &str) {
    const LETTERS: [(PermissionName, &str); 7] = [
        (PermissionName::NixPull, "r"),
        (PermissionName::NixPush, "w"),
        (PermissionName::NixDelete, "d"),
        (PermissionName::NixCreateCache, "cc"),
        (PermissionName::NixConfigureCache, "cr"),
        (PermissionName::NixConfigureRetention, "cq"),
        (PermissionName::NixDestroyCache, "cd"),
    ];
    let token = verify(&format!(r#"{{"sub":"x","https://jwt.attic.rs/v1":{{"caches":{caches}}}}}"#)).unwrap();
    let granted = LETTERS.iter().filter(|(permission, _)| token.grants(*permission, cache));
    let granted: Vec<&str> = granted.map(|(_, letters)| *letters).collect();
    assert_eq!(granted.join(" "), expected, "{caches} {cache}");
}

#[test]
fn each_letter_is_one_permission() {
    check(r#"{"main":{"r":1}}"#, "main", "r");
    check(r#"{"main":{"r":1,"w":1}}"#, "main", "r w");
    check(r#"{"main":{"d":1,"cc":0}}"#, "main", "d");
    check(r#"{"main":{"cc":1}}"#, "main", "cc");
    check(r#"{"main":{"cr":1}}"#, "main", "cr");
    check(r#"{"main":{"cq":1}}"#, "main", "cq");
    check(r#"{"main":{"cd":1,"later":1}}"#, "main", "cd");
    check(r#"{"*":{"r":1,"w":1,"d":1,"cc":1,"cr":1,"cq":1,"cd":1}}"#, "main", "r w d cc cr cq cd");
    check("{}", "main", "");
}

#[test]
fn one_pattern_decides() {
    // The first that fits, in the order of the document, which is not that of the alphabet.
    check(r#"{"z*":{"r":1},"*":{"w":1},"a*":{"d":1}}"#, "abc", "w");
    check(r#"{"z*":{"r":1},"a*":{"d":1},"*":{"w":1}}"#, "abc", "d");
    check(r#"{"z*":{"r":1},"*":{"w":1}}"#, "zed", "r");
    // The name itself comes before all patterns, wherever it stands.
    check(r#"{"*":{"r":1,"w":1},"prod":{"r":1}}"#, "prod", "r");
    check(r#"{"prod-*":{"w":1},"prod":{}}"#, "prod", "");
    check(r#"{"ci-*":{"r":1}}"#, "prod", "");
}

#[test]
fn a_token_holds_for_its_time() {
    let told = |exp: u64, nbf: u64| verify(&format!(r#"{{"exp":{exp},"nbf":{nbf}}}"#)).map(drop);
    assert_eq!(told(NOW_S + 1, NOW_S - 1), Ok(()));
    assert_eq!(told(NOW_S - LEEWAY_S, NOW_S + LEEWAY_S), Ok(()), "clocks differ");
    assert_eq!(told(NOW_S - LEEWAY_S - 1, 0), Err(Denied::Expired));
    assert_eq!(told(NOW_S + 1, NOW_S + LEEWAY_S + 1), Err(Denied::NotYetValid));
    assert_eq!(told(u64::MAX, 0), Ok(()));
    // Attic's server takes tokens without an end; only the key's holder makes them.
    assert!(verify("{}").is_ok());
    assert!(verify(r#"{"exp":1800000000.75}"#).is_ok());
}

#[test]
fn a_token_that_was_seen_before_still_ends() {
    let tokens = tokens(None, &[]);
    let text = signed(&format!(r#"{{"exp":{NOW_S}}}"#));
    let at = |now_s| tokens.verify(&text, Fingerprint::of(&text), now_s).map(drop);
    assert_eq!((at(NOW_S), at(NOW_S + LEEWAY_S)), (Ok(()), Ok(())));
    assert_eq!(at(NOW_S + LEEWAY_S + 1), Err(Denied::Expired));
}

#[test]
fn bound_to_an_issuer_and_to_audiences() {
    let bound = tokens(Some("https://attic.example"), &["nix", "ci"]);
    let check = |claims: &str, expected: Result<(), Denied>| {
        assert_eq!(verify_with(&bound, claims).map(drop), expected, "{claims}");
    };
    check(r#"{"iss":"https://attic.example","aud":"nix"}"#, Ok(()));
    check(r#"{"iss":"https://attic.example","aud":["other","ci"]}"#, Ok(()));
    for wrong in [
        r#"{"aud":"nix"}"#,
        r#"{"iss":"https://attic.example"}"#,
        r#"{"iss":"https://attic.example","aud":[]}"#,
        r#"{"iss":"https://attic.example","aud":"other"}"#,
        r#"{"iss":"https://attic.example.com","aud":"nix"}"#,
    ] {
        check(wrong, Err(Denied::BadCredential));
    }
}

#[test]
fn claims_that_are_not_understood_grant_nothing() {
    let caches = |text: &str| format!(r#"{{"https://jwt.attic.rs/v1":{{"caches":{text}}}}}"#);
    for wrong in [
        caches(r#"{"main":{"r":true}}"#),
        caches(r#"{"main":{"r":2}}"#),
        caches(r#"{"main":{"r":-1}}"#),
        caches(r#"{"main":{"r":"1"}}"#),
        caches(r#"{"main":{"r":1},"main":{"w":1}}"#),
        caches(r#"["main"]"#),
        r#"{"exp":"1800000001"}"#.to_owned(),
        r#"{"exp":-1}"#.to_owned(),
        r#"{"nbf":{}}"#.to_owned(),
        r#"{"aud":7}"#.to_owned(),
        "[]".to_owned(),
        "{".to_owned(),
    ] {
        assert_eq!(verify(&wrong).map(drop), Err(Denied::BadCredential), "{wrong}");
    }
}

#[test]
fn a_subject_can_stand_in_a_log() {
    assert_eq!(verify(r#"{"sub":"ci\u0000\n\u001b[31m"}"#).unwrap().subject(), "ci[31m");
    assert_eq!(verify(&format!(r#"{{"sub":"{}"}}"#, "ä".repeat(500))).unwrap().subject().chars().count(), MAX_SUBJECT);
    assert_eq!(verify("{}").unwrap().subject(), "");
}

#[test]
fn what_is_remembered_is_bounded() {
    let tokens = tokens(None, &[]);
    for number in 0..=REMEMBERED {
        verify_with(&tokens, &format!(r#"{{"sub":"{number}"}}"#)).unwrap();
    }
    assert!(tokens.verified.lock().unwrap().len() <= REMEMBERED);
}

//! What verified claims come to, by the rules. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{LEEWAY_S, MAX_LIFETIME, TrustFault, TrustRule};
use crate::attic::{Audiences, NumericDate};
use crate::tokens::{Admitted, CUT_OFF};
use crate::{Grant, Pattern, is_shown};

/// How much of a claim is shown in a message, in characters.
pub(super) const MAX_SHOWN: usize = 200;
/// The longest subject, in bytes: what is kept of it is what it can be revoked by, which is all of it.
const MAX_SUBJECT_BYTES: usize = 1024;

#[derive(Deserialize)]
struct Standard {
    sub: Option<String>,
    #[serde(default)]
    aud: Audiences,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
}

impl Standard {
    /// When it begins to hold; one that its issuer has not made yet does not.
    fn begin_s(&self) -> u64 {
        [self.nbf, self.iat].into_iter().flatten().map(|date| date.0).max().unwrap_or_default()
    }
}

/// Whom verified claims admit, and with what.
pub(super) fn admit(rules: &[TrustRule], issuer: &str, claims: &[u8], now_s: u64) -> Result<Admitted, TrustFault> {
    let standard: Standard = serde_json::from_slice(claims)?;
    let all: Map<String, Value> = serde_json::from_slice(claims)?;
    if now_s > standard.exp.0.saturating_add(LEEWAY_S) {
        return Err(TrustFault::Expired(now_s - standard.exp.0));
    }
    if standard.exp.0 > now_s.saturating_add(CUT_OFF.as_secs()) {
        return Err(TrustFault::TooLong);
    }
    let begin_s = standard.begin_s();
    if begin_s > now_s.saturating_add(LEEWAY_S) {
        return Err(TrustFault::NotYetValid(begin_s - now_s));
    }
    let is_for = |rule: &&TrustRule| rule.issuer == issuer && standard.aud.0.contains(&rule.audience);
    let about: Vec<&TrustRule> = rules.iter().filter(is_for).collect();
    if about.is_empty() {
        return Err(TrustFault::Audience { found: standard.aud.0 });
    }
    let fitting: Vec<&TrustRule> = about.iter().copied().filter(|rule| fits_all(rule, &all)).collect();
    let Some(first) = fitting.first() else { return Err(no_rule(&about, &all)) };
    let lifetime = fitting.iter().map(|rule| rule.lifetime).min().unwrap_or(MAX_LIFETIME);
    let mut grants: Vec<Grant> = Vec::new();
    for grant in fitting.iter().flat_map(|rule| &rule.grants) {
        if !grants.contains(grant) {
            grants.push(grant.clone());
        }
    }
    let subject = standard.sub.unwrap_or_default();
    if subject.len() > MAX_SUBJECT_BYTES || !subject.chars().all(is_shown) {
        return Err(TrustFault::Subject);
    }
    Ok(Admitted {
        subject,
        issuer: issuer.to_owned(),
        tenant: first.tenant.clone(),
        instance: first.instance.clone(),
        rules: fitting.iter().map(|rule| rule.name.clone()).collect(),
        grants,
        lifetime: lifetime.min(MAX_LIFETIME),
        signed_s: standard.iat.or(standard.nbf).map_or(0, |date| date.0),
        ends_s: standard.exp.0.saturating_add(LEEWAY_S),
    })
}

fn fits_all(rule: &TrustRule, claims: &Map<String, Value>) -> bool {
    rule.claims.iter().all(|claim| is_right(claim, claims))
}

fn is_right((name, pattern): &(String, Pattern), claims: &Map<String, Value>) -> bool {
    find(claims, name).is_some_and(|value| fits(value, pattern))
}

fn find<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    let Some(path) = name.strip_prefix('/') else { return claims.get(name) };
    let mut parts = path.split('/');
    let first = claims.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

fn fits(value: &Value, pattern: &Pattern) -> bool {
    match value {
        Value::String(text) => pattern.fits(text),
        Value::Bool(_) | Value::Number(_) => pattern.fits(&value.to_string()),
        Value::Array(values) => values.iter().any(|value| value.as_str().is_some_and(|text| pattern.fits(text))),
        Value::Null | Value::Object(_) => false,
    }
}

/// What an operator needs to know about a token that no rule is about: the rule that is nearest to it.
fn no_rule(about: &[&TrustRule], claims: &Map<String, Value>) -> TrustFault {
    let wrong = |rule: &&&TrustRule| rule.claims.iter().filter(|claim| !is_right(claim, claims)).count();
    let nearest = about.iter().min_by_key(wrong);
    let claim = nearest.and_then(|rule| rule.claims.iter().find(|claim| !is_right(claim, claims)));
    let (claim, wanted) = claim.map_or(("", ""), |(name, pattern)| (name.as_str(), pattern.as_str()));
    let found = find(claims, claim).map_or_else(|| "absent".to_owned(), ToString::to_string);
    TrustFault::NoRule {
        closest: nearest.map_or_else(String::new, |rule| rule.name.clone()),
        claim: claim.to_owned(),
        wanted: wanted.to_owned(),
        found: found.chars().take(MAX_SHOWN).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://forge.example";

    fn rule(name: &str, claims: &[(&str, &str)]) -> TrustRule {
        TrustRule {
            name: name.to_owned(),
            issuer: ISSUER.to_owned(),
            audience: "gf".to_owned(),
            claims: claims.iter().map(|(name, pattern)| ((*name).to_owned(), Pattern::new(pattern))).collect(),
            tenant: crate::TenantName::new("org-acme").unwrap(),
            instance: gf_digest::InstanceName::new("org-acme").unwrap(),
            grants: vec!["viewer@org-acme".parse().unwrap()],
            lifetime: Duration::from_secs(900),
        }
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "aud": "gf", "sub": "repo:acme/app", "exp": 2000, "iat": 1000,
            "repository": "acme/app", "ref": "refs/heads/main", "ref_protected": true, "run_attempt": 1,
            "groups": ["builders", "acme"], "kubernetes.io": {"namespace": "ci"},
        })
    }

    #[test]
    fn claims_of_every_kind() {
        let check = |claim: (&str, &str), expected: bool| {
            let text = claims().to_string();
            let admitted = admit(&[rule("x", &[claim])], ISSUER, text.as_bytes(), 1500);
            assert_eq!(admitted.is_ok(), expected, "{claim:?}");
        };
        check(("ref_protected", "true"), true);
        check(("ref_protected", "false"), false);
        check(("run_attempt", "1"), true);
        check(("groups", "builders"), true);
        check(("groups", "admins"), false);
        check(("/kubernetes.io/namespace", "ci"), true);
        check(("/kubernetes.io/namespace/more", "*"), false);
        check(("kubernetes.io", "*"), false);
        check(("environment", "*"), false);
    }

    #[test]
    fn what_could_not_be_revoked_is_not_admitted() {
        let admitted = |sub: &str, exp: u64| {
            let mut claims = claims();
            (claims["sub"], claims["exp"]) = (json!(sub), json!(exp));
            let admitted = admit(&[rule("x", &[])], ISSUER, claims.to_string().as_bytes(), 1500);
            admitted.map(|admitted| admitted.subject).map_err(|fault| format!("{fault:?}"))
        };
        let long = format!("repo:acme/app:ref:refs/heads/{}", "x".repeat(MAX_SUBJECT_BYTES - 29));
        assert_eq!(admitted(&long, 2000), Ok(long.clone()), "all of it is kept");
        assert_eq!(admitted(&format!("{long}x"), 2000), Err("Subject".to_owned()));
        assert_eq!(admitted("repo:acme/\u{202e}ppa", 2000), Err("Subject".to_owned()));
        let year_s = CUT_OFF.as_secs();
        assert!(admitted("a", 1500 + year_s).is_ok());
        assert_eq!(admitted("a", 1501 + year_s), Err("TooLong".to_owned()), "a cut-off would be forgotten before");
    }

    #[test]
    fn clocks_may_differ_by_a_minute() {
        let text = claims().to_string();
        let check = |now_s: u64, expected: &str| {
            let admitted = admit(&[rule("x", &[])], ISSUER, text.as_bytes(), now_s);
            let found = admitted.map_or_else(|fault| format!("{fault:?}"), |_| "good".to_owned());
            assert_eq!(found, expected, "{now_s}");
        };
        check(1000 - LEEWAY_S - 1, "NotYetValid(61)");
        check(1000 - LEEWAY_S, "good");
        check(2000 + LEEWAY_S, "good");
        check(2000 + LEEWAY_S + 1, "Expired(61)");
        check(0, "NotYetValid(1000)");
        check(u64::MAX, &format!("Expired({})", u64::MAX - 2000));
    }

    #[test]
    fn an_operator_is_told_of_the_nearest_rule() {
        let rules = [
            rule("main", &[("repository", "acme/*"), ("ref", "refs/heads/release")]),
            rule("other", &[("repository", "other/*"), ("ref", "refs/heads/x")]),
        ];
        let fault = admit(&rules, ISSUER, claims().to_string().as_bytes(), 1500).unwrap_err().to_string();
        let expected = "closest is main, where ref is \"refs/heads/main\" and not refs/heads/release";
        assert!(fault.contains(expected), "{fault}");
    }

    /// A measured bound, far above what it takes, so that it holds on a busy machine and without optimization.
    #[test]
    fn five_hundred_rules_cost_less_than_the_signature() {
        let numbered = |number: usize| {
            let repository = format!("acme/app-{number}");
            rule(&format!("rule-{number}"), &[("repository", repository.as_str()), ("ref", "refs/heads/*")])
        };
        let mut rules: Vec<TrustRule> = (0..500).map(numbered).collect();
        rules.push(rule("last", &[("repository", "acme/app"), ("ref", "refs/heads/main")]));
        let text = claims().to_string();
        let each = |rules: &[TrustRule]| {
            let began = Instant::now();
            for _ in 0..200 {
                black_box(admit(black_box(rules), ISSUER, text.as_bytes(), 1500).unwrap());
            }
            began.elapsed() / 200
        };
        let (one, all) = (each(&rules[500..]), each(&rules));
        eprintln!("matching one rule takes {one:?}, 501 rules {all:?}");
        assert!(all < Duration::from_millis(200), "501 rules take {all:?}");
    }
}

//! `[[access.trust]]`, `[[access.issuer]]` and `[[tls.client]]`: who is let in for what others say of them, be it an
//! issuer of identities or an authority of certificates.
//!
//! What always holds: a rule names somebody. One that would let in everybody for whom a public forge signs is a mistake,
//! and so is one that fits owners whom anybody can register.

mod owners;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gf_digest::InstanceName;
use gf_fetch::Reach;
use gf_tenancy::trust::{MAX_LIFETIME, TrustRule};
use gf_tenancy::{CertificateRule, Grant, Pattern, TenantConfig, TenantName};

use super::reader::{At, Document, Section};
use super::units::{parse_duration, show_duration};
use super::{readable, within};

/// How long a token is good that an identity was exchanged for, unless the rule says it.
const LIFETIME: Duration = Duration::from_secs(1800);
/// The most rules.
const MAX_RULES: usize = 5000;
/// The most claims of one rule.
const MAX_CLAIMS: usize = 32;

/// Which identities of others are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustSettings {
    /// Who is let in.
    pub rules: Vec<TrustRule>,
    /// Issuers of which more must be known than their name.
    pub issuers: Vec<IssuerSettings>,
}

/// How an issuer is asked for its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// Its name, as it stands in tokens: a URL.
    pub url: String,
    /// Certificates of the authorities to believe about it, as PEM; `None` for those that the machine believes.
    pub ca_file: Option<PathBuf>,
    /// A file with a token to present when it is asked.
    pub token_file: Option<PathBuf>,
    /// A file with its keys, which is read instead of asking it.
    pub keys_file: Option<PathBuf>,
}

/// A rule as it was read, before tenants are known.
pub(super) struct ReadRule {
    place: Range<usize>,
    name: String,
    issuer: At<String>,
    audience: String,
    claims: Vec<(String, Pattern)>,
    lifetime: Duration,
    target: ReadTarget,
}

/// A rule about certificates, before tenants are known.
pub(super) struct ReadCertificateRule {
    place: Range<usize>,
    name: String,
    pattern: gf_tenancy::CertificateName,
    target: ReadTarget,
}

impl ReadCertificateRule {
    /// Where it stands.
    pub(super) fn place(&self) -> Range<usize> {
        self.place.clone()
    }
}

/// What a rule gives, and where.
struct ReadTarget {
    tenant: Option<At<TenantName>>,
    instance: Option<At<InstanceName>>,
    grants: Vec<At<String>>,
}

pub(super) fn read_rule(rule: &mut Section<'_, '_>, place: Range<usize>) -> Option<ReadRule> {
    let name = rule.text("name", parse_name);
    let issuer = rule.text("issuer", parse_issuer);
    let audience = rule.text("audience", not_empty);
    let claims = rule.entries("claims", parse_claim);
    if let Some(at) = claims.as_ref().filter(|at| at.value.len() > MAX_CLAIMS) {
        rule.mistake("claims", at.place.clone(), &format!("has more than {MAX_CLAIMS} claims"));
    }
    let lifetime = rule
        .text("lifetime", |text| within(parse_duration(text)?, Duration::from_secs(60), MAX_LIFETIME, show_duration));
    let target = read_target(rule, &place);
    for key in ["name", "issuer", "audience"] {
        if !rule.was_given(key) {
            rule.mistake(key, place.clone(), "is missing");
        }
    }
    let read = claims.as_ref().map_or(&[][..], |claims| &claims.value);
    let names_nobody = issuer.as_ref().and_then(|issuer| owners::names_nobody(&issuer.value, read));
    if let Some(why) = names_nobody.filter(|_| claims.is_some() || !rule.was_given("claims")) {
        rule.mistake("claims", claims.as_ref().map_or(&place, |claims| &claims.place).clone(), &why);
        return None;
    }
    Some(ReadRule {
        place,
        name: name?.value,
        issuer: issuer?,
        audience: audience?.value,
        claims: claims?.value,
        lifetime: lifetime.map_or(LIFETIME, |at| at.value),
        target: target?,
    })
}

pub(super) fn read_issuer(
    issuer: &mut Section<'_, '_>,
    place: Range<usize>,
    folder: &Path,
) -> Option<At<IssuerSettings>> {
    let url = issuer.text("url", parse_issuer);
    let mut file = |key| issuer.text(key, |text| readable(folder, text)).map(|at| at.value);
    let (ca_file, token_file, keys_file) = (file("ca_file"), file("token_file"), file("keys_file"));
    if !issuer.was_given("url") {
        issuer.mistake("url", place.clone(), "is missing");
    }
    Some(At { value: IssuerSettings { url: url?.value, ca_file, token_file, keys_file }, place })
}

pub(super) fn read_certificate_rule(rule: &mut Section<'_, '_>, place: Range<usize>) -> Option<ReadCertificateRule> {
    use gf_tenancy::CertificateName::{CommonName, Dns, Uri};
    let name = rule.text("name", parse_name);
    let mut pattern = |key| rule.text(key, parse_certificate_pattern).map(|at| at.value);
    let names = [pattern("uri").map(Uri), pattern("dns").map(Dns), pattern("common_name").map(CommonName)];
    let target = read_target(rule, &place);
    if !rule.was_given("name") {
        rule.mistake("name", place.clone(), "is missing");
    }
    let given = ["uri", "dns", "common_name"].into_iter().filter(|key| rule.was_given(key)).count();
    if given != 1 {
        rule.mistake("uri", place.clone(), "say one of uri, dns and common_name: whose certificate it is");
    }
    let pattern = names.into_iter().flatten().next()?;
    Some(ReadCertificateRule { place, name: name?.value, pattern, target: target? })
}

fn read_target(rule: &mut Section<'_, '_>, place: &Range<usize>) -> Option<ReadTarget> {
    let tenant = rule.text("tenant", |text| TenantName::new(text).map_err(|error| error.to_string()));
    let instance = rule.text("instance", |text| InstanceName::new(text).map_err(|error| error.to_string()));
    let grants = rule.texts("grants", |text| text.parse::<Grant>().map(|_| text.to_owned()).map_err(|e| e.to_string()));
    match &grants {
        None if !rule.was_given("grants") => {
            rule.mistake("grants", place.clone(), "is missing: a list such as [\"operator\"]");
        }
        Some(at) if at.value.is_empty() => rule.mistake("grants", at.place.clone(), "is empty, so it grants nothing"),
        _ => {}
    }
    Some(ReadTarget { tenant, instance, grants: grants?.value })
}

/// The rules, now that tenants are known.
pub(super) fn settle(
    document: &Document<'_>,
    rules: Vec<ReadRule>,
    issuers: Vec<At<IssuerSettings>>,
    tenants: &[TenantConfig],
) -> TrustSettings {
    let mut settled: Vec<TrustRule> = Vec::new();
    for ReadRule { place, name, issuer, audience, claims, lifetime, target } in rules {
        if settled.iter().any(|rule| rule.name == name) {
            document.mistake(place.clone(), format!("access.trust.name: another rule is called {name:?}"));
        }
        if settled.len() == MAX_RULES {
            document.mistake(place, format!("access.trust: there are more than {MAX_RULES} rules"));
            break;
        }
        if let Some((tenant, instance, grants)) = target.settle(document, "access.trust", &place, tenants) {
            let issuer = issuer.value;
            settled.push(TrustRule { name, issuer, audience, claims, tenant, instance, grants, lifetime });
        }
    }
    for (number, issuer) in issuers.iter().enumerate() {
        let url = &issuer.value.url;
        if issuers[..number].iter().any(|other| other.value.url == *url) {
            document.mistake(issuer.place.clone(), format!("access.issuer.url: {url} is here twice"));
        } else if !settled.iter().any(|rule| rule.issuer == *url) {
            let message = format!("access.issuer.url: no [[access.trust]] is about {url}");
            document.mistake(issuer.place.clone(), message);
        }
    }
    TrustSettings { rules: settled, issuers: issuers.into_iter().map(|at| at.value).collect() }
}

/// The rules about certificates, now that tenants are known.
pub(super) fn settle_certificates(
    document: &Document<'_>,
    rules: Vec<ReadCertificateRule>,
    tenants: &[TenantConfig],
) -> Vec<CertificateRule> {
    let mut settled: Vec<CertificateRule> = Vec::new();
    for ReadCertificateRule { place, name, pattern, target } in rules {
        if settled.iter().any(|rule| rule.name == name) {
            document.mistake(place.clone(), format!("tls.client.name: another rule is called {name:?}"));
        }
        if let Some((_, _, grants)) = target.settle(document, "tls.client", &place, tenants) {
            settled.push(CertificateRule { name, pattern, grants });
        }
    }
    settled
}

impl ReadTarget {
    /// Where it is, and what it grants: a grant that names no place is for the tenant of the rule.
    fn settle(
        self,
        document: &Document<'_>,
        path: &str,
        place: &Range<usize>,
        tenants: &[TenantConfig],
    ) -> Option<(TenantName, InstanceName, Vec<Grant>)> {
        let tenant = match (&self.tenant, tenants) {
            (None, [only]) => only,
            (None, _) => {
                document.mistake(place.clone(), format!("{path}.tenant: is missing: there are several tenants"));
                return None;
            }
            (Some(named), all) => {
                let found = all.iter().find(|tenant| tenant.name == named.value);
                if found.is_none() {
                    let message = format!("{path}.tenant: there is no [[tenant]] called {}", named.value);
                    document.mistake(named.place.clone(), message);
                }
                found?
            }
        };
        let instance = match &self.instance {
            Some(named) if !tenant.instances.contains(&named.value) => {
                let message = format!("{path}.instance: {:?} is no instance of {}", named.value, tenant.name);
                document.mistake(named.place.clone(), message);
                return None;
            }
            Some(named) => named.value.clone(),
            None => tenant.instances.first()?.clone(),
        };
        let place = |text: &str| if text.contains('@') { text.to_owned() } else { format!("{text}@{}", tenant.name) };
        let grants = self.grants.iter().filter_map(|text| place(&text.value).parse().ok()).collect();
        Some((tenant.name.clone(), instance, grants))
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match !text.is_empty() && text.len() <= 64 && text.bytes().all(is_fit) {
        true => Ok(text.to_owned()),
        false => Err("write 1 to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`".to_owned()),
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn parse_issuer(text: &str) -> Result<String, String> {
    Reach::Authentic.check(text)?;
    Ok(text.to_owned())
}

fn parse_claim(claim: &str, text: &str) -> Result<(String, Pattern), String> {
    let pattern = Pattern::new(text);
    owners::check_claim(claim, &pattern)?;
    Ok((claim.to_owned(), pattern))
}

fn parse_certificate_pattern(text: &str) -> Result<Pattern, String> {
    let pattern = Pattern::new(text);
    match text.is_empty() || owners::is_any(&pattern) {
        true => Err("names nobody: write what the certificates have in common".to_owned()),
        false => Ok(pattern),
    }
}

#[cfg(test)]
mod tests;

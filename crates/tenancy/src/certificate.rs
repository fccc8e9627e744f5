//! Certificates of clients: which names of theirs grant what.
//!
//! What always holds: a certificate is taken here only after its chain was verified, which the connection does. Grants
//! of several rules that fit add up; one that no rule fits is known by its name, and grants nothing.
//!
//! Deliberately absent: reading certificates, and taking single ones back before they end: a rule that is removed, or a
//! list of revoked ones beside the authorities, does that when the server starts anew.

use std::fmt;

use crate::{Grant, Pattern, PermissionName, is_shown};

/// Whose certificate a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// A URI among its alternative names, such as `spiffe://example.org/ci/*`.
    Uri(Pattern),
    /// A host among its alternative names.
    Dns(Pattern),
    /// The common name of its subject.
    CommonName(Pattern),
}

/// Whom to let in with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRule {
    /// What people call it.
    pub name: String,
    /// Whose certificates.
    pub pattern: CertificateName,
    /// What they grant.
    pub grants: Vec<Grant>,
}

/// The names in a verified certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// Of its alternative names, the URIs.
    pub uris: Vec<String>,
    /// Of its alternative names, the hosts.
    pub hosts: Vec<String>,
    /// The common names of its subject; certificates have at most one, as a rule.
    pub common_names: Vec<String>,
}

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    name: String,
    grants: Vec<Grant>,
    /// When it ends, in seconds since 1970; what its holder makes ends no later.
    ends_s: u64,
}

/// How much of a name is shown, in characters.
const MAX_SHOWN: usize = 128;

impl CertificateName {
    fn fits(&self, names: &CertificateNames) -> bool {
        let (pattern, names) = match self {
            Self::Uri(pattern) => (pattern, &names.uris),
            Self::Dns(pattern) => (pattern, &names.hosts),
            Self::CommonName(pattern) => (pattern, &names.common_names),
        };
        names.iter().any(|name| pattern.fits(name))
    }
}

impl CertificateNames {
    /// The name by which people know it, and of which kind it is, since whoever may choose the one may not choose the other: a
    /// URI is made for that, and a common name is what is left.
    fn shown(&self) -> String {
        let kinds = [("uri", &self.uris), ("dns", &self.hosts), ("cn", &self.common_names)];
        let mut named = kinds.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind, name)));
        let first = named.find(|(_, name)| !name.is_empty()).map(|(kind, name)| format!("{kind}:{name}"));
        first
            .unwrap_or_else(|| "without a name".to_owned())
            .chars()
            .filter(|character| is_shown(*character))
            .take(MAX_SHOWN)
            .collect()
    }
}

impl Certified {
    /// Who presents a certificate of these names.
    pub(crate) fn new(rules: &[CertificateRule], names: &CertificateNames, ends_s: u64) -> Self {
        let mut grants: Vec<Grant> = Vec::new();
        for grant in rules.iter().filter(|rule| rule.pattern.fits(names)).flat_map(|rule| &rule.grants) {
            if !grants.contains(grant) {
                grants.push(grant.clone());
            }
        }
        Self { name: names.shown(), grants, ends_s }
    }

    /// When it ends, in seconds since 1970.
    pub(crate) const fn ends_s(&self) -> u64 {
        self.ends_s
    }

    /// What it grants.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// The grant that gives this permission on the thing of this name.
    pub(crate) fn grant(&self, permission: PermissionName, tenant: Option<&str>, name: &str) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.grants(permission, tenant, name))
    }
}

/// The name in the certificate.
impl fmt::Display for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use gf_digest::InstanceName;

    use super::*;
    use crate::{Access, AccessConfig, CasRead, CasWrite, Denied, TenantConfig, TenantName};

    fn rule(name: &str, pattern: CertificateName, grant: &str) -> CertificateRule {
        CertificateRule { name: name.to_owned(), pattern, grants: vec![grant.parse().unwrap()] }
    }

    #[test]
    fn rules_fit_the_kind_of_name_that_they_are_about() {
        let rules = [
            rule("ci", CertificateName::Uri(Pattern::new("spiffe://acme.example/ci/*")), "operator@org-acme"),
            rule("host", CertificateName::Dns(Pattern::new("*.acme.example")), "viewer@org-acme"),
            rule("person", CertificateName::CommonName(Pattern::new("ann")), "admin"),
        ];
        let check = |uris: &[&str], hosts: &[&str], common_names: &[&str], expected: &str| {
            let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let names = CertificateNames { uris: texts(uris), hosts: texts(hosts), common_names: texts(common_names) };
            let who = Certified::new(&rules, &names, u64::MAX);
            let shown = who.grants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            assert_eq!(format!("{who}: {shown}"), expected);
        };
        let spiffe = "spiffe://acme.example/ci/app";
        check(&[spiffe], &[], &[], "uri:spiffe://acme.example/ci/app: operator@org-acme");
        check(&[spiffe], &["a.acme.example"], &[], &format!("uri:{spiffe}: operator@org-acme viewer@org-acme"));
        check(&[], &["a.acme.example"], &["x"], "dns:a.acme.example: viewer@org-acme");
        check(&[], &[], &["ann"], "cn:ann: admin");
        // A name of another kind is another name.
        check(&["ann"], &[spiffe], &["a.acme.example"], "uri:ann: ");
        // Nor does a common name pass for a URI where people read it.
        check(&[], &[], &[spiffe], &format!("cn:{spiffe}: "));
        check(&[], &[], &[], "without a name: ");
    }

    #[test]
    fn a_connection_stands_for_the_holder_while_it_lasts() {
        let instance = |name: &str| InstanceName::new(name).unwrap();
        let tenant =
            |name: &str| TenantConfig { name: TenantName::new(name).unwrap(), instances: vec![instance(name)] };
        let tenants = vec![tenant("default"), tenant("org-acme")];
        let access = Access::new(AccessConfig { tenants, token: None, anonymous_read: false }).unwrap();
        let rules = vec![rule("ci", CertificateName::Uri(Pattern::new("spiffe://acme/*")), "viewer@org-acme")];
        let access = access.with_certificates(rules);
        let names = |uri: &str| CertificateNames { uris: vec![uri.to_owned()], ..CertificateNames::default() };

        let loan = access.lend_certificate(&names("spiffe://acme/ci"), u64::MAX).unwrap();
        let who = access.authenticate(Some(loan.credential().expose())).unwrap();
        assert_eq!(who.to_string(), "certificate:uri:spiffe://acme/ci");
        assert!(access.authorize::<CasRead>(&who, &instance("org-acme")).is_ok());
        let (write, elsewhere) = (
            access.authorize::<CasWrite>(&who, &instance("org-acme")).unwrap_err(),
            access.authorize::<CasRead>(&who, &instance("default")).unwrap_err(),
        );
        assert_eq!(write, Denied::Forbidden(PermissionName::CasWrite));
        assert_eq!(elsewhere, Denied::UnknownInstance(instance("default")));
        let why = access.explain(&who, PermissionName::CasRead, &instance("org-acme")).rule.to_string();
        assert_eq!(why, "the certificate uri:spiffe://acme/ci grants viewer@org-acme");

        let stranger = access.lend_certificate(&names("spiffe://other/ci"), u64::MAX).unwrap();
        let stranger = access.authenticate(Some(stranger.credential().expose())).unwrap();
        let why = access.explain(&stranger, PermissionName::CasRead, &instance("org-acme"));
        assert_eq!(why.rule.to_string(), "no [[tls.client]] grants it to the certificate uri:spiffe://other/ci");
        assert!(!why.allowed && !access.allows(&stranger, PermissionName::CasRead));
        assert_eq!(access.authenticate(None).unwrap(), crate::Principal::Anonymous);
        assert!(
            !access.allows(crate::Principal::Anonymous, PermissionName::CasRead),
            "the server is not open any more"
        );

        let late = access.lend_certificate(&names("spiffe://acme/ci"), crate::access::now_s()).unwrap();
        assert_eq!(access.authenticate(Some(late.credential().expose())), Err(Denied::Expired), "the connection lasts");

        let ended = loan.credential().expose().to_owned();
        drop(loan);
        assert_eq!(access.authenticate(Some(&ended)), Err(Denied::BadCredential));
    }
}

//! The policy: who may do what, and which rule says so. Pure: no clock, no store, no lock.
//!
//! What always holds: [`decide`] sees the same thing for a cache of another tenant and for one that is not there, unless
//! a rule was made for that tenant; so no answer tells them apart to whom neither belongs.

use std::fmt;

use gf_digest::InstanceName;

use crate::{Grant, Pattern, PermissionName, Principal, TenantName, TokenId};

/// Who can read a Nix cache, or the instances of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Everybody, without a credential.
    Public,
    /// Whom a rule allows it.
    Private,
}

/// What somebody wants to do something with.
#[derive(Clone, Copy, Debug)]
pub enum Thing<'a> {
    /// A REAPI instance; its tenant, if it is served.
    Instance {
        /// Its name.
        name: &'a InstanceName,
        /// Whose it is.
        tenant: Option<&'a TenantName>,
        /// Who can read it.
        visibility: Visibility,
    },
    /// A Nix cache; its tenant, if there is one of this name.
    Cache {
        /// Its name.
        name: &'a str,
        /// Whose it is, or is to be.
        tenant: Option<&'a TenantName>,
        /// Who can read it.
        visibility: Visibility,
    },
}

impl<'a> Thing<'a> {
    /// The tenant, if it is known, and the name.
    fn place(&self) -> (Option<&'a str>, &'a str) {
        match self {
            Thing::Instance { name, tenant, .. } => (tenant.map(TenantName::as_str), name.as_str()),
            Thing::Cache { name, tenant, .. } => (tenant.map(TenantName::as_str), name),
        }
    }
}

/// Whose instances may be read without a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnonymousRead {
    /// Nobody's.
    Nobodys,
    /// Those of some tenants, which [`Thing::Instance`] says of each.
    SomeTenants,
    /// Those of all.
    AllTenants,
}

/// What holds for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Nothing was configured that could tell callers apart: everybody may do everything.
    pub open: bool,
    /// Whose instances whoever has no credential may read.
    pub anonymous_read: AnonymousRead,
    /// Workers need a credential of their own.
    pub workers_restricted: bool,
}

/// Whether something is allowed, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub rule: Rule,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The server is open.
    OpenServer,
    /// The cache is public.
    PublicCache,
    /// Reading needs no credential here.
    AnonymousRead,
    /// The static token opens all but attaching workers.
    StaticToken,
    /// A token of our own; the grant of it that allows this, if there is one.
    Token(TokenId, Option<Grant>),
    /// A token in Attic's format; the pattern of it that decided, if one fits.
    AtticToken(Option<Pattern>),
    /// A certificate; its name, and the grant that allows this, if there is one.
    Certificate(String, Option<Grant>),
    /// The token of workers attaches workers, and nothing else.
    WorkerToken,
    /// What runs an action reads and writes the blobs of its instance, and nothing else.
    Assignment,
    /// The server itself.
    Server,
    /// Without a credential nothing else is allowed.
    NoCredential,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenServer => "the server is open: no [access] is configured",
            Self::PublicCache => "the cache is public",
            Self::AnonymousRead => "anonymous_read of its tenant lets everybody read",
            Self::StaticToken => "the static token grants everything but attaching workers",
            Self::Token(id, Some(grant)) => return write!(f, "the token {id} grants {grant}"),
            Self::Token(id, None) => return write!(f, "the token {id} has no grant for it"),
            Self::AtticToken(Some(pattern)) => {
                return write!(f, "the pattern {:?} of the Attic token decides", pattern.as_str());
            }
            Self::AtticToken(None) => "no pattern of the Attic token fits",
            Self::Certificate(name, Some(grant)) => return write!(f, "the certificate {name} grants {grant}"),
            Self::Certificate(name, None) => {
                return write!(f, "no [[tls.client]] grants it to the certificate {name}");
            }
            Self::WorkerToken => "the token of workers grants attaching workers only",
            Self::Assignment => "the credential of an assignment grants the blobs of its instance only",
            Self::Server => "the server itself may do everything",
            Self::NoCredential => "nothing is granted without a credential",
        })
    }
}

impl Decision {
    const fn new(allowed: bool, rule: Rule) -> Self {
        Self { allowed, rule }
    }
}

/// Whether a principal has a permission on a thing. Whether the thing is there is not what this answers.
#[must_use]
pub fn decide(policy: &Policy, principal: &Principal, permission: PermissionName, thing: Thing<'_>) -> Decision {
    if let Some(rule) = for_everybody(policy, principal, permission, Some(thing)) {
        return Decision::new(true, rule);
    }
    match principal {
        Principal::Token(token) => {
            let (tenant, name) = thing.place();
            let grant = token.grant(permission, tenant, name).cloned();
            Decision::new(grant.is_some(), Rule::Token(token.id().clone(), grant))
        }
        Principal::Certificate(certified) => {
            let (tenant, name) = thing.place();
            let grant = certified.grant(permission, tenant, name).cloned();
            Decision::new(grant.is_some(), Rule::Certificate(certified.to_string(), grant))
        }
        Principal::Attic(token) => match thing {
            Thing::Cache { name, .. } => {
                let rule = Rule::AtticToken(token.deciding_pattern(name).cloned());
                Decision::new(token.grants(permission, name), rule)
            }
            Thing::Instance { .. } => Decision::new(false, Rule::AtticToken(None)),
        },
        fixed => fixed_grants(fixed, permission),
    }
}

/// Whether a principal has a permission anywhere: what can be asked before it is known on what.
#[must_use]
pub fn decide_anywhere(policy: &Policy, principal: &Principal, permission: PermissionName) -> Decision {
    if let Some(rule) = for_everybody(policy, principal, permission, None) {
        return Decision::new(true, rule);
    }
    match principal {
        Principal::Token(token) => {
            let grant = token.grants().iter().find(|grant| grant.has(permission)).cloned();
            Decision::new(grant.is_some(), Rule::Token(token.id().clone(), grant))
        }
        Principal::Certificate(certified) => {
            let grant = certified.grants().iter().find(|grant| grant.has(permission)).cloned();
            Decision::new(grant.is_some(), Rule::Certificate(certified.to_string(), grant))
        }
        Principal::Attic(token) => Decision::new(token.grants_somewhere(permission), Rule::AtticToken(None)),
        fixed => fixed_grants(fixed, permission),
    }
}

/// Of how much something is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent<'a> {
    /// All that all tenants have.
    Everything,
    /// All that a tenant has.
    Tenant(&'a TenantName),
}

/// Whether a principal has a permission on all of it: to see or change something of all tenants, having it somewhere is
/// not enough.
pub(crate) fn decide_throughout(
    policy: &Policy,
    principal: &Principal,
    permission: PermissionName,
    extent: Extent<'_>,
) -> bool {
    let spans = |grant: &Grant| match extent {
        Extent::Everything => grant.is_everywhere(),
        Extent::Tenant(tenant) => grant.spans_tenant(tenant.as_str()),
    };
    match for_everybody(policy, principal, permission, None) {
        Some(Rule::AnonymousRead) if policy.anonymous_read != AnonymousRead::AllTenants => {}
        Some(_) => return true,
        None => {}
    }
    match (principal, principal.grants()) {
        (_, Some(grants)) => grants.iter().any(|grant| grant.has(permission) && spans(grant)),
        // What they have is for some caches, and for one instance.
        (Principal::Attic(_) | Principal::Worker(_), None) => false,
        (fixed, None) => fixed_grants(fixed, permission).allowed,
    }
}

/// The rule that allows it to everybody, if there is one. Beyond public caches, those who run other people's code have
/// what they were lent, however open the server is.
fn for_everybody(
    policy: &Policy,
    principal: &Principal,
    permission: PermissionName,
    thing: Option<Thing<'_>>,
) -> Option<Rule> {
    let is_public = matches!(thing, Some(Thing::Cache { visibility: Visibility::Public, .. }));
    if is_public && permission == PermissionName::NixPull {
        return Some(Rule::PublicCache);
    }
    let is_caller = matches!(
        principal,
        Principal::Anonymous | Principal::Token(_) | Principal::Attic(_) | Principal::Certificate(_)
    );
    if !is_caller {
        return None;
    }
    if policy.open && !(permission == PermissionName::Work && policy.workers_restricted) {
        return Some(Rule::OpenServer);
    }
    let is_readable = match (policy.anonymous_read, thing) {
        (AnonymousRead::Nobodys, _) => false,
        (_, Some(Thing::Instance { visibility, .. })) => visibility == Visibility::Public,
        // A private cache was made private for a reason.
        (_, Some(Thing::Cache { .. })) => false,
        (_, None) => true,
    };
    let reads_instance = permission.is_read() && permission != PermissionName::NixPull;
    (is_readable && reads_instance).then_some(Rule::AnonymousRead)
}

fn fixed_grants(principal: &Principal, permission: PermissionName) -> Decision {
    match principal {
        Principal::Server => Decision::new(true, Rule::Server),
        // A machine that runs hostile code must not need the token that opens everything.
        Principal::TokenHolder => Decision::new(permission != PermissionName::Work, Rule::StaticToken),
        Principal::WorkerHost => Decision::new(permission == PermissionName::Work, Rule::WorkerToken),
        Principal::Worker(_) => {
            let blobs = matches!(permission, PermissionName::CasRead | PermissionName::CasWrite);
            Decision::new(blobs, Rule::Assignment)
        }
        Principal::Anonymous | Principal::Token(_) | Principal::Attic(_) | Principal::Certificate(_) => {
            Decision::new(false, Rule::NoCredential)
        }
    }
}

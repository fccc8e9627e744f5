//! From a credential to a principal, from a principal and a place to an [`Authorized`].

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gf_digest::InstanceName;
use thiserror::Error;

use crate::attic::AtticTokens;
use crate::loan::Ledger;
use crate::policy::{self, AnonymousRead, Decision, Extent, Policy, Thing, Visibility};
use crate::secret::Fingerprint;
use crate::{
    AtticConfig, AtticToken, Authorized, CertificateNames, CertificateRule, Certified, Denied, Execute,
    InstancePermission, Loan, NixPermission, NoRandomness, PermissionName, Principal, Secret, Tenant, TenantId,
    TenantName, Tokens, jwt,
};

/// A tenant and the REAPI instances that resolve to it.
#[derive(Clone, Debug)]
pub struct TenantConfig {
    /// The tenant.
    pub name: TenantName,
    /// Its instances.
    pub instances: Vec<InstanceName>,
}

/// What the policy is made of.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// All tenants; no two share an instance.
    pub tenants: Vec<TenantConfig>,
    /// The token that grants everything but attaching workers, which run hostile code. Without one the server is open.
    pub token: Option<Secret>,
    /// Whether callers without the token may read what all tenants have; see [`Access::with_public_tenants`] for some.
    pub anonymous_read: bool,
}

/// The Nix cache that somebody names.
#[derive(Clone, Copy, Debug)]
pub enum NixScope<'a> {
    /// One that is there.
    Existing {
        /// Its name.
        name: &'a str,
        /// Whose it is.
        tenant: &'a TenantName,
        /// Who can read it.
        visibility: Visibility,
    },
    /// No cache has this name.
    Absent {
        /// The name.
        name: &'a str,
    },
    /// One that is to be made, whether or not there is one of this name: the answer must not tell.
    New {
        /// The name.
        name: &'a str,
        /// Whose it is to be.
        tenant: &'a TenantName,
    },
}

/// Why a configuration makes no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AccessConfigError {
    /// Two tenants claim one instance.
    #[error("the instance {instance:?} belongs to both {first} and {second}")]
    InstanceClaimedTwice {
        /// The instance.
        instance: InstanceName,
        /// One tenant.
        first: TenantName,
        /// The other.
        second: TenantName,
    },
    /// The names of two tenants have the same number.
    #[error("the tenants {0} and {1} cannot be served together: rename one")]
    NumberClash(TenantName, TenantName),
}

/// Decides. Cheap to ask: one look-up, and no lock but for what is lent and for tokens that were seen before.
#[derive(Debug)]
pub struct Access {
    instances: HashMap<InstanceName, Arc<Tenant>>,
    tenants: HashMap<TenantName, Arc<Tenant>>,
    /// Whose instances everybody may read.
    public: HashSet<TenantName>,
    token: Option<Fingerprint>,
    worker_tokens: Vec<Fingerprint>,
    tokens: Option<Arc<Tokens>>,
    attic: Option<AtticTokens>,
    certificates: Vec<CertificateRule>,
    policy: Policy,
    loans: Arc<Ledger>,
}

impl Access {
    /// Builds the policy.
    ///
    /// # Errors
    /// [`AccessConfigError`] when tenants or instances clash.
    pub fn new(config: AccessConfig) -> Result<Self, AccessConfigError> {
        let mut instances: HashMap<InstanceName, Arc<Tenant>> = HashMap::new();
        let mut tenants: HashMap<TenantName, Arc<Tenant>> = HashMap::new();
        let mut numbers: HashMap<TenantId, TenantName> = HashMap::new();
        for TenantConfig { name, instances: names } in config.tenants {
            let tenant = Arc::new(Tenant::new(name.clone()));
            if let Some(other) = numbers.insert(tenant.id(), name.clone()) {
                return Err(AccessConfigError::NumberClash(other, name));
            }
            tenants.insert(name.clone(), Arc::clone(&tenant));
            for instance in names {
                if let Some(first) = instances.insert(instance.clone(), Arc::clone(&tenant)) {
                    let first = first.name().clone();
                    return Err(AccessConfigError::InstanceClaimedTwice { instance, first, second: name });
                }
            }
        }
        let token = config.token.as_ref().map(Secret::fingerprint);
        let anonymous_read = if config.anonymous_read { AnonymousRead::AllTenants } else { AnonymousRead::Nobodys };
        let public = if config.anonymous_read { tenants.keys().cloned().collect() } else { HashSet::new() };
        let policy = Policy { open: token.is_none(), anonymous_read, workers_restricted: false };
        let (worker_tokens, loans) = (Vec::new(), Arc::default());
        Ok(Self {
            instances,
            tenants,
            public,
            token,
            worker_tokens,
            tokens: None,
            attic: None,
            certificates: Vec::new(),
            policy,
            loans,
        })
    }

    /// Lets the holders of these tokens attach workers; with at least one, nobody else may.
    #[must_use]
    pub fn with_worker_tokens(mut self, tokens: &[Secret]) -> Self {
        self.worker_tokens.extend(tokens.iter().map(Secret::fingerprint));
        self.policy.workers_restricted = !self.worker_tokens.is_empty();
        self
    }

    /// Lets everybody read what the instances of these tenants hold, and no others.
    #[must_use]
    pub fn with_public_tenants(mut self, tenants: impl IntoIterator<Item = TenantName>) -> Self {
        self.public.extend(tenants.into_iter().filter(|name| self.tenants.contains_key(name)));
        self.policy.anonymous_read = match self.public.len() {
            0 => AnonymousRead::Nobodys,
            all if all == self.tenants.len() => AnonymousRead::AllTenants,
            _ => AnonymousRead::SomeTenants,
        };
        self
    }

    /// Takes tokens of our own too.
    #[must_use]
    pub fn with_tokens(mut self, tokens: Arc<Tokens>) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Grants nothing to whom nothing tells apart, also when all credentials are in the database.
    #[must_use]
    pub const fn closed(mut self) -> Self {
        self.policy.open = false;
        self
    }

    /// Takes tokens in Attic's format too. A server that does is not open any more.
    #[must_use]
    pub fn with_attic_tokens(mut self, config: AtticConfig) -> Self {
        self.attic = Some(AtticTokens::new(config));
        self.policy.open = false;
        self
    }

    /// Knows the holders of certificates too. A server that does is not open any more.
    #[must_use]
    pub fn with_certificates(mut self, rules: Vec<CertificateRule>) -> Self {
        self.certificates = rules;
        self.policy.open = false;
        self
    }

    /// Who presents this credential: the text after `Bearer `, or the password of basic credentials.
    ///
    /// # Errors
    /// [`Denied::BadCredential`], [`Denied::Expired`] or [`Denied::NotYetValid`] when one is given and it is not right;
    /// [`Denied::Unfollowed`] of one that may have been revoked while the database does not answer.
    /// It is never taken for none: whoever presents it believes that it counts.
    pub fn authenticate(&self, credential: Option<&str>) -> Result<Principal, Denied> {
        let Some(credential) = credential else { return Ok(Principal::Anonymous) };
        let fingerprint = Fingerprint::of(credential);
        if self.token == Some(fingerprint) {
            return Ok(Principal::TokenHolder);
        }
        if self.worker_tokens.contains(&fingerprint) {
            return Ok(Principal::WorkerHost);
        }
        if Ledger::is_lent(credential) {
            return self.loans.borrower(fingerprint, now_s());
        }
        if let Some(tokens) = self.tokens.as_ref().filter(|_| Tokens::is_token(credential)) {
            let found = tokens.find(fingerprint, now_s());
            if found.is_ok() || !self.policy.open {
                return found.and_then(|token| tokens.check_followed().map(|()| Principal::Token(token)));
            }
        }
        if let Some(attic) = self.attic.as_ref().filter(|_| jwt::looks_like_token(credential)) {
            let token = attic.verify(credential, fingerprint, now_s())?;
            if let Some(tokens) = &self.tokens {
                tokens.check_refused(token.id())?;
            }
            return Ok(Principal::Attic(token));
        }
        // An open server ignores credentials, so that a client may keep its configuration.
        if self.policy.open { Ok(Principal::Anonymous) } else { Err(Denied::BadCredential) }
    }

    /// Grants `P` in the tenant of `instance`, or says why not.
    ///
    /// # Errors
    /// [`Denied`]. What a principal may not do is refused before an unknown instance is, so that names do not leak.
    pub fn authorize<P: InstancePermission>(
        &self,
        principal: impl Borrow<Principal>,
        instance: &InstanceName,
    ) -> Result<Authorized<P>, Denied> {
        let principal = principal.borrow();
        self.check(principal, P::NAME)?;
        let unknown = || Denied::UnknownInstance(instance.clone());
        let tenant = self.instances.get(instance).ok_or_else(unknown)?;
        let thing = self.instance(instance, Some(tenant.name()));
        let lent_elsewhere = matches!(principal, Principal::Worker(loan) if !self.loans.is_for(*loan, instance));
        if lent_elsewhere || !policy::decide(&self.policy, principal, P::NAME, thing).allowed {
            return Err(unknown());
        }
        Ok(Authorized::new(principal.clone(), Arc::clone(tenant), instance.clone()))
    }

    /// Grants `P` to whoever has it in some instance, in the first of those: for services that go by what their caller
    /// holds, and not by where it is held.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`] or [`Denied::Forbidden`].
    pub fn authorize_somewhere<P: InstancePermission>(
        &self,
        principal: impl Borrow<Principal>,
    ) -> Result<Authorized<P>, Denied> {
        let principal = principal.borrow();
        self.check(principal, P::NAME)?;
        let mut instances: Vec<&InstanceName> = self.instances.keys().collect();
        instances.sort();
        let mut granted = instances.into_iter().filter_map(|instance| self.authorize(principal, instance).ok());
        granted.next().map(Authorized::of_no_place).ok_or_else(|| refusal(principal, P::NAME))
    }

    /// Grants `P` to whoever has it for all tenants: for what shows something of all of them.
    ///
    /// # Errors
    /// As [`Self::authorize_somewhere`]; [`Denied::NotEverywhere`] to whoever has it for some tenants.
    pub fn authorize_everywhere<P: InstancePermission>(
        &self,
        principal: impl Borrow<Principal>,
    ) -> Result<Authorized<P>, Denied> {
        let principal = principal.borrow();
        let granted = self.authorize_somewhere(principal)?;
        match policy::decide_throughout(&self.policy, principal, P::NAME, Extent::Everything) {
            true => Ok(granted),
            false => Err(Denied::NotEverywhere(P::NAME)),
        }
    }

    /// Grants `P` on a Nix cache, or says why not. A refusal is the same whether or not there is such a cache; that
    /// there is none is told only to whom it would have been granted.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`], [`Denied::Forbidden`] or [`Denied::UnknownCache`].
    pub fn authorize_nix<P: NixPermission>(
        &self,
        principal: impl Borrow<Principal>,
        scope: NixScope<'_>,
    ) -> Result<Authorized<P>, Denied> {
        let principal = principal.borrow();
        let (thing, tenant) = self.cache(scope);
        if !policy::decide(&self.policy, principal, P::NAME, thing).allowed {
            return Err(refusal(principal, P::NAME));
        }
        // A tenant that is configured no longer has no caches that could be reached.
        let tenant = tenant.ok_or_else(|| Denied::UnknownCache(scope.name().to_owned()))?;
        Ok(Authorized::new(principal.clone(), Arc::clone(tenant), scope.name().into()))
    }

    /// Grants `P` on a Nix cache to whoever presents this credential, as [`Self::authorize_nix`] does. What needs no
    /// credential is granted with a wrong one too: a client whose token has expired can go on reading public caches,
    /// for which Nix sends it along, as it does to Attic's own server.
    ///
    /// # Errors
    /// [`Denied`]; what is wrong with the credential comes first.
    pub fn admit_nix<P: NixPermission>(
        &self,
        credential: Option<&str>,
        scope: NixScope<'_>,
    ) -> Result<Authorized<P>, Denied> {
        match self.authenticate(credential) {
            Ok(principal) => self.authorize_nix(principal, scope),
            Err(bad) => self.authorize_nix(Principal::Anonymous, scope).map_err(|_| bad),
        }
    }

    /// Refuses who may not do this anywhere: what an edge can ask before it reads what was sent.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`] or [`Denied::Forbidden`].
    pub fn check(&self, principal: impl Borrow<Principal>, permission: PermissionName) -> Result<(), Denied> {
        let principal = principal.borrow();
        if self.allows(principal, permission) { Ok(()) } else { Err(refusal(principal, permission)) }
    }

    /// Whether the permission is granted anywhere: for answers such as Capabilities, which say what a caller may do.
    #[must_use]
    pub fn allows(&self, principal: impl Borrow<Principal>, permission: PermissionName) -> bool {
        policy::decide_anywhere(&self.policy, principal.borrow(), permission).allowed
    }

    /// Whether a principal administers all that a tenant has.
    #[must_use]
    pub fn administers(&self, principal: &Principal, tenant: &TenantName) -> bool {
        policy::decide_throughout(&self.policy, principal, PermissionName::Administer, Extent::Tenant(tenant))
    }

    /// Whether nothing is configured that could tell callers apart.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.policy.open
    }

    /// Whether a principal has a permission on an instance, and which rule says so.
    #[must_use]
    pub fn explain(&self, principal: &Principal, permission: PermissionName, instance: &InstanceName) -> Decision {
        self.explain_to(principal, permission, instance, |_| true)
    }

    /// As [`Self::explain`], to somebody who knows of these tenants: an instance of another is explained as one that is
    /// not there.
    #[must_use]
    pub fn explain_to(
        &self,
        principal: &Principal,
        permission: PermissionName,
        instance: &InstanceName,
        knows: impl Fn(&TenantName) -> bool,
    ) -> Decision {
        let tenant = self.instances.get(instance).map(|tenant| tenant.name()).filter(|tenant| knows(tenant));
        policy::decide(&self.policy, principal, permission, self.instance(instance, tenant))
    }

    /// Whether a principal has a permission on a Nix cache, and which rule says so.
    #[must_use]
    pub fn explain_nix(&self, principal: &Principal, permission: PermissionName, scope: NixScope<'_>) -> Decision {
        policy::decide(&self.policy, principal, permission, self.cache(scope).0)
    }

    /// Lends a credential for one assignment: whoever presents it reads and writes blobs where `grant` was given,
    /// until the loan is dropped.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn lend(&self, grant: &Authorized<Execute>) -> Result<Loan, NoRandomness> {
        self.loans.lend_instance(grant.instance().clone())
    }

    /// Lends a credential for attaching one worker: the server's own, which needs no token of the configuration.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn lend_attachment(&self) -> Result<Loan, NoRandomness> {
        self.loans.lend_attachment()
    }

    /// Lends a credential for the connection of a client whose certificate was verified: whoever presents it is the
    /// holder of that certificate, until the connection ends or the certificate does, at `ends_s` seconds since 1970.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn lend_certificate(&self, names: &CertificateNames, ends_s: u64) -> Result<Loan, NoRandomness> {
        self.loans.lend_as(Principal::Certificate(Arc::new(Certified::new(&self.certificates, names, ends_s))), ends_s)
    }

    /// An instance as the policy sees it.
    fn instance<'s>(&self, name: &'s InstanceName, tenant: Option<&'s TenantName>) -> Thing<'s> {
        let is_public = tenant.is_some_and(|tenant| self.public.contains(tenant));
        let visibility = if is_public { Visibility::Public } else { Visibility::Private };
        Thing::Instance { name, tenant, visibility }
    }

    /// A cache as the policy sees it, and whose it is.
    fn cache<'s>(&'s self, scope: NixScope<'s>) -> (Thing<'s>, Option<&'s Arc<Tenant>>) {
        let (name, tenant, visibility) = match scope {
            NixScope::Existing { name, tenant, visibility } => (name, Some(tenant), visibility),
            NixScope::Absent { name } => (name, None, Visibility::Private),
            NixScope::New { name, tenant } => (name, Some(tenant), Visibility::Private),
        };
        let tenant = tenant.and_then(|name| self.tenants.get(name));
        (Thing::Cache { name, tenant: tenant.map(|tenant| tenant.name()), visibility }, tenant)
    }

    /// Whether tokens in Attic's format are taken.
    #[must_use]
    pub const fn takes_attic_tokens(&self) -> bool {
        self.attic.is_some()
    }

    /// The token in Attic's format that this text is, whether or not it is good now; `None` of what was not signed with the
    /// key that is configured.
    #[must_use]
    pub fn attic_token(&self, text: &str) -> Option<Arc<AtticToken>> {
        self.attic.as_ref()?.recognize(text).ok()
    }

    /// How many tokens of our own are good, where there can be some.
    #[must_use]
    pub fn good_tokens(&self) -> Option<usize> {
        self.tokens.as_ref().map(|tokens| tokens.number_good())
    }

    /// How long ago it was known what other processes revoked, where there is something to revoke.
    #[must_use]
    pub fn followed_ago(&self) -> Option<Duration> {
        self.tokens.as_ref().map(|tokens| tokens.followed_ago())
    }

    /// Whose an instance is, if it is served.
    #[must_use]
    pub fn tenant_of(&self, instance: &InstanceName) -> Option<&TenantName> {
        self.instances.get(instance).map(|tenant| tenant.name())
    }

    /// The tenant of this name, if it is served.
    #[must_use]
    pub fn tenant(&self, name: &TenantName) -> Option<&Tenant> {
        self.tenants.get(name).map(AsRef::as_ref)
    }

    /// All tenants, by name, for metrics and reports.
    #[must_use]
    pub fn tenants(&self) -> Vec<&Tenant> {
        let mut tenants: Vec<&Tenant> = self.tenants.values().map(AsRef::as_ref).collect();
        tenants.sort_by(|a, b| a.name().cmp(b.name()));
        tenants
    }
}

impl<'a> NixScope<'a> {
    /// Whose it is, if it is there.
    #[must_use]
    pub const fn tenant(&self) -> Option<&'a TenantName> {
        match self {
            Self::Existing { tenant, .. } => Some(tenant),
            Self::New { .. } | Self::Absent { .. } => None,
        }
    }

    /// The name, whether or not there is one of it.
    #[must_use]
    pub const fn name(&self) -> &str {
        match self {
            Self::Existing { name, .. } | Self::Absent { name } | Self::New { name, .. } => name,
        }
    }
}

const fn refusal(principal: &Principal, permission: PermissionName) -> Denied {
    match principal {
        Principal::Anonymous => Denied::Unauthenticated(permission),
        _ => Denied::Forbidden(permission),
    }
}

/// The time that tokens go by, in seconds since 1970. Before 1970 everything is expired and nothing is valid yet.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests;

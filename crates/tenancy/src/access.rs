//! The policy: from a credential to a principal, from a principal and an instance to an [`Authorized`].

use std::collections::HashMap;
use std::sync::Arc;

use gf_digest::InstanceName;
use thiserror::Error;

use crate::loan::Ledger;
use crate::secret::Fingerprint;
use crate::{
    Authorized, Execute, Loan, NoRandomness, Permission, PermissionName, Principal, Secret, Tenant, TenantId,
    TenantName,
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
    /// Whether callers without the token may read.
    pub anonymous_read: bool,
}

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// No credential, and none but holders may do this.
    #[error("{permission} needs a credential: send `Authorization: Bearer <token>`", permission = .0.as_str())]
    Unauthenticated(PermissionName),
    /// A credential that is not known.
    #[error("the credential is not valid")]
    BadCredential,
    /// Known, but not allowed.
    #[error("this credential does not grant {permission}", permission = .0.as_str())]
    Forbidden(PermissionName),
    /// No such instance, for all that this caller may know.
    #[error("there is no instance {0:?} here; ask the operator which instance names are served")]
    UnknownInstance(InstanceName),
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

/// Decides. Cheap to ask: one look-up, and no lock but for what is lent.
#[derive(Debug)]
pub struct Access {
    instances: HashMap<InstanceName, Arc<Tenant>>,
    token: Option<Fingerprint>,
    anonymous_read: bool,
    worker_tokens: Vec<Fingerprint>,
    loans: Arc<Ledger>,
}

impl Access {
    /// Builds the policy.
    ///
    /// # Errors
    /// [`AccessConfigError`] when tenants or instances clash.
    pub fn new(config: AccessConfig) -> Result<Self, AccessConfigError> {
        let mut instances: HashMap<InstanceName, Arc<Tenant>> = HashMap::new();
        let mut numbers: HashMap<TenantId, TenantName> = HashMap::new();
        for TenantConfig { name, instances: names } in config.tenants {
            let tenant = Arc::new(Tenant::new(name.clone()));
            if let Some(other) = numbers.insert(tenant.id(), name.clone()) {
                return Err(AccessConfigError::NumberClash(other, name));
            }
            for instance in names {
                if let Some(first) = instances.insert(instance.clone(), Arc::clone(&tenant)) {
                    let first = first.name().clone();
                    return Err(AccessConfigError::InstanceClaimedTwice { instance, first, second: name });
                }
            }
        }
        let token = config.token.as_ref().map(Secret::fingerprint);
        let AccessConfig { anonymous_read, .. } = config;
        Ok(Self { instances, token, anonymous_read, worker_tokens: Vec::new(), loans: Arc::default() })
    }

    /// Lets the holders of these tokens attach workers; with at least one, nobody else may.
    #[must_use]
    pub fn with_worker_tokens(mut self, tokens: &[Secret]) -> Self {
        self.worker_tokens.extend(tokens.iter().map(Secret::fingerprint));
        self
    }

    /// Who presents this credential: the text after `Bearer `, or the password of basic credentials.
    ///
    /// # Errors
    /// [`Denied::BadCredential`] when one is given and it is not right.
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
            return self.loans.borrower(fingerprint).ok_or(Denied::BadCredential);
        }
        match self.token {
            Some(_) => Err(Denied::BadCredential),
            // An open server ignores credentials, so that a client may keep its configuration.
            None => Ok(Principal::Anonymous),
        }
    }

    /// Grants `P` in the tenant of `instance`, or says why not.
    ///
    /// # Errors
    /// [`Denied`]. What a principal may not do is refused before an unknown instance is, so that names do not leak.
    pub fn authorize<P: Permission>(
        &self,
        principal: Principal,
        instance: &InstanceName,
    ) -> Result<Authorized<P>, Denied> {
        self.check(principal, P::NAME)?;
        let unknown = || Denied::UnknownInstance(instance.clone());
        let tenant = self.instances.get(instance).ok_or_else(unknown)?;
        match principal {
            Principal::Worker(loan) if !self.loans.is_for(loan, instance) => return Err(unknown()),
            _ => {}
        }
        Ok(Authorized::new(principal, Arc::clone(tenant), instance.clone()))
    }

    /// Refuses who may not do this in any tenant: what an edge can ask before it reads what was sent.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`] or [`Denied::Forbidden`].
    pub fn check(&self, principal: Principal, permission: PermissionName) -> Result<(), Denied> {
        match principal {
            _ if self.allows(principal, permission) => Ok(()),
            Principal::Anonymous => Err(Denied::Unauthenticated(permission)),
            _ => Err(Denied::Forbidden(permission)),
        }
    }

    /// Whether the permission is granted: for answers such as Capabilities, which say what a caller may do.
    #[must_use]
    pub fn allows(&self, principal: Principal, permission: PermissionName) -> bool {
        match (principal, permission) {
            (Principal::Server, _) => true,
            // A machine that runs hostile code must not need the token that opens everything.
            (Principal::TokenHolder, _) => permission != PermissionName::Work,
            (Principal::WorkerHost, _) => permission == PermissionName::Work,
            (Principal::Worker(_), _) => matches!(permission, PermissionName::CasRead | PermissionName::CasWrite),
            (Principal::Anonymous, PermissionName::Work) => self.token.is_none() && self.worker_tokens.is_empty(),
            (Principal::Anonymous, _) => self.token.is_none() || (self.anonymous_read && permission.is_read()),
        }
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

    /// Every tenant's number, for metrics and reports.
    #[must_use]
    pub fn tenants(&self) -> Vec<&Tenant> {
        let mut tenants: Vec<&Tenant> = self.instances.values().map(AsRef::as_ref).collect();
        tenants.sort_by(|a, b| a.name().cmp(b.name()));
        tenants.dedup_by_key(|tenant| tenant.id());
        tenants
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ActionCacheRead, ActionCacheWrite, CasRead, CasWrite, Work};

    fn access(token: Option<&str>, anonymous_read: bool) -> Access {
        let tenant = |name: &str, instances: &[&str]| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: instances.iter().map(|name| InstanceName::new(name).unwrap()).collect(),
        };
        Access::new(AccessConfig {
            tenants: vec![tenant("default", &["", "default"]), tenant("org-acme", &["org-acme"])],
            token: token.map(|token| Secret::new(token.to_owned())),
            anonymous_read,
        })
        .unwrap()
    }

    fn instance(name: &str) -> InstanceName {
        InstanceName::new(name).unwrap()
    }

    #[test]
    fn an_open_server_grants_everything_in_known_instances() {
        let access = access(None, false);
        let who = access.authenticate(None).unwrap();
        let granted = access.authorize::<ActionCacheWrite>(who, &instance("org-acme")).unwrap();
        assert_eq!(granted.tenant().name().as_str(), "org-acme");
        assert_eq!(
            access.authorize::<CasRead>(who, &instance("nope")).unwrap_err(),
            Denied::UnknownInstance(instance("nope"))
        );
    }

    #[test]
    fn a_token_guards_writes_and_reads() {
        let closed = access(Some("s3cret"), false);
        let who = closed.authenticate(None).unwrap();
        assert!(matches!(closed.authorize::<CasRead>(who, &instance("")), Err(Denied::Unauthenticated(_))));
        assert_eq!(closed.authenticate(Some("wrong")), Err(Denied::BadCredential));
        let holder = closed.authenticate(Some("s3cret")).unwrap();
        assert!(closed.authorize::<CasWrite>(holder, &instance("")).is_ok());

        let public = access(Some("s3cret"), true);
        let who = public.authenticate(None).unwrap();
        assert!(public.authorize::<ActionCacheRead>(who, &instance("")).is_ok());
        assert!(public.authorize::<ActionCacheWrite>(who, &instance("")).is_err());
    }

    const PERMISSIONS: [PermissionName; 7] = [
        PermissionName::CasRead,
        PermissionName::CasWrite,
        PermissionName::ActionCacheRead,
        PermissionName::ActionCacheWrite,
        PermissionName::Execute,
        PermissionName::Work,
        PermissionName::Operate,
    ];

    fn check_grants(access: &Access, principal: Principal, expected: &str) {
        let granted = PERMISSIONS.into_iter().filter(|permission| access.allows(principal, *permission));
        let granted: Vec<&str> = granted.map(PermissionName::as_str).collect();
        assert_eq!(granted.join(" "), expected, "{principal:?}");
    }

    const ALL_BUT_WORK: &str = "cas:read cas:write actioncache:read actioncache:write execute admin:operate";

    #[test]
    fn who_may_do_what() {
        let worker_token = [Secret::new("w0rker".to_owned())];
        let open = access(None, false);
        let with_workers = access(None, false).with_worker_tokens(&worker_token);
        let public = access(Some("s3cret"), true);
        let closed = access(Some("s3cret"), false).with_worker_tokens(&worker_token);
        check_grants(&open, Principal::Anonymous, &ALL_BUT_WORK.replace("admin", "workers:attach admin"));
        check_grants(&with_workers, Principal::Anonymous, ALL_BUT_WORK);
        check_grants(&public, Principal::Anonymous, "cas:read actioncache:read");
        check_grants(&closed, Principal::Anonymous, "");
        for access in [&open, &with_workers, &public, &closed] {
            let loan = access.lend(&execute(access, "org-acme")).unwrap();
            let worker = access.authenticate(Some(loan.credential().expose())).unwrap();
            check_grants(access, worker, "cas:read cas:write");
            check_grants(access, Principal::WorkerHost, "workers:attach");
            check_grants(access, Principal::TokenHolder, ALL_BUT_WORK);
        }
        for access in [&with_workers, &closed] {
            assert_eq!(access.authenticate(Some("w0rker")), Ok(Principal::WorkerHost));
        }
        assert_eq!(public.authenticate(Some("w0rker")), Err(Denied::BadCredential));
        let anonymous = public.authorize::<Work>(Principal::Anonymous, &instance(""));
        assert!(matches!(anonymous, Err(Denied::Unauthenticated(_))), "{anonymous:?}");
        let holder = public.authorize::<Work>(Principal::TokenHolder, &instance(""));
        assert!(matches!(holder, Err(Denied::Forbidden(_))), "{holder:?}");
    }

    fn execute(access: &Access, name: &str) -> Authorized<Execute> {
        access.authorize(Principal::Server, &instance(name)).unwrap()
    }

    #[test]
    fn what_is_lent_opens_one_instance_until_it_ends() {
        for access in [access(None, false), access(Some("s3cret"), true)] {
            let loan = access.lend(&execute(&access, "default")).unwrap();
            let other = access.lend(&execute(&access, "org-acme")).unwrap();
            let credential = loan.credential().expose().to_owned();
            let worker = access.authenticate(Some(&credential)).unwrap();
            assert_ne!(worker, access.authenticate(Some(other.credential().expose())).unwrap());

            for name in ["", "default", "org-acme", "nope"] {
                let read = access.authorize::<CasRead>(worker, &instance(name)).map(drop);
                let write = access.authorize::<CasWrite>(worker, &instance(name)).map(drop);
                let expected = if name == "default" { Ok(()) } else { Err(Denied::UnknownInstance(instance(name))) };
                assert_eq!((&read, &write), (&expected, &expected), "{name:?}");
                let result = access.authorize::<ActionCacheWrite>(worker, &instance(name)).unwrap_err();
                assert_eq!(result, Denied::Forbidden(PermissionName::ActionCacheWrite), "{name:?}");
            }

            drop(loan);
            let late = access.authorize::<CasWrite>(worker, &instance("default")).unwrap_err();
            assert_eq!(late, Denied::UnknownInstance(instance("default")));
            // On an open server too: what was lent once never counts as no credential.
            assert_eq!(access.authenticate(Some(&credential)), Err(Denied::BadCredential));
            assert!(access.authenticate(Some(other.credential().expose())).is_ok());
            drop(other);
            assert_eq!(access.loans.len(), 0);
        }
    }

    #[test]
    fn the_right_to_attach_is_lent_too() {
        for access in [access(None, false), access(Some("s3cret"), false)] {
            let loan = access.lend_attachment().unwrap();
            let credential = loan.credential().expose().to_owned();
            assert_eq!(access.authenticate(Some(&credential)), Ok(Principal::WorkerHost));
            drop(loan);
            assert_eq!(access.authenticate(Some(&credential)), Err(Denied::BadCredential));
            assert_eq!(access.loans.len(), 0);
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let access = access(Some("s3cret"), false);
        let loan = access.lend(&execute(&access, "")).unwrap();
        let printed = format!("{access:?} {loan:?}");
        assert!(!printed.contains("s3cret") && !printed.contains(loan.credential().expose()), "{printed}");
    }
}

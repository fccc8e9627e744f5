//! The policy: from a credential to a principal, from a principal and an instance to an [`Authorized`].

use std::collections::HashMap;
use std::sync::Arc;

use gf_digest::InstanceName;
use thiserror::Error;

use crate::{Authorized, Permission, PermissionName, Principal, Secret, Tenant, TenantId, TenantName};

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
    /// The token that grants everything. Without one the server is open.
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

/// Decides. Cheap to ask: one look-up, no lock.
#[derive(Debug)]
pub struct Access {
    instances: HashMap<InstanceName, Arc<Tenant>>,
    token: Option<Secret>,
    anonymous_read: bool,
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
        Ok(Self { instances, token: config.token, anonymous_read: config.anonymous_read })
    }

    /// Who presents this credential: the text after `Bearer `, or the password of basic credentials.
    ///
    /// # Errors
    /// [`Denied::BadCredential`] when one is given and it is not right.
    pub fn authenticate(&self, credential: Option<&str>) -> Result<Principal, Denied> {
        match (&self.token, credential) {
            (Some(token), Some(candidate)) if token.matches(candidate) => Ok(Principal::TokenHolder),
            (Some(_), Some(_)) => Err(Denied::BadCredential),
            // An open server ignores credentials, so that a client may keep its configuration.
            (None, _) | (_, None) => Ok(Principal::Anonymous),
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
        let tenant = self.instances.get(instance).ok_or_else(|| Denied::UnknownInstance(instance.clone()))?;
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
            Principal::TokenHolder | Principal::Server => Err(Denied::Forbidden(permission)),
        }
    }

    /// Whether the permission is granted: for answers such as Capabilities, which say what a caller may do.
    #[must_use]
    pub fn allows(&self, principal: Principal, permission: PermissionName) -> bool {
        match principal {
            Principal::TokenHolder | Principal::Server => true,
            Principal::Anonymous => self.token.is_none() || (self.anonymous_read && permission.is_read()),
        }
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
    use crate::{ActionCacheRead, ActionCacheWrite, CasRead, CasWrite};

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

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", access(Some("s3cret"), false)).contains("s3cret"));
    }
}

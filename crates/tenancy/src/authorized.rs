use std::sync::Arc;

use gf_digest::InstanceName;

use crate::{InstancePermission, NixPermission, Permission, Place, Principal, Tenant, TenantName};

/// Proof that a principal has the permission `P` in a tenant. Only [`crate::Access`] makes one.
#[derive(Debug)]
pub struct Authorized<P: Permission> {
    principal: Principal,
    tenant: Arc<Tenant>,
    place: P::Place,
    /// Whether that place was asked for.
    is_of_place: bool,
}

impl<P: Permission> Authorized<P> {
    pub(crate) const fn new(principal: Principal, tenant: Arc<Tenant>, place: P::Place) -> Self {
        Self { principal, tenant, place, is_of_place: true }
    }

    /// The same, of which it does not matter where.
    pub(crate) fn of_no_place(self) -> Self {
        Self { is_of_place: false, ..self }
    }

    /// Whose the thing is that it was asked for; `None` of what concerns no tenant by itself.
    #[must_use]
    pub fn tenant_of_place(&self) -> Option<&TenantName> {
        self.is_of_place.then(|| self.tenant.name())
    }

    /// Who asks.
    #[must_use]
    pub const fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The name of what it was granted on: an instance, or a Nix cache.
    #[must_use]
    pub fn place_name(&self) -> &str {
        self.place.name()
    }

    /// Whose data may be touched.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}

impl<P: InstancePermission> Authorized<P> {
    /// The REAPI instance that was named; it belongs to the tenant.
    #[must_use]
    pub const fn instance(&self) -> &InstanceName {
        &self.place
    }
}

impl<P: NixPermission> Authorized<P> {
    /// The name of the Nix cache; it belongs to the tenant, or is to be one of it.
    #[must_use]
    pub fn cache(&self) -> &str {
        &self.place
    }
}

impl<P: Permission> Clone for Authorized<P> {
    fn clone(&self) -> Self {
        Self {
            principal: self.principal.clone(),
            tenant: Arc::clone(&self.tenant),
            place: self.place.clone(),
            is_of_place: self.is_of_place,
        }
    }
}

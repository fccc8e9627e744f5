use std::marker::PhantomData;
use std::sync::Arc;

use gf_digest::InstanceName;

use crate::{LoanId, Permission, Tenant};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Nobody known: no credential was given.
    Anonymous,
    /// The holder of the static token of the configuration.
    TokenHolder,
    /// Whoever runs an assignment, for as long as it is lent its credential: the blobs of one instance and nothing else.
    Worker(LoanId),
    /// A machine that offers to run actions. It may attach, and touches no tenant by itself.
    WorkerHost,
    /// This process itself: maintenance.
    Server,
}

/// Proof that a principal has the permission `P` in a tenant. Only [`crate::Access`] makes one.
#[derive(Clone, Debug)]
pub struct Authorized<P> {
    principal: Principal,
    tenant: Arc<Tenant>,
    instance: InstanceName,
    permission: PhantomData<P>,
}

impl<P: Permission> Authorized<P> {
    pub(crate) const fn new(principal: Principal, tenant: Arc<Tenant>, instance: InstanceName) -> Self {
        Self { principal, tenant, instance, permission: PhantomData }
    }

    /// Who asks.
    #[must_use]
    pub const fn principal(&self) -> Principal {
        self.principal
    }

    /// Whose data may be touched.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The REAPI instance that was named; it belongs to the tenant.
    #[must_use]
    pub const fn instance(&self) -> &InstanceName {
        &self.instance
    }
}

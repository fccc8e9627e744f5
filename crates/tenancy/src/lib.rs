//! Tenants, principals and permissions: who may do what.
//!
//! [`Authorized`] is the only key to tenant data, and only [`Access`] makes it. Every service function asks for one;
//! its type parameter names the permission that was granted. A denial does not tell whether the thing asked about
//! exists.
//!
//! Today: tenants, one static token and the token of workers come from the configuration; what runs an action is lent
//! a credential for the time that it runs. Deliberately absent until they are built:
//! OIDC trust, per-principal rules, quotas, the audit log.

mod access;
mod authorized;
mod loan;
mod permission;
mod secret;
mod tenant;

pub use access::{Access, AccessConfig, AccessConfigError, Denied, TenantConfig};
pub use authorized::{Authorized, Principal};
pub use loan::{Loan, LoanId, NoRandomness};
pub use permission::{
    ActionCacheRead, ActionCacheWrite, CasRead, CasWrite, Execute, Operate, Permission, PermissionName, Work,
};
pub use secret::Secret;
pub use tenant::{Tenant, TenantId, TenantName, TenantNameError};

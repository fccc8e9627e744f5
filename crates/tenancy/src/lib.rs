//! Tenants, principals and permissions: who may do what.
//!
//! [`Authorized`] is the only key to tenant data, and only [`Access`] makes it. Every service function asks for one;
//! its type parameter names the permission that was granted. A denial does not tell whether the thing asked about
//! exists.
//!
//! Today: tenants and one static token come from the configuration. Deliberately absent until they are built:
//! OIDC trust, per-principal rules, quotas, the audit log.

mod access;
mod authorized;
mod permission;
mod secret;
mod tenant;

pub use access::{Access, AccessConfig, AccessConfigError, Denied, TenantConfig};
pub use authorized::{Authorized, Principal};
pub use permission::{ActionCacheRead, ActionCacheWrite, CasRead, CasWrite, Operate, Permission, PermissionName};
pub use secret::Secret;
pub use tenant::{Tenant, TenantId, TenantName, TenantNameError};

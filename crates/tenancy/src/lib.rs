//! Tenants, principals and permissions: who may do what, and by which rule.
//!
//! [`Authorized`] is the only key to tenant data, and only [`Access`] makes it. Every service function asks for one;
//! its type parameter names the permission that was granted. A denial does not tell whether the thing asked about
//! exists.
//!
//! [`Access`] finds out who presents a credential; [`policy`] decides, as a pure function of what is configured, who
//! asks, and what for. Credentials are: the static token, the tokens of workers, [`Tokens`] of our own, tokens in
//! Attic's format, the certificate of a connection, and what is lent to whatever runs an action for as long as it runs.
//!
//! What was done with it all is in the [`audit`] log.
//!
//! [`trust`] exchanges tokens of other issuers for short ones of our own.
//!
//! Deliberately absent until they are built: quotas.

mod access;
mod attic;
pub mod audit;
mod authorized;
mod certificate;
mod denied;
mod grant;
mod jwt;
mod key_set;
mod loan;
mod pattern;
mod permission;
pub mod policy;
mod principal;
mod schema;
mod secret;
mod tenant;
#[cfg(test)]
mod testing;
mod text;
mod tokens;
pub mod trust;

pub use access::{Access, AccessConfig, AccessConfigError, NixScope, TenantConfig};
pub use attic::{AtticConfig, AtticId, AtticIdError, AtticToken};
pub use audit::AuditLog;
pub use authorized::Authorized;
pub use certificate::{CertificateName, CertificateNames, CertificateRule, Certified};
pub use denied::Denied;
pub use grant::{Grant, GrantError, Role};
pub use jwt::{JwtFault, JwtKey, JwtKeyError};
pub use key_set::{KeySetError, MAX_KEY_SET_BYTES};
pub use loan::{Loan, LoanId, NoRandomness};
pub use pattern::Pattern;
pub use permission::{
    ActionCacheRead, ActionCacheWrite, Administer, CasRead, CasWrite, Execute, InstancePermission, NixConfigureCache,
    NixConfigureRetention, NixCreateCache, NixDelete, NixDestroyCache, NixPermission, NixPull, NixPush, Operate,
    Permission, PermissionName, Place, UnknownPermission, Work,
};
pub use policy::Visibility;
pub use principal::Principal;
pub use schema::MIGRATIONS;
pub use secret::Secret;
pub use tenant::{Tenant, TenantId, TenantName, TenantNameError};
pub use text::is_shown;
pub use tokens::{BELIEVED, Exchanged, IssuedToken, NewToken, Token, TokenError, TokenId, TokenReport, Tokens, Which};

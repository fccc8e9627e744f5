use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The number of a tenant; stores know owners by it. Never given to another tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(u32);

impl TenantId {
    /// The number. It is a hash of the name, so that the same name has the same number on every machine and in a
    /// store that lost its index; [`crate::Access`] refuses two tenants with one number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// The name of a tenant: `default`, `spoke-<slug>` or `org-<owner>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(Arc<str>);

/// Why text is not a tenant's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not a tenant name: use `default`, `spoke-<slug>` or `org-<owner>` of a-z, 0-9 and `-`, at most 64")]
pub struct TenantNameError(String);

impl TenantName {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`TenantNameError`] when it has another form.
    pub fn new(name: &str) -> Result<Self, TenantNameError> {
        let slug = name.strip_prefix("spoke-").or_else(|| name.strip_prefix("org-"));
        let is_slug = |slug: &str| {
            !slug.is_empty() && slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() <= 64 && (name == "default" || slug.is_some_and(is_slug)) {
            Ok(Self(name.into()))
        } else {
            Err(TenantNameError(name.chars().take(80).collect()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who owns and pays.
#[derive(Debug)]
pub struct Tenant {
    id: TenantId,
    name: TenantName,
}

impl Tenant {
    pub(crate) fn new(name: TenantName) -> Self {
        let hash = ring::digest::digest(&ring::digest::SHA256, name.as_str().as_bytes());
        let mut number = [0; 4];
        number.copy_from_slice(&hash.as_ref()[..4]);
        Self { id: TenantId(u32::from_le_bytes(number)), name }
    }

    /// The number.
    #[must_use]
    pub const fn id(&self) -> TenantId {
        self.id
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &TenantName {
        &self.name
    }
}

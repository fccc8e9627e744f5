//! What a credential of our own grants, in one line of text: `nix:push@org-acme/ci-*`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::{Pattern, PermissionName};

/// A usual set of permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, writes and has actions run: what a build in CI needs.
    Operator,
    /// Everything but attaching workers, which run other people's code.
    Admin,
}

impl Role {
    const ALL: [(&'static str, Self); 3] =
        [("viewer", Self::Viewer), ("operator", Self::Operator), ("admin", Self::Admin)];

    /// Whether the permission is one of the set.
    #[must_use]
    pub const fn has(self, permission: PermissionName) -> bool {
        match self {
            Self::Viewer => permission.is_read(),
            Self::Operator => {
                permission.is_read()
                    || matches!(
                        permission,
                        PermissionName::CasWrite
                            | PermissionName::ActionCacheWrite
                            | PermissionName::Execute
                            | PermissionName::NixPush
                    )
            }
            Self::Admin => !matches!(permission, PermissionName::Work),
        }
    }

    /// As it stands in a grant.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// One permission, or those of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Role(Role),
    Permission(PermissionName),
}

/// A role or a permission on some things: `WHAT`, `WHAT@TENANT` or `WHAT@TENANT/NAME`, where `TENANT` and `NAME` (of
/// instances and caches) may hold `*`, and what is left out is everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    what: What,
    tenant: Pattern,
    name: Pattern,
}

/// Why text is no grant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// It begins with neither a role nor a permission.
    #[error(
        "{0:?} is neither a role (viewer, operator, admin) nor a permission ({permissions})",
        permissions = PermissionName::ALL.map(PermissionName::as_str).join(", ")
    )]
    What(String),
    /// The part after `@` is empty or has other characters than names have.
    #[error("{0:?} is no place: write TENANT or TENANT/NAME, with `*` for anything")]
    Place(String),
    /// It is too long to be meant.
    #[error("it is longer than {MAX_LENGTH} characters")]
    TooLong,
}

/// The longest grant, in bytes.
const MAX_LENGTH: usize = 512;

impl Grant {
    /// A role on everything.
    #[must_use]
    pub fn role(role: Role) -> Self {
        Self { what: What::Role(role), tenant: Pattern::new("*"), name: Pattern::new("*") }
    }

    /// All that a role gives, in every tenant.
    pub(crate) fn everywhere(role: Role) -> Self {
        Self { what: What::Role(role), tenant: Pattern::new("*"), name: Pattern::new("*") }
    }

    /// Whether it has this permission in it, wherever.
    pub(crate) const fn has(&self, permission: PermissionName) -> bool {
        match self.what {
            What::Role(role) => role.has(permission),
            What::Permission(own) => own as u8 == permission as u8,
        }
    }

    /// Whether it grants this on the thing of this name. A tenant that is not known fits only what is meant for all of
    /// them: so nobody learns from a grant for one tenant what there is of another.
    pub(crate) fn grants(&self, permission: PermissionName, tenant: Option<&str>, name: &str) -> bool {
        let tenant_fits = tenant.map_or(self.tenant.is_any(), |tenant| self.tenant.fits(tenant));
        self.has(permission) && tenant_fits && self.name.fits(name)
    }

    /// How much it gives: what holds in more places is more.
    pub(crate) fn width(&self) -> (bool, bool, usize) {
        let permissions = PermissionName::ALL.into_iter().filter(|permission| self.has(*permission)).count();
        (self.tenant.is_any(), self.name.is_any(), permissions)
    }

    /// The one tenant that it holds for.
    pub(crate) fn only_tenant(&self) -> Option<&str> {
        let tenant = self.tenant.as_str();
        (!tenant.contains('*')).then_some(tenant)
    }

    /// Whether it holds for all tenants, and all that is theirs.
    pub(crate) fn is_everywhere(&self) -> bool {
        self.tenant.is_any() && self.name.is_any()
    }

    /// Whether it holds for all that a tenant has.
    pub(crate) fn spans_tenant(&self, tenant: &str) -> bool {
        self.tenant.fits(tenant) && self.name.is_any()
    }

    /// Whether whoever holds this holds all that the other gives.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let has_all = PermissionName::ALL.into_iter().all(|permission| !other.has(permission) || self.has(permission));
        has_all && self.spans(other)
    }

    /// Whether this holds wherever the other does.
    pub(crate) fn spans(&self, other: &Self) -> bool {
        let wider = |own: &Pattern, other: &Pattern| own.is_any() || own == other;
        wider(&self.tenant, &other.tenant) && wider(&self.name, &other.name)
    }
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        if text.len() > MAX_LENGTH {
            return Err(GrantError::TooLong);
        }
        let (what, place) = text.split_once('@').map_or((text, None), |(what, place)| (what, Some(place)));
        let role = Role::ALL.into_iter().find(|(name, _)| *name == what).map(|(_, role)| What::Role(role));
        let what = match role {
            Some(role) => role,
            None => What::Permission(what.parse().map_err(|_| GrantError::What(what.to_owned()))?),
        };
        let place = place.unwrap_or("*");
        let (tenant, name) = place.split_once('/').unwrap_or((place, "*"));
        let is_visible = place.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        if tenant.is_empty() || !is_visible {
            return Err(GrantError::Place(place.to_owned()));
        }
        Ok(Self { what, tenant: Pattern::new(tenant), name: Pattern::new(name) })
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.what {
            What::Role(role) => role.as_str(),
            What::Permission(permission) => permission.as_str(),
        })?;
        match (self.tenant.is_any(), self.name.is_any()) {
            (true, true) => Ok(()),
            (false, true) => write!(f, "@{}", self.tenant),
            (_, false) => write!(f, "@{}/{}", self.tenant, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Grant {
        text.parse().unwrap()
    }

    #[test]
    fn text_there_and_back() {
        let same = ["admin", "viewer@org-acme", "nix:push@org-*/ci-*", "cas:read@*/a/b", "execute@default/"];
        for text in same {
            assert_eq!(grant(text).to_string(), text);
        }
        for (long, short) in
            [("operator@*", "operator"), ("nix:pull@*/*", "nix:pull"), ("admin@org-a/*", "admin@org-a")]
        {
            assert_eq!(grant(long).to_string(), short);
        }
        for wrong in ["", "root", "nix:*", "@default", "admin@", "admin@/x", "admin@a b", "admin@a\n", "Admin"] {
            assert!(wrong.parse::<Grant>().is_err(), "{wrong}");
        }
        assert_eq!("a".repeat(513).parse::<Grant>(), Err(GrantError::TooLong));
    }

    #[test]
    fn roles_are_sets_within_each_other() {
        let check = |role: Role, expected: &str| {
            let has = PermissionName::ALL.into_iter().filter(|permission| role.has(*permission));
            assert_eq!(has.map(PermissionName::as_str).collect::<Vec<_>>().join(" "), expected, "{role:?}");
        };
        check(Role::Viewer, "cas:read actioncache:read nix:pull");
        check(Role::Operator, "cas:read cas:write actioncache:read actioncache:write execute nix:pull nix:push");
        check(
            Role::Admin,
            "cas:read cas:write actioncache:read actioncache:write execute admin:operate admin:access nix:pull \
             nix:push nix:delete nix:create nix:configure nix:retention nix:destroy",
        );
    }

    #[test]
    fn grants_hold_where_they_say() {
        let check = |text: &str, tenant: Option<&str>, name: &str, expected: bool| {
            let granted = grant(text).grants(PermissionName::NixPull, tenant, name);
            assert_eq!(granted, expected, "{text} {tenant:?} {name}");
        };
        check("viewer", Some("default"), "main", true);
        check("viewer", None, "main", true);
        check("viewer@org-acme", Some("org-acme"), "main", true);
        check("viewer@org-acme", Some("default"), "main", false);
        check("viewer@org-acme", None, "main", false);
        check("nix:pull@*/ci-*", None, "ci-1", true);
        check("nix:pull@*/ci-*", Some("default"), "main", false);
        check("nix:push", Some("default"), "main", false);
    }

    #[test]
    fn nobody_hands_out_more_than_what_they_hold() {
        let check = |own: &str, other: &str, expected: bool| {
            assert_eq!(grant(own).covers(&grant(other)), expected, "{own} {other}");
        };
        for other in ["admin", "viewer@x", "nix:push@*/ci-*"] {
            check("admin", other, true);
        }
        check("admin", "workers:attach", false);
        check("admin@org-a", "operator@org-a/x", true);
        check("admin@org-a", "operator", false);
        check("admin@org-a", "operator@org-b", false);
        check("admin@org-*", "operator@org-a", false);
        check("viewer", "operator", false);
        check("viewer", "nix:pull@x/y", true);
        check("nix:pull@x/y", "viewer@x/y", false);
    }
}

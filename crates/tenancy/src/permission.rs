//! The permissions, each a type of its own, so that a service function says in its signature which one it needs.

use std::fmt::Debug;
use std::str::FromStr;
use std::sync::Arc;

use gf_digest::InstanceName;
use thiserror::Error;

mod sealed {
    pub trait Sealed {}
}

/// A permission as a type.
pub trait Permission: sealed::Sealed + Send + Sync + 'static {
    /// The same permission as data.
    const NAME: PermissionName;
    /// What it is granted on, within a tenant.
    type Place: Place;
}

/// What a permission is granted on.
pub trait Place: Clone + Debug + Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
}

impl Place for InstanceName {
    fn name(&self) -> &str {
        self.as_str()
    }
}

impl Place for Arc<str> {
    fn name(&self) -> &str {
        self
    }
}

/// A permission that is granted on a REAPI instance.
pub trait InstancePermission: Permission<Place = InstanceName> {}

/// A permission that is granted on a Nix cache, which is known by its name here.
pub trait NixPermission: Permission<Place = Arc<str>> {}

impl<P: Permission<Place = InstanceName>> InstancePermission for P {}
impl<P: Permission<Place = Arc<str>>> NixPermission for P {}

/// Text that names no permission.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no permission; there are {names}", names = PermissionName::ALL.map(PermissionName::as_str).join(", "))]
pub struct UnknownPermission(String);

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $place:ty;)+) => {
        /// A permission as data, for messages and for the policy.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum PermissionName {
            $($(#[$doc])* $name,)+
        }

        impl PermissionName {
            /// Every permission there is.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$name),+];

            /// As it stands in messages and rules.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;
            impl sealed::Sealed for $name {}
            impl Permission for $name {
                const NAME: PermissionName = PermissionName::$name;
                type Place = $place;
            }
        )+
    };
}

permissions! {
    /// Read blobs and ask for their existence.
    CasRead, "cas:read", InstanceName;
    /// Write blobs.
    CasWrite, "cas:write", InstanceName;
    /// Read action results.
    ActionCacheRead, "actioncache:read", InstanceName;
    /// Write action results.
    ActionCacheWrite, "actioncache:write", InstanceName;
    /// Have actions run.
    Execute, "execute", InstanceName;
    /// Run actions for others: attach a worker.
    Work, "workers:attach", InstanceName;
    /// See the store's state and run its maintenance.
    Operate, "admin:operate", InstanceName;
    /// Issue and revoke credentials, and read what was done with them.
    Administer, "admin:access", InstanceName;
    /// Read a Nix cache: what it is, its paths, archives and logs.
    NixPull, "nix:pull", Arc<str>;
    /// Publish paths in a Nix cache.
    NixPush, "nix:push", Arc<str>;
    /// Remove paths from a Nix cache.
    NixDelete, "nix:delete", Arc<str>;
    /// Make a Nix cache.
    NixCreateCache, "nix:create", Arc<str>;
    /// Change a Nix cache: who sees it, its priority, keys and upstreams.
    NixConfigureCache, "nix:configure", Arc<str>;
    /// Change how long a Nix cache keeps what it has, and how much.
    NixConfigureRetention, "nix:retention", Arc<str>;
    /// Remove a Nix cache with all that is in it.
    NixDestroyCache, "nix:destroy", Arc<str>;
}

impl PermissionName {
    /// Whether it changes nothing.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self, Self::CasRead | Self::ActionCacheRead | Self::NixPull)
    }
}

impl FromStr for PermissionName {
    type Err = UnknownPermission;

    fn from_str(text: &str) -> Result<Self, UnknownPermission> {
        let known = Self::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| UnknownPermission(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_there_and_back() {
        for name in PermissionName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        assert!("nix:everything".parse::<PermissionName>().is_err());
    }
}

//! The permissions, each a type of its own, so that a service function says in its signature which one it needs.

/// A permission as data, for messages and for the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PermissionName {
    /// Read blobs and ask for their existence.
    CasRead,
    /// Write blobs.
    CasWrite,
    /// Read action results.
    ActionCacheRead,
    /// Write action results.
    ActionCacheWrite,
    /// Have actions run.
    Execute,
    /// Run actions for others: attach a worker.
    Work,
    /// See the store's state and run its maintenance.
    Operate,
}

impl PermissionName {
    /// As it stands in messages and rules.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CasRead => "cas:read",
            Self::CasWrite => "cas:write",
            Self::ActionCacheRead => "actioncache:read",
            Self::ActionCacheWrite => "actioncache:write",
            Self::Execute => "execute",
            Self::Work => "workers:attach",
            Self::Operate => "admin:operate",
        }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub const fn is_read(self) -> bool {
        matches!(self, Self::CasRead | Self::ActionCacheRead)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A permission as a type.
pub trait Permission: sealed::Sealed + Send + Sync + 'static {
    /// The same permission as data.
    const NAME: PermissionName;
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl Permission for $name {
            const NAME: PermissionName = PermissionName::$name;
        }
    )+};
}

permissions! {
    /// May read blobs and ask for their existence.
    CasRead,
    /// May write blobs.
    CasWrite,
    /// May read action results.
    ActionCacheRead,
    /// May write action results.
    ActionCacheWrite,
    /// May have actions run.
    Execute,
    /// May run actions for others.
    Work,
    /// May see the store's state and run its maintenance.
    Operate,
}

//! The Nix store paths that actions run with.
//!
//! [`Closures`] is the seam to whoever knows store paths: services do not depend on one another, so the program wires
//! it. `Toolchains` asks it, and keeps what it answers in the store while actions need it.
//!
//! Deliberately absent: caches, signatures, and showing anything: that is what workers do.
//!
//! What always holds: a [`Closure`] is in order, names no path twice and is bounded; an action gets the paths of its own
//! tenant, and none of another.

mod toolchains;

use std::sync::Arc;

use async_trait::async_trait;
use gf_digest::Digest;
pub use gf_nix_formats::StorePath;
use gf_tenancy::{Authorized, Execute};
use thiserror::Error;

pub(crate) use toolchains::Toolchains;

/// Paths named in a message for people; there may be thousands.
const MAX_NAMED: usize = 20;

/// Who knows which store paths a tenant has.
#[async_trait]
pub trait Closures: Send + Sync {
    /// The paths named and everything that they refer to, directly or not. All blobs below their roots are of the tenant
    /// of the grant, under SHA-256.
    ///
    /// # Errors
    /// [`ClosureError`], with every path that is missing.
    async fn closure(&self, grant: &Authorized<Execute>, paths: &[StorePath])
    -> Result<Vec<ClosurePath>, ClosureError>;
}

/// One path of a closure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosurePath {
    /// Its base name.
    pub path: StorePath,
    /// What it is.
    pub root: ClosureRoot,
}

/// What a store path is, in the store of the tenant. Digests are SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClosureRoot {
    /// A folder: the digest of its REAPI `Directory`.
    Directory(Digest),
    /// A file.
    File {
        /// Its contents.
        digest: Digest,
        /// Whether it may be run.
        is_executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
}

impl ClosurePath {
    fn names_bytes(&self) -> usize {
        let target = if let ClosureRoot::Symlink { target } = &self.root { target.len() } else { 0 };
        self.path.as_str().len() + target
    }
}

/// Why an action does not get its store paths.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ClosureError {
    /// Nobody was wired in.
    #[error("the action names Nix store paths, and this server has no Nix caches")]
    NoCaches,
    /// They, or what they refer to, are in no cache of the tenant.
    #[error(
        "{} not in the Nix caches of this server: push {} first, with `nix copy --to` or `gf nix push`",
        list(.0, "is", "are"), it(.0)
    )]
    Missing(Vec<StorePath>),
    /// They have names that no `Directory` can hold.
    #[error("{} a name in it that is not UTF-8, so no action can be given {}", list(.0, "has", "have"), it(.0))]
    Unusable(Vec<StorePath>),
    /// What they are made of is not all in the store.
    #[error("{} not whole in the store of this server: push {} again", list(.0, "is", "are"), it(.0))]
    Damaged(Vec<StorePath>),
    /// There are too many.
    #[error(
        "the closure of the store paths has {count} paths with {bytes} bytes of names; an action is shown at most {} with {}",
        Closure::MAX_PATHS,
        Closure::MAX_NAMES_BYTES
    )]
    TooLarge {
        /// How many there are.
        count: usize,
        /// What it takes to name them, and the targets of those that are links.
        bytes: usize,
    },
    /// Whoever knows them does not take the question.
    #[error("the Nix caches refuse the store paths: {0}")]
    Refused(String),
    /// Whoever knows them cannot say now.
    #[error("the Nix caches cannot be asked: {0}")]
    Unavailable(String),
}

fn list(paths: &[StorePath], one: &str, several: &str) -> String {
    let mut names: Vec<String> = paths.iter().take(MAX_NAMED).map(|path| format!("/nix/store/{path}")).collect();
    if paths.len() > MAX_NAMED {
        names.push(format!("{} more", paths.len() - MAX_NAMED));
    }
    format!("{} {}", names.join(", "), if paths.len() == 1 { one } else { several })
}

const fn it(paths: &[StorePath]) -> &'static str {
    if paths.len() == 1 { "it" } else { "them" }
}

/// Store paths that an action sees, with all that they refer to. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closure(Arc<[ClosurePath]>);

impl Closure {
    /// Each is mounted for each action: so many take some hundredths of a second.
    pub const MAX_PATHS: usize = 4096;
    /// Names and targets together: every action that waits keeps them.
    pub const MAX_NAMES_BYTES: usize = 1 << 20;

    /// Puts the paths in order.
    ///
    /// # Errors
    /// [`ClosureError::TooLarge`].
    pub fn new(mut paths: Vec<ClosurePath>) -> Result<Self, ClosureError> {
        paths.sort_by(|one, other| one.path.cmp(&other.path));
        paths.dedup_by(|one, other| one.path == other.path);
        let (count, bytes) = (paths.len(), paths.iter().map(ClosurePath::names_bytes).sum());
        if count > Self::MAX_PATHS || bytes > Self::MAX_NAMES_BYTES {
            return Err(ClosureError::TooLarge { count, bytes });
        }
        Ok(Self(paths.into()))
    }

    /// In order of their names.
    #[must_use]
    pub fn paths(&self) -> &[ClosurePath] {
        &self.0
    }
}

/// A server without Nix caches.
#[derive(Clone, Copy, Debug)]
pub struct NoCaches;

#[async_trait]
impl Closures for NoCaches {
    async fn closure(&self, _: &Authorized<Execute>, _: &[StorePath]) -> Result<Vec<ClosurePath>, ClosureError> {
        Err(ClosureError::NoCaches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-{name}")).unwrap()
    }

    #[test]
    fn errors_name_the_paths() {
        let one = ClosureError::Missing(vec![path("zig")]).to_string();
        assert!(one.starts_with("/nix/store/2s4rw9nqymidjbnrk72ccxyn6yxcjdf4-zig is not in"), "{one}");
        assert!(one.contains("push it first"), "{one}");
        let many = ClosureError::Missing((0..30).map(|n| path(&format!("p{n}"))).collect()).to_string();
        assert!(many.contains("-p19, 10 more are not in") && many.contains("push them first"), "{many}");
    }

    #[test]
    fn a_closure_is_in_order_and_bounded() {
        let at = |name: &str| ClosurePath { path: path(name), root: ClosureRoot::Symlink { target: "x".to_owned() } };
        let closure = Closure::new(vec![at("b"), at("a"), at("b")]).unwrap();
        assert_eq!(closure.paths(), [at("a"), at("b")]);
        let many = (0..=Closure::MAX_PATHS).map(|n| at(&format!("p{n}"))).collect();
        assert!(matches!(Closure::new(many), Err(ClosureError::TooLarge { count: 4097, .. })));
        let long = ClosureRoot::Symlink { target: "x".repeat(Closure::MAX_NAMES_BYTES) };
        let long = ClosurePath { path: path("long"), root: long };
        assert!(matches!(Closure::new(vec![long]), Err(ClosureError::TooLarge { count: 1, .. })));
    }
}

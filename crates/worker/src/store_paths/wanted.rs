//! The store paths of an assignment, read and checked.

use gf_digest::{Digest, DigestFunction};
use gf_reapi::WireDigest;
use gf_reapi::worker::{self, store_path};

use crate::failure::Failure;
use crate::folders::Content;

/// The longest base name that Nix takes.
const MAX_NAME_BYTES: usize = 244;
/// The longest target that Linux takes.
const MAX_TARGET_BYTES: usize = 4095;

/// A path that an action is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorePath {
    /// The base name.
    pub(crate) name: String,
    pub(crate) root: Root,
}

/// What it is. Digests are SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Root {
    Directory(Digest),
    File(Content),
    Symlink(String),
}

impl Root {
    pub(crate) const fn is_link(&self) -> bool {
        matches!(self, Self::Symlink(_))
    }

    /// Some order of those that are laid out.
    pub(super) fn order(&self) -> ([u8; 32], u8) {
        match self {
            Self::Directory(digest) => (*digest.hash(), 0),
            Self::File(content) => (*content.digest.hash(), 1 + u8::from(content.is_executable)),
            Self::Symlink(_) => ([0; 32], 3),
        }
    }
}

impl StorePath {
    /// Reads what the server sent.
    pub(crate) fn read(path: &worker::StorePath) -> Result<Self, Failure> {
        let broken = |what: &str| Failure::Worker(format!("the assignment names a store path with {what}"));
        let name = path.name.clone();
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with('.') || !name.bytes().all(is_known) {
            return Err(broken("a name that none has"));
        }
        let digest = |wire: Option<&WireDigest>| {
            let digest = wire.and_then(|wire| wire.to_digest(DigestFunction::Sha256).ok());
            digest.ok_or_else(|| broken("a root that has no digest"))
        };
        let root = match &path.root {
            Some(store_path::Root::Directory(wire)) => Root::Directory(digest(Some(wire))?),
            Some(store_path::Root::File(file)) => {
                Root::File(Content { digest: digest(file.digest.as_ref())?, is_executable: file.is_executable })
            }
            Some(store_path::Root::SymlinkTarget(target)) => {
                if target.is_empty() || target.len() > MAX_TARGET_BYTES || target.contains('\0') {
                    return Err(broken("a link to nowhere"));
                }
                Root::Symlink(target.clone())
            }
            None => return Err(broken("a root that is not known here")),
        };
        Ok(Self { name, root })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, root: Option<store_path::Root>) -> Result<StorePath, Failure> {
        StorePath::read(&worker::StorePath { name: name.to_owned(), root })
    }

    fn link(target: &str) -> Option<store_path::Root> {
        Some(store_path::Root::SymlinkTarget(target.to_owned()))
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        assert_eq!(read("hash-x+1.2_3?=", link("a")).unwrap().root, Root::Symlink("a".to_owned()));
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", ".", "..", "a/b", "/a", "a\0", "ä", &long] {
            assert!(read(name, link("a")).is_err(), "{name:?}");
        }
        let file = |digest| Some(store_path::Root::File(worker::StoreFile { digest, is_executable: true }));
        let long = "x".repeat(MAX_TARGET_BYTES + 1);
        for root in [None, link(""), link("a\0"), link(&long), file(None), file(Some(WireDigest::default()))] {
            assert!(read("x", root.clone()).is_err(), "{root:?}");
        }
        let digest = Digest::of(DigestFunction::Sha256, b"x");
        let expected = Root::File(Content { digest, is_executable: true });
        assert_eq!(read("x", file(Some(digest.into()))).unwrap().root, expected);
        let directory = Some(store_path::Root::Directory(digest.into()));
        assert_eq!(read("x", directory).unwrap().root, Root::Directory(digest));
    }
}

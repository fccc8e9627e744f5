//! Store paths: what a store object is called, apart from where the store is.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::base32::{Base32Error, decode_base32, encode_base32};

/// The folder of a store, `/nix/store` but for rare exceptions. It is part of what store paths and signatures hash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(Arc<str>);

/// The name of a store object: `<32 characters of base 32>-<name>`, without the folder.
///
/// Ordered as Nix orders references: by the characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

/// The hash part of a store path, by which caches are asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePathHash([u8; 20]);

/// Why text is not a store path, a hash part or a store folder. All are the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StorePathError {
    /// The folder is not an absolute path in its shortest spelling.
    #[error("a store folder must be an absolute path without `.`, `..`, `//` or a `/` at the end")]
    StoreDir,
    /// The path lies elsewhere, or below a store object.
    #[error("the path is not directly in the store {0}")]
    OtherStore(StoreDir),
    /// No `-` after the 32nd character.
    #[error("a store path begins with 32 characters of base 32 and `-`")]
    Shape,
    /// The hash part is not base 32.
    #[error("in the hash part of a store path")]
    Hash(#[source] Base32Error),
    /// Nothing after the hash part.
    #[error("the name of a store path is empty")]
    EmptyName,
    /// Over [`StorePath::MAX_NAME_LENGTH`].
    #[error("the name of a store path has {0} characters; at most {max} are allowed", max = StorePath::MAX_NAME_LENGTH)]
    NameTooLong(usize),
    /// A name that is `.` or `..`, or begins with one of them and `-`.
    #[error("the name of a store path must not be `.` or `..`, alone or before a `-`")]
    DotName,
    /// A character that names do not have.
    #[error("the name of a store path may only have letters and digits of ASCII and `+-._?=`")]
    NameCharacter,
}

impl StoreDir {
    /// The longest folder accepted, in bytes.
    const MAX_LENGTH: usize = 1024;

    /// Checks and takes a folder.
    ///
    /// # Errors
    /// [`StorePathError::StoreDir`] when it is not absolute and normal.
    pub fn new(dir: &str) -> Result<Self, StorePathError> {
        let segments = dir.strip_prefix('/').ok_or(StorePathError::StoreDir)?;
        let bad = |segment: &str| matches!(segment, "" | "." | "..") || segment.chars().any(char::is_control);
        if dir.len() > Self::MAX_LENGTH || segments.split('/').any(bad) {
            return Err(StorePathError::StoreDir);
        }
        Ok(Self(dir.into()))
    }

    /// The folder as text, without a `/` at the end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a full path such as `/nix/store/<hash>-<name>`.
    ///
    /// # Errors
    /// [`StorePathError`] when it lies elsewhere or is not a store path.
    pub fn parse(&self, path: &str) -> Result<StorePath, StorePathError> {
        let base_name = path.strip_prefix(&*self.0).and_then(|rest| rest.strip_prefix('/'));
        StorePath::parse(base_name.ok_or_else(|| StorePathError::OtherStore(self.clone()))?)
    }

    /// The full path of a store object.
    #[must_use]
    pub fn join(&self, path: &StorePath) -> String {
        format!("{self}/{path}")
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl StorePath {
    /// The longest name accepted, in characters.
    pub const MAX_NAME_LENGTH: usize = 211;

    /// The longest base name, in characters.
    pub const MAX_LENGTH: usize = StorePathHash::LENGTH + 1 + Self::MAX_NAME_LENGTH;

    /// Reads a base name.
    ///
    /// The rules of names are those of today's Nix. Version 2.8 took `.` and `..` too, which no file can be called.
    ///
    /// # Errors
    /// [`StorePathError`] says which rule is broken.
    pub fn parse(base_name: &str) -> Result<Self, StorePathError> {
        let (hash, rest) = base_name.split_at_checked(StorePathHash::LENGTH).ok_or(StorePathError::Shape)?;
        let name = rest.strip_prefix('-').ok_or(StorePathError::Shape)?;
        StorePathHash::parse(hash)?;
        check_name(name)?;
        Ok(Self(base_name.into()))
    }

    /// Makes the path of a hash part and a name.
    ///
    /// # Errors
    /// [`StorePathError`] when the name breaks a rule.
    pub fn new(hash: StorePathHash, name: &str) -> Result<Self, StorePathError> {
        check_name(name)?;
        Ok(Self(format!("{hash}-{name}").into()))
    }

    /// The base name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash part.
    #[must_use]
    pub fn hash(&self) -> StorePathHash {
        let mut hash = [0; 20];
        // It was read before the path was made, so this is never the fallback.
        let read = decode_base32(&self.0[..StorePathHash::LENGTH], &mut hash);
        debug_assert!(read.is_ok(), "a store path holds a hash part");
        StorePathHash(hash)
    }

    /// The name, without the hash part.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0[StorePathHash::LENGTH + 1..]
    }

    /// Whether this is a derivation.
    #[must_use]
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(".drv")
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), StorePathError> {
    if name.is_empty() {
        return Err(StorePathError::EmptyName);
    }
    if name.len() > StorePath::MAX_NAME_LENGTH {
        return Err(StorePathError::NameTooLong(name.chars().count()));
    }
    if matches!(name.split('-').next(), Some("." | "..")) {
        return Err(StorePathError::DotName);
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte)) {
        return Err(StorePathError::NameCharacter);
    }
    Ok(())
}

impl StorePathHash {
    /// Characters of a hash part.
    pub const LENGTH: usize = 32;

    /// Takes the twenty bytes of a hash part.
    #[must_use]
    pub const fn new(hash: [u8; 20]) -> Self {
        Self(hash)
    }

    /// Reads the 32 characters of a hash part.
    ///
    /// # Errors
    /// [`StorePathError::Hash`] when they are not 32 characters of base 32.
    pub fn parse(text: &str) -> Result<Self, StorePathError> {
        let mut hash = [0; 20];
        decode_base32(text, &mut hash).map_err(StorePathError::Hash)?;
        Ok(Self(hash))
    }

    /// The twenty bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_base32(&self.0))
    }
}

impl fmt::Debug for StorePathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "2s4rw9nqymidjbnrk72ccxyn6yxcjdf4";

    #[test]
    fn names_are_judged_as_nix_does() {
        // `ok|no NAME`, from `nix-store --print-fixed-path sha256 … NAME` of 2.34.8.
        let rows = include_str!("../tests/golden/names.txt");
        let mut count = 0;
        for row in rows.lines().filter(|row| !row.starts_with('#')) {
            let (verdict, name) = row.split_once(' ').unwrap();
            let path = StorePath::parse(&format!("{HASH}-{name}"));
            assert_eq!(path.is_ok(), verdict == "ok", "{name}: {path:?}");
            if let Ok(path) = path {
                assert_eq!((path.name(), path.hash().to_string().as_str()), (name, HASH));
                assert_eq!(StorePath::new(path.hash(), name), Ok(path));
            }
            count += 1;
        }
        assert_eq!(count, 20);
    }

    #[test]
    fn only_paths_directly_in_the_store() {
        let store = StoreDir::default();
        let path = store.parse(&format!("/nix/store/{HASH}-a")).unwrap();
        assert_eq!(store.join(&path), format!("/nix/store/{HASH}-a"));
        for bad in ["/nix/store", "/nix/store/", "/nix/storex/a", "relative", "/gnu/store/x"] {
            assert!(store.parse(bad).is_err(), "{bad}");
        }
        assert_eq!(store.parse(&format!("/nix/store/{HASH}-a/b")), Err(StorePathError::NameCharacter));
        assert_eq!(store.parse(&format!("/nix/store/{HASH}-")), Err(StorePathError::EmptyName));
        assert_eq!(store.parse(&format!("/nix/store/{HASH}a")), Err(StorePathError::Shape));
        // A cut inside a character must not panic.
        assert_eq!(StorePath::parse(&format!("{}é-a", &HASH[..31])), Err(StorePathError::Shape));
        for bad in ["", "/", "nix/store", "/nix/store/", "/nix//store", "/nix/../store", "/nix/\n"] {
            assert!(StoreDir::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(StoreDir::new("/nix/store"), Ok(store));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-df-np-sv-z]{32}-?\\PC{0,20}|\\PC{0,50}") {
            if let Ok(path) = StorePath::parse(&text) {
                assert_eq!(path.as_str(), text);
                assert_eq!(path.hash().to_string(), text[..32]);
            }
        }
    }
}

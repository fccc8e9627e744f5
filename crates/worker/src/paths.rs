//! Paths that an action names: inside its input root, or refused.

use std::path::PathBuf;

use crate::failure::Failure;

/// The longest path that is taken, in bytes, and the most folders in it.
const MAX_PATH_BYTES: usize = 4000;
const MAX_DEPTH: usize = 256;

/// Names of folders from the input root downwards, and of what is in the last one. Empty for the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InsidePath(Vec<String>);

impl InsidePath {
    /// Reads a path with `/` between names.
    pub(crate) fn parse(what: &str, text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::invalid(format!("the {what} {text:?} {why}"));
        if text.len() > MAX_PATH_BYTES {
            return Err(Failure::invalid(format!("a {what} is longer than {MAX_PATH_BYTES} bytes")));
        }
        if text.starts_with('/') {
            return Err(wrong("is absolute"));
        }
        if text.contains('\0') {
            return Err(wrong("holds NUL"));
        }
        let names = text.split('/').filter(|name| !matches!(*name, "" | "."));
        let names: Vec<String> = names.map(str::to_owned).collect();
        if names.iter().any(|name| name == "..") {
            return Err(wrong("leads upwards with `..`"));
        }
        if names.len() > MAX_DEPTH || names.iter().any(|name| name.len() > 255) {
            return Err(wrong("is too deep, or has a name over 255 bytes"));
        }
        Ok(Self(names))
    }

    /// A path below this one.
    pub(crate) fn join(&self, below: &Self) -> Self {
        Self(self.0.iter().chain(&below.0).cloned().collect())
    }

    /// The folder that it lies in; `None` for the root.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, folders) = self.0.split_last()?;
        Some(Self(folders.to_vec()))
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    pub(crate) fn to_path(&self) -> PathBuf {
        self.0.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_inside_is_taken() {
        let check = |text: &str, names: &[&str]| {
            assert_eq!(InsidePath::parse("path", text).unwrap().names(), names, "{text}");
        };
        check("", &[]);
        check("a/b", &["a", "b"]);
        check("./a//b/.", &["a", "b"]);
        check("..a/b..", &["..a", "b.."]);
        for bad in ["/a", "..", "a/../b", "a/..", "a\0b", &"x".repeat(256), &"a/".repeat(300)] {
            assert!(InsidePath::parse("path", bad).is_err(), "{bad:?}");
        }
    }
}

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The name of a cache, as it stands in its URL: `^[A-Za-z0-9][A-Za-z0-9\-_+]{0,49}$`. One name, one cache: a server has
/// no two of the same name, whosever they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheName(Arc<str>);

/// Why text is not the name of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not the name of a cache: use 1 to 50 of A-Z, a-z, 0-9, `-`, `_` and `+`, the first a letter or digit"
)]
pub struct CacheNameError(String);

impl CacheName {
    /// The longest name, in bytes.
    pub const MAX_LENGTH: usize = 50;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`CacheNameError`] when it has another form.
    pub fn new(name: &str) -> Result<Self, CacheNameError> {
        let begins_well = name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        let goes_on_well = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_+".contains(&byte));
        if begins_well && goes_on_well && name.len() <= Self::MAX_LENGTH {
            return Ok(Self(name.into()));
        }
        Err(CacheNameError(name.chars().take(80).flat_map(char::escape_default).collect()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_attic() {
        let longest = "a".repeat(50);
        for good in ["main", "0", "A-b_c+d", "9--", &longest] {
            assert_eq!(CacheName::new(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(51);
        for bad in ["", "-a", "_a", "+a", ".", "..", "../..", "a/b", "a.b", "a b", "a\n", "ä", "a:b", &too_long] {
            assert!(CacheName::new(bad).is_err(), "{bad:?}");
        }
    }
}

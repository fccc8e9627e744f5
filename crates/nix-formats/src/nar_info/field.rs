//! Fields that are text. They are types of their own, so that no value can end its line and forge the next.

use std::fmt;

use super::NarInfoError;

/// Where the archive of a narinfo is: relative to the cache, or absolute. 1 to 2048 visible characters of ASCII.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NarUrl(Box<str>);

/// The system that a path is for, such as `x86_64-linux`. 1 to 128 visible characters of ASCII.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SystemName(Box<str>);

impl NarUrl {
    /// The longest URL accepted, in characters.
    pub const MAX_LENGTH: usize = 2048;

    /// Checks and takes a URL.
    ///
    /// # Errors
    /// [`NarInfoError::Url`] when it is empty, too long, or has a character that no URL has.
    pub fn new(url: &str) -> Result<Self, NarInfoError> {
        if is_visible(url, Self::MAX_LENGTH) { Ok(Self(url.into())) } else { Err(NarInfoError::Url) }
    }

    /// The URL as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SystemName {
    /// The longest name accepted, in characters.
    pub const MAX_LENGTH: usize = 128;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`NarInfoError::System`] when it is empty, too long, or has a character that is not visible.
    pub fn new(name: &str) -> Result<Self, NarInfoError> {
        if is_visible(name, Self::MAX_LENGTH) { Ok(Self(name.into())) } else { Err(NarInfoError::System) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_visible(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl fmt::Display for NarUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NarUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SystemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SystemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

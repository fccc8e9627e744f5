use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// A REAPI instance name: empty, or segments joined by `/`, none of them empty or one of the words that
/// resource names use to find their parts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(Arc<str>);

/// Why text is not an instance name. All are the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InstanceNameError {
    /// Over [`InstanceName::MAX_BYTES`].
    #[error("the instance name has {0} bytes; at most {max} are allowed", max = InstanceName::MAX_BYTES)]
    TooLong(usize),
    /// Starts or ends with `/`, or has two in a row.
    #[error("the instance name has an empty segment")]
    EmptySegment,
    /// Contains a word that is reserved by the specification.
    #[error("the instance name must not contain the segment `{0}`, which resource names reserve")]
    ReservedSegment(&'static str),
    /// Contains a control character.
    #[error("the instance name contains a control character")]
    ControlCharacter,
}

impl InstanceName {
    /// The longest name accepted, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Segments that the specification forbids, since resource names are split at them.
    pub const RESERVED_SEGMENTS: [&'static str; 7] =
        ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`InstanceNameError`] says which rule the name breaks.
    pub fn new(name: &str) -> Result<Self, InstanceNameError> {
        if name.len() > Self::MAX_BYTES {
            return Err(InstanceNameError::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(InstanceNameError::ControlCharacter);
        }
        if !name.is_empty() {
            for segment in name.split('/') {
                if segment.is_empty() {
                    return Err(InstanceNameError::EmptySegment);
                }
                if let Some(word) = Self::RESERVED_SEGMENTS.into_iter().find(|word| *word == segment) {
                    return Err(InstanceNameError::ReservedSegment(word));
                }
            }
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_and_refuses() {
        for good in ["", "default", "a/b/c", "org-x", "blobs2/x"] {
            assert!(InstanceName::new(good).is_ok(), "{good}");
        }
        for bad in ["/", "a/", "/a", "a//b", "a/blobs", "uploads", "x/compressed-blobs/y", "a\nb"] {
            assert!(InstanceName::new(bad).is_err(), "{bad}");
        }
        assert!(InstanceName::new(&"x".repeat(257)).is_err());
    }
}

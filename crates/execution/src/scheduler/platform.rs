//! What an action asks of a worker.

use std::sync::Arc;

use thiserror::Error;

/// A name and a value, as REAPI's platform has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Property {
    /// Case counts.
    pub name: Arc<str>,
    /// Case counts.
    pub value: Arc<str>,
}

/// A set of properties that a worker must have, all of them. The same name may be asked for with several values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform(Vec<Property>);

/// Why properties make no platform.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlatformError {
    /// Too many.
    #[error("{0} platform properties are too many: at most {max}", max = Platform::MAX_PROPERTIES)]
    TooMany(usize),
    /// Too long.
    #[error("a platform property is {0} bytes long: at most {max}", max = Platform::MAX_PROPERTY_BYTES)]
    TooLong(usize),
    /// A property without a name.
    #[error("a platform property has no name")]
    NoName,
}

impl Platform {
    /// More properties make no platform.
    pub const MAX_PROPERTIES: usize = 64;
    /// A name and its value together.
    pub const MAX_PROPERTY_BYTES: usize = 4096;

    /// Sorts, so that platforms that mean the same are the same.
    ///
    /// # Errors
    /// [`PlatformError`].
    pub fn new(mut properties: Vec<Property>) -> Result<Self, PlatformError> {
        if properties.len() > Self::MAX_PROPERTIES {
            return Err(PlatformError::TooMany(properties.len()));
        }
        for property in &properties {
            let length = property.name.len() + property.value.len();
            if length > Self::MAX_PROPERTY_BYTES {
                return Err(PlatformError::TooLong(length));
            }
            if property.name.is_empty() {
                return Err(PlatformError::NoName);
            }
        }
        properties.sort();
        properties.dedup();
        Ok(Self(properties))
    }

    /// In order.
    #[must_use]
    pub fn properties(&self) -> &[Property] {
        &self.0
    }
}

//! What a cache says about itself: `nix-cache-info`.

use std::fmt::Write as _;

use thiserror::Error;

use crate::store_path::{StoreDir, StorePathError};

/// The facts about a cache that Nix reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store whose paths it has; clients of another store refuse it.
    pub store_dir: StoreDir,
    /// Whether clients may ask for thousands of paths at once.
    pub want_mass_query: bool,
    /// Lower is asked first. Always written: clients take its absence for 0, before everything else.
    pub priority: u32,
}

/// Why text is not a `nix-cache-info`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CacheInfoError {
    /// Over [`CacheInfo::MAX_BYTES`].
    #[error("nix-cache-info has {0} bytes; at most {max} are allowed", max = CacheInfo::MAX_BYTES)]
    TooLong(usize),
    /// Not text. An error page of something else, perhaps.
    #[error("nix-cache-info is not UTF-8")]
    NotUtf8,
    /// Without it nothing says that this is a cache.
    #[error("nix-cache-info has no StoreDir")]
    NoStoreDir,
    /// The folder is malformed.
    #[error("in the StoreDir of nix-cache-info")]
    StoreDir(#[from] StorePathError),
    /// Not a number.
    #[error("the Priority of nix-cache-info is not a number")]
    Priority,
}

impl CacheInfo {
    /// The longest text accepted, in bytes.
    pub const MAX_BYTES: usize = 64 << 10;

    /// Reads the facts. Unknown keys and lines without a colon are ignored, the last of two equal keys counts, and
    /// white space around values is dropped, all as Nix does.
    ///
    /// # Errors
    /// [`CacheInfoError`] when the facts that are there are malformed, or there is no `StoreDir`.
    pub fn parse(bytes: &[u8]) -> Result<Self, CacheInfoError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(CacheInfoError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| CacheInfoError::NotUtf8)?;
        let (mut store_dir, mut want_mass_query, mut priority) = (None, false, 0);
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match key {
                "StoreDir" => store_dir = Some(StoreDir::new(value)?),
                "WantMassQuery" => want_mass_query = value == "1",
                "Priority" => priority = value.parse().map_err(|_| CacheInfoError::Priority)?,
                _ => {}
            }
        }
        Ok(Self { store_dir: store_dir.ok_or(CacheInfoError::NoStoreDir)?, want_mass_query, priority })
    }

    /// Writes the facts, one to a line.
    #[must_use]
    pub fn format(&self) -> String {
        let mut text = format!("StoreDir: {}\n", self.store_dir);
        if self.want_mass_query {
            text.push_str("WantMassQuery: 1\n");
        }
        // Writing into a string cannot fail.
        let _ = writeln!(text, "Priority: {}", self.priority);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_round_trip() {
        let info = CacheInfo { store_dir: StoreDir::default(), want_mass_query: true, priority: 40 };
        // What cache.nixos.org answers.
        assert_eq!(info.format(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n");
        assert_eq!(CacheInfo::parse(info.format().as_bytes()), Ok(info));
    }

    #[test]
    fn what_nix_puts_into_a_fresh_cache_is_read() {
        let read = CacheInfo::parse(b"StoreDir: /nix/store\n").unwrap();
        assert_eq!((read.want_mass_query, read.priority), (false, 0));
        let odd = CacheInfo::parse(b"no colon\nX-Api: https://a.example/b\nStoreDir:/gnu/store\nPriority: 7").unwrap();
        assert_eq!((odd.store_dir.as_str(), odd.priority), ("/gnu/store", 7));
        assert_eq!(CacheInfo::parse(b"<html>"), Err(CacheInfoError::NoStoreDir));
        assert_eq!(CacheInfo::parse(b"StoreDir: /nix/store\nPriority: high\n"), Err(CacheInfoError::Priority));
    }
}

//! The index by itself, for measuring it beside a database. No part of a store.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gf_digest::{Digest, DigestFunction};

use super::file_layer::SystemFiles;
use super::index::{Index, IndexKey, Lookup, Place, Slot};
use crate::{Encoding, OwnerId};

/// An index in a folder of its own.
pub struct BareIndex(Index);

impl BareIndex {
    /// Makes a new one.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let index = Index::open(Arc::new(SystemFiles), directory, true)?;
        index.load_all()?;
        Ok(Self(index))
    }

    /// Adds a blob with this hash.
    ///
    /// # Errors
    /// The file system's.
    pub fn insert(&self, hash: [u8; 32]) -> io::Result<()> {
        let slot = Slot {
            key: key(hash),
            place: Place::Segment { segment: 1, offset: 0, bytes: 0, encoding: Encoding::Identity },
            size_bytes: 1,
            touched: 1,
            owner: OwnerId(1),
        };
        self.0.change(&slot.key, |_| Some(slot)).map(drop)
    }

    /// Whether there is a blob with this hash.
    ///
    /// # Errors
    /// The file system's.
    pub fn contains(&self, hash: [u8; 32]) -> io::Result<bool> {
        Ok(matches!(self.0.peek(&key(hash))?, Lookup::Found(_)))
    }
}

fn key(hash: [u8; 32]) -> IndexKey {
    IndexKey::blob(&Digest::new(DigestFunction::Sha256, hash, 1))
}

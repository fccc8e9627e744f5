//! Bytes that clients keep under names of their own choice, as sccache does.
//!
//! What the bytes are is their client's concern: nothing looks into them, and nobody who asks for an action result or a
//! blob by its hash is ever shown them for one. They are stored as a blob, under an entry that names it; both go when
//! nobody asked for them within the lease and room is needed.
//!
//! What always holds: a name means something in one instance only; the last writer wins; what is shown is whole.
//! Deliberately absent: listing, deleting, and any claim that the bytes follow from the name.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use gf_blobstore::{Accept, BlobRead, BlobStore, ByteRange, Encoding, EntryKey, EntryTable, StoreError};
use gf_digest::{Digest, DigestFunction};
use gf_tenancy::{ActionCacheRead, ActionCacheWrite, Authorized, InstancePermission};
use thiserror::Error;

use crate::Provenance;
use crate::action_cache::{now_ms, opaque};
use crate::content::{digest_of, owner, write_slices};

/// The digest function of the blobs, and of the names.
const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// A name that a client chose: parts joined by `/`, none of them empty.
#[derive(Clone, PartialEq, Eq)]
pub struct ValueName(String);

/// Why text is no name for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ValueNameError {
    /// Over [`ValueName::MAX_BYTES`].
    #[error("the name has {0} bytes; at most {max} are allowed", max = ValueName::MAX_BYTES)]
    TooLong(usize),
    /// Nothing at all, or nothing between two slashes, in front or behind.
    #[error("the name has an empty part")]
    EmptyPart,
    /// A control character.
    #[error("the name contains a control character")]
    ControlCharacter,
}

impl ValueName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`ValueNameError`] says which rule the name breaks.
    pub fn new(name: &str) -> Result<Self, ValueNameError> {
        if name.len() > Self::MAX_BYTES {
            return Err(ValueNameError::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(ValueNameError::ControlCharacter);
        }
        if name.split('/').any(str::is_empty) {
            return Err(ValueNameError::EmptyPart);
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn key<P: InstancePermission>(&self, grant: &Authorized<P>) -> EntryKey {
        let hash = *Digest::of(FUNCTION, self.0.as_bytes()).hash();
        EntryKey {
            table: EntryTable::NamedValue,
            owner: owner(grant),
            instance: grant.instance().clone(),
            digest: Digest::new(FUNCTION, hash, 0),
        }
    }
}

impl fmt::Debug for ValueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A value that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedValue {
    digest: Digest,
    /// When it was written, in milliseconds since 1970.
    pub written_ms: u64,
}

impl NamedValue {
    /// How many bytes it has.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.digest.size_bytes()
    }
}

/// The values of all tenants. Cheap to clone.
#[derive(Clone)]
pub struct NamedValues {
    store: Arc<dyn BlobStore>,
}

impl NamedValues {
    /// Keeps values in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn BlobStore>) -> Self {
        Self { store }
    }

    /// The value of this name, if it is here; from now on it stays for the lease.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the store cannot know.
    pub async fn find(
        &self,
        grant: &Authorized<ActionCacheRead>,
        name: &ValueName,
    ) -> Result<Option<NamedValue>, StoreError> {
        let key = name.key(grant);
        let Some(entry) = self.store.get_entry(&key).await? else { return Ok(None) };
        let Some(digest) = opaque::read(&entry) else { return Ok(None) };
        if !self.store.find_missing(key.owner, &[digest]).await?.is_empty() {
            return Ok(None);
        }
        let written_ms = opaque::provenance(&entry).map_or(0, |provenance| provenance.written_ms);
        Ok(Some(NamedValue { digest, written_ms }))
    }

    /// Opens a part of a value that was found.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it was lost meanwhile, [`StoreError::OutOfRange`] or [`StoreError::Io`].
    pub async fn read(
        &self,
        grant: &Authorized<ActionCacheRead>,
        value: &NamedValue,
        range: ByteRange,
    ) -> Result<BlobRead, StoreError> {
        self.store.read(owner(grant), value.digest, range, Accept::Identity).await
    }

    /// Keeps bytes under a name, in the place of what was there.
    ///
    /// # Errors
    /// [`StoreError`] of writing; what was there is still there then.
    pub async fn put(
        &self,
        grant: &Authorized<ActionCacheWrite>,
        name: &ValueName,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let key = name.key(grant);
        let digest = digest_of(FUNCTION, &bytes).await;
        write_slices(self.store.upload(key.owner, digest, Encoding::Identity).await?, bytes).await?;
        let provenance = Provenance::brought_by(grant.principal(), now_ms());
        self.store.put_entry(&key, opaque::write(digest, &provenance)).await
    }
}

#[cfg(test)]
mod tests {
    use gf_digest::InstanceName;
    use gf_tenancy::{Access, AccessConfig, Principal, TenantConfig, TenantName};
    use gf_testkit::MemoryBlobStore;

    use super::*;
    use crate::{ActionCache, ActionId};

    fn access() -> Access {
        let tenant = |name: &str, instances: &[&str]| TenantConfig {
            name: TenantName::new(name).unwrap(),
            instances: instances.iter().map(|name| InstanceName::new(name).unwrap()).collect(),
        };
        let tenants = vec![tenant("default", &["", "other"]), tenant("org-acme", &["acme"])];
        Access::new(AccessConfig { tenants, token: None, anonymous_read: true }).unwrap()
    }

    fn grant<P: InstancePermission>(access: &Access, instance: &str) -> Authorized<P> {
        access.authorize(Principal::Anonymous, &InstanceName::new(instance).unwrap()).unwrap()
    }

    async fn get(values: &NamedValues, access: &Access, instance: &str, name: &str) -> Option<Vec<u8>> {
        let found = values.find(&grant(access, instance), &ValueName::new(name).unwrap()).await.unwrap()?;
        let mut read = values.read(&grant(access, instance), &found, ByteRange::ALL).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = read.next().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
        assert_eq!(found.size_bytes(), bytes.len() as u64);
        assert!(found.written_ms > 0);
        Some(bytes)
    }

    #[tokio::test]
    async fn the_last_writer_of_a_name_wins_in_its_instance_alone() {
        let (values, access) = (NamedValues::new(Arc::new(MemoryBlobStore::default())), access());
        let name = ValueName::new("a/b/c/abc").unwrap();
        for bytes in ["first", "second", "first", ""] {
            values.put(&grant(&access, ""), &name, bytes.into()).await.unwrap();
            assert_eq!(get(&values, &access, "", name.as_str()).await.as_deref(), Some(bytes.as_bytes()));
        }
        for instance in ["other", "acme"] {
            assert_eq!(get(&values, &access, instance, name.as_str()).await, None);
        }
        assert_eq!(get(&values, &access, "", "a/b/c").await, None);
    }

    #[tokio::test]
    async fn a_value_is_no_action_result() {
        let store = Arc::new(MemoryBlobStore::default());
        let (values, access) = (NamedValues::new(store.clone()), access());
        let name = ValueName::new("a/b/c/abc").unwrap();
        values.put(&grant(&access, ""), &name, Bytes::from_static(b"x")).await.unwrap();
        let action =
            ActionId { function: FUNCTION, hash: *Digest::of(FUNCTION, b"a/b/c/abc").hash(), size_bytes: None };
        let results = ActionCache::new(store);
        assert!(results.get_opaque(&grant(&access, ""), action).await.is_err());
        results.put_opaque(&grant(&access, ""), action, Bytes::from_static(b"y")).await.unwrap();
        assert_eq!(get(&values, &access, "", name.as_str()).await.as_deref(), Some(&b"x"[..]));
    }

    #[tokio::test]
    async fn a_value_whose_bytes_are_lost_is_not_there() {
        let store = MemoryBlobStore::default();
        let (values, access) = (NamedValues::new(Arc::new(store.clone())), access());
        let (name, bytes) = (ValueName::new("a").unwrap(), Bytes::from_static(b"bytes"));
        values.put(&grant(&access, ""), &name, bytes.clone()).await.unwrap();
        let digest = Digest::of(FUNCTION, &bytes);
        store.evict(digest);
        assert_eq!(get(&values, &access, "", "a").await, None);
    }

    #[test]
    fn names() {
        let long = "a".repeat(ValueName::MAX_BYTES);
        for right in ["a", ".sccache_check", "a/b/c/abc", "ä b", &long] {
            assert_eq!(ValueName::new(right).unwrap().as_str(), right);
        }
        for (wrong, error) in [
            ("", ValueNameError::EmptyPart),
            ("/a", ValueNameError::EmptyPart),
            ("a//b", ValueNameError::EmptyPart),
            ("a/", ValueNameError::EmptyPart),
            ("a\n", ValueNameError::ControlCharacter),
            (&format!("{long}a"), ValueNameError::TooLong(ValueName::MAX_BYTES + 1)),
        ] {
            assert_eq!(ValueName::new(wrong), Err(error), "{wrong}");
        }
    }
}

//! One cache, and where caches are found by name.

mod settings_row;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use gf_blobstore::OwnerId;
use gf_database::{Database, Row, sql};
use gf_nix_formats::{CacheInfo, PublicKey, SecretKey};
use gf_tenancy::{NixScope, TenantName, Visibility};

use crate::{CacheError, CacheName, Settings};

pub(crate) use settings_row::SettingsRow;

/// How long what was read of a cache is believed: another server on the same database may change it.
const BELIEVED: Duration = Duration::from_secs(5);

/// The number of a cache. Never used again, so what is known of a cache that was destroyed is not believed of the next
/// one of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CacheId(pub(crate) i64);

/// A cache as it is set up now.
#[derive(Debug)]
pub struct Cache {
    pub(crate) id: CacheId,
    pub(crate) name: CacheName,
    pub(crate) tenant: TenantName,
    pub(crate) owner: OwnerId,
    pub(crate) key: SecretKey,
    pub(crate) settings: Settings,
}

impl Cache {
    /// The name.
    #[must_use]
    pub const fn name(&self) -> &CacheName {
        &self.name
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> &TenantName {
        &self.tenant
    }

    /// The cache as the policy sees it.
    #[must_use]
    pub fn scope(&self) -> NixScope<'_> {
        let Self { name, tenant, settings, .. } = self;
        NixScope::Existing { name: name.as_str(), tenant, visibility: settings.visibility }
    }

    /// Whether everybody may read it.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.settings.visibility == Visibility::Public
    }

    /// How it is set up.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What clients put into `trusted-public-keys`.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.key.public()
    }

    /// What `nix-cache-info` says.
    #[must_use]
    pub fn info(&self) -> CacheInfo {
        let Settings { store_dir, priority, .. } = &self.settings;
        CacheInfo { store_dir: store_dir.clone(), want_mass_query: true, priority: *priority }
    }

    /// Reads a row with all columns of `nix_caches`.
    pub(crate) fn read(row: &Row) -> Result<Self, CacheError> {
        let what = "a cache";
        let number = u32::try_from(row.get::<i64>("owner")?).map_err(|error| CacheError::row(what, error))?;
        let (name, tenant) = (row.get::<String>("name")?, row.get::<String>("tenant")?);
        Ok(Self {
            id: CacheId(row.get("id")?),
            name: CacheName::new(&name).map_err(|error| CacheError::row(what, error))?,
            tenant: TenantName::new(&tenant).map_err(|error| CacheError::row(what, error))?,
            owner: OwnerId(number),
            key: SecretKey::parse(&row.get::<String>("signing_key")?).map_err(|error| CacheError::row(what, error))?,
            settings: SettingsRow::parse(&row.get::<String>("settings")?)?,
        })
    }
}

/// A cache, and when it was read.
type Known = (Instant, Arc<Cache>);

/// Caches by name, read lately.
#[derive(Default)]
pub(crate) struct Registry {
    known: RwLock<HashMap<Arc<str>, Known>>,
}

impl Registry {
    /// The cache of this name.
    pub(crate) async fn find(&self, database: &Database, name: &str) -> Result<Option<Arc<Cache>>, CacheError> {
        if let Some((read, cache)) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name)
            && read.elapsed() < BELIEVED
        {
            return Ok(Some(Arc::clone(cache)));
        }
        let began = Instant::now();
        let statement = sql("SELECT * FROM nix_caches WHERE name = $1");
        let Some(row) = database.first(statement.bind(name)).await? else {
            self.forget(name);
            return Ok(None);
        };
        let cache = Arc::new(Cache::read(&row)?);
        // Nothing panics under the lock, and a map is whole between two of its calls.
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.into(), (began, Arc::clone(&cache)));
        Ok(Some(cache))
    }

    /// Reads the cache anew when it is asked for next.
    pub(crate) fn forget(&self, name: &str) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

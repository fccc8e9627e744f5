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

/// All caches by name, as they were read at one moment; `None` where a row cannot be read.
type Known = HashMap<Box<str>, Option<Arc<Cache>>>;

/// Where caches are found by name. All of them are read at once: a name that is there and one that is not are looked up in
/// the same table, so that the time it takes tells nobody which it was.
#[derive(Default)]
pub(crate) struct Registry {
    known: RwLock<Reading>,
    /// One reads, and the others wait for that.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Reading {
    last: Option<(Instant, Arc<Known>)>,
    /// How often it was declared out of date. What began to be read before that is not kept.
    changes: u64,
}

impl Registry {
    /// The cache of this name.
    pub(crate) async fn find(&self, database: &Database, name: &str) -> Result<Option<Arc<Cache>>, CacheError> {
        let known = match self.fresh() {
            Some(known) => known,
            None => self.read(database).await?,
        };
        match known.get(name) {
            None => Ok(None),
            Some(Some(cache)) => Ok(Some(Arc::clone(cache))),
            // Once more, for what is wrong with it.
            Some(None) => {
                let row = database.first(sql("SELECT * FROM nix_caches WHERE name = $1").bind(name)).await?;
                row.map(|row| Cache::read(&row).map(Arc::new)).transpose()
            }
        }
    }

    /// Reads all anew when one is asked for next.
    pub(crate) fn forget(&self) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.last = None;
        known.changes += 1;
    }

    fn fresh(&self) -> Option<Arc<Known>> {
        // Nothing panics under the lock.
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.last.as_ref().filter(|(read, _)| read.elapsed() < BELIEVED).map(|(_, known)| Arc::clone(known))
    }

    async fn read(&self, database: &Database) -> Result<Arc<Known>, CacheError> {
        let _one_at_a_time = self.reading.lock().await;
        if let Some(known) = self.fresh() {
            return Ok(known);
        }
        let (began, changes) = (Instant::now(), self.changes());
        let mut known = Known::new();
        for row in database.all(sql("SELECT * FROM nix_caches")).await? {
            known.insert(row.get::<String>("name")?.into(), Cache::read(&row).ok().map(Arc::new));
        }
        let known = Arc::new(known);
        let mut kept = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if kept.changes == changes {
            kept.last = Some((began, Arc::clone(&known)));
        }
        Ok(known)
    }

    fn changes(&self) -> u64 {
        self.known.read().unwrap_or_else(PoisonError::into_inner).changes
    }
}

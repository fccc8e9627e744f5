//! Making caches, changing and showing them.

use std::sync::Arc;

use gf_blobstore::OwnerId;
use gf_database::{sql, work};
use gf_nix_formats::{KeyName, SecretKey};
use gf_tenancy::{
    Authorized, NixConfigureCache, NixConfigureRetention, NixCreateCache, NixDestroyCache, NixPermission, NixPull,
    NoRandomness, Tenant, TenantName, Visibility,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::NixCaches;
use crate::cache::{Cache, CacheId, SettingsRow};
use crate::rows::{signed, unsigned};
use crate::settings::RetentionChange;
use crate::{CacheError, CacheName, Settings, SettingsChange, UpstreamSettings};

/// The cache that a fresh server has.
const MAIN: &str = "main";

/// All of them are in memory, and a collection looks at each.
const MAX_CACHES: usize = 10_000;

/// The signing key of a cache.
#[derive(Debug)]
pub enum NewKey {
    /// A new one, named after the cache and a random number: clients know keys by name, and two servers may both have a
    /// cache `main`.
    Generate,
    /// This one.
    Given(SecretKey),
}

/// A cache to be made.
#[derive(Debug)]
pub struct NewCache {
    /// What it signs with.
    pub key: NewKey,
    /// Everything else.
    pub settings: Settings,
}

/// A cache and what is in it.
#[derive(Clone, Debug)]
pub struct CacheReport {
    /// The cache.
    pub cache: Arc<Cache>,
    /// Paths that clients see.
    pub paths: u64,
    /// Bytes of their archives, uncompressed.
    pub nar_bytes: u64,
    /// Paths that were uploaded and wait for others that they refer to.
    pub waiting_paths: u64,
    /// Pins.
    pub pins: u64,
    /// What came from where.
    pub upstreams: Vec<UpstreamReport>,
}

/// What a cache has from one upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamReport {
    /// Where it is.
    pub url: String,
    /// Paths that were asked for here and found there.
    pub paths: u64,
    /// Bytes of their archives, uncompressed.
    pub nar_bytes: u64,
}

impl NixCaches {
    /// Makes the public cache `main`, which gives toolchains, unless there is any cache already.
    ///
    /// # Errors
    /// [`CacheError::Database`], or [`CacheError::NoRandomness`].
    pub async fn ensure_main(&self, tenant: &Tenant) -> Result<(), CacheError> {
        if self.shared.database.first(sql("SELECT id FROM nix_caches LIMIT 1")).await?.is_some() {
            return Ok(());
        }
        let settings = Settings { visibility: Visibility::Public, gives_toolchains: true, ..Settings::default() };
        match self.insert(tenant, MAIN, NewCache { key: NewKey::Generate, settings }).await {
            // Another server on the same database was quicker.
            Err(CacheError::Exists(_)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The cache of this name, whosever it is: for the edge, which has to know whose it is and whether it is public
    /// before it can authorize. What it says must not reach who may not see the cache.
    ///
    /// # Errors
    /// [`CacheError::Database`] when that cannot be known.
    pub async fn resolve(&self, name: &CacheName) -> Result<Option<Arc<Cache>>, CacheError> {
        self.shared.registry.find(&self.shared.database, name.as_str()).await
    }

    /// Makes the cache that the grant names, for its tenant.
    ///
    /// # Errors
    /// [`CacheError::Name`]; [`CacheError::Exists`], whosever the other is; [`CacheError::Setting`].
    pub async fn create(&self, grant: &Authorized<NixCreateCache>, cache: NewCache) -> Result<Arc<Cache>, CacheError> {
        check(&cache.settings)?;
        self.check_places(&cache.settings.upstreams)?;
        self.insert(grant.tenant(), grant.cache(), cache).await
    }

    /// Changes settings, or the signing key. Paths that were signed with an older key keep those signatures, and are
    /// signed with the new one too.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`] or [`CacheError::Setting`].
    pub async fn configure(
        &self,
        grant: &Authorized<NixConfigureCache>,
        change: SettingsChange,
        key: Option<NewKey>,
    ) -> Result<Arc<Cache>, CacheError> {
        self.check_places(change.upstreams.as_deref().unwrap_or_default())?;
        let key = key.map(|key| make_key(grant.cache(), key)).transpose()?;
        self.change(grant, key, |settings| change.clone().apply(settings)).await
    }

    /// Changes how long unused paths stay.
    ///
    /// # Errors
    /// As [`Self::configure`].
    pub async fn configure_retention(
        &self,
        grant: &Authorized<NixConfigureRetention>,
        change: RetentionChange,
    ) -> Result<Arc<Cache>, CacheError> {
        self.change(grant, None, |settings| change.apply(settings)).await
    }

    /// What an upstream is called by name is looked up when it is asked; an address is refused at once.
    fn check_places(&self, upstreams: &[UpstreamSettings]) -> Result<(), CacheError> {
        for upstream in upstreams {
            self.shared.upstreams.check(&upstream.url).map_err(|reason| {
                CacheError::Setting(format!(
                    "`{}` cannot be an upstream: {reason}; `upstream_networks` in the section [nix] of gf.toml names them",
                    upstream.url
                ))
            })?;
        }
        Ok(())
    }

    /// Removes a cache with all its paths. Archives that no other cache of the tenant needs go with the next collection.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn destroy(&self, grant: &Authorized<NixDestroyCache>) -> Result<(), CacheError> {
        let cache = self.cache(grant).await?;
        let removed =
            self.shared.database.execute(sql("DELETE FROM nix_caches WHERE id = $1").bind(cache.id.0)).await?;
        self.shared.registry.forget();
        self.shared.rendered.forget_all();
        if removed == 0 { Err(CacheError::NoSuchCache(grant.cache().to_owned())) } else { Ok(()) }
    }

    /// All caches of all tenants, by name: for the edge, which shows a caller those that it may pull from.
    ///
    /// # Errors
    /// [`CacheError::Database`].
    pub async fn all(&self) -> Result<Vec<Arc<Cache>>, CacheError> {
        let rows = self.shared.database.all(sql("SELECT * FROM nix_caches ORDER BY name")).await?;
        rows.iter().map(|row| Cache::read(row).map(Arc::new)).collect()
    }

    /// A cache, and what is in it.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn show(&self, grant: &Authorized<NixPull>) -> Result<CacheReport, CacheError> {
        let cache = self.cache(grant).await?;
        let count = "SELECT CAST(CASE waiting WHEN 0 THEN 1 ELSE 0 END AS BIGINT) AS visible, upstream, COUNT(*) AS paths, \
                     CAST(SUM(nar_size) AS BIGINT) AS bytes FROM nix_paths WHERE cache = $1 GROUP BY 1, 2 ORDER BY 2";
        let pins = "SELECT COUNT(*) AS pins FROM nix_pins WHERE cache = $1";
        let pins = self.shared.database.first(sql(pins).bind(cache.id.0)).await?;
        let pins = pins.map(|row| unsigned(&row, "pins")).transpose()?.unwrap_or(0);
        let mut report = CacheReport {
            pins,
            paths: 0,
            nar_bytes: 0,
            waiting_paths: 0,
            upstreams: Vec::new(),
            cache: Arc::clone(&cache),
        };
        for row in self.shared.database.all(sql(count).bind(cache.id.0)).await? {
            let (paths, nar_bytes) = (unsigned(&row, "paths")?, unsigned(&row, "bytes")?);
            if !row.flag("visible")? {
                report.waiting_paths += paths;
                continue;
            }
            report.paths += paths;
            report.nar_bytes += nar_bytes;
            if let Some(url) = row.get("upstream")? {
                report.upstreams.push(UpstreamReport { url, paths, nar_bytes });
            }
        }
        Ok(report)
    }

    /// The cache that a grant names, if it is still one of the tenant's.
    pub(super) async fn cache<P: NixPermission>(&self, grant: &Authorized<P>) -> Result<Arc<Cache>, CacheError> {
        let name = grant.cache();
        match self.shared.registry.find(&self.shared.database, name).await? {
            Some(cache) if cache.tenant == *grant.tenant().name() => Ok(cache),
            _ => Err(CacheError::NoSuchCache(name.to_owned())),
        }
    }

    /// The caches of a tenant whose paths its actions may name as tools.
    ///
    /// # Errors
    /// [`CacheError::Database`].
    pub async fn giving_toolchains(&self, tenant: &TenantName) -> Result<Vec<Arc<Cache>>, CacheError> {
        let mut caches = self.caches_of(tenant.as_str()).await?;
        caches.retain(|cache| cache.settings.gives_toolchains);
        Ok(caches)
    }

    async fn caches_of(&self, tenant: &str) -> Result<Vec<Arc<Cache>>, CacheError> {
        let statement = sql("SELECT * FROM nix_caches WHERE tenant = $1 ORDER BY name").bind(tenant);
        let rows = self.shared.database.all(statement).await?;
        rows.iter().map(|row| Cache::read(row).map(Arc::new)).collect()
    }

    async fn insert(&self, tenant: &Tenant, name: &str, cache: NewCache) -> Result<Arc<Cache>, CacheError> {
        let NewCache { key, settings } = cache;
        let name = CacheName::new(name).map_err(|error| CacheError::Name(error.to_string()))?;
        let key = make_key(name.as_str(), key)?;
        self.check_number().await?;
        let id = i64::from_le_bytes(random()?) & i64::MAX;
        let owner = OwnerId(tenant.id().number());
        let insert = "INSERT INTO nix_caches (id, name, tenant, owner, signing_key, settings, created_s) \
                      VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let insert = sql(insert)
            .bind(id)
            .bind(name.as_str())
            .bind(tenant.name().as_str())
            .bind(owner.0)
            .bind(key.reveal())
            .bind(SettingsRow::format(&settings))
            .bind(signed(self.shared.time.now_s()));
        match self.shared.database.execute(insert).await {
            Err(error) if error.is_conflict() => Err(CacheError::Exists(name)),
            Err(error) => Err(error.into()),
            Ok(_) => {
                self.shared.registry.forget();
                Ok(Arc::new(Cache { id: CacheId(id), name, tenant: tenant.name().clone(), owner, key, settings }))
            }
        }
    }

    /// Refuses another cache where there are as many as may be; those that are made at the same time may be a few more.
    async fn check_number(&self) -> Result<(), CacheError> {
        let row = self.shared.database.first(sql("SELECT COUNT(*) AS caches FROM nix_caches")).await?;
        let caches: i64 = row.map_or(Ok(0), |row| row.get("caches"))?;
        if usize::try_from(caches).is_ok_and(|caches| caches >= MAX_CACHES) {
            return Err(CacheError::Setting(format!(
                "there are {MAX_CACHES} caches, which is the most: destroy one first"
            )));
        }
        Ok(())
    }

    async fn change<P: NixPermission>(
        &self,
        grant: &Authorized<P>,
        key: Option<SecretKey>,
        apply: impl Fn(&mut Settings) + Send + Sync,
    ) -> Result<Arc<Cache>, CacheError> {
        let id = self.cache(grant).await?.id;
        let (key, apply) = (&key.map(|key| key.reveal()), &apply);
        self.shared
            .database
            .write(|transaction| {
                work(async move {
                    let row = transaction.first(sql("SELECT * FROM nix_caches WHERE id = $1").bind(id.0)).await?;
                    let row = row.ok_or_else(|| CacheError::NoSuchCache(grant.cache().to_owned()))?;
                    let mut settings = Cache::read(&row)?.settings;
                    apply(&mut settings);
                    check(&settings)?;
                    let update =
                        "UPDATE nix_caches SET settings = $2, signing_key = COALESCE($3, signing_key) WHERE id = $1";
                    let update = sql(update).bind(id.0).bind(SettingsRow::format(&settings)).bind(key.clone());
                    transaction.execute(update).await?;
                    Ok::<_, CacheError>(())
                })
            })
            .await?;
        self.shared.registry.forget();
        self.shared.rendered.forget_all();
        self.cache(grant).await
    }
}

fn make_key(cache: &str, key: NewKey) -> Result<SecretKey, CacheError> {
    match key {
        NewKey::Given(key) => Ok(key),
        NewKey::Generate => {
            let name = KeyName::new(&format!("{cache}-{}", hex::encode(random::<4>()?)))?;
            Ok(SecretKey::from_seed(name, random()?)?)
        }
    }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// What no cache may be set to.
fn check(settings: &Settings) -> Result<(), CacheError> {
    let wrong = |text: String| Err(CacheError::Setting(text));
    if settings.upstreams.len() > Settings::MAX_UPSTREAMS {
        return wrong(format!("a cache has at most {} upstreams", Settings::MAX_UPSTREAMS));
    }
    if settings.upstream_key_names.len() > Settings::MAX_KEY_NAMES {
        return wrong(format!("a cache has at most {} names of keys of upstreams", Settings::MAX_KEY_NAMES));
    }
    for upstream in &settings.upstreams {
        let uri: Option<http::Uri> = upstream.url.parse().ok();
        let is_good = uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        if !is_good {
            return wrong(format!("`{}` is not the URL of an upstream: use http://… or https://…", upstream.url));
        }
    }
    if settings.retention == (crate::Retention::Unused { period_s: 0 }) {
        return wrong("a retention period is above 0; to keep paths for ever, set none".to_owned());
    }
    Ok(())
}

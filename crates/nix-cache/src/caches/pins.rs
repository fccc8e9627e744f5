//! Pins: names for paths that stay, with all that they refer to.

use gf_database::sql;
use gf_nix_formats::StorePath;
use gf_tenancy::{Authorized, NixPull, NixPush};

use super::NixCaches;
use crate::CacheError;
use crate::rows::{signed, unsigned};

/// A name for a path that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The name: 1 to 128 visible characters of ASCII.
    pub name: String,
    /// The path. It need not be here yet.
    pub path: StorePath,
    /// When the pin was set or moved, in seconds since 1970.
    pub created_s: u64,
    /// When it ends by itself, in seconds since 1970.
    pub until_s: Option<u64>,
}

/// The longest name of a pin, in bytes.
const MAX_NAME_LENGTH: usize = 128;

/// The most pins of one cache.
const MAX_PINS: u64 = 10_000;

impl NixCaches {
    /// Pins a path, or moves the pin of this name to it. `until_s` is when it ends by itself.
    ///
    /// # Errors
    /// [`CacheError::Name`], [`CacheError::Setting`] when there are too many, or [`CacheError::NoSuchCache`].
    pub async fn pin(
        &self,
        grant: &Authorized<NixPush>,
        name: &str,
        path: &StorePath,
        until_s: Option<u64>,
    ) -> Result<(), CacheError> {
        let id = self.cache(grant).await?.id;
        if !(1..=MAX_NAME_LENGTH).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = format!("a pin is called by 1 to {MAX_NAME_LENGTH} visible characters of ASCII");
            return Err(CacheError::Name(text));
        }
        let upsert = "INSERT INTO nix_pins (cache, name, path, created_s, until_s) SELECT $1, $2, $3, $4, $5 \
                      WHERE (SELECT COUNT(*) FROM nix_pins WHERE cache = $1) < $6 \
                      OR EXISTS (SELECT 1 FROM nix_pins WHERE cache = $1 AND name = $2) \
                      ON CONFLICT (cache, name) DO UPDATE SET path = excluded.path, created_s = excluded.created_s, \
                      until_s = excluded.until_s";
        let upsert = sql(upsert)
            .bind(id.0)
            .bind(name)
            .bind(path.as_str())
            .bind(signed(self.shared.time.now_s()))
            .bind(until_s.map(signed))
            .bind(signed(MAX_PINS));
        match self.shared.database.execute(upsert).await? {
            0 => Err(CacheError::Setting(format!("a cache has at most {MAX_PINS} pins; remove some first"))),
            _ => Ok(()),
        }
    }

    /// Removes a pin; whether there was one.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn unpin(&self, grant: &Authorized<NixPush>, name: &str) -> Result<bool, CacheError> {
        let id = self.cache(grant).await?.id;
        let delete = sql("DELETE FROM nix_pins WHERE cache = $1 AND name = $2").bind(id.0).bind(name);
        Ok(self.shared.database.execute(delete).await? > 0)
    }

    /// All pins, by name.
    ///
    /// # Errors
    /// [`CacheError::NoSuchCache`].
    pub async fn pins(&self, grant: &Authorized<NixPull>) -> Result<Vec<Pin>, CacheError> {
        let id = self.cache(grant).await?.id;
        self.pins_of(id).await
    }

    pub(super) async fn pins_of(&self, cache: crate::cache::CacheId) -> Result<Vec<Pin>, CacheError> {
        let statement = sql("SELECT * FROM nix_pins WHERE cache = $1 ORDER BY name").bind(cache.0);
        let read = |row: &gf_database::Row| {
            let path: String = row.get("path")?;
            let until_s: Option<i64> = row.get("until_s")?;
            Ok(Pin {
                name: row.get("name")?,
                path: StorePath::parse(&path).map_err(|error| CacheError::row("a pin", error))?,
                created_s: unsigned(row, "created_s")?,
                until_s: until_s.map(|until_s| u64::try_from(until_s).unwrap_or(0)),
            })
        };
        self.shared.database.all(statement).await?.iter().map(read).collect()
    }
}

impl Pin {
    pub(super) fn holds_at(&self, now_s: u64) -> bool {
        self.until_s.is_none_or(|until_s| now_s < until_s)
    }
}

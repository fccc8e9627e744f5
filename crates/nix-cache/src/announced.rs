//! What clients are about to upload: the paths that they asked for and were told are missing.
//!
//! Only a cache with upstreams that it knows by the names of their keys alone needs it: what a client of such a cache
//! refers to and did not announce was left out by it, because an upstream has it. That is a claim of the client, so it
//! counts only where the client is known to have asked: for the path itself, too.
//!
//! What always holds: an announcement is durable before its client is answered. One that ended makes nothing visible.

use std::collections::BTreeSet;

use gf_database::{Database, DatabaseError, Statement, places, sql, work};
use gf_nix_formats::StorePathHash;

use crate::CacheError;
use crate::cache::CacheId;
use crate::rows::{signed, unsigned};

/// How long an announcement counts, in seconds: as long as a push may take between asking and the last path.
pub(crate) const ANNOUNCED_S: u64 = 24 * 60 * 60;

/// The most of one cache.
const MAX_ANNOUNCED: usize = 1_000_000;

/// Values of one statement.
const AT_ONCE: usize = 500;

/// Announcements that go in one round, once they ended.
const FORGOTTEN_AT_ONCE: i64 = 20_000;

/// Takes note of what a client is about to upload.
pub(crate) async fn announce(
    database: &Database,
    cache: CacheId,
    paths: &[StorePathHash],
    now_s: u64,
) -> Result<(), CacheError> {
    if paths.is_empty() {
        return Ok(());
    }
    let count = sql("SELECT COUNT(*) AS announced FROM nix_announced WHERE cache = $1").bind(cache.0);
    let count = database.first(count).await?.map(|row| unsigned(&row, "announced")).transpose()?.unwrap_or(0);
    if usize::try_from(count).unwrap_or(usize::MAX).saturating_add(paths.len()) > MAX_ANNOUNCED {
        return Err(CacheError::TooLarge { what: "what was announced", limit: MAX_ANNOUNCED, unit: "paths" });
    }
    let until_s = now_s.saturating_add(ANNOUNCED_S);
    // All in one commit, and none waits for the disk by itself.
    database
        .write(|transaction| {
            work(async move {
                for some in paths.chunks(AT_ONCE) {
                    transaction.execute(insert(cache, some, until_s)).await?;
                }
                Ok(())
            })
        })
        .await
}

fn insert(cache: CacheId, paths: &[StorePathHash], until_s: u64) -> Statement {
    let values: Vec<String> = (0..paths.len()).map(|at| format!("($1, ${}, $2)", at + 3)).collect();
    let text = format!(
        "INSERT INTO nix_announced (cache, path, until_s) VALUES {} \
         ON CONFLICT (cache, path) DO UPDATE SET until_s = excluded.until_s",
        values.join(", ")
    );
    sql(text).bind(cache.0).bind(signed(until_s)).bind_all(paths.iter().map(ToString::to_string))
}

/// Those of some paths that are announced now.
pub(crate) async fn announced(
    database: &Database,
    cache: CacheId,
    paths: &BTreeSet<StorePathHash>,
    now_s: u64,
) -> Result<BTreeSet<StorePathHash>, CacheError> {
    let paths: Vec<StorePathHash> = paths.iter().copied().collect();
    let mut found = BTreeSet::new();
    for some in paths.chunks(AT_ONCE) {
        let text = format!(
            "SELECT path FROM nix_announced WHERE cache = $1 AND until_s > $2 AND path IN ({})",
            places(3, some.len())
        );
        let asked = sql(text).bind(cache.0).bind(signed(now_s)).bind_all(some.iter().map(ToString::to_string));
        for row in database.all(asked).await? {
            let path: String = row.get("path")?;
            found.insert(StorePathHash::parse(&path).map_err(|error| CacheError::row("an announcement", error))?);
        }
    }
    Ok(found)
}

/// Removes the announcement of a path that is here now.
pub(crate) fn fulfil(cache: CacheId, path: StorePathHash) -> Statement {
    sql("DELETE FROM nix_announced WHERE cache = $1 AND path = $2").bind(cache.0).bind(path.to_string())
}

/// Removes what ended.
pub(crate) async fn forget_ended(database: &Database, now_s: u64) -> Result<(), DatabaseError> {
    let ended = "DELETE FROM nix_announced WHERE (cache, path) IN \
                 (SELECT cache, path FROM nix_announced WHERE until_s <= $1 LIMIT $2)";
    database.execute(sql(ended).bind(signed(now_s)).bind(FORGOTTEN_AT_ONCE)).await?;
    Ok(())
}

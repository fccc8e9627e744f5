//! What Nix on this machine remembers of a cache: the most common reason why a path that is there is not found.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use gf_nix_formats::StorePathHash;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Row};

/// How long Nix believes that something is missing, unless told otherwise.
pub(super) const NEGATIVE_TTL_SECONDS: u64 = 3600;

/// What was heard, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) is_present: bool,
    pub(super) age_seconds: u64,
}

/// What is remembered of a path in the cache at `url`. What cannot be read is as if it were not there: it is Nix's own, and
/// its form has changed before.
pub(super) async fn remembered(url: &str, path: StorePathHash) -> Option<Remembered> {
    let mut newest = None;
    for file in files(&folder()?) {
        let found = ask(&file, url, path).await.ok().flatten();
        newest = newest.max(found);
    }
    let (timestamp, is_present) = newest?;
    let now = UNIX_EPOCH.elapsed().ok()?.as_secs();
    Some(Remembered { is_present, age_seconds: now.saturating_sub(timestamp) })
}

async fn ask(file: &Path, url: &str, path: StorePathHash) -> sqlx::Result<Option<(u64, bool)>> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut connection = options.connect().await?;
    let question = "SELECT present, n.timestamp AS timestamp FROM NARs n JOIN BinaryCaches c ON n.cache = c.id \
                    WHERE rtrim(c.url, '/') = rtrim($1, '/') AND n.hashPart = $2";
    let row = sqlx::query(question).bind(url).bind(path.to_string()).fetch_optional(&mut connection).await?;
    let Some(row) = row else { return Ok(None) };
    let (present, timestamp): (i64, i64) = (row.try_get("present")?, row.try_get("timestamp")?);
    Ok(Some((u64::try_from(timestamp).unwrap_or_default(), present != 0)))
}

fn folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    Some(cache?.join("nix"))
}

/// Every version of Nix that remembers in its own way has a file of its own.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("binary-cache-v") && name.ends_with(".sqlite")
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_miss_is_found_in_a_file_of_nix() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("binary-cache-v6.sqlite");
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        let hash = "0".repeat(32);
        let script = format!(
            "CREATE TABLE BinaryCaches (id INTEGER PRIMARY KEY, url TEXT, timestamp INTEGER);
             CREATE TABLE NARs (cache INTEGER, hashPart TEXT, timestamp INTEGER, present INTEGER);
             INSERT INTO BinaryCaches VALUES (7, 'http://host/nix/main', 1);
             INSERT INTO NARs VALUES (7, '{hash}', 1234, 0);"
        );
        sqlx::raw_sql(&script).execute(&mut connection).await.unwrap();
        let path = StorePathHash::parse(&hash).unwrap();
        assert_eq!(files(folder.path()), std::slice::from_ref(&file));
        assert_eq!(ask(&file, "http://host/nix/main/", path).await.unwrap(), Some((1234, false)));
        assert_eq!(ask(&file, "http://host/nix/other", path).await.unwrap(), None);
        assert!(ask(&folder.path().join("binary-cache-v9.sqlite"), "x", path).await.is_err());
    }
}

//! What clients read, counted in memory and written down in batches.
//!
//! A read never waits for the database. What was counted since the last batch is lost with a killed process, which
//! shortens the life of a path by as much as the batches are apart, and no more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gf_database::{Database, DatabaseError, Statement, sql};
use gf_nix_formats::{NarHash, StorePathHash};

use crate::cache::CacheId;
use crate::rows::signed;

/// Rows that one statement changes. Each takes two of the values that a statement may have.
const BATCH: usize = 500;

/// How often something was read since it was written down last.
pub(crate) struct UseCount {
    cache: CacheId,
    path: StorePathHash,
    served: AtomicU64,
}

/// What was read since the last batch. As large as the number of different things that were read since.
#[derive(Default)]
pub(crate) struct Uses {
    narinfos: Mutex<Vec<Arc<UseCount>>>,
    archives: Mutex<HashMap<(CacheId, NarHash), u64>>,
}

impl UseCount {
    pub(crate) const fn new(cache: CacheId, path: StorePathHash) -> Self {
        Self { cache, path, served: AtomicU64::new(0) }
    }
}

impl Uses {
    /// Counts a narinfo that is served. Takes a lock only the first time after a batch.
    pub(crate) fn narinfo_served(&self, count: &Arc<UseCount>) {
        if count.served.fetch_add(1, Ordering::Relaxed) == 0 {
            self.narinfos.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(count));
        }
    }

    /// Counts an archive that is read.
    pub(crate) fn archive_read(&self, cache: CacheId, archive: NarHash) {
        *self.archives.lock().unwrap_or_else(PoisonError::into_inner).entry((cache, archive)).or_default() += 1;
    }

    /// Writes down what was read. What could not be written is counted again.
    pub(crate) async fn write_down(&self, database: &Database, now_s: u64) -> Result<(), DatabaseError> {
        let narinfos = std::mem::take(&mut *self.narinfos.lock().unwrap_or_else(PoisonError::into_inner));
        let archives = std::mem::take(&mut *self.archives.lock().unwrap_or_else(PoisonError::into_inner));
        let mut by_cache: HashMap<CacheId, Vec<(String, u64)>> = HashMap::new();
        let mut taken = Vec::with_capacity(narinfos.len());
        for count in narinfos {
            let served = count.served.swap(0, Ordering::Relaxed);
            by_cache.entry(count.cache).or_default().push((count.path.to_string(), served));
            taken.push((count, served));
        }
        let mut statements = update_all(NARINFOS, by_cache, now_s);
        let mut by_cache: HashMap<CacheId, Vec<(String, u64)>> = HashMap::new();
        for ((cache, archive), read) in &archives {
            by_cache.entry(*cache).or_default().push((archive.base32(), *read));
        }
        statements.extend(update_all(ARCHIVES, by_cache, now_s));
        let result = run(database, statements).await;
        if result.is_err() {
            self.count_again(taken, archives);
        }
        result
    }

    fn count_again(&self, narinfos: Vec<(Arc<UseCount>, u64)>, archives: HashMap<(CacheId, NarHash), u64>) {
        let mut waiting = self.narinfos.lock().unwrap_or_else(PoisonError::into_inner);
        for (count, served) in narinfos {
            if count.served.fetch_add(served, Ordering::Relaxed) == 0 {
                waiting.push(count);
            }
        }
        let mut counts = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, read) in archives {
            *counts.entry(key).or_default() += read;
        }
    }
}

/// What a batch does; the places 1 and 2 are the cache and the time, and pairs of a key and a number follow.
const NARINFOS: &str = "UPDATE nix_paths SET narinfos_served = narinfos_served + uses.column2, served_s = $2, used_s = $2 \
                        FROM (VALUES PAIRS) AS uses WHERE cache = $1 AND hash = uses.column1";
const ARCHIVES: &str = "UPDATE nix_paths SET archives_read = archives_read + uses.column2, used_s = $2 \
                        FROM (VALUES PAIRS) AS uses WHERE cache = $1 AND nar_hash = uses.column1";

fn update_all(text: &str, uses: HashMap<CacheId, Vec<(String, u64)>>, now_s: u64) -> Vec<Statement> {
    let batches = uses.iter().flat_map(|(cache, uses)| uses.chunks(BATCH).map(move |batch| (*cache, batch)));
    let update = |(cache, batch): (CacheId, &[(String, u64)])| {
        let pair = |at: usize| format!("(CAST(${} AS TEXT), CAST(${} AS BIGINT))", 2 * at + 3, 2 * at + 4);
        let pairs: Vec<String> = (0..batch.len()).map(pair).collect();
        let statement = sql(text.replace("PAIRS", &pairs.join(", "))).bind(cache.0).bind(signed(now_s));
        batch.iter().fold(statement, |statement, (key, number)| statement.bind(key.as_str()).bind(signed(*number)))
    };
    batches.map(update).collect()
}

/// Each batch is a transaction of its own, so that nobody waits long. The time of a use that is counted twice after a
/// failure is right; the number is not, which nothing depends on.
async fn run(database: &Database, statements: Vec<Statement>) -> Result<(), DatabaseError> {
    for statement in statements {
        database.execute(statement).await?;
    }
    Ok(())
}

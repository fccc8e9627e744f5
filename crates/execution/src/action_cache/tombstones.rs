//! Action results that somebody removed on purpose: hidden at once, and not taken again until their quarantine is over.
//!
//! What always holds: a tombstone is durable before its result goes, and every look-up and every write asks for it, so that
//! a result that was removed is not seen again, whatever is killed when. All tombstones that count are in memory: asking
//! costs no more than a look at a number while there is none.
//!
//! Deliberately absent: what other processes write into the same database meanwhile. The store is one process's own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use gf_blobstore::{EntryKey, EntryTable, OwnerId, TimeSource};
use gf_database::{Database, DatabaseError, Migration, Migrations, Row, sql};
use gf_digest::{Digest, DigestFunction, InstanceName};

/// What the database must be opened with.
pub const MIGRATIONS: Migrations = Migrations {
    service: "execution",
    steps: &[Migration {
        name: "removed action results",
        forward: "
            -- `owner` is the number of the tenant in the store. Counts until `until_s`.
            CREATE TABLE execution_tombstone (
                owner BIGINT NOT NULL,
                instance {text} NOT NULL,
                function BIGINT NOT NULL,
                hash {bytes} NOT NULL,
                removed_s BIGINT NOT NULL,
                until_s BIGINT NOT NULL,
                removed_by {text} NOT NULL,
                reason {text} NOT NULL,
                PRIMARY KEY (owner, instance, function, hash)
            );",
        back: "DROP TABLE execution_tombstone;",
    }],
};

/// Tombstones that count at one time.
const MAX_TOMBSTONES: usize = 100_000;

/// Why an action has no result, and may have none for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// When the result was removed, in seconds since 1970.
    pub removed_s: u64,
    /// Until when none is taken, in seconds since 1970.
    pub until_s: u64,
    /// Who removed it.
    pub removed_by: String,
    /// Why, in their words.
    pub reason: String,
}

/// The tombstones of a server.
pub(super) struct Tombstones {
    /// `None` keeps none: then nothing can be removed.
    database: Option<Database>,
    time: Arc<dyn TimeSource>,
    marks: RwLock<HashMap<EntryKey, Tombstone>>,
    count: AtomicUsize,
}

/// Why no tombstone was set.
#[derive(Debug, thiserror::Error)]
pub enum TombstoneError {
    /// There are too many already.
    #[error("{MAX_TOMBSTONES} action results are in quarantine already; wait for some to leave it")]
    TooMany,
    /// There is nothing to keep it in.
    #[error("this server keeps no tombstones")]
    NotKept,
    /// It could not be written down, and the result was not removed.
    #[error("the tombstone cannot be written: {0}")]
    Database(#[from] DatabaseError),
}

impl Tombstones {
    /// Of a server without a database.
    pub(super) fn none(time: Arc<dyn TimeSource>) -> Self {
        Self { database: None, time, marks: RwLock::default(), count: AtomicUsize::new(0) }
    }

    /// Reads those that count, and forgets the others.
    pub(super) async fn open(database: Database, time: Arc<dyn TimeSource>) -> Result<Self, DatabaseError> {
        let now_s = time.now_s();
        database.execute(sql("DELETE FROM execution_tombstone WHERE until_s <= $1").bind(stored(now_s))).await?;
        let all = sql("SELECT * FROM execution_tombstone ORDER BY until_s DESC LIMIT $1");
        let rows = database.all(all.bind(stored(MAX_TOMBSTONES as u64))).await?;
        let mut marks = HashMap::new();
        for row in &rows {
            // What has another form was never written here.
            if let Some((key, tombstone)) = read(row)? {
                marks.insert(key, tombstone);
            }
        }
        let count = AtomicUsize::new(marks.len());
        Ok(Self { database: Some(database), time, marks: RwLock::new(marks), count })
    }

    /// What keeps a result of this action from being seen or taken; `None` when nothing does.
    pub(super) fn find(&self, key: &EntryKey) -> Option<Tombstone> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks.get(&of_action(key)).filter(|tombstone| self.time.now_s() < tombstone.until_s).cloned()
    }

    /// The time by which tombstones count, in seconds since 1970.
    pub(super) fn now_s(&self) -> u64 {
        self.time.now_s()
    }

    /// The actions that have one.
    pub(super) fn keys(&self) -> Vec<EntryKey> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Sets one, or sets it anew: durable, and counting, when this returns.
    pub(super) async fn set(&self, key: &EntryKey, tombstone: Tombstone) -> Result<(), TombstoneError> {
        let database = self.database.as_ref().ok_or(TombstoneError::NotKept)?;
        let now_s = self.time.now_s();
        {
            let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
            marks.retain(|_, tombstone| now_s < tombstone.until_s);
            self.count.store(marks.len(), Ordering::Release);
            if marks.len() >= MAX_TOMBSTONES {
                return Err(TombstoneError::TooMany);
            }
        }
        let key = of_action(key);
        let insert = sql("INSERT INTO execution_tombstone \
                (owner, instance, function, hash, removed_s, until_s, removed_by, reason) \
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                ON CONFLICT (owner, instance, function, hash) DO UPDATE SET \
                removed_s = excluded.removed_s, until_s = excluded.until_s, \
                removed_by = excluded.removed_by, reason = excluded.reason")
        .bind(key.owner.0)
        .bind(key.instance.as_str())
        .bind(key.digest.function().number())
        .bind(key.digest.hash())
        .bind_all([stored(tombstone.removed_s), stored(tombstone.until_s)])
        .bind_all([tombstone.removed_by.as_str(), tombstone.reason.as_str()]);
        database.execute(insert).await?;
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        marks.insert(key, tombstone);
        self.count.store(marks.len(), Ordering::Release);
        Ok(())
    }
}

/// One tombstone hides what HTTP clients keep under the action, too.
fn of_action(key: &EntryKey) -> EntryKey {
    EntryKey { table: EntryTable::ActionResult, ..key.clone() }
}

fn read(row: &Row) -> Result<Option<(EntryKey, Tombstone)>, DatabaseError> {
    let number = |column| row.get::<i64>(column).map(|number| u64::try_from(number).unwrap_or_default());
    let tombstone = Tombstone {
        removed_s: number("removed_s")?,
        until_s: number("until_s")?,
        removed_by: row.get("removed_by")?,
        reason: row.get("reason")?,
    };
    let function = i32::try_from(number("function")?).ok().and_then(DigestFunction::from_number);
    let hash = <[u8; 32]>::try_from(row.get::<Vec<u8>>("hash")?).ok();
    let (Some(function), Some(hash), Ok(owner), Ok(instance)) =
        (function, hash, u32::try_from(number("owner")?), InstanceName::new(&row.get::<String>("instance")?))
    else {
        return Ok(None);
    };
    let digest = Digest::new(function, hash, 0);
    Ok(Some((EntryKey { table: EntryTable::ActionResult, owner: OwnerId(owner), instance, digest }, tombstone)))
}

fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

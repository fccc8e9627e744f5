//! Action results that somebody removed on purpose: hidden at once, and not taken again until their quarantine is over.
//!
//! What always holds: a tombstone is durable before its result goes, and every look-up and every write asks for it, and it
//! counts until its quarantine is over *and* its result is known to be gone: what was removed is not seen again, whatever
//! is killed or fails when. All tombstones that count are in memory: asking costs no more than a look at a number while
//! there is none.
//!
//! Deliberately absent: what other processes write into the same database meanwhile. The store is one process's own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use gf_blobstore::{EntryKey, EntryTable, OwnerId, TimeSource};
use gf_database::{Database, DatabaseError, Migration, Migrations, Row, sql};
use gf_digest::{Digest, DigestFunction, InstanceName};
use tokio::sync::Mutex;

/// What the database must be opened with.
pub const MIGRATIONS: Migrations = Migrations { service: "execution", steps: &[REMOVED, TAKEN_OUT] };

const REMOVED: Migration = Migration {
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
};

const TAKEN_OUT: Migration = Migration {
    name: "removed action results that are known to be gone",
    forward: "
            -- 1 when the store has let go of it for good: only then does the tombstone end. Of older ones it is not known.
            ALTER TABLE execution_tombstone ADD COLUMN taken_out BIGINT NOT NULL DEFAULT 0;",
    back: "ALTER TABLE execution_tombstone DROP COLUMN taken_out;",
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

/// A tombstone, and how far its removal has come.
struct Mark {
    tombstone: Tombstone,
    /// The store has let go of the result for good.
    taken_out: bool,
}

impl Mark {
    const fn counts(&self, now_s: u64) -> bool {
        !self.taken_out || now_s < self.tombstone.until_s
    }
}

/// The tombstones of a server.
pub(super) struct Tombstones {
    /// `None` keeps none: then nothing can be removed.
    database: Option<Database>,
    time: Arc<dyn TimeSource>,
    marks: RwLock<HashMap<EntryKey, Mark>>,
    count: AtomicUsize,
    /// Held while database and memory are changed together, so that they say the same.
    changing: Mutex<()>,
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
        Self { database: None, time, marks: RwLock::default(), count: AtomicUsize::new(0), changing: Mutex::default() }
    }

    /// Reads those that count. There are as many as were let in.
    pub(super) async fn open(database: Database, time: Arc<dyn TimeSource>) -> Result<Self, DatabaseError> {
        let all = sql("SELECT * FROM execution_tombstone WHERE taken_out = 0 OR until_s > $1");
        let rows = database.all(all.bind(stored(time.now_s()))).await?;
        let mut marks = HashMap::new();
        for row in &rows {
            // What has another form was never written here.
            if let Some((key, mark)) = read(row)? {
                marks.insert(key, mark);
            }
        }
        let count = AtomicUsize::new(marks.len());
        let marks = RwLock::new(marks);
        Ok(Self { database: Some(database), time, marks, count, changing: Mutex::default() })
    }

    /// What keeps a result of this action from being seen or taken; `None` when nothing does.
    pub(super) fn find(&self, key: &EntryKey) -> Option<Tombstone> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks.get(&of_action(key)).filter(|mark| mark.counts(self.time.now_s())).map(|mark| mark.tombstone.clone())
    }

    /// The time by which tombstones count, in seconds since 1970.
    pub(super) fn now_s(&self) -> u64 {
        self.time.now_s()
    }

    /// The actions whose results are not yet known to be gone.
    pub(super) fn unfinished(&self) -> Vec<EntryKey> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks.iter().filter(|(_, mark)| !mark.taken_out).map(|(key, _)| key.clone()).collect()
    }

    /// Sets one, or sets it anew: durable, and counting, when this returns. It does so until [`Self::taken_out`].
    pub(super) async fn set(&self, key: &EntryKey, tombstone: Tombstone) -> Result<(), TombstoneError> {
        let database = self.database.as_ref().ok_or(TombstoneError::NotKept)?;
        let _changing = self.changing.lock().await;
        self.check_room(&of_action(key))?;
        let key = of_action(key);
        let insert = sql("INSERT INTO execution_tombstone \
                (owner, instance, function, hash, removed_s, until_s, removed_by, reason, taken_out) \
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0) \
                ON CONFLICT (owner, instance, function, hash) DO UPDATE SET \
                removed_s = excluded.removed_s, until_s = excluded.until_s, \
                removed_by = excluded.removed_by, reason = excluded.reason, taken_out = 0")
        .bind(key.owner.0)
        .bind(key.instance.as_str())
        .bind(key.digest.function().number())
        .bind(key.digest.hash())
        .bind_all([stored(tombstone.removed_s), stored(tombstone.until_s)])
        .bind_all([tombstone.removed_by.as_str(), tombstone.reason.as_str()]);
        database.execute(insert).await?;
        self.change(|marks| drop(marks.insert(key, Mark { tombstone, taken_out: false })));
        Ok(())
    }

    /// The store has let go of the result for good: the tombstone counts no longer than it says.
    pub(super) async fn taken_out(&self, key: &EntryKey) -> Result<(), TombstoneError> {
        let database = self.database.as_ref().ok_or(TombstoneError::NotKept)?;
        let _changing = self.changing.lock().await;
        let update = sql("UPDATE execution_tombstone SET taken_out = 1 \
                WHERE owner = $1 AND instance = $2 AND function = $3 AND hash = $4")
        .bind(key.owner.0)
        .bind(key.instance.as_str())
        .bind(key.digest.function().number())
        .bind(key.digest.hash());
        database.execute(update).await?;
        self.change(|marks| {
            if let Some(mark) = marks.get_mut(&of_action(key)) {
                mark.taken_out = true;
            }
        });
        Ok(())
    }

    /// Forgets those that count no more.
    pub(super) async fn forget_ended(&self) -> Result<(), DatabaseError> {
        let Some(database) = &self.database else { return Ok(()) };
        let _changing = self.changing.lock().await;
        let now_s = self.time.now_s();
        let ended = sql("DELETE FROM execution_tombstone WHERE taken_out = 1 AND until_s <= $1");
        database.execute(ended.bind(stored(now_s))).await?;
        self.change(|marks| marks.retain(|_, mark| mark.counts(now_s)));
        Ok(())
    }

    /// Whether one more may be set. One that is there may always be set anew.
    fn check_room(&self, key: &EntryKey) -> Result<(), TombstoneError> {
        let now_s = self.time.now_s();
        self.change(|marks| {
            marks.retain(|_, mark| mark.counts(now_s));
            if marks.len() >= MAX_TOMBSTONES && !marks.contains_key(key) {
                return Err(TombstoneError::TooMany);
            }
            Ok(())
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<EntryKey, Mark>) -> T) -> T {
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut marks);
        self.count.store(marks.len(), Ordering::Release);
        changed
    }
}

/// One tombstone hides what HTTP clients keep under the action, too.
fn of_action(key: &EntryKey) -> EntryKey {
    EntryKey { table: EntryTable::ActionResult, ..key.clone() }
}

fn read(row: &Row) -> Result<Option<(EntryKey, Mark)>, DatabaseError> {
    let number = |column| row.get::<i64>(column).map(|number| u64::try_from(number).unwrap_or_default());
    let tombstone = Tombstone {
        removed_s: number("removed_s")?,
        until_s: number("until_s")?,
        removed_by: row.get("removed_by")?,
        reason: row.get("reason")?,
    };
    let mark = Mark { tombstone, taken_out: number("taken_out")? != 0 };
    let function = i32::try_from(number("function")?).ok().and_then(DigestFunction::from_number);
    let hash = <[u8; 32]>::try_from(row.get::<Vec<u8>>("hash")?).ok();
    let (Some(function), Some(hash), Ok(owner), Ok(instance)) =
        (function, hash, u32::try_from(number("owner")?), InstanceName::new(&row.get::<String>("instance")?))
    else {
        return Ok(None);
    };
    let digest = Digest::new(function, hash, 0);
    Ok(Some((EntryKey { table: EntryTable::ActionResult, owner: OwnerId(owner), instance, digest }, mark)))
}

fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

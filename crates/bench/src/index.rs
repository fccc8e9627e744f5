//! The store's index beside an embedded LSM, at one million keys: what each inserts and looks up a second.
//!
//! Both are used from one thread, without syncing: that is decided above the index, for a whole group of writes.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use gf_blobstore::measure::BareIndex;

use crate::data::Source;
use crate::load::as_float;
use crate::report::{Line, Outcome};
use crate::rows::Row;

const KEYS: u64 = 1_000_000;
/// What an index remembers of a blob: place, sizes, encoding, time of the last touch.
const VALUE_BYTES: usize = 28;

type Key = [u8; 32];

/// An index under measurement.
trait Index {
    /// Who it is.
    const NAME: &'static str;

    fn insert(&mut self, key: &Key) -> anyhow::Result<()>;

    fn contains(&mut self, key: &Key) -> anyhow::Result<bool>;
}

struct Lsm {
    blobs: Keyspace,
    /// Its threads work for as long as it lives.
    _database: Database,
}

impl Lsm {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let database = Database::builder(folder).open().context("open the LSM")?;
        let blobs = database.keyspace("blobs", KeyspaceCreateOptions::default)?;
        Ok(Self { blobs, _database: database })
    }
}

impl Index for Lsm {
    const NAME: &'static str = "fjall";

    fn insert(&mut self, key: &Key) -> anyhow::Result<()> {
        Ok(self.blobs.insert(key, [7; VALUE_BYTES])?)
    }

    fn contains(&mut self, key: &Key) -> anyhow::Result<bool> {
        Ok(self.blobs.get(key)?.is_some())
    }
}

impl Index for BareIndex {
    const NAME: &'static str = "gf";

    fn insert(&mut self, key: &Key) -> anyhow::Result<()> {
        Ok(Self::insert(self, *key)?)
    }

    fn contains(&mut self, key: &Key) -> anyhow::Result<bool> {
        Ok(Self::contains(self, *key)?)
    }
}

/// Lines for inserts, hits and misses of each index.
pub(crate) fn measure(row: &Row, folder: &Path) -> Vec<Line> {
    let ours = BareIndex::create(&folder.join("gf")).context("open the store's index");
    let mut both = lines(row, ours);
    both.extend(lines(row, Lsm::open(&folder.join("lsm"))));
    both
}

fn lines<I: Index>(row: &Row, index: anyhow::Result<I>) -> Vec<Line> {
    let line = |what: &str, outcome| Line {
        work: format!("{}-{what}-{}", row.name, I::NAME),
        about: format!("{}, 1 million keys: {what}", I::NAME),
        unit: row.unit,
        limit: row.limit,
        outcome,
    };
    match index.and_then(|mut index| speeds(&mut index)) {
        Ok(speeds) => {
            let figure = |figure| Ok(Outcome { figure, ..Outcome::default() });
            ["insert", "hit", "miss"].into_iter().zip(speeds).map(|(what, speed)| line(what, figure(speed))).collect()
        }
        Err(wrong) => vec![line("insert", Err(wrong.into()))],
    }
}

/// Inserts, hits and misses a second.
fn speeds<I: Index>(index: &mut I) -> anyhow::Result<[f64; 3]> {
    let keys = |seed| {
        let mut source = Source::seeded(seed);
        (0..KEYS).map(move |_| source.key())
    };
    let insert = timed(keys(1), |key| index.insert(&key))?;
    // Looked up in another order than inserted: neighbours in time are no neighbours in the index.
    let mut stored: Vec<Key> = keys(1).collect();
    Source::seeded(3).shuffle(&mut stored);
    let hit = timed(stored.into_iter(), |key| {
        ensure!(index.contains(&key)?, "{} lost a key", I::NAME);
        Ok(())
    })?;
    let miss = timed(keys(2), |key| {
        ensure!(!index.contains(&key)?, "{} made up a key", I::NAME);
        Ok(())
    })?;
    Ok([insert, hit, miss])
}

fn timed(keys: impl Iterator<Item = Key>, mut step: impl FnMut(Key) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    for key in keys {
        step(key)?;
    }
    Ok(as_float(KEYS) / started.elapsed().as_secs_f64())
}

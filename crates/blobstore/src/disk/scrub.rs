//! Scrubbing: everything that the store holds is read and checked again and again, so that damage is found while the
//! client that could bring the bytes again still has them, and not by the build that needs them.
//!
//! One thread of its own, at the lowest priority. It goes through the index in the order of the keys, at a pace that
//! leaves the disk to others, and notes how far it came, so that a restart goes on where the last run stopped. What it
//! finds damaged, or what the disk fails to read again and again, it takes out and names as every verification does.
//!
//! Deliberately absent: mending the index. Damage to the index is found when a table is read, and mended at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::core::{Core, StoreConfig};
use super::index::{KeyOrder, SHARDS, Slot};
use super::maintenance::Signal;
use super::note;
use super::record::HEADER_BYTES;
use super::segments::lock;
use super::verify::{MORE_TRIES, TRY_AGAIN_AFTER, Turn, VerifyReport};

const NOTE: &str = "scrub";

/// How often it looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often progress is noted: what a killed process did since is done again.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// When so much in a row cannot be read, it is the disk as a whole that fails.
const MAX_UNREAD_IN_A_ROW: u32 = 8;

/// What reading anything costs at least, in bytes: a disk reads no less.
const LEAST_READ_BYTES: u64 = 4096;

/// What scrubbing has done in the life of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// Times that everything was looked at.
    pub passes: u64,
    /// Seconds since the last of them ended; `None` before the first.
    pub last_pass_age_s: Option<u64>,
    /// Blobs whose bytes were hashed to their digest.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entries and grants whose bytes matched their check.
    pub entries: u64,
    /// Blobs and entries that were found damaged, or that the disk failed to read again and again, and taken out.
    pub damaged: u64,
    /// Times that a blob or an entry could not be read, and stayed.
    pub unreadable: u64,
}

/// How far scrubbing has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    counts: ScrubStats,
    /// When the pass under way, or the last one, began; 0 before the first.
    began: u32,
    /// When the last pass ended; 0 before.
    ended: u32,
    /// The table being looked at; [`SHARDS`] between passes.
    shard: usize,
    /// The last key of it that was looked at.
    after: Option<KeyOrder>,
    /// The key of a large file that was looked at in part, and how many of its blocks were.
    within: Option<(KeyOrder, u64)>,
}

impl Progress {
    /// Reads the note; starts anew when there is none.
    fn read(core: &Core) -> io::Result<Self> {
        let lines = note::read(core.layer.as_ref(), &core.config.data_dir, NOTE)?;
        Ok(lines.and_then(|lines| Self::parse(&lines)).unwrap_or_default())
    }

    fn write(&self, core: &Core) -> io::Result<()> {
        note::write(core.layer.as_ref(), &core.config.data_dir, NOTE, &self.print())
    }

    pub(crate) fn stats(&self, now: u32) -> ScrubStats {
        let last_pass_age_s = (self.ended > 0).then(|| u64::from(now.saturating_sub(self.ended)));
        ScrubStats { last_pass_age_s, ..self.counts }
    }

    fn print(&self) -> String {
        let ScrubStats { passes, blobs, bytes, entries, damaged, unreadable, .. } = self.counts;
        let Self { began, ended, shard, .. } = *self;
        let mut lines = format!(
            "passes {passes}\nblobs {blobs}\nbytes {bytes}\nentries {entries}\ndamaged {damaged}\n\
             unreadable {unreadable}\nbegan {began}\nended {ended}\ntable {shard}\n"
        );
        if let Some(key) = self.after {
            lines.push_str(&format!("after {}\n", print_key(key)));
        }
        if let Some((key, block)) = self.within {
            lines.push_str(&format!("within {}\nblock {block}\n", print_key(key)));
        }
        lines
    }

    fn parse(lines: &str) -> Option<Self> {
        let number = |key: &str| note::value(lines, key)?.parse::<u64>().ok();
        let counts = ScrubStats {
            passes: number("passes")?,
            last_pass_age_s: None,
            blobs: number("blobs")?,
            bytes: number("bytes")?,
            entries: number("entries")?,
            damaged: number("damaged")?,
            unreadable: number("unreadable")?,
        };
        Some(Self {
            counts,
            began: number("began")?.try_into().ok()?,
            ended: number("ended")?.try_into().ok()?,
            shard: number("table")?.try_into().ok()?,
            after: note::value(lines, "after").and_then(parse_key),
            within: note::value(lines, "within").and_then(parse_key).zip(number("block")),
        })
    }

    fn add(&mut self, report: &VerifyReport) {
        self.counts.blobs += report.blobs;
        self.counts.bytes += report.bytes;
        self.counts.entries += report.entries;
        self.counts.damaged += report.lost_count;
        self.counts.unreadable += report.unreadable;
    }
}

fn print_key((key, class): KeyOrder) -> String {
    key.iter().chain([&class]).map(|byte| format!("{byte:02x}")).collect()
}

fn parse_key(hex: &str) -> Option<KeyOrder> {
    let mut bytes = [0; 33];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let (key, class) = bytes.split_first_chunk()?;
    Some((*key, *class.first()?))
}

/// How long reading `bytes` is to take, so that all of `used_bytes` take no less than the pass, and no second more bytes
/// than the rate.
fn time_for(bytes: u64, used_bytes: u64, config: &StoreConfig) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a pace need not be exact")]
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let by_pass = config.scrub_pass.as_secs_f64() * share(bytes + HEADER_BYTES as u64, used_bytes).min(1.0);
    let by_rate = share(bytes.max(LEAST_READ_BYTES), config.scrub_bytes_per_second);
    Duration::try_from_secs_f64(by_pass.max(by_rate)).unwrap_or(config.scrub_pass)
}

/// Who reads waits here, if the reading is to be slow.
pub(crate) enum Pace<'a> {
    /// As quick as it goes.
    Full,
    /// At the pace of the scrub.
    Scrub {
        /// The store's settings and its size.
        core: &'a Core,
        /// Ends the wait when the store is closed.
        signal: &'a Signal,
    },
}

impl Pace<'_> {
    /// Waits as long as reading `bytes` may take. Whether to go on.
    pub(crate) fn wait(&self, bytes: u64) -> bool {
        match self {
            Self::Full => true,
            Self::Scrub { core, signal } => !signal.wait(time_for(bytes, core.capacity.used_bytes(), &core.config)),
        }
    }
}

/// Scrubs until the signal says to stop.
pub(crate) fn scrub(core: &Arc<Core>, signal: &Signal, runtime: &Handle) {
    let mut progress = Progress::read(core).unwrap_or_else(|error| {
        tracing::warn!(%error, "how far the scrub has come cannot be read; it starts anew");
        Progress::default()
    });
    *lock(&core.scrub) = progress;
    while !signal.wait(LOOK_EVERY) {
        let now = core.clock.now();
        // What the index lost is missing from a pass.
        if !core.is_index_whole.load(Ordering::Acquire) {
            continue;
        }
        if progress.began == 0 || progress.shard >= SHARDS {
            let next = u64::from(progress.began) + core.config.scrub_pass.as_secs();
            if progress.began > 0 && u64::from(now) < next {
                continue;
            }
            progress = Progress { began: now, shard: 0, after: None, within: None, ..progress };
        }
        if let Err(error) = pass(core, signal, runtime, &mut progress) {
            tracing::error!(%error, "scrubbing was cut short; it goes on in a moment");
        }
    }
}

/// One look through everything.
struct Pass<'a> {
    core: &'a Arc<Core>,
    signal: &'a Signal,
    runtime: &'a Handle,
    noted: Instant,
    /// What the disk failed to read since it last read something.
    unread_in_a_row: u32,
}

/// Goes on with a pass, to its end unless the store is closed.
fn pass(core: &Arc<Core>, signal: &Signal, runtime: &Handle, progress: &mut Progress) -> io::Result<()> {
    let mut pass = Pass { core, signal, runtime, noted: Instant::now(), unread_in_a_row: 0 };
    while progress.shard < SHARDS {
        for slot in slots_after(core, progress)? {
            if !pass.look_at(slot, progress)? {
                return progress.write(core);
            }
        }
        progress.shard += 1;
        progress.after = None;
    }
    progress.counts.passes += 1;
    progress.ended = core.clock.now();
    *lock(&core.scrub) = *progress;
    tracing::info!(scrubbed = ?progress.counts, "everything in the store was looked at");
    progress.write(core)
}

impl Pass<'_> {
    /// Looks at one slot, in as many turns as it takes. Whether it was looked at: not if the store is closed meanwhile.
    fn look_at(&mut self, slot: Slot, progress: &mut Progress) -> io::Result<bool> {
        let (core, key) = (self.core, slot.key.order());
        let pace = Pace::Scrub { core, signal: self.signal };
        let mut block = progress.within.filter(|(within, _)| *within == key).map_or(0, |(_, block)| block);
        let mut tries_left = if self.is_disk_failing() { 0 } else { MORE_TRIES };
        loop {
            let mut report = VerifyReport::default();
            let looked = self.runtime.block_on(core.verify_slot(slot, &mut block, &mut report, &pace))?;
            let turn = if looked == Turn::Unread && tries_left == 0 {
                self.give_up(&slot, &mut report)?;
                Turn::Done
            } else {
                looked
            };
            progress.within = (turn != Turn::Done && block > 0).then_some((key, block));
            if turn == Turn::Done {
                self.unread_in_a_row = if looked == Turn::Unread { self.unread_in_a_row + 1 } else { 0 };
                progress.add(&report);
                progress.after = Some(key);
                *lock(&core.scrub) = *progress;
            }
            if self.noted.elapsed() >= NOTE_EVERY {
                progress.write(core)?;
                self.noted = Instant::now();
            }
            match turn {
                Turn::Done => return Ok(true),
                Turn::Paused => {}
                Turn::Unread if self.signal.wait(TRY_AGAIN_AFTER) => return Ok(false),
                Turn::Unread => tries_left -= 1,
                Turn::Closed => return Ok(false),
            }
        }
    }

    /// Takes out what the disk fails to read, unless it reads nothing at all: it may come back.
    fn give_up(&self, slot: &Slot, report: &mut VerifyReport) -> io::Result<()> {
        if self.is_disk_failing() {
            report.unreadable += 1;
            return Ok(());
        }
        self.core.lose_unread(slot, report)
    }

    const fn is_disk_failing(&self) -> bool {
        self.unread_in_a_row >= MAX_UNREAD_IN_A_ROW
    }
}

/// What is left to look at of the present table, in the order of the keys.
fn slots_after(core: &Core, progress: &Progress) -> io::Result<Vec<Slot>> {
    let mut slots = Vec::new();
    core.index.visit_shard(progress.shard, |slot| {
        if progress.after.is_none_or(|after| slot.key.order() > after) {
            slots.push(*slot);
        }
    })?;
    slots.sort_unstable_by_key(|slot| slot.key.order());
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_back() {
        let counts = ScrubStats {
            passes: 1,
            blobs: 2,
            bytes: 3,
            entries: 4,
            damaged: 5,
            unreadable: 6,
            ..ScrubStats::default()
        };
        let progress = Progress {
            counts,
            began: 7,
            ended: 8,
            shard: 63,
            after: Some(([0xa5; 32], 4)),
            within: Some((([7; 32], 1), 9)),
        };
        assert_eq!(Progress::parse(&progress.print()), Some(progress));
        let between = Progress { after: None, within: None, ..progress };
        assert_eq!(Progress::parse(&between.print()), Some(between));
    }

    #[test]
    fn a_pass_takes_its_time_and_no_second_more_than_the_rate() {
        const WEEK_S: f64 = 7.0 * 86_400.0;
        let config = StoreConfig::new("store".into());
        for (blobs, bytes) in [(100_000_u64, 1_u64 << 20), (1_000_000, 100), (3, 1)] {
            let used = blobs * (bytes + HEADER_BYTES as u64);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let pass = time_for(bytes, used, &config).as_secs_f64() * blobs as f64;
            assert!(pass > 0.99 * WEEK_S && pass < 1.01 * WEEK_S, "{blobs} blobs of {bytes} bytes take {pass} s");
        }
        // More than can be read in a week at the rate.
        let huge = time_for(16 << 20, 100 << 40, &config);
        assert_eq!(huge, Duration::from_secs(1));
    }
}

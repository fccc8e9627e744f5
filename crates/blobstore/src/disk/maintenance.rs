//! The store's own work: making writes durable within the window, checkpoints, and what can wait for a quiet moment.
//!
//! Three threads. The first syncs; it must keep its time. The second, at a lower priority, loads and mends the index,
//! takes stock, keeps some space free, looks for shared parts and compresses. The third, at the lowest, is the [`scrub`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::compression::Compression;
use super::core::Core;
use super::scrub;
use super::segments::lock;

/// A checkpoint is written at least this often while there is something new, so that recovery has little to look at.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// How often the second thread looks for work.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long to leave a full store alone in which nothing may go.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Stock is taken this often ...
const STOCK_EVERY: Duration = Duration::from_secs(60);

/// ... and takes no more than one part in so many of the time of one core.
const STOCK_SHARE: u32 = 50;

/// The priority of who only reads.
const LAST: i32 = 19;

/// The priority of who takes locks on its way: others must not wait for one that never has its turn.
const LATER: i32 = 10;

/// How often it is said that the disk fails.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(30);

pub(crate) struct Maintenance {
    signal: Arc<Signal>,
    threads: Vec<JoinHandle<()>>,
}

/// Tells threads to stop, and lets them sleep until then.
#[derive(Default)]
pub(crate) struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Sleeps; whether to stop.
    pub(crate) fn wait(&self, duration: Duration) -> bool {
        let guard = lock(&self.stopped);
        let waited = self.changed.wait_timeout_while(guard, duration, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn stop(&self) {
        *lock(&self.stopped) = true;
        self.changed.notify_all();
    }
}

impl Maintenance {
    pub(crate) fn start(core: &Arc<Core>, runtime: Handle) -> io::Result<Self> {
        let signal = Arc::new(Signal::default());
        let mut threads = Vec::new();
        let (for_sync, sync_signal) = (Arc::clone(core), Arc::clone(&signal));
        threads.push(
            std::thread::Builder::new()
                .name("gf-store-sync".into())
                .spawn(move || keep_durable(&for_sync, &sync_signal))?,
        );
        let (for_scrub, scrub_signal, scrub_runtime) = (Arc::clone(core), Arc::clone(&signal), runtime.clone());
        threads.push(std::thread::Builder::new().name("gf-store-scrub".into()).spawn(move || {
            give_way(LAST);
            scrub::scrub(&for_scrub, &scrub_signal, &scrub_runtime);
        })?);
        let (for_rest, rest_signal) = (Arc::clone(core), Arc::clone(&signal));
        threads.push(
            std::thread::Builder::new()
                .name("gf-store-idle".into())
                .spawn(move || keep_in_order(&for_rest, &rest_signal, &runtime))?,
        );
        Ok(Self { signal, threads })
    }

    /// Stops the threads and waits for them.
    pub(crate) fn stop(self) {
        self.signal.stop();
        for thread in self.threads {
            // A panic there was printed by its thread; stopping goes on.
            let _ = thread.join();
        }
    }
}

fn keep_durable(core: &Core, signal: &Signal) {
    let mut last_checkpoint = Instant::now();
    let mut last_end = core.segments.end();
    let mut said = None;
    // Shorter than the window: a write that just missed one sync waits for the next, which itself takes time.
    while !signal.wait(core.config.sync_window / 2) {
        if let Err(error) = core.segments.make_ready() {
            tracing::debug!(%error, "the next segment is not ready; who needs it makes it");
        }
        // A store that only serves makes its promises durable too.
        let is_new = || core.segments.end() != last_end || core.index.is_dirty();
        let checkpoint_due = last_checkpoint.elapsed() >= CHECKPOINT_EVERY && is_new();
        let result = if checkpoint_due {
            last_checkpoint = Instant::now();
            last_end = core.segments.end();
            core.checkpoint(false)
        } else {
            core.sync()
        };
        match result {
            Ok(()) => said = None,
            // Not in each window: a disk that fails goes on failing.
            Err(error) if said.is_none_or(|said: Instant| said.elapsed() >= SAY_AGAIN_AFTER) => {
                tracing::error!(%error, "what was written could not be made durable; trying again");
                said = Some(Instant::now());
            }
            Err(_) => {}
        }
    }
}

fn keep_in_order(core: &Arc<Core>, signal: &Signal, runtime: &Handle) {
    give_way(LATER);
    if let Err(error) = runtime.block_on(mend(core)) {
        tracing::error!(%error, "the index could not be read; run `gf store verify`");
    }
    let mut nothing_to_free_until = Instant::now();
    let mut stock_due = Instant::now();
    let mut compression = Compression::new();
    while !signal.wait(LOOK_EVERY) {
        let limit = core.capacity.limit_bytes();
        if core.capacity.used_bytes() > limit - limit / 20 && Instant::now() >= nothing_to_free_until {
            let Ok(_one_at_a_time) = core.evicting() else { return };
            match core.collect(limit / 16) {
                Ok(report) if report.freed_bytes > 0 => {}
                Ok(_) => nothing_to_free_until = Instant::now() + RETRY_AFTER,
                Err(error) => tracing::error!(%error, "making room in advance failed"),
            }
        }
        if Instant::now() >= stock_due {
            stock_due = take_stock(core);
        }
        if !lock(&core.to_chunk).is_empty() {
            runtime.block_on(core.deduplicate_waiting());
        }
        compression.go_on(core);
    }
}

/// Returns when it is due again.
fn take_stock(core: &Core) -> Instant {
    let began = Instant::now();
    if let Err(error) = core.take_stock() {
        tracing::warn!(%error, "the store cannot tell how much is under lease, and whose");
    }
    Instant::now() + STOCK_EVERY.max(began.elapsed() * STOCK_SHARE)
}

/// Gives this thread alone a lower priority. If the system says no, the work is done all the same.
fn give_way(priority: i32) {
    let _ = rustix::process::nice(priority);
}

/// Reads the whole index, and builds again what it lost.
async fn mend(core: &Core) -> io::Result<()> {
    if !core.index.load_all()? {
        let report = core.rebuild().await?;
        tracing::warn!(?report, "the index was damaged and is whole again");
    }
    if !core.is_index_whole.swap(true, Ordering::AcqRel)
        && let Err(error) = core.checkpoint(false)
    {
        // The next start would build it again, and answer no question about what it does not find meanwhile.
        tracing::warn!(%error, "that the index is whole again could not be noted");
    }
    // What a process that was killed in the middle of an eviction or an upload left behind.
    let orphans = core.remove_orphans();
    // Whatever was removed before it failed is not used any more.
    core.recount()?;
    match orphans? {
        0 => {}
        orphans => {
            tracing::info!(orphans, "files that belong to nothing were removed, those that are whole to quarantine");
        }
    }
    Ok(())
}

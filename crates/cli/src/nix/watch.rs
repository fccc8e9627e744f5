//! `gf nix watch-store`: whatever is added to the store of this machine.
//!
//! A path is whole when Nix removes its lock, which it does last. What could not be pushed is pushed again, with what came
//! since, after a pause that grows while that fails.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use gf_nix_formats::StorePath;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::local_store;
use super::push::push;
use super::remote::RemoteCache;
use crate::args::WatchStoreArgs;
use crate::failure::Failure;
use crate::output::say;

const STORE: &str = "/nix/store";
const LOCK: &str = ".lock";
/// A batch goes when nothing came for so long,
const QUIET: Duration = Duration::from_secs(2);
/// or when its first path came so long ago.
const LONGEST: Duration = Duration::from_secs(10);
/// What one read takes: hundreds of events.
const BUFFER_BYTES: usize = 64 << 10;
/// Paths that wait for the batch under way to be pushed; beyond these and the system's own queue it says that it missed some.
const PATHS_AHEAD: usize = 4096;
/// What could not be pushed is tried again after so long, twice as long each time,
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// and at least so often.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The most paths that are kept for it.
const UNSENT_PATHS: usize = 50_000;

pub(super) fn run(args: WatchStoreArgs) -> Result<(), Failure> {
    let cache = Arc::new(RemoteCache::new(args.server, &args.cache)?);
    let jobs = usize::from(args.jobs);
    super::block_on(async move {
        cache.config().await?;
        let mut store = Store::watch()?;
        say(format!("watching {STORE} for {}; Ctrl-C ends this", cache.name));
        let mut terminated = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupted = signal(tokio::signal::unix::SignalKind::interrupt())?;
        let mut unsent = Unsent::default();
        loop {
            let batch = tokio::select! {
                batch = store.batch() => batch?,
                () = unsent.is_due() => BTreeSet::new(),
                _ = terminated.recv() => return unsent.end(),
                _ = interrupted.recv() => return unsent.end(),
            };
            let batch = unsent.join(batch);
            // What a build left may be gone again; the next one is watched for all the same.
            match push_batch(&cache, batch.clone(), jobs).await {
                Ok(()) => unsent.failures = 0,
                Err(failure) => {
                    let _told = failure.report();
                    unsent.keep(batch);
                }
            }
        }
    })
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    tokio::signal::unix::signal(kind).map_err(Failure::failed)
}

async fn push_batch(cache: &Arc<RemoteCache>, batch: BTreeSet<StorePath>, jobs: usize) -> Result<(), Failure> {
    let paths: Vec<StorePath> = batch.into_iter().collect();
    // A lock also goes when a build fails, and then there is no path.
    let asked = tokio::task::spawn_blocking(move || {
        let valid = local_store::valid(&paths)?;
        local_store::describe(&local_store::closure(&valid)?)
    });
    let described = asked.await.map_err(Failure::failed)??;
    let done = push(cache, described, jobs, false).await?;
    if done.sent > 0 {
        say(done.sentence(&cache.name));
    }
    Ok(())
}

/// What could not be pushed.
#[derive(Default)]
struct Unsent {
    paths: BTreeSet<StorePath>,
    /// In a row.
    failures: u32,
    due: Option<Instant>,
}

impl Unsent {
    /// Waits until it is time to try again; for ever while there is nothing.
    async fn is_due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// A batch with all that is to be pushed beside it.
    fn join(&mut self, mut batch: BTreeSet<StorePath>) -> BTreeSet<StorePath> {
        self.due = None;
        batch.append(&mut self.paths);
        batch
    }

    /// Keeps a batch that failed. What is more than can be kept is left to `gf nix push`.
    fn keep(&mut self, batch: BTreeSet<StorePath>) {
        let pause = pause_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.due = Some(Instant::now() + pause);
        let more = batch.len().saturating_sub(UNSENT_PATHS);
        self.paths = batch.into_iter().take(UNSENT_PATHS).collect();
        let again = format!("{} paths are tried again in {} s", self.paths.len(), pause.as_secs());
        say(if more > 0 { format!("{again}; {more} more are not: push what matters of them") } else { again });
    }

    /// What is left at the end is said.
    fn end(&self) -> Result<(), Failure> {
        match self.paths.len() {
            0 => Ok(()),
            left => Err(Failure::failed(format!("{left} paths could not be pushed: push what matters of them"))),
        }
    }
}

/// What is waited after so many failures before the last one.
fn pause_after(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE)
}

/// The store's folder, being watched by a thread of its own, which ends with the program.
struct Store {
    paths: mpsc::Receiver<Result<StorePath, Failure>>,
    /// What came of the next batch.
    gathered: BTreeSet<StorePath>,
}

impl Store {
    fn watch() -> Result<Self, Failure> {
        let watcher = inotify::init(CreateFlags::CLOEXEC).map_err(|error| unwatched(&error))?;
        inotify::add_watch(&watcher, STORE, WatchFlags::DELETE).map_err(|error| unwatched(&error))?;
        let (sender, paths) = mpsc::channel(PATHS_AHEAD);
        let listen = std::thread::Builder::new().name("gf-watch".to_owned());
        listen.spawn(move || hear(&watcher, &sender)).map_err(|error| unwatched(&error))?;
        Ok(Self { paths, gathered: BTreeSet::new() })
    }

    /// The next paths that are whole. Given up, it loses none.
    async fn batch(&mut self) -> Result<BTreeSet<StorePath>, Failure> {
        let ended = || unwatched(&"the thread that watches has ended");
        if self.gathered.is_empty() {
            let first = self.paths.recv().await.ok_or_else(ended)??;
            self.gathered.insert(first);
        }
        let latest = Instant::now() + LONGEST;
        loop {
            let until = latest.min(Instant::now() + QUIET);
            match timeout_at(until, self.paths.recv()).await {
                Ok(path) => drop(self.gathered.insert(path.ok_or_else(ended)??)),
                Err(_quiet) => return Ok(std::mem::take(&mut self.gathered)),
            }
        }
    }
}

fn unwatched(why: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("{STORE} cannot be watched: {why}"))
}

/// Tells of paths until nobody listens any more.
fn hear(watcher: &OwnedFd, paths: &mpsc::Sender<Result<StorePath, Failure>>) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let mut events = inotify::Reader::new(watcher, &mut buffer);
    loop {
        let told = match events.next() {
            Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                say("more was added than could be heard of: push what matters with `gf nix push`");
                continue;
            }
            Ok(event) => event.file_name().and_then(|name| whole_path(name.to_str().ok()?)).map(Ok),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => Some(Err(unwatched(&error))),
        };
        let is_over = told.as_ref().is_some_and(Result::is_err);
        let is_unheard = told.is_some_and(|told| paths.blocking_send(told).is_err());
        if is_over || is_unheard {
            return;
        }
    }
}

/// The path whose lock was removed. Derivations and sources are made anew more easily than they are fetched.
fn whole_path(removed: &str) -> Option<StorePath> {
    let path = StorePath::parse(removed.strip_suffix(LOCK)?).ok()?;
    (!path.is_derivation() && !path.name().ends_with("-source")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again_with_what_came_since() {
        let path = |name: &str| StorePath::parse(&format!("{}-{name}", "0".repeat(32))).unwrap();
        let mut unsent = Unsent::default();
        for failures in 1..=3 {
            let batch = unsent.join(BTreeSet::from([path("a")]));
            assert!(unsent.due.is_none());
            unsent.keep(batch);
            assert!(unsent.due.is_some() && unsent.failures == failures);
        }
        assert!(unsent.end().is_err());
        assert_eq!(unsent.join(BTreeSet::from([path("b")])), BTreeSet::from([path("a"), path("b")]));
        assert!(unsent.end().is_ok());
        assert_eq!([0, 1, 40].map(|failures| pause_after(failures).as_secs()), [5, 10, 300]);
    }

    #[test]
    fn locks_tell_of_paths() {
        let hash = "0".repeat(32);
        assert_eq!(whole_path(&format!("{hash}-a.lock")).unwrap().name(), "a");
        for other in
            [format!("{hash}-a"), format!("{hash}-a.drv.lock"), format!("{hash}-x-source.lock"), ".lock".into()]
        {
            assert_eq!(whole_path(&other), None, "{other}");
        }
    }
}

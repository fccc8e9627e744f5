//! `gf nix watch-store`: whatever is added to the store of this machine.
//!
//! A path is whole when Nix removes its lock, which it does last.

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

pub(super) fn run(args: WatchStoreArgs) -> Result<(), Failure> {
    let cache = Arc::new(RemoteCache::new(args.server, &args.cache)?);
    let jobs = usize::from(args.jobs);
    super::block_on(async move {
        cache.config().await?;
        let mut store = Store::watch()?;
        say(format!("watching {STORE} for {}; Ctrl-C ends this", cache.name));
        let mut terminated = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupted = signal(tokio::signal::unix::SignalKind::interrupt())?;
        loop {
            let batch = tokio::select! {
                batch = store.batch() => batch?,
                _ = terminated.recv() => return Ok(()),
                _ = interrupted.recv() => return Ok(()),
            };
            // What a build left may be gone again; the next one is watched for all the same.
            match push_batch(&cache, batch, jobs).await {
                Ok(()) => {}
                Err(failure) => drop(failure.report()),
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

/// The store's folder, being watched by a thread of its own, which ends with the program.
struct Store(mpsc::Receiver<Result<StorePath, Failure>>);

impl Store {
    fn watch() -> Result<Self, Failure> {
        let watcher = inotify::init(CreateFlags::CLOEXEC).map_err(|error| unwatched(&error))?;
        inotify::add_watch(&watcher, STORE, WatchFlags::DELETE).map_err(|error| unwatched(&error))?;
        let (sender, paths) = mpsc::channel(PATHS_AHEAD);
        let listen = std::thread::Builder::new().name("gf-watch".to_owned());
        listen.spawn(move || hear(&watcher, &sender)).map_err(|error| unwatched(&error))?;
        Ok(Self(paths))
    }

    /// The next paths that are whole.
    async fn batch(&mut self) -> Result<BTreeSet<StorePath>, Failure> {
        let ended = || unwatched(&"the thread that watches has ended");
        let first = self.0.recv().await.ok_or_else(ended)??;
        let mut batch = BTreeSet::from([first]);
        let latest = Instant::now() + LONGEST;
        loop {
            let until = latest.min(Instant::now() + QUIET);
            match timeout_at(until, self.0.recv()).await {
                Ok(path) => drop(batch.insert(path.ok_or_else(ended)??)),
                Err(_quiet) => return Ok(batch),
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

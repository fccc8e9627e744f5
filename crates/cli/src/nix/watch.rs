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
use tokio::io::unix::AsyncFd;
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
    let asked = tokio::task::spawn_blocking(move || local_store::describe(&local_store::closure(&paths)?));
    let described = asked.await.map_err(Failure::failed)??;
    let done = push(cache, described, jobs, false).await?;
    if done.sent > 0 {
        say(done.sentence(&cache.name));
    }
    Ok(())
}

/// The store's folder, being watched.
struct Store(AsyncFd<OwnedFd>);

impl Store {
    fn watch() -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{STORE} cannot be watched: {error}"));
        let watcher = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|error| failed(&error))?;
        inotify::add_watch(&watcher, STORE, WatchFlags::DELETE).map_err(|error| failed(&error))?;
        Ok(Self(AsyncFd::register(watcher).map_err(|error| failed(&error))?))
    }

    /// The next paths that are whole. May be dropped while it waits only when nothing is to be pushed any more.
    async fn batch(&mut self) -> Result<BTreeSet<StorePath>, Failure> {
        let mut batch = BTreeSet::new();
        while batch.is_empty() {
            self.read(&mut batch).await?;
        }
        let latest = Instant::now() + LONGEST;
        loop {
            let until = latest.min(Instant::now() + QUIET);
            match timeout_at(until, self.read(&mut batch)).await {
                Ok(read) => read?,
                Err(_quiet) => return Ok(batch),
            }
        }
    }

    async fn read(&self, batch: &mut BTreeSet<StorePath>) -> Result<(), Failure> {
        let mut ready = self.0.readable().await.map_err(Failure::failed)?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut events = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    say("more was added than could be heard of: push what matters with `gf nix push`");
                }
                Ok(event) => batch.extend(event.file_name().and_then(|name| whole_path(name.to_str().ok()?))),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(Failure::failed(format!("{STORE} cannot be watched: {error}"))),
            }
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

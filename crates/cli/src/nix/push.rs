//! `gf nix push`: a closure, in parallel, each path once.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gf_nix_formats::StorePath;
use gf_server::config::show_size;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::local_store::{self, LocalPath};
use super::remote::{RemoteCache, Sent};
use crate::args::PushArgs;
use crate::failure::Failure;
use crate::output::say;

/// How often the bar is drawn again.
const DRAWN_EVERY: Duration = Duration::from_millis(100);
const BAR_WIDTH: u64 = 30;

pub(super) fn run(args: PushArgs) -> Result<(), Failure> {
    let asked = local_store::resolve(&args.paths)?;
    let paths = local_store::describe(&local_store::closure(&asked)?)?;
    let only = args.no_closure.then(|| asked.into_iter().collect::<BTreeSet<_>>());
    let cache = Arc::new(RemoteCache::new(args.server, &args.cache)?);
    let jobs = usize::from(args.jobs);
    super::block_on(async move {
        let done = push_some(&cache, paths, jobs, args.with_upstream, only.as_ref()).await?;
        say(done.sentence(&args.cache));
        Ok(())
    })
}

/// What a push did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pushed {
    /// Paths that were sent.
    pub(super) sent: u64,
    /// Bytes of their archives.
    pub(super) sent_bytes: u64,
    /// Paths whose archives the server had already.
    pub(super) deduplicated: u64,
    /// Paths that the cache had.
    pub(super) present: u64,
    /// Paths that another cache signed, on which this one counts.
    pub(super) upstream: u64,
}

impl Pushed {
    /// What was done, for people.
    pub(super) fn sentence(&self, cache: &str) -> String {
        let Self { sent, sent_bytes, deduplicated, present, upstream } = *self;
        let mut sentence = format!("{cache}: {sent} paths pushed ({})", show_size(sent_bytes));
        let others = [
            (deduplicated, "of which the server had the contents"),
            (present, "were there already"),
            (upstream, "are signed by a cache that its clients have too; --with-upstream pushes them"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            sentence += &format!("; {count} {what}");
        }
        sentence
    }
}

/// Pushes what the cache lacks of these paths, which are a closure.
pub(super) async fn push(
    cache: &Arc<RemoteCache>,
    paths: Vec<LocalPath>,
    jobs: usize,
    with_upstream: bool,
) -> Result<Pushed, Failure> {
    push_some(cache, paths, jobs, with_upstream, None).await
}

/// As [`push`], but of these paths only some, if any are named. The cache is asked about all of them, since it takes what
/// is left out of the question for what an upstream has.
async fn push_some(
    cache: &Arc<RemoteCache>,
    paths: Vec<LocalPath>,
    jobs: usize,
    with_upstream: bool,
    only: Option<&BTreeSet<StorePath>>,
) -> Result<Pushed, Failure> {
    let config = cache.config().await?;
    let is_elsewhere = |path: &LocalPath| {
        !with_upstream && path.signers().any(|signer| config.upstream_cache_key_names.iter().any(|name| name == signer))
    };
    let is_meant = |path: &LocalPath| only.is_none_or(|only| only.contains(&path.path));
    let meant = |paths: &[LocalPath]| paths.iter().filter(|path| is_meant(path)).count() as u64;
    let all = meant(&paths);
    let ours: Vec<LocalPath> = paths.into_iter().filter(|path| !is_elsewhere(path)).collect();
    let missing: Vec<LocalPath> =
        cache.missing(&ours).await?.into_iter().filter(|path| is_meant(path)).cloned().collect();
    let mut done =
        Pushed { present: meant(&ours) - missing.len() as u64, upstream: all - meant(&ours), ..Pushed::default() };
    let mut bar = Bar::new(&missing);
    let permits = Arc::new(Semaphore::new(jobs));
    let mut uploads = JoinSet::new();
    for path in missing {
        let (cache, permits) = (Arc::clone(cache), Arc::clone(&permits));
        uploads.spawn(async move {
            let _one = permits.acquire_owned().await.map_err(Failure::failed)?;
            let sent = cache.upload(&path).await?;
            Ok::<_, Failure>((path.nar_size, sent))
        });
    }
    let mut failed = None;
    while let Some(upload) = uploads.join_next().await {
        match upload.map_err(Failure::failed).and_then(|upload| upload) {
            Ok((bytes, sent)) => {
                done.sent += 1;
                done.sent_bytes += bytes;
                done.deduplicated += u64::from(sent == Sent::Deduplicated);
                bar.advance(bytes);
            }
            // What is under way may end well, and then need not be sent again.
            Err(failure) => {
                permits.close();
                failed.get_or_insert(failure);
            }
        }
    }
    bar.end();
    match failed {
        None => Ok(done),
        Some(failure) => Err(failure.and(format!("{} paths were pushed before; push again to go on", done.sent))),
    }
}

/// How far it is, for who looks on.
struct Bar {
    paths: (u64, u64),
    bytes: (u64, u64),
    drawn: Option<Instant>,
    is_shown: bool,
}

impl Bar {
    fn new(paths: &[LocalPath]) -> Self {
        let bytes = paths.iter().map(|path| path.nar_size).sum();
        let is_shown = std::io::stderr().is_terminal();
        Self { paths: (0, paths.len() as u64), bytes: (0, bytes), drawn: None, is_shown }
    }

    fn advance(&mut self, bytes: u64) {
        self.paths.0 += 1;
        self.bytes.0 += bytes;
        if self.is_shown && self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAWN_EVERY) {
            self.drawn = Some(Instant::now());
            let _ = write!(std::io::stderr(), "\r{}", self.text());
        }
    }

    fn text(&self) -> String {
        let ((paths, all_paths), (bytes, all_bytes)) = (self.paths, self.bytes);
        let filled = bytes * BAR_WIDTH / all_bytes.max(1);
        let bar: String = (0..BAR_WIDTH).map(|place| if place < filled { '#' } else { '.' }).collect();
        format!("[{bar}] {paths} of {all_paths} paths, {} of {}", show_size(bytes), show_size(all_bytes))
    }

    fn end(&self) {
        if self.drawn.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_told_in_a_sentence() {
        let done = Pushed { sent: 3, sent_bytes: 3 << 20, deduplicated: 1, present: 2, upstream: 0 };
        let sentence = done.sentence("main");
        assert!(sentence.starts_with("main: 3 paths pushed (3.0 MiB); 1 of which"), "{sentence}");
        assert!(sentence.ends_with("2 were there already"), "{sentence}");
    }

    #[test]
    fn a_bar_is_full_at_the_end() {
        let bar = Bar { paths: (2, 2), bytes: (10, 10), drawn: None, is_shown: true };
        assert!(bar.text().starts_with(&format!("[{}]", "#".repeat(30))), "{}", bar.text());
        let none = Bar { paths: (0, 0), bytes: (0, 0), drawn: None, is_shown: true };
        assert!(none.text().contains("0 of 0 paths"));
    }
}

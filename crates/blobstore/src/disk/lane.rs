//! Work on what is uploaded, on another thread while this one receives.
//!
//! One stream alone would otherwise leave all processors but one idle. As soon as several uploads run, they keep the
//! processors busy themselves, and handing bytes over would only cost: then each works where it is.
//!
//! What always holds: the work is done on all bytes in the order in which they were taken; no thread waits for bytes; and no
//! more than [`MAX_WAITING_BYTES`] wait, and as many are being worked on, but for the piece that came last.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::segments::lock;
use crate::gathering::Gathering;

/// So much is handed over at once to a thread that has to be woken: to work on it takes ten times as long as to wake one.
const HANDED_OVER_BYTES: usize = 256 << 10;

/// So much may wait while a thread works. It is what the thread has to do before it must be woken again.
const MAX_WAITING_BYTES: usize = 2 << 20;

/// So many pieces may wait: each may be a small part of a large message, all of which it keeps in memory.
const MAX_WAITING_PIECES: usize = 64;

/// Uploads that work at this moment.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// What is done with bytes that come one after another.
pub(crate) trait Work: Send + 'static {
    /// Takes the next bytes. May wait for the disk.
    fn take(&mut self, bytes: &Bytes) -> io::Result<()>;

    /// Perhaps no more come for a long time: keeps nothing of those that came but what is its own.
    fn rest(&mut self);
}

/// Work that goes on beside what its owner does. Dropped, it is given up, at once but for the piece at hand.
pub(crate) struct Lane<W: Work> {
    shared: Arc<Shared<W>>,
    processors: usize,
    _active: Active,
}

struct Shared<W> {
    state: Mutex<State<W>>,
    /// Told when a thread has taken what waited, and when it has ended.
    moved: Notify,
}

struct State<W> {
    /// Away while a thread works, and for good once it failed.
    work: Option<W>,
    waiting: Gathering,
    is_away: bool,
    is_given_up: bool,
    error: Option<io::Error>,
}

impl<W: Work> Lane<W> {
    pub(crate) fn new(work: W) -> Self {
        Self::beside(work, available_parallelism().map_or(1, usize::from))
    }

    /// Works on another thread while fewer uploads are active than there are processors.
    fn beside(work: W, processors: usize) -> Self {
        let waiting = Gathering::default();
        let state = State { work: Some(work), waiting, is_away: false, is_given_up: false, error: None };
        Self {
            shared: Arc::new(Shared { state: Mutex::new(state), moved: Notify::new() }),
            processors,
            _active: Active::new(),
        }
    }

    /// Takes the next bytes. May be dropped while it waits: then nothing was taken.
    ///
    /// # Errors
    /// The work failed, perhaps on bytes that were taken before.
    pub(crate) async fn take(&mut self, bytes: Bytes) -> io::Result<()> {
        if ACTIVE.load(Ordering::Relaxed) >= self.processors {
            self.until(|state| !state.is_away).await;
            let mut state = lock(&self.shared.state);
            state.waiting.push(bytes);
            return state.work_here();
        }
        self.until(|state| !state.is_away || !state.is_full()).await;
        let mut state = lock(&self.shared.state);
        state.failure()?;
        state.waiting.push(bytes);
        if !state.is_away && (state.waiting.bytes() >= HANDED_OVER_BYTES || state.is_full()) {
            state.is_away = true;
            drop(state);
            let away = Away { shared: Arc::clone(&self.shared), has_ended: false };
            spawn_blocking(move || away.work());
        }
        Ok(())
    }

    /// Ends when everything taken was worked on.
    ///
    /// # Errors
    /// The work failed.
    pub(crate) async fn finish(self) -> io::Result<W> {
        self.until(|state| !state.is_away).await;
        let mut state = lock(&self.shared.state);
        state.work_here()?;
        state.work.take().ok_or_else(lost)
    }

    async fn until(&self, is_so: impl Fn(&State<W>) -> bool) {
        loop {
            let moved = self.shared.moved.notified();
            if is_so(&lock(&self.shared.state)) {
                return;
            }
            moved.await;
        }
    }
}

impl<W: Work> Drop for Lane<W> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.is_given_up = true;
        let work = state.work.take();
        drop(state);
        drop(work);
    }
}

impl<W: Work> State<W> {
    const fn is_full(&self) -> bool {
        self.waiting.bytes() >= MAX_WAITING_BYTES || self.waiting.kept() >= MAX_WAITING_PIECES
    }

    fn failure(&mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None if self.work.is_none() && !self.is_away => Err(lost()),
            None => Ok(()),
        }
    }

    /// Works on what waits, on this thread.
    fn work_here(&mut self) -> io::Result<()> {
        self.failure()?;
        let pieces = self.waiting.take();
        // It is not put back when it fails.
        let mut work = self.work.take().ok_or_else(lost)?;
        pieces.iter().try_for_each(|piece| work.take(piece))?;
        work.rest();
        self.work = Some(work);
        Ok(())
    }
}

/// A thread that works, or is about to. Should it end early, nobody waits for it.
struct Away<W: Work> {
    shared: Arc<Shared<W>>,
    has_ended: bool,
}

impl<W: Work> Away<W> {
    /// Works for as long as something waits.
    fn work(mut self) {
        let Some(mut work) = lock(&self.shared.state).work.take() else { return };
        loop {
            let pieces = lock(&self.shared.state).waiting.take();
            self.shared.moved.notify_one();
            for piece in &pieces {
                if lock(&self.shared.state).is_given_up {
                    return;
                }
                if let Err(error) = work.take(piece) {
                    lock(&self.shared.state).error = Some(error);
                    return;
                }
            }
            drop(pieces);
            let mut state = lock(&self.shared.state);
            if state.is_given_up {
                return;
            }
            if state.waiting.bytes() == 0 {
                work.rest();
                state.work = Some(work);
                state.is_away = false;
                self.has_ended = true;
                drop(state);
                self.shared.moved.notify_one();
                return;
            }
        }
    }
}

impl<W: Work> Drop for Away<W> {
    fn drop(&mut self) {
        // Else another one may be away by now.
        if !self.has_ended {
            lock(&self.shared.state).is_away = false;
            self.shared.moved.notify_one();
        }
    }
}

/// A thread ended in the middle of the work.
fn lost() -> io::Error {
    io::Error::other("the work on an upload has failed")
}

/// One of those that work.
struct Active;

impl Active {
    fn new() -> Self {
        ACTIVE.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Remembers what it took, which it may have to be allowed to.
    struct Noting {
        taken: Vec<u8>,
        fails_at: usize,
        permits: Option<mpsc::Receiver<()>>,
        /// Closed when this is dropped.
        _alive: Option<mpsc::Sender<()>>,
    }

    impl Noting {
        const fn new() -> Self {
            Self { taken: Vec::new(), fails_at: usize::MAX, permits: None, _alive: None }
        }
    }

    impl Work for Noting {
        fn take(&mut self, bytes: &Bytes) -> io::Result<()> {
            if let Some(permits) = &self.permits {
                let _ = permits.recv();
            }
            self.taken.extend_from_slice(bytes);
            if self.taken.len() >= self.fails_at { Err(io::Error::other("told to fail")) } else { Ok(()) }
        }

        fn rest(&mut self) {}
    }

    /// Pieces of odd lengths, enough to be handed over many times.
    fn pieces() -> Vec<Bytes> {
        let lengths = (0..100).map(|number| (number * 7919) % 200_000 + 1);
        lengths.map(|length: usize| Bytes::from(vec![length.to_le_bytes()[0]; length])).collect()
    }

    /// Whether it takes a piece without waiting.
    async fn takes_at_once(lane: &mut Lane<Noting>, piece: &Bytes) -> bool {
        tokio::select! {
            biased;
            taken = lane.take(piece.clone()) => taken.is_ok(),
            () = std::future::ready(()) => false,
        }
    }

    const ALWAYS_HERE: usize = 0;
    const ALWAYS_AWAY: usize = usize::MAX;

    #[tokio::test]
    async fn the_work_is_done_in_order_wherever_it_is_done() {
        let pieces = pieces();
        let whole = pieces.concat();
        for (first, second) in [(ALWAYS_HERE, ALWAYS_HERE), (ALWAYS_AWAY, ALWAYS_AWAY), (ALWAYS_AWAY, ALWAYS_HERE)] {
            let mut lane = Lane::beside(Noting::new(), first);
            for (number, piece) in pieces.iter().enumerate() {
                lane.processors = if number % 20 < 13 { first } else { second };
                lane.take(piece.clone()).await.unwrap();
            }
            assert!(lane.finish().await.unwrap().taken == whole);
        }
    }

    #[tokio::test]
    async fn a_failure_is_told() {
        let pieces = pieces();
        for processors in [ALWAYS_HERE, ALWAYS_AWAY] {
            for fails_at in [1, 3_000_000, pieces.concat().len()] {
                let mut lane = Lane::beside(Noting { fails_at, ..Noting::new() }, processors);
                let mut result = Ok(());
                for piece in &pieces {
                    result = lane.take(piece.clone()).await;
                    if result.is_err() {
                        break;
                    }
                }
                let is_told = result.is_err();
                assert!(lane.finish().await.is_err(), "what failed has no end");
                assert!(is_told || fails_at > 3_000_000, "{fails_at} by {processors}");
            }
        }
    }

    #[tokio::test]
    async fn no_more_waits_than_is_said() {
        let (allow, permits) = mpsc::channel();
        let mut lane = Lane::beside(Noting { permits: Some(permits), ..Noting::new() }, ALWAYS_AWAY);
        let piece = Bytes::from(vec![7; 100_000]);
        let mut taken_bytes = 0;
        for _ in 0..1000 {
            if takes_at_once(&mut lane, &piece).await {
                taken_bytes += piece.len();
            }
            tokio::task::yield_now().await;
        }
        let bound = 2 * (MAX_WAITING_BYTES + piece.len());
        assert!((MAX_WAITING_BYTES..=bound).contains(&taken_bytes), "{taken_bytes}");
        drop(allow);
        assert_eq!(lane.finish().await.unwrap().taken.len(), taken_bytes);
    }

    #[tokio::test]
    async fn who_is_given_up_ends() {
        let (allow, permits) = mpsc::channel();
        let (alive, is_alive) = mpsc::channel();
        let work = Noting { permits: Some(permits), _alive: Some(alive), ..Noting::new() };
        let mut lane = Lane::beside(work, ALWAYS_AWAY);
        let piece = Bytes::from(vec![7; HANDED_OVER_BYTES]);
        while takes_at_once(&mut lane, &piece).await {}
        drop(lane);
        // The piece at hand, if it came to one, and none of the others.
        let _ = allow.send(());
        assert_eq!(is_alive.recv_timeout(Duration::from_secs(300)), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}

//! Turns to take an archive in, and the pace that who has one must keep while others wait.
//!
//! What always holds: no more archives are under way than there are turns, and no more memory is claimed by their decoders
//! than there is; who sends slowly, or nothing, keeps nobody waiting for longer than the patience.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use gf_blobstore::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::IngestError;
use crate::archives::ArchiveLimits;

/// Memory is claimed in steps of this size.
const CLAIM_BYTES: u64 = 1 << 20;

pub(in crate::archives) struct Turns {
    archives: Arc<Semaphore>,
    turns: usize,
    /// Mebibytes that decoders may use, all together.
    memory: Arc<Semaphore>,
    claims: u32,
    waiting: AtomicUsize,
    patience: Duration,
    slowest_bytes_per_s: u64,
}

/// A turn.
pub(super) struct Turn {
    _archive: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

/// How quickly a body comes; time in which nobody was ready to take it does not count.
pub(super) struct Pace<'a> {
    turns: &'a Turns,
    waited: Duration,
    bytes: u64,
}

impl Turns {
    pub(in crate::archives) fn new(limits: &ArchiveLimits) -> Self {
        let claims = u32::try_from((limits.decoder_bytes / CLAIM_BYTES).max(1)).unwrap_or(u32::MAX);
        let most = usize::try_from(claims).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        let turns = limits.concurrent_ingests.max(1);
        Self {
            archives: Arc::new(Semaphore::new(turns)),
            turns,
            memory: Arc::new(Semaphore::new(most)),
            claims,
            waiting: AtomicUsize::new(0),
            patience: limits.patience,
            slowest_bytes_per_s: limits.slowest_bytes_per_s,
        }
    }

    /// Waits for a turn with so much memory.
    pub(super) async fn enter(&self, memory_bytes: u64) -> Result<Turn, IngestError> {
        let _waiting = Waiting::new(&self.waiting);
        // One that needs more than there is at all has all of it.
        let claims = u32::try_from(memory_bytes.div_ceil(CLAIM_BYTES)).unwrap_or(u32::MAX).min(self.claims);
        // Neither is ever closed.
        let archive = Arc::clone(&self.archives).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let memory = Arc::clone(&self.memory).acquire_many_owned(claims).await.map_err(|_| StoreError::Closed)?;
        Ok(Turn { _archive: archive, _memory: memory })
    }

    /// Whether no more than one archive is under way.
    pub(super) fn is_alone(&self) -> bool {
        self.archives.available_permits() + 1 >= self.turns
    }

    /// The pace of a body that begins.
    pub(super) const fn pace(&self) -> Pace<'_> {
        Pace { turns: self, waited: Duration::ZERO, bytes: 0 }
    }
}

/// Counts one who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pace<'_> {
    /// The next piece; an error when it comes too slowly for those who wait.
    pub(super) async fn next<S: Stream>(&mut self, body: &mut Pin<&mut S>) -> Result<Option<S::Item>, IngestError> {
        loop {
            let began = Instant::now();
            let left = self.turns.patience.saturating_sub(self.waited);
            let piece = timeout(left, body.next()).await;
            self.waited += began.elapsed();
            if let Ok(piece) = piece {
                return Ok(piece);
            }
            self.judge()?;
        }
    }

    /// Counts what came.
    pub(super) const fn came(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// Once the patience is over: whether enough came in it.
    fn judge(&mut self) -> Result<(), IngestError> {
        let least = self.turns.patience.as_secs_f64() * self.turns.slowest_bytes_per_s as f64;
        let is_slow = (self.bytes as f64) < least;
        if is_slow && self.turns.waiting.load(Ordering::SeqCst) > 0 {
            return Err(IngestError::TooSlow);
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

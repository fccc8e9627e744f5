//! The way from what requests do into the audit log, which is written beside them: no request waits for it.
//!
//! What is told one by one is queued, what happens often is [counted](tally). Both are written within a second, many in
//! one transaction. What always holds: the queue is bounded, and what finds it full is counted instead; when the database
//! cannot be written to for so long that something must be given up, how much it was is recorded as soon as it can be.
//!
//! Deliberately absent: what must not be done unless it is recorded. That is appended to the log before it is answered.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::tally::{Amount, Deed, Tallies};
use super::{AuditLog, Event, Origin, Outcome};
use crate::{Principal, TenantName};

/// Records that wait to be written.
const MAX_QUEUED: usize = 8192;
/// So many are written at one time; the writer does not wait for the next second when there are as many.
const BATCH: usize = 512;
/// How often what came is written.
const EVERY: Duration = Duration::from_secs(1);

/// Takes down what requests do. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Trail(Arc<Shared>);

struct Shared {
    log: AuditLog,
    began: Instant,
    pending: Mutex<Pending>,
    full: Notify,
    written: AtomicU64,
    lost: AtomicU64,
}

#[derive(Default)]
struct Pending {
    queue: VecDeque<Event>,
    tallies: Tallies,
    /// What was given up and nobody was told of yet.
    lost: u64,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailStats {
    /// Records that wait.
    pub queued: u64,
    /// Records that were written.
    pub written: u64,
    /// Records that were given up, since the database could not be written to.
    pub lost: u64,
}

impl Trail {
    /// A trail into this log. Nothing is written before [`Self::write_until`] is polled.
    #[must_use]
    pub fn new(log: AuditLog) -> Self {
        Self(Arc::new(Shared {
            log,
            began: Instant::now(),
            pending: Mutex::default(),
            full: Notify::new(),
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }))
    }

    /// The log that it leads into.
    #[must_use]
    pub fn log(&self) -> &AuditLog {
        &self.0.log
    }

    /// Records one event. It is written within a second or so, in the order of such events.
    pub fn record(&self, event: Event, origin: Origin) {
        let mut pending = self.pending();
        if pending.queue.len() >= MAX_QUEUED {
            let Event { who, action, subject, outcome, detail, tenant, .. } = event;
            let deed = Deed { who, action: action.into(), subject, outcome, detail, tenant };
            pending.tallies.add(deed, origin, Amount::ONCE);
            return;
        }
        pending.queue.push_back(event.from(&origin));
        let is_much = pending.queue.len() >= BATCH;
        drop(pending);
        if is_much {
            self.0.full.notify_one();
        }
    }

    /// Counts something that a principal did with what is this tenant's: one record for each caller, kind and minute.
    pub fn count(
        &self,
        who: &Principal,
        action: &'static str,
        subject: impl fmt::Display,
        tenant: Option<&TenantName>,
        amount: Amount,
        origin: Origin,
    ) {
        // Each assignment is a principal of its own, and there are many.
        let is_assignment = matches!(who, Principal::Worker(_));
        let deed = Deed {
            who: if is_assignment { "assignments".to_owned() } else { who.to_string() },
            action: action.into(),
            subject: subject.to_string(),
            outcome: Outcome::Done,
            detail: String::new(),
            tenant: tenant.map(TenantName::as_str).or(who.only_tenant()).unwrap_or_default().to_owned(),
        };
        self.pending().tallies.add(deed, origin, amount);
    }

    /// Counts something of another outcome than done.
    pub fn count_deed(&self, deed: Deed, origin: Origin) {
        self.pending().tallies.add(deed.presentable(), origin, Amount::ONCE);
    }

    /// Records what a stranger tried: by itself, with its trace, while there is room for more of that in this hour; then it is
    /// counted.
    pub fn record_tried(&self, deed: Deed, origin: Origin) {
        let deed = deed.presentable();
        let mut pending = self.pending();
        if pending.queue.len() >= MAX_QUEUED || !pending.tallies.takes_stranger() {
            return pending.tallies.add(deed, origin, Amount::ONCE);
        }
        let Deed { who, action, subject, outcome, detail, tenant } = deed;
        let event = Event { who, detail, tenant, ..Event::new(&Principal::Anonymous, &action, subject, outcome) };
        pending.queue.push_back(event.from(&origin));
    }

    /// Writes what comes until told to stop, and then what is left.
    pub async fn write_until(&self, stopping: impl Future<Output = ()>) {
        let mut stopping = std::pin::pin!(stopping);
        loop {
            let pause = timeout(EVERY, self.0.full.notified());
            let is_stopping = tokio::select! {
                () = &mut stopping => true,
                _ = pause => false,
            };
            if is_stopping {
                break;
            }
            let now_ms = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.write(Some(now_ms)).await;
        }
        self.write(None).await;
    }

    /// What waits, and what became of the rest.
    #[must_use]
    pub fn stats(&self) -> TrailStats {
        let queued = self.pending().queue.len() as u64;
        let (written, lost) = (self.0.written.load(Ordering::Relaxed), self.0.lost.load(Ordering::Relaxed));
        TrailStats { queued, written, lost }
    }

    /// Writes all that is due, as far as the database takes it.
    async fn write(&self, now_ms: Option<u64>) {
        let mut waiting = self.take(now_ms);
        while !waiting.is_empty() {
            let count = waiting.len().min(BATCH);
            let written = self.0.log.append(&waiting.make_contiguous()[..count]).await;
            if let Err(error) = written {
                tracing::warn!(%error, records = waiting.len(), "the audit log cannot be written to; it is tried again");
                return self.put_back(waiting);
            }
            waiting.drain(..count);
            self.0.written.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    fn take(&self, now_ms: Option<u64>) -> VecDeque<Event> {
        let mut pending = self.pending();
        let mut waiting = std::mem::take(&mut pending.queue);
        waiting.extend(pending.tallies.due(now_ms));
        let lost = std::mem::take(&mut pending.lost);
        drop(pending);
        if lost > 0 {
            let event = Event::new(&Principal::Server, "audit.lost", "", Outcome::Failed);
            waiting.push_back(Event { detail: format!("{lost} records could not be kept"), ..event });
        }
        waiting
    }

    /// Keeps what was not written, the oldest first; what finds no room is given up, and counted.
    fn put_back(&self, mut waiting: VecDeque<Event>) {
        let mut pending = self.pending();
        waiting.append(&mut pending.queue);
        let lost = waiting.len().saturating_sub(MAX_QUEUED) as u64;
        waiting.truncate(MAX_QUEUED);
        pending.queue = waiting;
        pending.lost += lost;
        self.0.lost.fetch_add(lost, Ordering::Relaxed);
        drop(pending);
        if lost > 0 {
            tracing::error!(lost, "the audit log could not be written to for too long: records are given up");
        }
    }

    // Nothing panics under the lock, and what it guards is whole between two calls.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trail").field(&self.stats()).finish()
    }
}

impl Deed {
    /// What others chose is kept up to a length.
    fn presentable(self) -> Self {
        let cut = |text: String| if text.len() <= MAX_TEXT { text } else { text.chars().take(MAX_TEXT).collect() };
        Self { who: cut(self.who), subject: cut(self.subject), detail: cut(self.detail), ..self }
    }
}

/// The longest text that is counted by, so that memory is bounded.
const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests;

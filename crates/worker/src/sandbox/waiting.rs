//! Who waits for what the launcher says of a run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::wire::{Outcome, Request, frame};
use super::{Ran, SandboxError};

/// The runs under way.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Nothing once the launcher is gone.
    runs: Mutex<Option<HashMap<u64, Told>>>,
}

/// Where to say what of one run.
#[derive(Debug)]
struct Told {
    begun: Option<oneshot::Sender<u32>>,
    ended: oneshot::Sender<Outcome>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { runs: Mutex::new(Some(HashMap::new())) }
    }

    /// Passes on what the launcher says. Whoever asked may have lost interest.
    pub(super) fn tell(&self, id: u64, outcome: Outcome) {
        let mut runs = self.lock();
        let Some(runs) = runs.as_mut() else { return };
        if let Outcome::Begun(of) = outcome {
            let begun = runs.get_mut(&id).and_then(|told| told.begun.take());
            let _ = begun.map(|begun| begun.send(of.process));
        } else if let Some(told) = runs.remove(&id) {
            let _ = told.ended.send(outcome);
        }
    }

    /// The launcher is gone: nothing more will be said, and nobody needs to ask.
    pub(super) fn give_up(&self) {
        *self.lock() = None;
    }

    fn register(&self, id: u64, told: Told) -> Option<()> {
        self.lock().as_mut().map(|runs| drop(runs.insert(id, told)))
    }

    /// Whether it was still under way.
    fn forget(&self, id: u64) -> bool {
        self.lock().as_mut().is_some_and(|runs| runs.remove(&id).is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Told>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Begun {
    id: u64,
    begun: oneshot::Receiver<u32>,
    ended: oneshot::Receiver<Outcome>,
    stop: Option<mpsc::OwnedPermit<Vec<u8>>>,
    waiting: Arc<Waiting>,
}

impl Begun {
    /// One that is about to be ordered; nothing if the launcher is gone. `stop` is the place for the order to end it.
    pub(super) fn register(id: u64, stop: mpsc::OwnedPermit<Vec<u8>>, waiting: &Arc<Waiting>) -> Option<Self> {
        let ((tell_begun, begun), (tell_ended, ended)) = (oneshot::channel(), oneshot::channel());
        waiting.register(id, Told { begun: Some(tell_begun), ended: tell_ended })?;
        Some(Self { id, begun, ended, stop: Some(stop), waiting: Arc::clone(waiting) })
    }

    /// Waits until it has a process, which is the first of its sandbox.
    pub(super) async fn begun(&mut self) -> Result<u32, SandboxError> {
        match (&mut self.begun).await {
            Ok(process) => Ok(process),
            Err(_) => self.ended().await.and(Err(SandboxError::LauncherGone)),
        }
    }

    /// Waits for how it ended, once.
    pub(super) async fn ended(&mut self) -> Result<Ran, SandboxError> {
        match (&mut self.ended).await {
            Ok(Outcome::Ended(ended)) => Ok(ended.into_ran()),
            Ok(Outcome::Failed(failure)) => {
                let source = failure.error();
                Err(SandboxError::Refused { doing: failure.doing, source })
            }
            Ok(Outcome::Ready(_) | Outcome::Begun(_)) | Err(_) => Err(SandboxError::LauncherGone),
        }
    }

    /// Ends it; how it ended is told all the same.
    pub(super) fn stop(&mut self) {
        if let (Some(place), Some(order)) = (self.stop.take(), frame(&Request { id: self.id, start: None })) {
            place.send(order);
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.waiting.forget(self.id) {
            self.stop();
        }
    }
}

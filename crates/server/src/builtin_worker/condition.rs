//! What became of the worker inside the server: for operators who wonder why nothing runs.

use std::sync::{Arc, Mutex, PoisonError};

use crate::operator::report::OwnWorker;

/// Written by whoever keeps the worker running, read by whoever is asked. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Condition(Arc<Mutex<OwnWorker>>);

impl Condition {
    pub(crate) fn get(&self) -> OwnWorker {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, now: OwnWorker) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

//! Making writes durable on request: who asks waits for one flush of the disk that begins later, together with all who
//! asked meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::core::{Core, failed};
use crate::StoreError;

/// The flushes that were asked for.
#[derive(Default)]
pub(crate) struct Flushes {
    /// How many began.
    begun: AtomicU64,
    /// One at a time.
    last: Arc<Mutex<Last>>,
}

/// The flush that ended last: its number, and what went wrong.
#[derive(Default)]
struct Last {
    number: u64,
    error: Option<(io::ErrorKind, String)>,
}

impl Last {
    fn result(&self) -> Result<(), StoreError> {
        match &self.error {
            None => Ok(()),
            Some((kind, message)) => Err(failed("making writes durable")(io::Error::new(*kind, message.clone()))),
        }
    }
}

impl Core {
    /// Returns when everything acknowledged before this call survives a power cut. A flush that fails is an error for all
    /// who waited for it.
    pub(crate) async fn make_durable(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        // One that began before may have passed by what was written last.
        let begun_before = self.flushes.begun.load(Ordering::Acquire);
        let mut last = Arc::clone(&self.flushes.last).lock_owned().await;
        if last.number > begun_before {
            return last.result();
        }
        let core = Arc::clone(self);
        let flushing = tokio::task::spawn_blocking(move || {
            // Ended and noted here: whoever asked may leave.
            last.number = core.flushes.begun.fetch_add(1, Ordering::AcqRel) + 1;
            last.error = core.sync().err().map(|error| (error.kind(), error.to_string()));
            last.result()
        });
        flushing.await.map_err(|error| failed("making writes durable")(io::Error::other(error)))?
    }
}

//! Operations: what clients wait for, and the shell around the scheduler.
//!
//! A client's request is an *operation*; what is run for it is an *execution*, which several operations may share. The
//! [`Scheduler`] decides which execution runs where; here its decisions are carried out: actions are checked before
//! they are queued, workers are told, results are stored before they are announced.
//!
//! Deliberately absent: protocols (edges translate), the sandbox, and remembering operations across a restart.
//!
//! What always holds: an operation ends exactly once; a result is announced only when everything that it names is
//! stored and leased; the credential of an assignment ends with it; no lock is held while waiting.

mod admission;
mod answer;
mod desk;
mod settlement;
mod time;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gf_blobstore::BlobStore;
use gf_digest::Digest;
use gf_tenancy::{Access, Authorized, Execute, Operate, TenantId};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::actions::Timeouts;
use crate::closures::{Closures, NoCaches, Toolchains};
use crate::scheduler::{
    AssignmentId, Cap, Event, Explanation, Now, Offer, RunStage, SchedulerConfig, Snapshot, WorkerId,
};
use crate::{ActionCache, Inlining};

use admission::Gate;
pub use answer::{Answer, Assignment, Ended, Order, Progress, Stage, Verdict};
use desk::Desk;
pub use desk::overview::{Inspection, Overview, RunningAction};
pub use watch::{Attachment, OperationName, Reports, Watch};

/// Workers that are here at one time.
const MAX_WORKERS: usize = 4096;
/// How often it is looked whether something still runs.
const QUIET_POLL: Duration = Duration::from_millis(20);
/// How long stopping waits for results that are being stored.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What operations are made with.
#[derive(Clone, Copy, Debug)]
pub struct OperationsConfig {
    /// How long actions may take.
    pub timeouts: Timeouts,
    /// The bounds of the scheduler.
    pub scheduler: SchedulerConfig,
    /// The lease of the store: what executions need is leased again well before it ends.
    pub lease: Duration,
    /// How long the end of an operation is remembered for clients that come back.
    pub retention: Duration,
    /// Operations that live at one time, ended ones that are remembered included.
    pub max_operations: usize,
    /// And of one tenant, so that there is room for others.
    pub max_operations_of_tenant: usize,
}

impl Default for OperationsConfig {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            scheduler: SchedulerConfig::default(),
            lease: Duration::from_secs(6 * 3600),
            retention: Duration::from_secs(300),
            max_operations: 200_000,
            max_operations_of_tenant: 100_000,
        }
    }
}

/// What a client asks to be run.
#[derive(Clone, Debug)]
pub struct Request {
    /// The action.
    pub action: Digest,
    /// Run it even if its result is known.
    pub skip_cache_lookup: bool,
    /// Lower runs first, within a tenant.
    pub priority: i32,
    /// What one command of the client started.
    pub invocation: Arc<str>,
    /// What the client wants to have in the result itself.
    pub inlining: Inlining,
}

/// Why no operation was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TooManyOperations {
    /// Of all tenants together.
    #[error("{0} operations are waiting or were not yet forgotten; try again later")]
    OfAll(usize),
    /// Of this one.
    #[error("{0} operations of this tenant are waiting or were not yet forgotten; try again later")]
    OfTenant(usize),
}

/// Why a worker was not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{MAX_WORKERS} workers are here already; try again later")]
pub struct TooManyWorkers;

/// All operations and workers of a server. Cheap to clone.
#[derive(Clone)]
pub struct Operations(Arc<Inner>);

struct Inner {
    store: Arc<dyn BlobStore>,
    action_cache: ActionCache,
    access: Arc<Access>,
    toolchains: Toolchains,
    config: OperationsConfig,
    origin: Instant,
    desk: Mutex<Desk>,
    /// When something is due may have changed.
    changed: Notify,
    gate: Gate,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Operations {
    /// Begins to schedule, for actions that name no store paths. Must be called within a Tokio runtime.
    #[must_use]
    pub fn start(
        store: Arc<dyn BlobStore>,
        action_cache: ActionCache,
        access: Arc<Access>,
        config: OperationsConfig,
    ) -> Self {
        Self::start_with_closures(store, action_cache, access, Arc::new(NoCaches), config)
    }

    /// Begins to schedule. Must be called within a Tokio runtime.
    #[must_use]
    pub fn start_with_closures(
        store: Arc<dyn BlobStore>,
        action_cache: ActionCache,
        access: Arc<Access>,
        closures: Arc<dyn Closures>,
        config: OperationsConfig,
    ) -> Self {
        let toolchains = Toolchains::new(Arc::clone(&store), closures, config.lease);
        let operations = Self(Arc::new(Inner {
            store,
            action_cache,
            access,
            toolchains,
            config,
            origin: Instant::now(),
            desk: Mutex::new(Desk::new(config)),
            changed: Notify::new(),
            gate: Gate::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }));
        operations.0.tasks.spawn(operations.clone().keep_time());
        operations.0.tasks.spawn(operations.clone().keep_leases());
        operations
    }

    /// Waits until nothing runs on workers, at most for so long.
    pub async fn quiet(&self, longest: Duration) {
        let ended = async {
            while self.desk().running() > 0 {
                sleep(QUIET_POLL).await;
            }
        };
        // What runs longer is run again by whoever wants it.
        let _ = timeout(longest, ended).await;
    }

    /// Ends all tasks. What runs on workers is theirs to end: their streams are closed.
    pub async fn stop(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        if timeout(STOP_DEADLINE, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("results were still being stored when the server stopped; clients will run them again");
        }
    }

    /// Begins an operation for a client that waits.
    ///
    /// # Errors
    /// [`TooManyOperations`].
    pub fn execute(&self, grant: Authorized<Execute>, request: Request) -> Result<Watch, TooManyOperations> {
        let name = OperationName::new(grant.instance());
        let watch = {
            let mut desk = self.desk();
            let receiver = desk.open(name.clone(), grant.clone(), &request)?;
            Watch::new(self.clone(), name.clone(), receiver)
        };
        let admission = self.clone().admit(name, grant, request);
        let stopping = self.0.stopping.clone();
        self.0.tasks.spawn(async move { stopping.run_until_cancelled(admission).await });
        Ok(watch)
    }

    /// Waits for an operation of the grant's instance, together with those who wait already; `None` when it is not
    /// known, or not any more.
    #[must_use]
    pub fn wait(&self, grant: &Authorized<Execute>, name: &OperationName) -> Option<Watch> {
        let receiver = self.act(|desk, at| desk.join(grant, name, at))?;
        Some(Watch::new(self.clone(), name.clone(), receiver))
    }

    /// How far an operation got, without waiting for it; `None` when it is not known.
    #[must_use]
    pub fn look(&self, grant: &Authorized<Execute>, name: &OperationName) -> Option<(Digest, Progress)> {
        self.desk().look(grant, name)
    }

    /// The operations of the grant's instance, by name, from the one after `after`.
    #[must_use]
    pub fn list(&self, grant: &Authorized<Execute>, after: Option<&OperationName>, max: usize) -> Vec<OperationName> {
        self.desk().list(grant, after, max)
    }

    /// Ends an operation; whether it was known. Others that wait for the same execution are not concerned.
    #[must_use]
    pub fn cancel(&self, grant: &Authorized<Execute>, name: &OperationName) -> bool {
        self.act(|desk, at| desk.cancel(grant, name, at))
    }

    /// Why an operation is where it is: the first question of somebody who waits. `None` when it is not known, or is
    /// over.
    #[must_use]
    pub fn explain(&self, grant: &Authorized<Execute>, name: &OperationName) -> Option<Explanation> {
        let now = self.now();
        self.desk().explain(grant, name, now)
    }

    /// All queues and workers, for operators.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.now();
        self.desk().snapshot(now)
    }

    /// All queues and workers, and which actions run on them, whosever they are.
    #[must_use]
    pub fn overview(&self, _: &Authorized<Operate>) -> Overview {
        let now = self.now();
        self.desk().overview(now)
    }

    /// Everything about an operation of any tenant; `None` when it is not known, or not any more.
    #[must_use]
    pub fn inspect(&self, _: &Authorized<Operate>, name: &OperationName) -> Option<Inspection> {
        let now = self.now();
        self.desk().inspect(name, now)
    }

    /// How many executions ended since the start, by the word of their [`Verdict`].
    #[must_use]
    pub fn ends(&self) -> BTreeMap<&'static str, u64> {
        self.desk().ends()
    }

    /// Lets a tenant have so many executions on workers at one time from now on, or any number; further ones wait in line.
    /// What runs beyond it runs on, and others are not concerned.
    pub fn cap_executions(&self, tenant: TenantId, cap: Option<Cap>) {
        self.act(|desk, at| desk.cap_executions(tenant, cap, at));
    }

    /// How many executions of a tenant are on workers.
    #[must_use]
    pub fn running_of(&self, tenant: TenantId) -> u32 {
        self.desk().running_of(tenant)
    }

    /// A worker came. It is gone when the attachment is dropped.
    ///
    /// # Errors
    /// [`TooManyWorkers`].
    pub fn attach(&self, offer: Offer) -> Result<Attachment, TooManyWorkers> {
        let (id, orders, hang_up) = self.act(|desk, at| match desk.workers() {
            0..MAX_WORKERS => Ok(desk.attach(offer, at)),
            _ => Err(TooManyWorkers),
        })?;
        Ok(Attachment::new(self.clone(), id, orders, hang_up))
    }

    fn worker_said(&self, event: Event) {
        self.act(|desk, at| desk.happen(event, at));
    }

    fn worker_answered(&self, worker: WorkerId, assignment: AssignmentId, answer: Answer) {
        self.act(|desk, at| desk.answer(worker, assignment, answer, at));
    }

    fn worker_got_on(&self, worker: WorkerId, assignment: AssignmentId, stage: RunStage) {
        self.worker_said(Event::Progressed { worker, assignment, stage });
    }

    /// Does something at the desk, then what follows from it.
    fn act<T>(&self, action: impl FnOnce(&mut Desk, At<'_>) -> T) -> T {
        let now = self.now();
        let (done, follow_up) = {
            let mut desk = self.desk();
            let done = action(&mut desk, At { now, access: &self.0.access });
            (done, desk.take_follow_up())
        };
        for settlement in follow_up {
            self.0.tasks.spawn(self.clone().settle(settlement));
        }
        self.0.changed.notify_one();
        done
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing at the desk panics on outside data; should it, the others are still served.
        self.0.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now(self.0.origin.elapsed())
    }
}

/// When something happens, and with whose help it is carried out.
#[derive(Clone, Copy)]
struct At<'a> {
    now: Now,
    access: &'a Access,
}

#[cfg(test)]
mod tests;

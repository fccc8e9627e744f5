//! What is known of operations, executions and workers at one moment, and how the scheduler's decisions are carried
//! out. Everything here happens under one lock and takes no time.

mod effects;
pub(super) mod overview;
mod remembered;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use gf_digest::Digest;
use gf_tenancy::{Authorized, Execute, Loan, TenantId};
use remembered::Remembered;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::admission::tenant_walks;
use super::answer::{Answer, Ended, Order, Progress, Stage, Verdict};
use super::settlement::Settlement;
use super::{At, OperationName, OperationsConfig, Request, TooManyOperations};
use crate::Inlining;
use crate::action_cache::RunOrigin;
use crate::actions::CheckedAction;
use crate::content::owner;
use crate::scheduler::{
    AssignmentId, Cap, Effect, Event, ExecutionId, Explanation, MergeKey, Now, Offer, Outcome, Payer, Scheduler,
    Snapshot, Submission, WorkerId,
};

/// What a worker may be told before it takes notice: far more than it can have assignments.
const MAX_ORDERS: usize = 4096;
/// How often an execution is run again because what a worker said to have stored is not here.
const MAX_INCOMPLETE: u32 = 2;
/// The properties by which a worker says what its actions run in.
const IMAGE_PROPERTIES: [&str; 2] = ["container-image", "image"];

pub(super) struct Desk {
    config: OperationsConfig,
    scheduler: Scheduler,
    operations: BTreeMap<OperationName, Operation>,
    operations_of: HashMap<TenantId, usize>,
    executions: HashMap<ExecutionId, Execution>,
    workers: HashMap<WorkerId, Link>,
    /// What runs where, as far as its answer is wanted.
    running: HashMap<AssignmentId, ExecutionId>,
    /// Executions that were answered and are not announced yet: who wants the same joins them.
    settling: HashMap<MergeKey, ExecutionId>,
    /// An answer while the scheduler is asked what becomes of it.
    answer: Option<(AssignmentId, Answer)>,
    remembered: Remembered,
    follow_up: Vec<Settlement>,
    /// How executions ended since the start, by the word for it.
    ends: BTreeMap<&'static str, u64>,
    /// The room that each tenant has for walks through input roots; as many as there are tenants.
    walks: HashMap<TenantId, Arc<Semaphore>>,
    next_execution: u64,
    next_worker: u64,
}

struct Operation {
    grant: Authorized<Execute>,
    action: Digest,
    inlining: Inlining,
    progress: watch::Sender<Progress>,
    /// Known once it was checked, until it ends.
    execution: Option<ExecutionId>,
    waiters: usize,
}

impl Operation {
    fn is_of(&self, grant: &Authorized<Execute>) -> bool {
        self.grant.instance() == grant.instance() && self.grant.tenant().id() == grant.tenant().id()
    }

    fn is_over(&self) -> bool {
        self.progress.borrow().ended.is_some()
    }

    fn enter(&self, stage: Stage) {
        self.progress.send_if_modified(|progress| progress.enter(stage));
    }
}

struct Execution {
    grant: Authorized<Execute>,
    action: Arc<CheckedAction>,
    submission: Submission,
    operations: Vec<OperationName>,
    attempt: Option<Attempt>,
    /// It was answered, and its result is on the way to those who wait.
    is_settling: bool,
    queued: SystemTime,
    leased: Now,
    /// How often its outputs were not here though they should have been.
    incomplete: u32,
    last_failure: String,
}

struct Attempt {
    worker: WorkerId,
    assignment: AssignmentId,
    /// What is kept with its result of where it was run.
    origin: RunOrigin,
    /// What the worker was lent; revoked when the attempt is over.
    _loan: Loan,
}

struct Link {
    orders: mpsc::Sender<Order>,
    hang_up: CancellationToken,
    /// What is kept with the results of what it runs.
    origin: RunOrigin,
}

/// An execution whose inputs are to be leased again.
pub(super) type Renewal = (ExecutionId, Arc<CheckedAction>, Authorized<Execute>);

/// An operation whose result is here: its name, its action, who wants it and with which contents in it.
pub(super) type Waiting = ((OperationName, Digest), Authorized<Execute>, Inlining);

impl Desk {
    pub(super) fn new(config: OperationsConfig) -> Self {
        Self {
            config,
            scheduler: Scheduler::new(config.scheduler),
            operations: BTreeMap::new(),
            operations_of: HashMap::new(),
            executions: HashMap::new(),
            workers: HashMap::new(),
            running: HashMap::new(),
            settling: HashMap::new(),
            answer: None,
            remembered: Remembered::default(),
            follow_up: Vec::new(),
            ends: BTreeMap::new(),
            walks: HashMap::new(),
            next_execution: 0,
            next_worker: 0,
        }
    }

    /// An operation begins, with one client that waits, if there is room for it.
    pub(super) fn open(
        &mut self,
        name: OperationName,
        grant: Authorized<Execute>,
        request: &Request,
    ) -> Result<watch::Receiver<Progress>, TooManyOperations> {
        let (of_all, of_tenant) = (self.config.max_operations, self.config.max_operations_of_tenant);
        if self.operations.len() >= of_all {
            return Err(TooManyOperations::OfAll(of_all));
        }
        let count = self.operations_of.entry(grant.tenant().id()).or_default();
        if *count >= of_tenant {
            return Err(TooManyOperations::OfTenant(of_tenant));
        }
        *count += 1;
        let (progress, receiver) = watch::channel(Progress::begin());
        let inlining = request.inlining.clone();
        let operation = Operation { grant, action: request.action, inlining, progress, execution: None, waiters: 1 };
        self.operations.insert(name, operation);
        Ok(receiver)
    }

    /// One more client waits for an operation.
    pub(super) fn join(
        &mut self,
        grant: &Authorized<Execute>,
        name: &OperationName,
        at: At<'_>,
    ) -> Option<watch::Receiver<Progress>> {
        let operation = self.operations.get_mut(name).filter(|operation| operation.is_of(grant))?;
        operation.waiters += 1;
        let receiver = operation.progress.subscribe();
        if let Some(execution) = operation.execution {
            self.happen(Event::WaiterJoined(execution), at);
        }
        Some(receiver)
    }

    /// A client does not wait any more.
    pub(super) fn leave(&mut self, name: &OperationName, at: At<'_>) {
        let Some(operation) = self.operations.get_mut(name) else { return };
        operation.waiters = operation.waiters.saturating_sub(1);
        if let Some(execution) = operation.execution {
            self.happen(Event::WaiterLeft(execution), at);
        }
    }

    pub(super) fn look(&self, grant: &Authorized<Execute>, name: &OperationName) -> Option<(Digest, Progress)> {
        let operation = self.operations.get(name).filter(|operation| operation.is_of(grant))?;
        Some((operation.action, operation.progress.borrow().clone()))
    }

    pub(super) fn list(
        &self,
        grant: &Authorized<Execute>,
        after: Option<&OperationName>,
        max: usize,
    ) -> Vec<OperationName> {
        // The names of one instance stand together: what others have is not walked through.
        let prefix = OperationName::prefix(grant.instance());
        let begin = match after {
            Some(after) if *after > prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(prefix.clone()),
        };
        let following = self.operations.range((begin, Bound::Unbounded));
        let of_instance = following.take_while(|(name, _)| name.as_str().starts_with(prefix.as_str()));
        of_instance.filter(|(_, operation)| operation.is_of(grant)).map(|(name, _)| name.clone()).take(max).collect()
    }

    /// Ends an operation because somebody wants that; whether it is known.
    pub(super) fn cancel(&mut self, grant: &Authorized<Execute>, name: &OperationName, at: At<'_>) -> bool {
        let Some(operation) = self.operations.get(name).filter(|operation| operation.is_of(grant)) else {
            return false;
        };
        if operation.is_over() {
            return true;
        }
        let (execution, waiters) = (operation.execution, operation.waiters);
        if let Some(execution) = execution
            && let Some(shared) = self.executions.get_mut(&execution)
        {
            if shared.operations.len() == 1 && !shared.is_settling {
                self.happen(Event::Cancel(execution), at);
                return true;
            }
            shared.operations.retain(|other| other != name);
            for _ in 0..waiters {
                self.happen(Event::WaiterLeft(execution), at);
            }
        }
        self.end(name, Ended::without_result(Verdict::Cancelled), at);
        true
    }

    pub(super) fn explain(&self, grant: &Authorized<Execute>, name: &OperationName, now: Now) -> Option<Explanation> {
        let operation = self.operations.get(name).filter(|operation| operation.is_of(grant))?;
        self.scheduler.explain(operation.execution?, now)
    }

    pub(super) fn snapshot(&self, now: Now) -> Snapshot {
        self.scheduler.snapshot(now)
    }

    pub(super) fn ends(&self) -> BTreeMap<&'static str, u64> {
        self.ends.clone()
    }

    /// An operation was checked: it is queued, or joins one that is the same.
    pub(super) fn submit(&mut self, name: &OperationName, action: Arc<CheckedAction>, request: &Request, at: At<'_>) {
        let Some(operation) = self.operations.get_mut(name).filter(|operation| !operation.is_over()) else { return };
        let payer = Payer(owner(&operation.grant).0);
        let instance: Arc<str> = operation.grant.instance().as_str().into();
        let merge = (!action.do_not_cache).then_some(MergeKey { payer, instance, action: action.digest });
        let settling = merge.as_ref().and_then(|key| self.settling.get(key));
        if let Some(execution) = settling
            && let Some(shared) = self.executions.get_mut(execution)
        {
            operation.execution = Some(*execution);
            shared.operations.push(name.clone());
            return;
        }
        let submission = Submission {
            payer,
            invocation: Arc::clone(&request.invocation),
            priority: request.priority,
            platform: Arc::clone(&action.platform),
            demand: action.demand,
            merge,
            timeout: action.timeout,
        };
        let execution = Execution {
            grant: operation.grant.clone(),
            action,
            submission,
            operations: vec![name.clone()],
            attempt: None,
            is_settling: false,
            queued: SystemTime::now(),
            leased: at.now,
            incomplete: 0,
            last_failure: String::new(),
        };
        self.begin(execution, at);
    }

    /// Gives an execution to the scheduler, and tells it how many wait.
    fn begin(&mut self, execution: Execution, at: At<'_>) {
        self.next_execution += 1;
        let id = ExecutionId(self.next_execution);
        let submission = execution.submission.clone();
        let mut waiters = 0;
        for name in &execution.operations {
            if let Some(operation) = self.operations.get_mut(name) {
                operation.execution = Some(id);
                waiters += operation.waiters;
            }
        }
        let first = execution.operations.first().cloned();
        self.executions.insert(id, execution);
        self.happen(Event::Submit { execution: id, submission }, at);
        // It may have been merged into another.
        let operation = first.and_then(|name| self.operations.get(&name));
        let Some(id) = operation.and_then(|operation| operation.execution) else { return };
        if waiters == 0 {
            self.happen(Event::WaiterLeft(id), at);
        }
        for _ in 1..waiters {
            self.happen(Event::WaiterJoined(id), at);
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn walks_of(&mut self, grant: &Authorized<Execute>) -> Arc<Semaphore> {
        Arc::clone(self.walks.entry(grant.tenant().id()).or_insert_with(tenant_walks))
    }

    pub(super) fn cap_executions(&mut self, tenant: TenantId, cap: Option<Cap>, at: At<'_>) {
        self.happen(Event::Capped { payer: Payer(tenant.number()), cap }, at);
    }

    pub(super) fn running_of(&self, tenant: TenantId) -> u32 {
        self.scheduler.running_of(Payer(tenant.number()))
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// A worker came.
    pub(super) fn attach(&mut self, offer: Offer, at: At<'_>) -> (WorkerId, mpsc::Receiver<Order>, CancellationToken) {
        self.next_worker += 1;
        let worker = WorkerId(self.next_worker);
        let (orders, receiver) = mpsc::channel(MAX_ORDERS);
        let hang_up = CancellationToken::new();
        self.workers.insert(worker, Link { orders, hang_up: hang_up.clone(), origin: origin(&offer) });
        self.happen(Event::WorkerJoined { worker, offer }, at);
        (worker, receiver, hang_up)
    }

    /// A worker says how an assignment ended.
    pub(super) fn answer(&mut self, worker: WorkerId, assignment: AssignmentId, answer: Answer, at: At<'_>) {
        let outcome = match &answer {
            Answer::WorkerFailed(reason) => {
                self.note_setback(worker, assignment, reason);
                Outcome::WorkerFailed
            }
            Answer::HandedBack(reason) => {
                self.note_setback(worker, assignment, reason);
                Outcome::HandedBack
            }
            Answer::Cancelled => Outcome::Cancelled,
            _ => Outcome::Answered,
        };
        self.answer = Some((assignment, answer));
        self.happen(Event::Finished { worker, assignment, outcome }, at);
        self.answer = None;
    }

    /// What a worker says of an assignment that is not its own is not repeated, to nobody.
    fn note_setback(&mut self, worker: WorkerId, assignment: AssignmentId, reason: &str) {
        let execution = self.running.get(&assignment).and_then(|id| self.executions.get_mut(id));
        let is_its_own = |attempt: &Attempt| attempt.worker == worker && attempt.assignment == assignment;
        if let Some(execution) = execution.filter(|execution| execution.attempt.as_ref().is_some_and(is_its_own)) {
            tracing::warn!(%worker, %assignment, reason, "an assignment came to nothing");
            reason.clone_into(&mut execution.last_failure);
        }
    }

    /// Something happens to the scheduler; what it decides is carried out.
    pub(super) fn happen(&mut self, event: Event, at: At<'_>) {
        if let Event::WorkerLeft(worker) = event {
            self.workers.remove(&worker);
        }
        let mut effects: Vec<Effect> = Vec::new();
        self.scheduler.apply(event, at.now, &mut effects);
        for effect in effects {
            self.perform(effect, at);
        }
    }

    /// Those who wait for an execution whose result is here. When there are none, it is over.
    pub(super) fn take_waiting(&mut self, id: ExecutionId, _at: At<'_>) -> Vec<Waiting> {
        let Some(execution) = self.executions.get_mut(&id) else { return Vec::new() };
        let names = std::mem::take(&mut execution.operations);
        let waiting = |name: OperationName| {
            let operation = self.operations.get(&name)?;
            Some(((name, operation.action), operation.grant.clone(), operation.inlining.clone()))
        };
        let waiting: Vec<Waiting> = names.into_iter().filter_map(waiting).collect();
        if waiting.is_empty() {
            self.forget(id);
        }
        waiting
    }

    /// An execution that is settling ends without a result.
    pub(super) fn give_up(&mut self, id: ExecutionId, reason: &str, at: At<'_>) {
        let ended = Ended::without_result(Verdict::Unavailable(reason.to_owned()));
        for name in self.forget(id).map(|execution| execution.operations).unwrap_or_default() {
            self.end(&name, ended.clone(), at);
        }
    }

    /// Whether somebody waits for an operation that is not over.
    pub(super) fn is_wanted(&self, name: &OperationName) -> bool {
        self.operations.get(name).is_some_and(|operation| operation.waiters > 0 && !operation.is_over())
    }

    /// What an execution left is not all here: it is run again, a few times.
    pub(super) fn run_again(&mut self, id: ExecutionId, at: At<'_>) {
        let Some(mut execution) = self.forget(id) else { return };
        execution.incomplete += 1;
        execution.is_settling = false;
        if execution.incomplete > MAX_INCOMPLETE {
            let lost = "outputs were lost each time after the action was run";
            let ended = Ended::without_result(Verdict::Unavailable(lost.to_owned()));
            for name in execution.operations {
                self.end(&name, ended.clone(), at);
            }
            return;
        }
        if !execution.operations.is_empty() {
            self.begin(execution, at);
        }
    }

    /// An operation is over.
    pub(super) fn end(&mut self, name: &OperationName, ended: Ended, at: At<'_>) {
        let Some(operation) = self.operations.get_mut(name).filter(|operation| !operation.is_over()) else { return };
        operation.execution = None;
        operation.inlining = Inlining::NONE;
        let bytes = ended.size_bytes();
        operation.progress.send_modify(|progress| {
            progress.enter(Stage::Completed);
            progress.ended = Some(Arc::new(ended));
        });
        self.remembered.add(at.now, name.clone(), bytes);
        self.forget_ended(at.now);
    }

    /// When the scheduler wants to know the time.
    pub(super) fn wake_at(&self) -> Option<Now> {
        self.scheduler.wake_at()
    }

    /// Executions whose inputs should be leased again.
    pub(super) fn due_renewals(&mut self, now: Now) -> Vec<Renewal> {
        self.forget_ended(now);
        let due = self.config.lease / 3;
        let is_due = |execution: &Execution| now.0.saturating_sub(execution.leased.0) >= due;
        let due = self.executions.iter().filter(|(_, execution)| is_due(execution));
        due.map(|(id, execution)| (*id, Arc::clone(&execution.action), execution.grant.clone())).collect()
    }

    /// Whether an execution still needs its inputs.
    pub(super) fn is_kept(&self, id: ExecutionId) -> bool {
        self.executions.contains_key(&id)
    }

    /// The inputs of an execution were leased.
    pub(super) fn renewed(&mut self, id: ExecutionId, now: Now) {
        if let Some(execution) = self.executions.get_mut(&id) {
            execution.leased = now;
        }
    }

    pub(super) fn take_follow_up(&mut self) -> Vec<Settlement> {
        std::mem::take(&mut self.follow_up)
    }

    fn forget_ended(&mut self, now: Now) {
        while let Some(name) = self.remembered.take(now, self.config.retention) {
            let forgotten = self.operations.remove(&name).map(|operation| operation.grant.tenant().id());
            if let Some(count) = forgotten.and_then(|tenant| self.operations_of.get_mut(&tenant)) {
                *count -= 1;
            }
        }
    }

    fn forget(&mut self, id: ExecutionId) -> Option<Execution> {
        let execution = self.executions.remove(&id)?;
        if let Some(attempt) = &execution.attempt {
            self.running.remove(&attempt.assignment);
        }
        if let Some(key) = &execution.submission.merge
            && self.settling.get(key) == Some(&id)
        {
            self.settling.remove(key);
        }
        Some(execution)
    }
}

/// What is kept of a worker with the results of what it runs.
fn origin(offer: &Offer) -> RunOrigin {
    let is_image = |name: &str| IMAGE_PROPERTIES.contains(&name);
    let image = offer.properties.iter().find(|property| is_image(&property.name));
    RunOrigin {
        worker: Arc::clone(&offer.name),
        image: image.map(|property| Arc::clone(&property.value)).unwrap_or_default(),
    }
}

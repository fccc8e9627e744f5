//! What waits and who works, for people and metrics. Takes time in proportion to what it tells of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::executions::State;
use super::matching::PlatformId;
use super::{AssignmentId, ExecutionId, Now, Payer, Platform, Property, Resources, RunStage, Scheduler, WorkerId};

/// Everything at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// How many executions wait.
    pub queued: usize,
    /// How many run.
    pub running: usize,
    /// For each platform that is asked for.
    pub queues: Vec<QueueState>,
    /// Every worker, in the order of their arrival.
    pub workers: Vec<WorkerState>,
    /// Every tenant that may have only so many executions on workers, and has some there or in line.
    pub caps: Vec<CapState>,
}

/// A tenant that may have only so many executions on workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapState {
    /// Its name.
    pub tenant: Arc<str>,
    /// How many of its executions wait.
    pub queued: usize,
    /// How many are on workers, those included whose result is not wanted any more.
    pub running: u32,
    /// How many it may have there.
    pub most: u32,
}

/// What asks for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Which.
    pub platform: Arc<Platform>,
    /// How many wait.
    pub queued: usize,
    /// How many run.
    pub running: usize,
    /// How long the one waits that waits longest.
    pub oldest_wait: Option<Duration>,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerState {
    /// Which.
    pub id: WorkerId,
    /// For people.
    pub name: Arc<str>,
    /// What actions may ask for, in order.
    pub properties: Arc<[Property]>,
    /// What its sandbox lacks there, in sentences.
    pub limitations: Arc<[String]>,
    /// When idle.
    pub capacity: Resources,
    /// Now.
    pub free: Resources,
    /// What it runs, oldest first.
    pub running: Vec<RunningState>,
    /// It takes nothing more.
    pub draining: bool,
    /// It failed too often and gets nothing for so long.
    pub rests: Option<Duration>,
    /// It is kept free for this one.
    pub kept_free_for: Option<ExecutionId>,
}

/// An attempt on a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningState {
    /// Which.
    pub assignment: AssignmentId,
    /// Of what; `None` when its result is not wanted any more.
    pub execution: Option<ExecutionId>,
    /// How far it is.
    pub stage: RunStage,
    /// How long it goes on.
    pub lasts: Duration,
}

impl Scheduler {
    /// What waits and who works.
    #[must_use]
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let now = self.now.max(now);
        let queued = self.queues.queued();
        Snapshot {
            queued,
            running: self.executions.len().saturating_sub(queued),
            queues: self.queue_states(now),
            workers: self.worker_states(now),
            caps: self.cap_states().collect(),
        }
    }

    /// How many executions of the tenant are on workers, those included whose result is not wanted any more.
    #[must_use]
    pub fn running_of(&self, payer: Payer) -> u32 {
        self.caps.given(payer)
    }

    /// How many executions wait, at no cost.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queues.queued()
    }

    /// How much is kept, by what it is: all of it is nothing when no execution and no worker lives, and the workers that
    /// left are forgotten. What operators say, like caps, is theirs to take back. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn held(&self) -> Vec<(&'static str, usize)> {
        let flows = self.fleet.classes().map(|(_, class)| class.tenants.len()).sum();
        vec![
            ("executions", self.executions.len()),
            ("assignments", self.assignments.len()),
            ("merges", self.merges.len()),
            ("invocations", self.invocations.len()),
            ("platforms in use", self.platforms.used()),
            ("queued", self.queues.queued()),
            ("lanes", self.queues.lanes().count()),
            ("tenants that wait", self.queues.tenants_len()),
            ("workers", self.fleet.len()),
            ("classes", self.fleet.classes_len()),
            ("flows of tenants", flows),
            ("warm invocations", self.fleet.warm_len()),
            ("workers kept free", self.kept.len()),
            ("timers", self.timers.len()),
            ("tenants on workers", self.caps.given_len()),
            ("workers with room", self.hungry.len()),
            ("tenants of which more may run", self.released.len()),
        ]
    }

    fn cap_states(&self) -> impl Iterator<Item = CapState> {
        let states = self.caps.iter().map(|(payer, cap)| CapState {
            tenant: Arc::clone(&cap.tenant),
            queued: self.queues.queued_of(payer),
            running: self.caps.given(payer),
            most: cap.executions.get(),
        });
        states.filter(|state| state.queued > 0 || state.running > 0)
    }

    fn queue_states(&self, now: Now) -> Vec<QueueState> {
        let mut running: BTreeMap<PlatformId, usize> = BTreeMap::new();
        let runs = self.executions.values().filter(|execution| matches!(execution.state, State::Running(_)));
        runs.for_each(|execution| *running.entry(execution.lane.platform).or_default() += 1);
        let mut waiting: BTreeMap<PlatformId, (usize, Option<Now>)> = BTreeMap::new();
        for (lane, in_line) in self.queues.lanes() {
            let (queued, oldest) = waiting.entry(lane.platform).or_default();
            *queued += in_line.queued();
            *oldest = (*oldest).into_iter().chain(in_line.oldest()).min();
        }
        running.keys().for_each(|platform| {
            waiting.entry(*platform).or_default();
        });
        let states = waiting.into_iter().filter_map(|(id, (queued, oldest))| {
            Some(QueueState {
                platform: self.platforms.get(id)?.clone(),
                queued,
                running: running.get(&id).copied().unwrap_or_default(),
                oldest_wait: oldest.map(|oldest| now.since(oldest)),
            })
        });
        states.collect()
    }

    /// Oldest first.
    fn worker_states(&self, now: Now) -> Vec<WorkerState> {
        let mut states: Vec<_> = self.fleet.ids().filter_map(|id| self.worker_state(id, now)).collect();
        states.sort_unstable_by_key(|state| state.id);
        states
    }

    fn worker_state(&self, id: WorkerId, now: Now) -> Option<WorkerState> {
        let worker = self.fleet.get(id)?;
        let running = worker.assignments.iter().filter_map(|id| {
            let assignment = self.assignments.get(id)?;
            let lasts = now.since(assignment.since);
            let (execution, stage) = (assignment.execution, assignment.stage);
            Some(RunningState { assignment: *id, execution, stage, lasts })
        });
        Some(WorkerState {
            id,
            name: worker.name.clone(),
            properties: self.fleet.class(worker.class)?.properties.clone(),
            limitations: worker.limitations.clone(),
            capacity: worker.capacity,
            free: worker.free,
            running: running.collect(),
            draining: worker.draining,
            rests: worker.rests_until.map(|until| until.since(now)),
            kept_free_for: worker.reserved,
        })
    }
}

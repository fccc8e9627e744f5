//! The scheduler, event by event.

mod caps;
mod explaining;
mod failing;
mod lifecycle;
mod overstaying;
mod prospects;
mod sharing;

use std::sync::Arc;
use std::time::Duration;

use gf_digest::{Digest, DigestFunction};

use super::*;

/// A scheduler and its time.
struct Play {
    scheduler: Scheduler,
    now: Now,
    next_execution: u64,
}

/// A submission with the usual answers to what a test does not ask.
fn job() -> Submission {
    Submission {
        payer: Payer(1),
        invocation: "build".into(),
        priority: 0,
        platform: platform(&[("OSFamily", "linux")]),
        demand: Resources { milli_cores: 1000, memory_bytes: 1 << 30 },
        merge: None,
        timeout: Duration::from_secs(60),
    }
}

fn by(payer: u32, invocation: &str) -> Submission {
    Submission { payer: Payer(payer), invocation: invocation.into(), ..job() }
}

fn platform(properties: &[(&str, &str)]) -> Arc<Platform> {
    Arc::new(Platform::new(self::properties(properties)).unwrap())
}

fn properties(properties: &[(&str, &str)]) -> Vec<Property> {
    properties.iter().map(|(name, value)| Property { name: (*name).into(), value: (*value).into() }).collect()
}

fn same(action: &str) -> Submission {
    let action = Digest::of(DigestFunction::Sha256, action.as_bytes());
    Submission { merge: Some(MergeKey { payer: Payer(1), instance: "default".into(), action }), ..job() }
}

fn cores(cores: u32) -> Resources {
    Resources { milli_cores: cores * 1000, memory_bytes: u64::from(cores) << 30 }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

impl Play {
    /// Long after the start: no worker is about to come back.
    fn new() -> Self {
        Self::with(SchedulerConfig::default())
    }

    fn with(config: SchedulerConfig) -> Self {
        let mut play = Self { scheduler: Scheduler::new(config), now: Now(secs(1)), next_execution: 1 };
        play.happen(Event::Tick);
        play.now = Now(secs(1000));
        play
    }

    fn happen(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.scheduler.apply(event, self.now, &mut effects);
        effects
    }

    /// Lets time pass, and everything happen that is due by then.
    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let until = self.now.after(time);
        let mut effects = Vec::new();
        while let Some(at) = self.scheduler.wake_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.scheduler.apply(Event::Tick, self.now, &mut effects);
        }
        self.now = until;
        effects
    }

    fn submit(&mut self, submission: Submission) -> (ExecutionId, Vec<Effect>) {
        let execution = ExecutionId(self.next_execution);
        self.next_execution += 1;
        let effects = self.happen(Event::Submit { execution, submission });
        (execution, effects)
    }

    /// A worker that is never silent for the tests that do not mind.
    fn worker(&mut self, id: u64, size: u32, extra: &[(&str, &str)]) -> (WorkerId, Vec<Effect>) {
        let mut has = vec![("OSFamily", "linux")];
        has.extend(extra);
        let offer = Offer {
            name: format!("worker-{id}").into(),
            properties: properties(&has),
            capacity: cores(size),
            limitations: Arc::default(),
        };
        let effects = self.happen(Event::WorkerJoined { worker: WorkerId(id), offer });
        (WorkerId(id), effects)
    }

    fn finish(&mut self, worker: WorkerId, assignment: AssignmentId, outcome: Outcome) -> Vec<Effect> {
        self.happen(Event::Finished { worker, assignment, outcome })
    }

    /// Lets a worker of one slot answer again and again, and says what it ran.
    fn serve(&mut self, worker: WorkerId, first: &[Effect], times: usize) -> Vec<ExecutionId> {
        let mut served = Vec::new();
        let mut next = assigned(first).first().copied();
        while let Some((_, assignment, execution)) = next
            && served.len() < times
        {
            served.push(execution);
            next = assigned(&self.finish(worker, assignment, Outcome::Answered)).first().copied();
        }
        served
    }
}

fn assigned(effects: &[Effect]) -> Vec<(WorkerId, AssignmentId, ExecutionId)> {
    let assigned = effects.iter().filter_map(|effect| match effect {
        Effect::Assign { worker, assignment, execution } => Some((*worker, *assignment, *execution)),
        _ => None,
    });
    assigned.collect()
}

fn ended(effects: &[Effect]) -> Vec<(ExecutionId, End)> {
    let ended = effects.iter().filter_map(|effect| match effect {
        Effect::Complete { execution, end } => Some((*execution, end.clone())),
        _ => None,
    });
    ended.collect()
}

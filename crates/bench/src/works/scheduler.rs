//! The scheduler alone: 10,000 executions wait, 1,000 workers are full; each that ends is answered by a new submission
//! and by the next decision.
//!
//! A decision is one execution given to a worker. It is timed with all that belongs to it: the answer of the worker, the
//! end of what it ran, the new execution that keeps the queue as long as it is. No server, no clock: time is made up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use gf_digest::{Digest, DigestFunction};
use gf_execution::scheduler::{
    AssignmentId, Effect, Event, ExecutionId, MergeKey, Now, Offer, Outcome as Ended, Payer, Platform, Property,
    Resources, Scheduler, SchedulerConfig, Submission, WorkerId,
};

use crate::load::{as_float, median};
use crate::report::Outcome;

const QUEUED: u64 = 10_000;
const WORKERS: u64 = 1_000;
const DECISIONS: u64 = 100_000;
const TENANTS: u64 = 16;
const INVOCATIONS_OF_A_TENANT: u64 = 8;

/// Decisions a second, the median of the rounds.
pub(crate) fn measure(rounds: usize) -> anyhow::Result<Outcome> {
    let mut speeds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        speeds.push(Play::begin()?.decisions_per_second(DECISIONS)?);
    }
    let note = format!(
        "one thread, {TENANTS} tenants, rounds {}",
        speeds.iter().map(|speed| format!("{speed:.0}")).collect::<Vec<_>>().join(" ")
    );
    Ok(Outcome { figure: median(speeds), note, ..Outcome::default() })
}

/// A scheduler with everything busy.
struct Play {
    scheduler: Scheduler,
    now: Now,
    platforms: [Arc<Platform>; 2],
    invocations: Vec<Arc<str>>,
    instance: Arc<str>,
    submitted: u64,
    running: VecDeque<(WorkerId, AssignmentId)>,
    effects: Vec<Effect>,
}

impl Play {
    fn begin() -> anyhow::Result<Self> {
        let linux = || Property { name: "OSFamily".into(), value: "linux".into() };
        let mut play = Self {
            scheduler: Scheduler::new(SchedulerConfig::default()),
            now: Now(Duration::from_secs(1)),
            platforms: [Arc::new(Platform::default()), Arc::new(Platform::new(vec![linux()])?)],
            invocations: (0..TENANTS * INVOCATIONS_OF_A_TENANT).map(|number| format!("{number}").into()).collect(),
            instance: "default".into(),
            submitted: 0,
            running: VecDeque::new(),
            effects: Vec::new(),
        };
        for id in 0..WORKERS {
            let name = format!("worker-{id}").into();
            let capacity = Resources { milli_cores: 8000, memory_bytes: 32 << 30 };
            let offer = Offer { name, properties: vec![linux()], capacity, limitations: Arc::default() };
            play.apply(Event::WorkerJoined { worker: WorkerId(id), offer });
        }
        while play.scheduler.queued() < usize::try_from(QUEUED)? {
            play.submit()?;
        }
        Ok(play)
    }

    fn decisions_per_second(&mut self, decisions: u64) -> anyhow::Result<f64> {
        let queued = self.scheduler.queued();
        let started = Instant::now();
        let mut made = 0;
        while made < decisions {
            let (worker, assignment) = self.running.pop_front().context("nothing runs")?;
            made += self.apply(Event::Finished { worker, assignment, outcome: Ended::Answered });
            made += self.submit()?;
        }
        let taken = started.elapsed();
        ensure!(self.scheduler.queued().abs_diff(queued) <= 16, "the queue did not stay as it was");
        Ok(as_float(made) / taken.as_secs_f64())
    }

    fn submit(&mut self) -> anyhow::Result<u64> {
        self.submitted += 1;
        let number = self.submitted;
        let payer = Payer(u32::try_from(number % TENANTS)?);
        let invocation = usize::try_from(number % (TENANTS * INVOCATIONS_OF_A_TENANT))?;
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        let action = Digest::new(DigestFunction::Sha256, hash, 100);
        let submission = Submission {
            payer,
            invocation: self.invocations[invocation].clone(),
            priority: i32::try_from(number % 3)?,
            platform: self.platforms[usize::from(number.is_multiple_of(5))].clone(),
            demand: Resources { milli_cores: 1000, memory_bytes: (1 + number % 2) << 30 },
            merge: Some(MergeKey { payer, instance: self.instance.clone(), action }),
            timeout: Duration::from_secs(60),
        };
        Ok(self.apply(Event::Submit { execution: ExecutionId(number), submission }))
    }

    /// How many decisions came of it.
    fn apply(&mut self, event: Event) -> u64 {
        self.now = self.now.after(Duration::from_micros(5));
        self.scheduler.apply(event, self.now, &mut self.effects);
        let mut made = 0;
        for effect in self.effects.drain(..) {
            if let Effect::Assign { worker, assignment, .. } = effect {
                self.running.push_back((worker, assignment));
                made += 1;
            }
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_answered_by_a_decision() {
        let mut play = Play::begin().unwrap();
        assert!(play.decisions_per_second(500).unwrap() > 0.0);
        assert_eq!(play.running.len(), 8 * usize::try_from(WORKERS).unwrap());
    }
}

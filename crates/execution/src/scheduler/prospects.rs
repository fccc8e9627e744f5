//! Whether there is a worker for what waits, or may be one soon; and the end of what has no prospects.

use super::matching::{PlatformId, no_worker};
use super::queue::Lane;
use super::timers::Due;
use super::workers::{ClassId, Presence};
use super::{Effect, End, NoWorker, Now, Scheduler};
use std::time::Duration;

/// After a start workers come back within seconds of each other: so long after the first, others may still come.
const OTHERS_FOLLOW_WITHIN: Duration = Duration::from_secs(5);

/// Whether an execution can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// There is a worker for it, busy or not.
    Served,
    /// Not now; perhaps until then.
    Hoping(Now),
    /// No.
    None,
}

impl Scheduler {
    /// Whether what asks for this can be run.
    pub(super) fn prospect(&self, lane: Lane) -> Prospect {
        let classes = self.platforms.classes(lane.platform).filter_map(|id| self.fleet.class(id));
        let presence = classes.map(|class| class.presence(&lane.demand)).max().unwrap_or(Presence::Absent);
        let return_until = match presence {
            Presence::Here => return Prospect::Served,
            Presence::Left(at) => Some(at.after(self.config.worker_return)),
            Presence::Absent => None,
        };
        match return_until.max(self.arrivals_until()) {
            Some(until) if until > self.now => Prospect::Hoping(until),
            _ => Prospect::None,
        }
    }

    /// Until when workers that were here before the start may come back.
    fn arrivals_until(&self) -> Option<Now> {
        let longest = self.started?.after(self.config.worker_return);
        let others = self.first_worker.map(|first| first.after(OTHERS_FOLLOW_WITHIN));
        Some(others.map_or(longest, |others| others.min(longest)))
    }

    /// Looks whether what waits in the lane has a worker, and says when to look again if not.
    pub(super) fn watch(&mut self, lane: Lane) {
        let due = match self.prospect(lane) {
            Prospect::Served => None,
            Prospect::Hoping(until) => Some(until),
            Prospect::None => Some(self.now),
        };
        let Some(waiting) = self.queues.lane_mut(lane) else { return };
        let before = std::mem::replace(&mut waiting.unserved, due);
        self.timers.unset(before, Due::Unserved(lane));
        due.inspect(|at| self.timers.set(*at, Due::Unserved(lane)));
    }

    /// The last worker of a kind left, or may have been the last that was large enough.
    pub(super) fn watch_served_by(&mut self, class: ClassId) {
        let served = self.queues.lanes().filter(|(lane, _)| self.platforms.is_matched(lane.platform, class));
        let lanes: Vec<_> = served.map(|(lane, _)| lane).collect();
        lanes.into_iter().for_each(|lane| self.watch(lane));
    }

    /// Everything that waits is looked at again.
    pub(super) fn watch_all(&mut self) {
        let lanes: Vec<_> = self.queues.lanes().map(|(lane, _)| lane).collect();
        lanes.into_iter().for_each(|lane| self.watch(lane));
    }

    /// It was to be looked again whether the lane has a worker.
    pub(super) fn check_unserved(&mut self, lane: Lane, effects: &mut Vec<Effect>) {
        if self.prospect(lane) != Prospect::None {
            return self.watch(lane);
        }
        let Some(waiting) = self.queues.lane_mut(lane) else { return };
        waiting.unserved = None;
        let hopeless: Vec<_> = waiting.executions().collect();
        let end = End::NoWorker(self.why_no_worker(lane));
        for execution in hopeless {
            self.unqueue(execution);
            self.complete(execution, end.clone(), effects);
        }
    }

    /// Who comes nearest to what the lane asks for.
    pub(super) fn why_no_worker(&self, lane: Lane) -> NoWorker {
        match self.platforms.get(lane.platform) {
            Some(platform) => no_worker(platform, lane.demand, &self.fleet),
            None => NoWorker { workers: self.fleet.len(), nearest: None },
        }
    }

    /// A class that was not known may serve what waits already.
    pub(super) fn class_came(&mut self, class_id: ClassId) {
        let Some(class) = self.fleet.class_mut(class_id) else { return };
        let matched = self.platforms.class_came(class_id, &class.properties);
        for (lane, waiting) in self.queues.lanes() {
            if matched.contains(&lane.platform) {
                waiting.payers().for_each(|payer| class.wanted_by(payer));
            }
        }
    }

    /// The tenant has something waiting in the lane, and had not before.
    pub(super) fn wanted(&mut self, platform: PlatformId, payer: super::Payer) {
        for class in self.platforms.classes(platform) {
            if let Some(class) = self.fleet.class_mut(class) {
                class.wanted_by(payer);
            }
        }
    }

    /// The tenant has nothing waiting in the lane any more.
    pub(super) fn unwanted(&mut self, platform: PlatformId, payer: super::Payer) {
        for class in self.platforms.classes(platform) {
            if let Some(class) = self.fleet.class_mut(class) {
                class.unwanted_by(payer);
            }
        }
    }
}

//! Why is this action waiting?
//!
//! The answer holds if nothing else comes. It counts what is in the same lane, since that asks for the same; of other
//! tenants it tells numbers and nothing else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::caps::Allowance;
use super::dispatch::cost;
use super::executions::{Execution, State};
use super::prospects::Prospect;
use super::queue::Lane;
use super::workers::{Class, ClassId, Worker};
use super::{ExecutionId, NoWorker, Now, Payer, Property, Resources, RunStage, Scheduler, WorkerId};

/// What an execution does, and why it does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Which.
    pub execution: ExecutionId,
    /// Who waits for it.
    pub waiters: usize,
    /// How often it was given to a worker.
    pub attempts: u32,
    /// Where it is.
    pub situation: Situation,
}

/// Where an execution is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Situation {
    /// On a worker.
    Running {
        /// Its name.
        worker: Arc<str>,
        /// How far it is.
        stage: RunStage,
        /// How long this attempt goes on.
        lasts: Duration,
    },
    /// In line.
    Queued {
        /// Since it was submitted.
        waited: Duration,
        /// What is served before it.
        ahead: Ahead,
        /// The workers that have what it asks for.
        matching: Matching,
        /// What there is too little of.
        scarce: Scarce,
    },
}

/// What is served before an execution, of those that ask for the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Executions of the same tenant.
    pub own: usize,
    /// Of how many of its other invocations.
    pub own_invocations: usize,
    /// Executions of other tenants.
    pub others: usize,
    /// Of how many.
    pub other_tenants: usize,
}

impl Ahead {
    /// Its place in the line: 1 is next.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.own.saturating_add(self.others).saturating_add(1)
    }
}

/// The workers that have all properties that an execution asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// How many.
    pub workers: usize,
    /// Of them those that are too small even when idle.
    pub too_small: usize,
    /// Of them those that take nothing now: they are about to leave, or failed too often.
    pub closed: usize,
    /// Of them those that are large enough but have not room now, or are kept free.
    pub busy: usize,
}

/// What there is too little of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// No worker has what it asks for, or none is large enough; it fails when none comes within this time.
    Workers {
        /// What is looked for.
        lacking: NoWorker,
        /// How much longer it waits.
        fails_in: Duration,
    },
    /// Those workers that have this property are busy, while one that has it not has room.
    Property {
        /// Which.
        property: Property,
        /// How many have it.
        workers: usize,
        /// Of how many.
        of: usize,
    },
    /// Most workers that match and take work lack free cores, or none takes any. In thousandths.
    Cores {
        /// What it asks for.
        wanted: u32,
        /// The most that is free on one of them that has enough of the rest.
        most_free: u32,
    },
    /// Most workers that match and take work lack free memory. In bytes.
    Memory {
        /// What it asks for.
        wanted: u64,
        /// The most that is free on one of them that has enough of the rest.
        most_free: u64,
    },
    /// A worker is kept free for it and finishes what it runs.
    KeptFree {
        /// Its name.
        worker: Arc<str>,
    },
    /// It failed on the worker that has room, or was handed back by it, and waits a moment for another one.
    OtherWorker,
    /// Its tenant has as many executions on workers as it may, counted with the one for which a worker is kept free.
    Share {
        /// The tenant.
        tenant: Arc<str>,
        /// How many it has.
        runs: u32,
        /// How many it may have.
        most: u32,
    },
}

impl Scheduler {
    /// Why it waits, or where it runs; `None` when it is not known, or over. Takes time in proportion to what waits.
    #[must_use]
    pub fn explain(&self, id: ExecutionId, now: Now) -> Option<Explanation> {
        let execution = self.executions.get(&id)?;
        let now = self.now.max(now);
        let situation = match execution.state {
            State::Queued(_) => Situation::Queued {
                waited: now.since(execution.enqueued),
                ahead: self.ahead(id, execution)?,
                matching: self.matching(execution),
                scarce: self.scarce(id, execution, now),
            },
            State::Running(assignment) => {
                let assignment = self.assignments.get(&assignment)?;
                Situation::Running {
                    worker: self.fleet.get(assignment.worker)?.name.clone(),
                    stage: assignment.stage,
                    lasts: now.since(assignment.since),
                }
            }
        };
        let (waiters, attempts) = (execution.waiters, execution.attempts);
        Some(Explanation { execution: id, waiters, attempts, situation })
    }

    fn ahead(&self, id: ExecutionId, execution: &Execution) -> Option<Ahead> {
        let waiting = self.queues.lane(execution.lane)?;
        let own = waiting.ahead_of(&execution.ticket(id), self.config.ageing_step)?;
        let mut ahead = Ahead { own: own.executions, own_invocations: own.invocations, ..Ahead::default() };
        let Some(class) = self.classes(execution).map(|(_, class)| class).max_by_key(|class| class.members.len())
        else {
            return Some(ahead);
        };
        let cost = cost(execution.lane.demand);
        // Who may not have more has lent its turn.
        let takes_turns = |other: &Payer| *other != execution.payer && self.allowance(*other) == Allowance::Any;
        for other in waiting.payers().filter(takes_turns) {
            let before = class.tenants.before(&execution.payer, own.executions, &other, cost);
            let before = before.min(waiting.queued_by(other));
            ahead.others += before;
            ahead.other_tenants += usize::from(before > 0);
        }
        Some(ahead)
    }

    fn classes(&self, execution: &Execution) -> impl Iterator<Item = (ClassId, &Class)> {
        self.platforms.classes(execution.lane.platform).filter_map(|id| Some((id, self.fleet.class(id)?)))
    }

    fn matching_workers(&self, execution: &Execution) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let members = self.classes(execution).flat_map(|(_, class)| class.members.iter());
        members.filter_map(|id| Some((*id, self.fleet.get(*id)?)))
    }

    fn matching(&self, execution: &Execution) -> Matching {
        let demand = execution.lane.demand;
        let mut matching = Matching::default();
        for (_, worker) in self.matching_workers(execution) {
            matching.workers += 1;
            if !demand.fits(&worker.capacity) {
                matching.too_small += 1;
            } else if !worker.takes_work() {
                matching.closed += 1;
            } else if !worker.is_open() || !demand.fits(&worker.free) {
                matching.busy += 1;
            }
        }
        matching
    }

    fn scarce(&self, id: ExecutionId, execution: &Execution, now: Now) -> Scarce {
        let wishes = execution.wishes();
        match self.prospect(execution.lane) {
            Prospect::Served => {}
            Prospect::Hoping(until) => {
                let lacking = self.why_no_worker(execution.lane);
                return Scarce::Workers { lacking, fails_in: until.since(now) };
            }
            Prospect::None => {
                let lacking = self.why_no_worker(execution.lane);
                return Scarce::Workers { lacking, fails_in: Duration::ZERO };
            }
        }
        if let Some(worker) = wishes.reserved.and_then(|id| self.fleet.get(id)) {
            return Scarce::KeptFree { worker: worker.name.clone() };
        }
        let payer = execution.payer;
        if !self.is_allowed(payer, id)
            && let Some(cap) = self.caps.get(payer)
        {
            let (tenant, runs, most) = (Arc::clone(&cap.tenant), self.caps.given(payer), cap.executions.get());
            return Scarce::Share { tenant, runs, most };
        }
        let avoided = wishes.avoided().and_then(|id| self.fleet.get(id));
        if avoided.is_some_and(|worker| worker.is_open() && execution.lane.demand.fits(&worker.free)) {
            return Scarce::OtherWorker;
        }
        self.scarce_property(execution).unwrap_or_else(|| self.scarce_resource(execution))
    }

    /// The property that the fewest workers have, of those that keep it from a worker with room.
    fn scarce_property(&self, execution: &Execution) -> Option<Scarce> {
        let Lane { platform, demand } = execution.lane;
        let has = |class: &Class, property: &Property| class.properties.binary_search(property).is_ok();
        let with_room: Vec<_> =
            self.fleet.classes().map(|(_, class)| class).filter(|class| class.has_room(&demand)).collect();
        let platform = self.platforms.get(platform)?;
        let missed =
            platform.properties().iter().filter(|property| with_room.iter().any(|class| !has(class, property)));
        let counted = missed.map(|property| {
            let with = self.fleet.classes().filter(|(_, class)| has(class, property));
            (with.map(|(_, class)| class.members.len()).sum::<usize>(), property)
        });
        let (workers, property) = counted.min_by_key(|(workers, _)| *workers)?;
        Some(Scarce::Property { property: property.clone(), workers, of: self.fleet.len() })
    }

    /// What is free of a worker that takes nothing, or is kept for another, is free for nobody.
    fn scarce_resource(&self, execution: &Execution) -> Scarce {
        let demand = execution.lane.demand;
        let open =
            self.matching_workers(execution).filter(|(_, worker)| worker.is_open() && demand.fits(&worker.capacity));
        let open: Vec<_> = open.map(|(_, worker)| worker.free).collect();
        let enough_memory = |free: &&Resources| free.memory_bytes >= demand.memory_bytes;
        let enough_cores = |free: &&Resources| free.milli_cores >= demand.milli_cores;
        let (lack_memory, lack_cores) = (count_but(&open, enough_memory), count_but(&open, enough_cores));
        if lack_memory > lack_cores {
            let most_free = most(&open, enough_cores, |free| free.memory_bytes);
            Scarce::Memory { wanted: demand.memory_bytes, most_free }
        } else {
            let most_free = most(&open, enough_memory, |free| free.milli_cores);
            Scarce::Cores { wanted: demand.milli_cores, most_free }
        }
    }
}

fn count_but(rooms: &[Resources], is_enough: impl Fn(&&Resources) -> bool) -> usize {
    rooms.iter().filter(|free| !is_enough(free)).count()
}

/// The most that there is where the rest is enough, or anywhere if it is so nowhere.
fn most<T: Ord + Default>(
    rooms: &[Resources],
    is_enough: impl Fn(&&Resources) -> bool,
    of: impl Fn(&Resources) -> T,
) -> T {
    let where_enough = rooms.iter().filter(is_enough).map(&of).max();
    where_enough.or_else(|| rooms.iter().map(&of).max()).unwrap_or_default()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.situation {
            Situation::Running { worker, stage, lasts } => {
                write!(f, "it runs on {worker} since {}, {stage}", Lasting(*lasts))
            }
            Situation::Queued { waited, ahead, matching, scarce } => {
                write!(f, "it waits since {}; {ahead}; {matching}; {scarce}", Lasting(*waited))
            }
        }?;
        if self.attempts > 1 || (self.attempts > 0 && matches!(self.situation, Situation::Queued { .. })) {
            write!(f, "; it was given to a worker {} times", self.attempts)?;
        }
        Ok(())
    }
}

impl fmt::Display for RunStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetching => "fetching its inputs",
            Self::Running => "running",
            Self::Uploading => "uploading its outputs",
        })
    }
}

impl fmt::Display for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is number {} in its line", self.position())?;
        if self.own > 0 {
            write!(f, ", after {} of yours", self.own)?;
            if self.own_invocations > 0 {
                write!(f, " (some of {} other invocations)", self.own_invocations)?;
            }
        }
        if self.others > 0 {
            write!(f, ", after {} of {} other tenants", self.others, self.other_tenants)?;
        }
        Ok(())
    }
}

impl fmt::Display for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} workers match", self.workers)?;
        for (count, what) in [(self.busy, "busy"), (self.too_small, "too small"), (self.closed, "taking nothing now")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Scarce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workers { lacking, fails_in } => write!(f, "{lacking}; it fails in {}", Lasting(*fails_in)),
            Self::Property { property, workers, of } => {
                write!(f, "only {workers} of {of} workers have {property}")
            }
            Self::Cores { wanted, most_free } => {
                let (wanted, most_free) = (cores(*wanted), cores(*most_free));
                write!(f, "it needs {wanted} cores, and no worker open to it has more than {most_free} free")
            }
            Self::Memory { wanted, most_free } => {
                let (wanted, most_free) = (mebibytes(*wanted), mebibytes(*most_free));
                write!(f, "it needs {wanted} of memory, and no worker open to it has more than {most_free} free")
            }
            Self::KeptFree { worker } => write!(f, "{worker} is kept free for it and finishes what it runs"),
            Self::OtherWorker => {
                f.write_str("the worker that has room failed it or handed it back, and it waits a moment for another")
            }
            Self::Share { tenant, runs, most } => {
                write!(f, "the tenant {tenant} runs {runs} of its {most} executions")?;
                if runs < most { f.write_str(", and a worker is kept free for one that is next") } else { Ok(()) }
            }
        }
    }
}

impl fmt::Display for NoWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(nearest) = &self.nearest else { return f.write_str("there is no worker") };
        write!(f, "none of {} workers can run it; the nearest, {}, ", self.workers, nearest.worker)?;
        for (place, (wanted, there)) in nearest.differs.iter().enumerate() {
            let and = if place > 0 { " and " } else { "" };
            match there.as_slice() {
                [] => write!(f, "{and}has no {}, while {wanted} is wanted", wanted.name)?,
                there => write!(f, "{and}has {}={}, while {wanted} is wanted", wanted.name, there.join(" or "))?,
            }
        }
        if let Some((wanted, there)) = &nearest.too_small {
            let and = if nearest.differs.is_empty() { "" } else { " and " };
            write!(f, "{and}has {there}, while {wanted} are wanted")?;
        }
        Ok(())
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores and {} of memory", cores(self.milli_cores), mebibytes(self.memory_bytes))
    }
}

fn cores(milli_cores: u32) -> String {
    let (whole, rest) = (milli_cores / 1000, milli_cores % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}").trim_end_matches('0').to_owned() }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// A time for people.
struct Lasting(Duration);

impl fmt::Display for Lasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..60 => write!(f, "{seconds} s"),
            seconds @ 60..3600 => write!(f, "{} min", seconds / 60),
            seconds => write!(f, "{} h", seconds / 3600),
        }
    }
}

//! Clients and workers that do what they please, from a seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use gf_digest::{Digest, DigestFunction};
use gf_execution::scheduler::{
    AssignmentId, Cap, Effect, Event, ExecutionId, MergeKey, Now, Offer, Outcome, Payer, Platform, Property, Resources,
    RunStage, Scheduler, SchedulerConfig, Submission, WorkerId,
};

use super::model::{Live, Model, Working};

/// How much there is of everybody.
struct Size {
    workers: u64,
    clients: u64,
    /// Clients submit, and workers come and go, for so long; after that everything is to end.
    busy: Duration,
}

/// What a world is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Enough workers for everything.
    Wide,
    /// More work than workers for much of the time.
    Tight,
    /// One kind of worker, far too few of it, and tenants of which some ask for much more than others.
    Even,
    /// The same, with about enough workers, and tenants that may have only so many executions on them: each for a while.
    Capped,
}

impl Kind {
    /// Whether all workers are alike.
    fn is_uniform(self) -> bool {
        matches!(self, Self::Even | Self::Capped)
    }
}

/// Enough workers for everything.
const WIDE: Size = Size { workers: 2000, clients: 2000, busy: Duration::from_secs(60) };
/// More work than workers for much of the time.
const TIGHT: Size = Size { workers: 70, clients: 2500, busy: Duration::from_secs(120) };
/// The tenant with the fewest clients still asks for more than its share.
const EVEN: Size = Size { workers: 12, clients: 2500, busy: Duration::from_secs(120) };
/// Now there is room left, and now there is not.
const CAPPED: Size = Size { workers: 12, clients: 650, busy: Duration::from_secs(150) };
const TENANTS: u32 = 5;
/// Who never has a cap in a world where others have.
const UNCAPPED: u32 = 3;
/// What everything asks for where caps are looked at closely.
const ONE_CORE: Resources = Resources { milli_cores: 1000, memory_bytes: 0 };
/// The dearest dispatch of that world, in thousandths of a core.
const DEAREST: u64 = 2000;
/// Of two tenants that wait all the time, none gets more than this beyond the other, however long it is: one dispatch for
/// having been served first; and what one that was passed over, because nothing of its own fitted, may catch up on.
const WIDEST: u64 = (1 + 4) * DEAREST;
/// Of everything that is kept there is no more than so many times what lives...
const KEPT_PER_LIFE: usize = 3;
/// ... and kinds of workers that were here lately.
const KEPT_ALWAYS: usize = 100;
/// How long it takes at most to work off what asked for a kind of worker before, with as few of them as chance leaves.
const BACKLOG: Duration = Duration::from_secs(200);
/// Room for what needs a whole worker may be kept in vain twice, on workers that run one of the few actions that take half
/// an hour: each time it takes 120 s to give up, and 30 s to keep another one free.
const KEPT_IN_VAIN: Duration = Duration::from_secs(2 * (120 + 30));
/// Nothing waits longer for its first attempt, ...
const LONGEST_WAIT: Duration = BACKLOG.saturating_add(KEPT_IN_VAIN);
/// ... but what is less urgent lets go first what comes so much later.
const MOST_PATIENCE: Duration = Duration::from_secs(2000 * 10);

/// What somebody will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Submit,
    Join,
    Cap,
    Beat(WorkerId),
    Mute(WorkerId),
    Leave(WorkerId),
    Drain(WorkerId),
    Advance(WorkerId, AssignmentId),
    Finish(WorkerId, AssignmentId),
    Cancel(ExecutionId),
    StopWaiting(ExecutionId),
    ComeBack(ExecutionId),
}

/// Splitmix64: the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// Everybody.
pub(crate) struct World {
    seed: u64,
    kind: Kind,
    size: Size,
    dice: Dice,
    scheduler: Scheduler,
    model: Model,
    now: Now,
    deeds: BinaryHeap<Reverse<(Now, u64, Deed)>>,
    deeds_ever: u64,
    next_execution: u64,
    next_worker: u64,
    mute: BTreeSet<WorkerId>,
}

/// Says the seed when something is wrong.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed was {}: GF_SIMULATION_SEED={} repeats it", self.seed, self.seed);
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64, kind: Kind) -> Self {
        let (size, max_queued) = match kind {
            Kind::Wide => (WIDE, 5000),
            Kind::Tight => (TIGHT, 5000),
            Kind::Even => (EVEN, 20_000),
            Kind::Capped => (CAPPED, 20_000),
        };
        let config = SchedulerConfig { max_queued, ..SchedulerConfig::default() };
        Self {
            seed,
            kind,
            size,
            dice: Dice(seed),
            scheduler: Scheduler::new(config),
            model: Model::of(TENANTS),
            now: Now(Duration::from_secs(1000)),
            deeds: BinaryHeap::new(),
            deeds_ever: 0,
            next_execution: 1,
            next_worker: 1,
            mute: BTreeSet::new(),
        }
    }

    /// Lets everything happen, and says what did.
    pub(crate) fn run(mut self) -> String {
        for _ in 0..self.size.workers {
            let at = self.dice.millis(0, 30_000);
            self.later(at, Deed::Join);
        }
        for _ in 0..self.size.clients {
            let at = self.dice.millis(0, 60_000);
            self.later(at, Deed::Submit);
        }
        if self.kind != Kind::Even {
            self.later(Duration::from_secs(1), Deed::Cap);
        }
        let busy_until = self.now.after(self.size.busy);
        while self.step(busy_until) {}
        self.end();
        format!(
            "{:?}, one got {} beyond another of {}",
            self.model.tally, self.model.shares.widest, self.model.shares.most
        )
    }

    /// Whether all ask for the same and no worker fails: so it is in every other world with caps.
    fn is_even_handed(&self) -> bool {
        self.kind == Kind::Capped && self.seed % 2 == 1
    }

    /// The next thing that happens. Whether anything was left to happen.
    fn step(&mut self, busy_until: Now) -> bool {
        let due = self.scheduler.wake_at();
        let deed = self.deeds.peek().map(|Reverse((at, _, _))| *at);
        let Some(at) = due.into_iter().chain(deed).min() else { return false };
        // When nobody asks for anything more and nothing lives, only silence is left.
        if self.now >= busy_until && self.model.live.is_empty() {
            return false;
        }
        self.now = self.now.max(at);
        assert!(self.now < busy_until.after(Duration::from_secs(7200)), "it does not end: {:?}", self.model.live);
        match self.deeds.pop() {
            Some(Reverse((at, _, deed))) if at <= self.now => self.act(deed, self.now < busy_until),
            later => {
                self.deeds.extend(later);
                self.happen(Event::Tick);
            }
        }
        true
    }

    fn later(&mut self, after: Duration, deed: Deed) {
        self.deeds_ever += 1;
        self.deeds.push(Reverse((self.now.after(after), self.deeds_ever, deed)));
    }

    /// Tells the scheduler, by a clock that now and then runs back.
    fn happen(&mut self, event: Event) {
        let tick = matches!(event, Event::Tick);
        let back = if !tick && self.dice.one_in(20) { self.dice.millis(0, 40_000) } else { Duration::ZERO };
        let mut effects = Vec::new();
        self.scheduler.apply(event, Now(self.now.0.saturating_sub(back)), &mut effects);
        for effect in effects {
            self.model.perform(&effect, self.now);
            self.follow(&effect);
        }
        assert_eq!(self.scheduler.overlooked(), None, "it waits and the worker has room for it");
        if self.is_even_handed() {
            self.model.check_nothing_is_held_back(ONE_CORE);
        }
        if self.deeds_ever.is_multiple_of(64) {
            self.check_what_is_kept();
        }
    }

    fn check_what_is_kept(&self) {
        let lives = self.model.live.len() + self.model.workers.len();
        let allowed = KEPT_ALWAYS + KEPT_PER_LIFE * lives;
        let too_much = self.scheduler.held().into_iter().find(|(_, count)| *count > allowed);
        assert_eq!(too_much, None, "with {lives} executions and workers");
    }

    /// What the others do about an effect.
    fn follow(&mut self, effect: &Effect) {
        match *effect {
            Effect::Assign { worker, assignment, .. } => {
                let long = if self.dice.one_in(200) { 2_000_000 } else { 8_000 };
                let advance = self.dice.millis(1, 100);
                let finish = self.dice.millis(100, long);
                self.later(advance, Deed::Advance(worker, assignment));
                self.later(finish, Deed::Finish(worker, assignment));
            }
            Effect::Withdraw { worker, assignment } if !self.dice.one_in(10) => {
                let finish = self.dice.millis(1, 2000);
                self.later(finish, Deed::Finish(worker, assignment));
            }
            _ => {}
        }
    }

    fn act(&mut self, deed: Deed, is_busy: bool) {
        match deed {
            Deed::Submit if is_busy => self.submit(),
            Deed::Join => self.join(),
            Deed::Cap => self.cap(is_busy),
            Deed::Beat(worker) => self.beat(worker, is_busy),
            Deed::Mute(worker) if is_busy => {
                self.mute.insert(worker);
            }
            Deed::Leave(worker) if is_busy => self.leave(worker),
            Deed::Drain(worker) if is_busy => self.drain(worker),
            Deed::Advance(worker, assignment) => {
                let stage = if self.dice.one_in(2) { RunStage::Running } else { RunStage::Uploading };
                self.happen(Event::Progressed { worker, assignment, stage });
            }
            Deed::Finish(worker, assignment) => self.finish(worker, assignment),
            Deed::Cancel(execution) => self.happen(Event::Cancel(execution)),
            Deed::StopWaiting(execution) => {
                self.happen(Event::WaiterLeft(execution));
                if self.dice.one_in(3) {
                    let back = self.dice.millis(1, 40_000);
                    self.later(back, Deed::ComeBack(execution));
                }
            }
            Deed::ComeBack(execution) => self.happen(Event::WaiterJoined(execution)),
            Deed::Submit | Deed::Mute(_) | Deed::Leave(_) | Deed::Drain(_) => {}
        }
    }

    fn submit(&mut self) {
        let execution = ExecutionId(self.next_execution);
        self.next_execution += 1;
        let submission = self.submission();
        let live = Live { submission: submission.clone(), submitted: self.now, running: None, attempts: 0 };
        self.model.live.insert(execution, live);
        self.model.tally.submitted += 1;
        self.happen(Event::Submit { execution, submission });
        if self.dice.one_in(15) {
            let at = self.dice.millis(0, 10_000);
            self.later(at, Deed::Cancel(execution));
        }
        if self.dice.one_in(8) {
            let at = self.dice.millis(0, 10_000);
            self.later(at, Deed::StopWaiting(execution));
        }
        let again = self.dice.millis(1_000, 60_000);
        self.later(again, Deed::Submit);
    }

    /// Somebody has another cap, or none; in the end nobody has one.
    fn cap(&mut self, is_busy: bool) {
        let payer = Payer(u32::try_from(self.dice.below(UNCAPPED.into())).expect("small"));
        let most = NonZeroU32::new(u32::try_from(self.dice.below(20)).expect("small")).filter(|_| is_busy);
        match most {
            Some(most) => self.model.caps.insert(payer, most.get()),
            None => self.model.caps.remove(&payer),
        };
        self.model.capped_ever.insert(payer);
        let cap = most.map(|executions| Cap { tenant: format!("{payer:?}").into(), executions });
        self.happen(Event::Capped { payer, cap });
        if is_busy || !self.model.caps.is_empty() {
            self.later(Duration::from_secs(2), Deed::Cap);
        }
    }

    fn submission(&mut self) -> Submission {
        if self.kind.is_uniform() {
            return self.even_submission();
        }
        let payer = Payer(u32::try_from(self.dice.below(5)).expect("small"));
        let platform = match self.dice.below(40) {
            0 => vec![property("OSFamily", "plan9")],
            1..=4 => vec![property("OSFamily", "linux"), property("gpu", "1")],
            5..=12 => vec![property("OSFamily", "windows")],
            13..=20 => vec![],
            _ => vec![property("OSFamily", "linux")],
        };
        let priority = match self.dice.below(30) {
            0 => i32::MIN,
            1 => i32::MAX,
            other => i32::try_from(other % 7).expect("small") - 3,
        };
        let action = Digest::of(DigestFunction::Sha256, &self.dice.below(3000).to_le_bytes());
        let merge = (!self.dice.one_in(3)).then(|| MergeKey { payer, instance: "default".into(), action });
        let milli_cores = [500, 1000, 1000, 2000, 8000][usize::try_from(self.dice.below(5)).expect("small")];
        Submission {
            payer,
            invocation: format!("{payer:?}-{}", self.dice.below(20)).into(),
            priority,
            platform: Arc::new(Platform::new(platform).expect("a platform")),
            demand: Resources { milli_cores, memory_bytes: (1 + self.dice.below(4)) << 30 },
            merge,
            timeout: Duration::from_secs(60),
        }
    }

    /// Of tenants that ask for 10, 15, 20, 25 and 30 parts of a hundred.
    fn even_submission(&mut self) -> Submission {
        let payer = Payer(match self.dice.below(100) {
            0..10 => 0,
            10..25 => 1,
            25..45 => 2,
            45..70 => 3,
            _ => TENANTS - 1,
        });
        let milli_cores = [500, 1000, 2000][usize::try_from(self.dice.below(3)).expect("small")];
        Submission {
            payer,
            invocation: format!("{payer:?}-{}", self.dice.below(20)).into(),
            priority: i32::try_from(self.dice.below(3)).expect("small"),
            platform: Arc::new(Platform::new(vec![property("OSFamily", "linux")]).expect("a platform")),
            demand: match self.kind {
                Kind::Capped if self.is_even_handed() => ONE_CORE,
                // What needs a whole worker has one kept free.
                Kind::Capped if self.dice.one_in(20) => Resources { milli_cores: 8000, memory_bytes: 0 },
                _ => Resources { milli_cores, memory_bytes: 0 },
            },
            merge: None,
            timeout: Duration::from_secs(60),
        }
    }

    fn join(&mut self) {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let properties = match if self.kind.is_uniform() { 3 } else { self.dice.below(4) } {
            0 => vec![property("OSFamily", "windows")],
            1 => vec![property("OSFamily", "linux"), property("gpu", "1")],
            _ => vec![property("OSFamily", "linux"), property("cpu", "x86_64")],
        };
        let milli_cores = match self.kind {
            Kind::Even | Kind::Capped => 8000,
            _ => [2000, 8000, 16_000][usize::try_from(self.dice.below(3)).expect("small")],
        };
        let capacity = Resources { milli_cores, memory_bytes: 16 << 30 };
        let offer =
            Offer { name: format!("worker-{worker}").into(), properties, capacity, limitations: Arc::default() };
        let working = Working { offer: offer.clone(), free: capacity, runs: BTreeMap::new(), draining: false };
        self.model.workers.insert(worker, working);
        self.happen(Event::WorkerJoined { worker, offer });
        self.later(Duration::from_secs(10), Deed::Beat(worker));
        let doom = self.dice.millis(1_000, 600_000);
        match self.dice.below(8) {
            0 => self.later(doom, Deed::Mute(worker)),
            1 | 2 => self.later(doom, Deed::Leave(worker)),
            3 => self.later(doom, Deed::Drain(worker)),
            _ => {}
        }
    }

    fn beat(&mut self, worker: WorkerId, is_busy: bool) {
        let goes_on = is_busy || !self.model.live.is_empty();
        if goes_on && !self.mute.contains(&worker) && self.model.workers.contains_key(&worker) {
            self.happen(Event::WorkerHeard(worker));
            self.later(Duration::from_secs(10), Deed::Beat(worker));
        }
    }

    fn leave(&mut self, worker: WorkerId) {
        self.model.lose(worker);
        self.happen(Event::WorkerLeft(worker));
        let next = self.dice.millis(1, 20_000);
        self.later(next, Deed::Join);
    }

    fn drain(&mut self, worker: WorkerId) {
        if let Some(working) = self.model.workers.get_mut(&worker) {
            working.draining = true;
            self.happen(Event::WorkerDraining(worker));
            self.later(Duration::from_secs(20), Deed::Leave(worker));
        }
    }

    /// Also of workers that are long gone, and of assignments that ended: late answers.
    fn finish(&mut self, worker: WorkerId, assignment: AssignmentId) {
        if self.mute.contains(&worker) {
            return;
        }
        if self.dice.one_in(50) {
            // Somebody else's answer.
            let other = WorkerId(1 + self.dice.below(self.next_worker));
            if other != worker {
                self.happen(Event::Finished { worker: other, assignment, outcome: Outcome::Answered });
            }
        }
        let withdrawn = self.model.withdrawn.contains(&(worker, assignment));
        let fails = self.dice.one_in(if worker.0.is_multiple_of(97) { 2 } else { 40 }) && !self.is_even_handed();
        let drains = self.model.workers.get(&worker).is_some_and(|worker| worker.draining);
        let outcome = match (withdrawn, fails) {
            (true, _) => Outcome::Cancelled,
            (false, true) => Outcome::WorkerFailed,
            (false, false) if drains && self.dice.one_in(2) => Outcome::HandedBack,
            (false, false) => Outcome::Answered,
        };
        self.model.ended(worker, assignment);
        // The scheduler is right to queue again what fails; what is answered must have run until then.
        if outcome != Outcome::Answered {
            self.model.failed(worker, assignment);
        }
        self.happen(Event::Finished { worker, assignment, outcome });
        if self.dice.one_in(10) {
            self.happen(Event::Finished { worker, assignment, outcome: Outcome::Answered });
        }
    }

    /// Nothing lives any more: nothing may be kept.
    fn end(&mut self) {
        assert!(self.model.live.is_empty(), "lost: {:?}", self.model.live);
        let tally = &self.model.tally;
        let ended = tally.answered + tally.cancelled + tally.without_worker + tally.given_up + tally.refused;
        assert_eq!(tally.submitted, ended + tally.merged, "{tally:?}");
        match self.kind {
            Kind::Even => {
                let shares = &self.model.shares;
                assert!(shares.widest <= WIDEST, "not the same for all: {shares:?}");
                assert!(shares.most > 50 * WIDEST, "they hardly waited: {shares:?}");
            }
            Kind::Capped if !self.is_even_handed() => {
                assert!(tally.longest_wait < LONGEST_WAIT, "others starve for those with caps: {tally:?}");
            }
            Kind::Capped => {
                assert!(tally.held_back > 1000, "the caps were hardly felt: {tally:?}");
                assert!(tally.longest_wait < BACKLOG, "others waited for those with caps: {tally:?}");
            }
            Kind::Wide | Kind::Tight => {
                assert!(tally.longest_wait < LONGEST_WAIT, "{tally:?}");
                assert!(tally.most_patient < LONGEST_WAIT + MOST_PATIENCE, "{tally:?}");
                let used = [tally.answered, tally.cancelled, tally.without_worker, tally.merged, tally.requeued];
                assert!(used.iter().all(|count| *count > 0) && tally.dismissed > 0, "too quiet a world: {tally:?}");
            }
        }
        let workers: Vec<_> = self.model.workers.keys().copied().collect();
        for worker in workers {
            self.model.lose(worker);
            self.happen(Event::WorkerLeft(worker));
        }
        while let Some(at) = self.scheduler.wake_at() {
            self.now = self.now.max(at);
            self.happen(Event::Tick);
        }
        let held: Vec<_> = self.scheduler.held().into_iter().filter(|(_, count)| *count > 0).collect();
        assert!(held.is_empty(), "still kept: {held:?}");
    }
}

fn property(name: &str, value: &str) -> Property {
    Property { name: name.into(), value: value.into() }
}

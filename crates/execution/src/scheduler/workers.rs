//! The workers, in classes of the same properties.
//!
//! What always holds: what is free of a worker and what its assignments take make its capacity; a worker has no more
//! assignments than it has places; it is open to work in its class exactly when it may take some; classes are kept while
//! they have workers and for a stated time after, and of those without workers only [`MAX_DEPARTED`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::fairness::FairOrder;
use super::invocations::Invocation;
use super::lookup::Lookup;
use super::{AssignmentId, ExecutionId, Now, Offer, Payer, Property, Resources, WorkerId};

/// Classes that left are remembered up to this number; more are forgotten early.
pub(super) const MAX_DEPARTED: usize = 1024;
/// Sizes of workers that left, remembered of a class.
const MAX_DEPARTED_SHAPES: usize = 16;
/// However little its assignments ask for, a worker has so many of them for each core, and so many more.
const PLACES_OF_A_CORE: u32 = 16;
const PLACES_BESIDES: u32 = 16;
/// And never more than this: each is told in a message, and all of them may be in one event.
const MOST_PLACES: u32 = 1024;
/// A worker on which so many executions failed in a row rests.
const FAILURES_TO_REST: usize = 5;
/// With more its rest is the longest already; so many are remembered.
const FAILURES_REMEMBERED: usize = FAILURES_TO_REST + 8;
const FIRST_REST: Duration = Duration::from_secs(10);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// Workers of the same properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClassId(u64);

/// A worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: Arc<str>,
    pub(super) limitations: Arc<[String]>,
    pub(super) class: ClassId,
    pub(super) capacity: Resources,
    pub(super) free: Resources,
    pub(super) assignments: BTreeSet<AssignmentId>,
    pub(super) heard: Now,
    pub(super) silence_due: Option<Now>,
    /// When it is looked whether something that it runs should have ended: not after the first of that.
    pub(super) overstay_due: Option<Now>,
    pub(super) draining: bool,
    /// Until when it gets nothing, since it failed too often.
    pub(super) rests_until: Option<Now>,
    /// For whom it is kept free.
    pub(super) reserved: Option<ExecutionId>,
    /// The executions that failed since one succeeded: one that fails again may be at fault itself.
    failures: BTreeSet<ExecutionId>,
    last: Option<Invocation>,
    /// As which it is open in its class.
    open: Option<Room>,
}

/// What is free of a worker, for choosing the one with most.
type Room = (Resources, Reverse<WorkerId>);

impl Worker {
    /// Whether anybody may be given to it.
    pub(super) fn takes_work(&self) -> bool {
        !self.draining && self.rests_until.is_none()
    }

    /// Whether it may have one more assignment, however small.
    pub(super) fn has_place(&self) -> bool {
        let cores = self.capacity.milli_cores.div_ceil(1000);
        let places = cores.saturating_mul(PLACES_OF_A_CORE).saturating_add(PLACES_BESIDES).min(MOST_PLACES);
        u32::try_from(self.assignments.len()).is_ok_and(|taken| taken < places)
    }

    /// Whether it is open to anything that what is free is enough for.
    pub(super) fn is_open(&self) -> bool {
        self.takes_work() && self.reserved.is_none() && self.has_place()
    }

    /// It did what it should.
    pub(super) fn succeeded(&mut self) {
        self.failures.clear();
    }

    /// It failed the execution. Until when it rests, if it failed too many.
    pub(super) fn failed(&mut self, execution: ExecutionId, now: Now) -> Option<Now> {
        if !self.failures.insert(execution) {
            return None;
        }
        if self.failures.len() > FAILURES_REMEMBERED {
            self.failures.pop_first();
        }
        let beyond = self.failures.len().checked_sub(FAILURES_TO_REST)?;
        let rest = FIRST_REST.saturating_mul(1 << beyond).min(LONGEST_REST);
        self.rests_until = Some(now.after(rest));
        self.rests_until
    }
}

/// Workers of the same properties.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) properties: Arc<[Property]>,
    pub(super) members: BTreeSet<WorkerId>,
    /// The tenants that have something waiting that these workers match, in the order in which they are served.
    pub(super) tenants: FairOrder<Payer>,
    /// In how many lanes.
    lanes: Lookup<Payer, usize>,
    open: BTreeSet<Room>,
    sizes: BTreeMap<Resources, Size>,
    /// When its last worker left.
    departed: Option<Now>,
}

/// Workers of a class that have the same capacity.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// That take work.
    live: usize,
    left: Now,
}

/// Whether a class can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Presence {
    /// It has no worker that is large enough, and had none lately.
    Absent,
    /// The last worker that was large enough left then.
    Left(Now),
    /// There is a worker.
    Here,
}

impl Class {
    /// Whether a worker is, or was, large enough.
    pub(super) fn presence(&self, demand: &Resources) -> Presence {
        let large = self.sizes.iter().filter(|(capacity, _)| demand.fits(capacity));
        let presence = large.map(|(_, size)| if size.live > 0 { Presence::Here } else { Presence::Left(size.left) });
        presence.max().unwrap_or(Presence::Absent)
    }

    /// Whether nothing is left of it, not even the memory of it.
    pub(super) fn is_over(&self) -> bool {
        self.members.is_empty() && self.departed.is_none()
    }

    /// Whether any worker takes work.
    pub(super) fn is_live(&self) -> bool {
        self.sizes.values().any(|size| size.live > 0)
    }

    /// The tenant has something waiting in one more lane.
    pub(super) fn wanted_by(&mut self, payer: Payer) {
        *self.lanes.entry(payer).or_default() += 1;
        self.tenants.join(&payer);
    }

    /// In one less.
    pub(super) fn unwanted_by(&mut self, payer: Payer) {
        let Some(lanes) = self.lanes.get_mut(&payer) else { return };
        *lanes -= 1;
        if *lanes == 0 {
            self.lanes.remove(&payer);
            self.tenants.leave(&payer);
        }
    }

    /// Whether any worker may have room for it; the cores decide that.
    pub(super) fn may_have_room(&self, demand: &Resources) -> bool {
        self.open.last().is_some_and(|(free, _)| demand.milli_cores <= free.milli_cores)
    }

    /// Whether a worker has room for it.
    pub(super) fn has_room(&self, demand: &Resources) -> bool {
        self.roomiest(demand, None).is_some()
    }

    /// The least loaded worker with room for it, but for one.
    pub(super) fn roomiest(&self, demand: &Resources, but: Option<WorkerId>) -> Option<(Resources, WorkerId)> {
        let enough_cores = self.open.iter().rev().take_while(|(free, _)| demand.milli_cores <= free.milli_cores);
        let mut fitting = enough_cores.filter(|(free, Reverse(worker))| demand.fits(free) && Some(*worker) != but);
        fitting.next().map(|(free, Reverse(worker))| (*free, *worker))
    }
}

/// What came of a worker's retirement.
pub(super) struct Retired {
    pub(super) class: ClassId,
    pub(super) was_last: bool,
    pub(super) was_last_of_its_size: bool,
}

/// All workers.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    workers: Lookup<WorkerId, Worker>,
    classes: BTreeMap<ClassId, Class>,
    by_properties: Lookup<Arc<[Property]>, ClassId>,
    departed: BTreeSet<(Now, ClassId)>,
    /// Where an invocation ran last, if that worker took nothing of another since.
    warm: Lookup<Invocation, WorkerId>,
    next_class: u64,
}

/// What came of a worker's arrival.
pub(super) struct Joined {
    pub(super) class: ClassId,
    pub(super) is_new_class: bool,
    /// When the class was to be forgotten had this worker not come.
    pub(super) departed: Option<Now>,
}

impl Fleet {
    pub(super) fn join(&mut self, id: WorkerId, offer: Offer, now: Now) -> Joined {
        let Offer { name, mut properties, capacity, limitations } = offer;
        properties.sort();
        properties.dedup();
        let properties: Arc<[Property]> = properties.into();
        let known = self.by_properties.get(&properties).copied();
        let class = known.unwrap_or(ClassId(self.next_class));
        if known.is_none() {
            self.next_class += 1;
            self.by_properties.insert(properties.clone(), class);
            self.classes.insert(class, Class::new(properties));
        }
        let departed = self.arrive(class);
        if let Some(class) = self.classes.get_mut(&class) {
            class.members.insert(id);
            class.sizes.entry(capacity).or_default().live += 1;
        }
        let worker = Worker { limitations, ..Worker::new(name, class, capacity, now) };
        self.workers.insert(id, worker);
        self.change(id, |_| ());
        Joined { class, is_new_class: known.is_none(), departed }
    }

    /// It takes nothing more. Its class, and whether this was the last of it.
    pub(super) fn retire(&mut self, id: WorkerId, now: Now) -> Option<Retired> {
        let worker = self.workers.get(&id)?;
        let (class_id, capacity) = (worker.class, worker.capacity);
        let class = self.classes.get_mut(&class_id)?;
        let mut was_last_of_its_size = false;
        if let Some(size) = class.sizes.get_mut(&capacity) {
            size.live = size.live.saturating_sub(1);
            size.left = now;
            was_last_of_its_size = size.live == 0;
        }
        class.trim_sizes();
        let was_last = !class.is_live();
        if was_last {
            class.departed = Some(now);
            self.departed.insert((now, class_id));
        }
        Some(Retired { class: class_id, was_last, was_last_of_its_size })
    }

    /// It is gone, after [`Self::retire`].
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        self.close(id);
        let worker = self.workers.remove(&id)?;
        if let Some(class) = self.classes.get_mut(&worker.class) {
            class.members.remove(&id);
        }
        if let Some(last) = &worker.last
            && self.warm.get(last) == Some(&id)
        {
            self.warm.remove(last);
        }
        Some(worker)
    }

    /// Of the classes without workers those that are too many, oldest first.
    pub(super) fn departed_too_many(&self) -> Option<(Now, ClassId)> {
        (self.departed.len() > MAX_DEPARTED).then(|| self.departed.first().copied()).flatten()
    }

    /// Forgets a class that left. Whether it is gone for good: it is not while a draining worker is of it.
    pub(super) fn forget(&mut self, id: ClassId) -> bool {
        self.arrive(id);
        let Some(class) = self.classes.get_mut(&id) else { return true };
        class.sizes.retain(|_, size| size.live > 0);
        if !class.members.is_empty() {
            return false;
        }
        let properties = class.properties.clone();
        self.by_properties.remove(&properties);
        self.classes.remove(&id);
        true
    }

    pub(super) fn get(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id)
    }

    /// To note what changes nothing of what it is open to; for that, [`Self::change`].
    pub(super) fn get_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&id)
    }

    pub(super) fn class(&self, id: ClassId) -> Option<&Class> {
        self.classes.get(&id)
    }

    pub(super) fn class_mut(&mut self, id: ClassId) -> Option<&mut Class> {
        self.classes.get_mut(&id)
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = (ClassId, &Class)> {
        self.classes.iter().map(|(id, class)| (*id, class))
    }

    /// In no order.
    pub(super) fn ids(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn classes_len(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn warm_len(&self) -> usize {
        self.warm.len()
    }

    /// Changes a worker and what it is open to.
    pub(super) fn change<T>(&mut self, id: WorkerId, change: impl FnOnce(&mut Worker) -> T) -> Option<T> {
        let worker = self.workers.get_mut(&id)?;
        let done = change(worker);
        let may_have_room = worker.is_open() && worker.free.milli_cores > 0;
        let room = may_have_room.then_some((worker.free, Reverse(id)));
        if room != worker.open {
            if let Some(class) = self.classes.get_mut(&worker.class) {
                worker.open.map(|room| class.open.remove(&room));
                room.map(|room| class.open.insert(room));
            }
            worker.open = room;
        }
        Some(done)
    }

    /// The worker on which the invocation ran last, while no more than half of it is taken: its inputs may be there.
    pub(super) fn warm_for(&self, invocation: &Invocation) -> Option<(WorkerId, &Worker)> {
        let id = *self.warm.get(invocation)?;
        let worker = self.workers.get(&id)?;
        let half_free = worker.free.milli_cores >= worker.capacity.milli_cores / 2;
        (half_free && worker.open.is_some()).then_some((id, worker))
    }

    /// The invocation runs there.
    pub(super) fn warm_up(&mut self, id: WorkerId, invocation: Invocation) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.last.as_ref() == Some(&invocation) && self.warm.get(&invocation) == Some(&id) {
            return;
        }
        if let Some(last) = worker.last.replace(invocation.clone())
            && self.warm.get(&last) == Some(&id)
        {
            self.warm.remove(&last);
        }
        self.warm.insert(invocation, id);
    }

    /// The class is not among those that left any more. Since when it was.
    fn arrive(&mut self, id: ClassId) -> Option<Now> {
        let at = self.classes.get_mut(&id)?.departed.take()?;
        self.departed.remove(&(at, id));
        Some(at)
    }

    fn close(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let (Some(room), Some(class)) = (worker.open.take(), self.classes.get_mut(&worker.class)) {
            class.open.remove(&room);
        }
    }
}

impl Worker {
    fn new(name: Arc<str>, class: ClassId, capacity: Resources, now: Now) -> Self {
        Self {
            name,
            limitations: Arc::default(),
            class,
            capacity,
            free: capacity,
            assignments: BTreeSet::new(),
            heard: now,
            silence_due: None,
            overstay_due: None,
            draining: false,
            rests_until: None,
            reserved: None,
            failures: BTreeSet::new(),
            last: None,
            open: None,
        }
    }
}

impl Class {
    fn new(properties: Arc<[Property]>) -> Self {
        Self {
            properties,
            members: BTreeSet::new(),
            tenants: FairOrder::default(),
            lanes: Lookup::default(),
            open: BTreeSet::new(),
            sizes: BTreeMap::new(),
            departed: None,
        }
    }

    fn trim_sizes(&mut self) {
        let departed = self.sizes.iter().filter(|(_, size)| size.live == 0);
        if departed.clone().count() > MAX_DEPARTED_SHAPES
            && let Some(oldest) = departed.min_by_key(|(_, size)| size.left).map(|(capacity, _)| *capacity)
        {
            self.sizes.remove(&oldest);
        }
    }
}

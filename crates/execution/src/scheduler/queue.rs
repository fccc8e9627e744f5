//! What waits, in lanes: one for each platform and demand.
//!
//! Within a lane a tenant has groups of the same priority, compared by the age of their oldest execution, which a step
//! of priority makes older or younger; a group has invocations, served in turn; an invocation is first in, first out.
//!
//! Nothing starves, whatever its priority: they are bounded, and so is how much younger something more urgent may be that
//! goes first. A group is served before all groups of which the oldest is younger, priority counted, and only
//! finitely many are older. Within a group turns alone would not do: with ever more invocations the turns of each become
//! ever rarer. So once the oldest execution waited for too long, every second dispatch of its group is for the oldest,
//! and each execution is served after at most twice as many dispatches as there are older ones.
//!
//! Who of the tenants is next is not decided here but by the worker that has room, over all lanes that it can serve.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fairness::FairOrder;
use super::invocations::InvocationId;
use super::lookup::Lookup;
use super::matching::PlatformId;
use super::{ExecutionId, Now, Payer, Resources};

/// What everything in a lane asks of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    pub(super) platform: PlatformId,
    pub(super) demand: Resources,
}

/// An execution in line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) execution: ExecutionId,
    pub(super) payer: Payer,
    pub(super) invocation: InvocationId,
    pub(super) priority: i32,
    /// First time: one that comes back keeps its place.
    pub(super) enqueued: Now,
    /// Tells those apart that came at the same time.
    pub(super) number: u64,
}

/// Older first.
type Place = (Now, u64, ExecutionId);

impl Ticket {
    fn place(&self) -> Place {
        (self.enqueued, self.number, self.execution)
    }
}

/// When something came, moved by its priority: lower is served first. In nanoseconds.
pub(super) type AgedKey = i128;

fn aged(enqueued: Now, priority: i32, step: Duration) -> AgedKey {
    let nanos = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
    nanos(enqueued.0).saturating_add(nanos(step).saturating_mul(priority.into()))
}

/// The dispatches of an invocation all count the same.
const TURN: u64 = 1 << 20;

/// One priority of one tenant in a lane.
#[derive(Debug, Default)]
struct Group {
    /// Looked up and counted, never walked for an order.
    invocations: Lookup<InvocationId, BTreeSet<Place>>,
    order: FairOrder<InvocationId>,
    ages: BTreeSet<Place>,
    /// Whether the next dispatch is for the oldest, if that waited for too long.
    oldest_is_next: bool,
}

impl Group {
    fn key(&self, priority: i32, step: Duration) -> Option<AgedKey> {
        self.ages.first().map(|(enqueued, _, _)| aged(*enqueued, priority, step))
    }

    /// The one whose turn it is, then those whose turn it is if none before them can be served.
    fn in_turn(&self, late: Option<Now>) -> impl Iterator<Item = ExecutionId> {
        let is_late = |place: &&Place| self.oldest_is_next && late.is_some_and(|late| place.0 <= late);
        let oldest = self.ages.first().filter(is_late);
        let lines = self.order.iter().filter_map(|invocation| self.invocations.get(invocation));
        oldest.into_iter().chain(lines.flatten()).map(|(_, _, execution)| *execution)
    }

    fn insert(&mut self, ticket: &Ticket) {
        self.ages.insert(ticket.place());
        self.invocations.entry(ticket.invocation).or_default().insert(ticket.place());
        self.order.join(&ticket.invocation);
    }

    fn remove(&mut self, ticket: &Ticket) -> bool {
        let there = self.ages.remove(&ticket.place());
        if let Some(line) = self.invocations.get_mut(&ticket.invocation) {
            line.remove(&ticket.place());
            if line.is_empty() {
                self.invocations.remove(&ticket.invocation);
                self.order.leave(&ticket.invocation);
            }
        }
        there
    }
}

/// What one tenant has in a lane.
#[derive(Debug, Default)]
struct Backlog {
    groups: BTreeMap<i32, Group>,
    order: BTreeSet<(AgedKey, i32)>,
    queued: usize,
}

impl Backlog {
    fn key(&self) -> Option<AgedKey> {
        self.order.first().map(|(key, _)| *key)
    }

    fn change<T>(&mut self, priority: i32, step: Duration, change: impl FnOnce(&mut Group) -> T) -> T {
        let group = self.groups.entry(priority).or_default();
        let before = group.key(priority, step);
        let done = change(group);
        let after = group.key(priority, step);
        if after.is_none() {
            self.groups.remove(&priority);
        }
        if before != after {
            before.map(|key| self.order.remove(&(key, priority)));
            after.map(|key| self.order.insert((key, priority)));
        }
        done
    }

    fn in_turn(&self, late: Option<Now>) -> impl Iterator<Item = ExecutionId> {
        let groups = self.order.iter().filter_map(|(_, priority)| self.groups.get(priority));
        groups.flat_map(move |group| group.in_turn(late))
    }
}

/// What waits in a lane.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    tenants: BTreeMap<Payer, Backlog>,
    queued: usize,
    /// When it is looked again whether there is a worker for it.
    pub(super) unserved: Option<Now>,
}

impl Waiting {
    /// The tenants that have something here.
    pub(super) fn payers(&self) -> impl Iterator<Item = Payer> {
        self.tenants.keys().copied()
    }

    /// How many wait here.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// How many of the tenant's wait here.
    pub(super) fn queued_by(&self, payer: Payer) -> usize {
        self.tenants.get(&payer).map_or(0, |backlog| backlog.queued)
    }

    /// What the tenant would run next, and what instead if that cannot be; an execution may be named twice. What came
    /// before `late` waited for too long.
    pub(super) fn in_turn(&self, payer: Payer, late: Option<Now>) -> impl Iterator<Item = ExecutionId> {
        self.tenants.get(&payer).into_iter().flat_map(move |backlog| backlog.in_turn(late))
    }

    /// All that waits here, oldest first within a tenant's priority.
    pub(super) fn executions(&self) -> impl Iterator<Item = ExecutionId> {
        let groups = self.tenants.values().flat_map(|backlog| backlog.groups.values());
        groups.flat_map(|group| group.ages.iter().map(|(_, _, execution)| *execution))
    }

    /// When the one that waits longest came.
    pub(super) fn oldest(&self) -> Option<Now> {
        let groups = self.tenants.values().flat_map(|backlog| backlog.groups.values());
        groups.filter_map(|group| group.ages.first().map(|(enqueued, _, _)| *enqueued)).min()
    }

    /// Who of the same tenant is served before it.
    pub(super) fn ahead_of(&self, ticket: &Ticket, step: Duration) -> Option<OwnAhead> {
        let backlog = self.tenants.get(&ticket.payer)?;
        let group = backlog.groups.get(&ticket.priority)?;
        let rank = group.invocations.get(&ticket.invocation)?.range(..ticket.place()).count();
        let mut ahead = OwnAhead { executions: rank, invocations: 0 };
        for (other, line) in &group.invocations {
            if *other != ticket.invocation {
                let before = group.order.before(&ticket.invocation, rank, other, TURN).min(line.len());
                ahead.executions += before;
                ahead.invocations += usize::from(before > 0);
            }
        }
        let key = aged(ticket.enqueued, ticket.priority, step);
        for (&priority, group) in backlog.groups.iter().filter(|(priority, _)| **priority != ticket.priority) {
            let earlier = |place: &&Place| aged(place.0, priority, step) < key;
            ahead.executions += group.ages.iter().take_while(earlier).count();
            let has_earlier = |line: &&BTreeSet<Place>| line.first().as_ref().is_some_and(earlier);
            ahead.invocations += group.invocations.values().filter(has_earlier).count();
        }
        Some(ahead)
    }
}

/// What of the same tenant is served before an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnAhead {
    pub(super) executions: usize,
    pub(super) invocations: usize,
}

/// Everything that waits.
#[derive(Debug)]
pub(super) struct Queues {
    ageing_step: Duration,
    lanes: BTreeMap<Lane, Waiting>,
    /// For each tenant its lanes, in the order of what waits at their heads.
    tenants: BTreeMap<Payer, BTreeSet<(AgedKey, Lane)>>,
    /// How many lanes ask for so many thousandths of a core.
    cores: BTreeMap<u32, usize>,
    queued: usize,
    /// The same for each tenant that has something waiting.
    queued_of: BTreeMap<Payer, usize>,
}

impl Queues {
    pub(super) fn new(ageing_step: Duration) -> Self {
        let (lanes, tenants, cores) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { ageing_step, lanes, tenants, cores, queued: 0, queued_of: BTreeMap::new() }
    }

    /// Puts it in line. Whether the tenant had nothing in the lane before.
    pub(super) fn insert(&mut self, lane: Lane, ticket: &Ticket) -> bool {
        if !self.lanes.contains_key(&lane) {
            *self.cores.entry(lane.demand.milli_cores).or_default() += 1;
        }
        let waiting = self.lanes.entry(lane).or_default();
        let backlog = waiting.tenants.entry(ticket.payer).or_default();
        let before = backlog.key();
        backlog.change(ticket.priority, self.ageing_step, |group| group.insert(ticket));
        let after = backlog.key();
        backlog.queued += 1;
        waiting.queued += 1;
        self.queued += 1;
        *self.queued_of.entry(ticket.payer).or_default() += 1;
        self.restand(ticket.payer, lane, before, after);
        before.is_none()
    }

    /// The execution is given to a worker: its invocation had its turn. Before [`Self::remove`].
    pub(super) fn charge(&mut self, lane: Lane, ticket: &Ticket) {
        let backlog = self.lanes.get_mut(&lane).and_then(|waiting| waiting.tenants.get_mut(&ticket.payer));
        if let Some(group) = backlog.and_then(|backlog| backlog.groups.get_mut(&ticket.priority)) {
            group.order.charge(&ticket.invocation, TURN);
            group.oldest_is_next = !group.oldest_is_next;
        }
    }

    /// Takes it out of the line. Whether the tenant has nothing in the lane any more. A lane in which nothing waits is
    /// gone.
    pub(super) fn remove(&mut self, lane: Lane, ticket: &Ticket) -> bool {
        let Some(waiting) = self.lanes.get_mut(&lane) else { return false };
        let Some(backlog) = waiting.tenants.get_mut(&ticket.payer) else { return false };
        let before = backlog.key();
        let there = backlog.change(ticket.priority, self.ageing_step, |group| group.remove(ticket));
        let after = backlog.key();
        if there {
            backlog.queued -= 1;
            waiting.queued -= 1;
            self.queued -= 1;
        }
        if after.is_none() {
            waiting.tenants.remove(&ticket.payer);
        }
        if waiting.tenants.is_empty() {
            self.lanes.remove(&lane);
            self.forget_cores(lane.demand.milli_cores);
        }
        if there {
            self.one_less(ticket.payer);
        }
        self.restand(ticket.payer, lane, before, after);
        before.is_some() && after.is_none()
    }

    /// The tenant's lanes, the one whose turn it is first.
    pub(super) fn lanes_of(&self, payer: Payer) -> impl Iterator<Item = Lane> {
        self.tenants.get(&payer).into_iter().flatten().map(|(_, lane)| *lane)
    }

    /// What waits in the lane.
    pub(super) fn lane(&self, lane: Lane) -> Option<&Waiting> {
        self.lanes.get(&lane)
    }

    /// What waits in the lane.
    pub(super) fn lane_mut(&mut self, lane: Lane) -> Option<&mut Waiting> {
        self.lanes.get_mut(&lane)
    }

    /// Every lane in which something waits.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (Lane, &Waiting)> {
        self.lanes.iter().map(|(lane, waiting)| (*lane, waiting))
    }

    /// Nothing that waits asks for fewer thousandths of a core.
    pub(super) fn least_milli_cores(&self) -> Option<u32> {
        self.cores.first_key_value().map(|(cores, _)| *cores)
    }

    /// How many wait.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// How many of a tenant wait.
    pub(super) fn queued_of(&self, payer: Payer) -> usize {
        self.queued_of.get(&payer).copied().unwrap_or_default()
    }

    /// How many tenants have something waiting.
    pub(super) fn tenants_len(&self) -> usize {
        self.tenants.len().max(self.queued_of.len())
    }

    fn one_less(&mut self, payer: Payer) {
        if let Some(queued) = self.queued_of.get_mut(&payer) {
            *queued -= 1;
            if *queued == 0 {
                self.queued_of.remove(&payer);
            }
        }
    }

    fn restand(&mut self, payer: Payer, lane: Lane, before: Option<AgedKey>, after: Option<AgedKey>) {
        if before == after {
            return;
        }
        let lanes = self.tenants.entry(payer).or_default();
        before.map(|key| lanes.remove(&(key, lane)));
        after.map(|key| lanes.insert((key, lane)));
        if lanes.is_empty() {
            self.tenants.remove(&payer);
        }
    }

    fn forget_cores(&mut self, milli_cores: u32) {
        if let Some(lanes) = self.cores.get_mut(&milli_cores) {
            *lanes -= 1;
            if *lanes == 0 {
                self.cores.remove(&milli_cores);
            }
        }
    }
}

//! Who gets what: an execution looks for a worker, or a worker with room looks for an execution.
//!
//! What always holds between two events: nothing waits while a worker that it may have has room for it. A worker is
//! looked at whenever it gets room or may take what it might not before, an execution whenever it comes to wait; so
//! whatever takes away a cause of waiting must leave the worker hungry, or the tenant released if the cause was that it may
//! not have more. The one exception is [`LANES_LOOKED_AT`].

use super::caps::Allowance;
use super::executions::{Assignment, Execution, State, Wishes};
use super::queue::Lane;
use super::timers::Due;
use super::workers::Worker;
use super::{AssignmentId, Effect, ExecutionId, Now, Payer, Resources, RunStage, Scheduler, WorkerId};

/// How many lanes of a tenant that it can serve when idle a worker with room looks at. A tenant that asks for more
/// different things at once waits until its oldest are served; others do not wait for it, and no worker is idle for it. As
/// many are looked at, served or not, when a tenant may run more than before.
const LANES_LOOKED_AT: usize = 256;

/// After so many times the patience the oldest executions go before the turns of invocations.
const PATIENCE_WITH_INVOCATIONS: u32 = 4;

/// What a worker with room gets.
enum Pick {
    Take(ExecutionId),
    /// Nothing yet: it is kept free for one that waited too long.
    Reserve(ExecutionId),
    Nothing,
}

impl Scheduler {
    /// Gives it to a worker that has room, if there is one.
    pub(super) fn place(&mut self, id: ExecutionId, effects: &mut Vec<Effect>) -> bool {
        let may_be_placed =
            |execution: &&Execution| self.may_have_room(execution.lane) && self.is_allowed(execution.payer, id);
        let execution = self.executions.get(&id).filter(may_be_placed);
        let Some(worker) = execution.and_then(|execution| self.roomiest(execution)) else { return false };
        self.assign(id, worker, effects);
        true
    }

    /// Whether any worker may have room, found in no time: mostly none has.
    fn may_have_room(&self, lane: Lane) -> bool {
        let mut classes = self.platforms.classes(lane.platform).filter_map(|class| self.fleet.class(class));
        classes.any(|class| class.may_have_room(&lane.demand))
    }

    /// Something that waits and a worker that should have it, which is never so between two events unless a tenant asks
    /// for more different things than [`LANES_LOOKED_AT`]. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn overlooked(&self) -> Option<(ExecutionId, WorkerId)> {
        let lanes = self.queues.lanes().filter(|(lane, _)| self.has_room(*lane));
        let may_have_some = |payer: &Payer| self.allowance(*payer) != Allowance::Nothing;
        let waiting = lanes.flat_map(|(_, waiting)| {
            let payers = waiting.payers().filter(may_have_some);
            payers.flat_map(|payer| waiting.in_turn(payer, None))
        });
        let known = waiting.filter_map(|id| Some((id, self.executions.get(&id)?)));
        let mut allowed = known.filter(|(id, execution)| self.is_allowed(execution.payer, *id));
        allowed.find_map(|(id, execution)| Some((id, self.roomiest(execution)?)))
    }

    /// The next execution of those that the tenant may run for which a worker has room, and that worker.
    pub(super) fn next_with_room(&self, payer: Payer) -> Option<(ExecutionId, WorkerId)> {
        match self.allowance(payer) {
            Allowance::Any => {}
            Allowance::Kept(kept) => return Some((kept, self.roomiest(self.executions.get(&kept)?)?)),
            Allowance::Nothing => return None,
        }
        let lanes = self.queues.lanes_of(payer).take(LANES_LOOKED_AT);
        let with_room = lanes.filter(|lane| self.has_room(*lane)).filter_map(|lane| self.queues.lane(lane));
        let mut in_turn = with_room.flat_map(|waiting| waiting.in_turn(payer, self.late()));
        in_turn.find_map(|id| Some((id, self.roomiest(self.executions.get(&id)?)?)))
    }

    fn has_room(&self, lane: Lane) -> bool {
        let mut classes = self.platforms.classes(lane.platform).filter_map(|class| self.fleet.class(class));
        classes.any(|class| class.has_room(&lane.demand))
    }

    fn roomiest(&self, execution: &Execution) -> Option<WorkerId> {
        let (lane, avoided) = (execution.lane, execution.wishes().avoided());
        let warm = self.fleet.warm_for(&execution.invocation).filter(|(id, worker)| {
            let matched = self.platforms.is_matched(lane.platform, worker.class);
            matched && lane.demand.fits(&worker.free) && Some(*id) != avoided
        });
        if let Some((worker, _)) = warm {
            return Some(worker);
        }
        let classes = self.platforms.classes(lane.platform).filter_map(|class| self.fleet.class(class));
        let rooms = classes.filter_map(|class| class.roomiest(&lane.demand, avoided));
        rooms.max_by_key(|(free, worker)| (*free, std::cmp::Reverse(*worker))).map(|(_, worker)| worker)
    }

    /// Gives the worker what it has room for.
    pub(super) fn feed(&mut self, worker: WorkerId, effects: &mut Vec<Effect>) {
        let mut is_fed = false;
        loop {
            match self.pick(worker, is_fed) {
                Pick::Take(execution) => {
                    self.assign(execution, worker, effects);
                    is_fed = true;
                }
                Pick::Reserve(execution) => return self.reserve(execution, worker),
                Pick::Nothing => return,
            }
        }
    }

    /// `is_fed`: it got something by this event already.
    fn pick(&self, id: WorkerId, is_fed: bool) -> Pick {
        let may_take = |worker: &&Worker| worker.takes_work() && worker.has_place();
        let Some(worker) = self.fleet.get(id).filter(may_take) else { return Pick::Nothing };
        if let Some(execution) = worker.reserved {
            let fits = self.executions.get(&execution).is_some_and(|waits| waits.lane.demand.fits(&worker.free));
            return if fits { Pick::Take(execution) } else { Pick::Nothing };
        }
        let Some(least) = self.queues.least_milli_cores() else { return Pick::Nothing };
        // The usual case: what was free was taken, and nothing smaller waits. But where what got free is not enough for
        // anything, something large may have waited for too long, while all that is smaller found room at once.
        if worker.free.milli_cores < least && (is_fed || worker.free.milli_cores == 0) {
            return Pick::Nothing;
        }
        let Some(class) = self.fleet.class(worker.class) else { return Pick::Nothing };
        let mut tenants = class.tenants.iter();
        let picked = tenants.find_map(|payer| match self.allowance(*payer) {
            Allowance::Any => self.pick_of(*payer, id, worker),
            Allowance::Kept(execution) => self.pick_kept(execution, id, worker),
            Allowance::Nothing => None,
        });
        picked.unwrap_or(Pick::Nothing)
    }

    /// Another worker is kept free for it: this one will do, if it can have it now.
    fn pick_kept(&self, execution: ExecutionId, id: WorkerId, worker: &Worker) -> Option<Pick> {
        let kept = self.executions.get(&execution)?;
        let is_matched = self.platforms.is_matched(kept.lane.platform, worker.class);
        let may_have_it = is_matched && kept.lane.demand.fits(&worker.free) && kept.wishes().avoided() != Some(id);
        may_have_it.then_some(Pick::Take(execution))
    }

    fn pick_of(&self, payer: Payer, id: WorkerId, worker: &Worker) -> Option<Pick> {
        let lanes = self.queues.lanes_of(payer).filter(|lane| {
            lane.demand.fits(&worker.capacity) && self.platforms.is_matched(lane.platform, worker.class)
        });
        for lane in lanes.take(LANES_LOOKED_AT) {
            let Some((next, execution)) = self.next_in(lane, payer, id) else { continue };
            if lane.demand.fits(&worker.free) {
                return Some(Pick::Take(next));
            }
            let waited = self.now.since(execution.enqueued);
            if waited >= self.config.patience && self.may_reserve(payer) {
                return Some(Pick::Reserve(next));
            }
        }
        None
    }

    /// The tenant's next in the lane of those that do not avoid the worker. Only the worker's failures of the last
    /// [`AVOIDED_FOR`](super::AVOIDED_FOR) are passed over.
    fn next_in(&self, lane: Lane, payer: Payer, worker: WorkerId) -> Option<(ExecutionId, &Execution)> {
        let in_turn = self.queues.lane(lane)?.in_turn(payer, self.late());
        let mut known = in_turn.filter_map(|id| Some((id, self.executions.get(&id)?)));
        known.find(|(_, execution)| execution.wishes().avoided() != Some(worker))
    }

    /// What came before waited for too long.
    fn late(&self) -> Option<Now> {
        let patience = self.config.patience.saturating_mul(PATIENCE_WITH_INVOCATIONS);
        self.now.0.checked_sub(patience).map(Now)
    }

    /// Puts it in line. It is told so.
    pub(super) fn enqueue(&mut self, id: ExecutionId, wishes: Wishes, effects: &mut Vec<Effect>) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        execution.state = State::Queued(wishes);
        let (lane, ticket) = (execution.lane, execution.ticket(id));
        if let Some((_, until)) = wishes.avoids {
            self.timers.set(until, Due::Forgiven(id));
        }
        let is_new_lane = self.queues.lane(lane).is_none();
        if self.queues.insert(lane, &ticket) {
            self.wanted(lane.platform, ticket.payer);
        }
        if is_new_lane {
            self.watch(lane);
        }
        effects.push(Effect::Queued(id));
    }

    /// Takes it out of the line, if it is there.
    pub(super) fn unqueue(&mut self, id: ExecutionId) {
        let Some(execution) = self.executions.get(&id) else { return };
        let State::Queued(wishes) = execution.state else { return };
        let (lane, ticket) = (execution.lane, execution.ticket(id));
        if let Some((worker, until)) = wishes.avoids {
            self.timers.unset(Some(until), Due::Forgiven(id));
            self.hungry.insert(worker);
        }
        if let Some(worker) = wishes.reserved {
            self.unreserve(worker);
        }
        let unserved = self.queues.lane(lane).and_then(|waiting| waiting.unserved);
        if self.queues.remove(lane, &ticket) {
            self.unwanted(lane.platform, ticket.payer);
        }
        if self.queues.lane(lane).is_none() {
            self.timers.unset(unserved, Due::Unserved(lane));
        }
    }

    pub(super) fn assign(&mut self, id: ExecutionId, worker: WorkerId, effects: &mut Vec<Effect>) {
        let Some(execution) = self.executions.get(&id) else { return };
        let (lane, ticket) = (execution.lane, execution.ticket(id));
        let (invocation, timeout) = (execution.invocation.clone(), execution.timeout);
        self.queues.charge(lane, &ticket);
        self.charge_tenant(worker, ticket.payer, cost(lane.demand));
        self.unqueue(id);
        self.caps.give(ticket.payer);

        let assignment = AssignmentId(self.next_assignment);
        self.next_assignment += 1;
        let attempt = Assignment {
            worker,
            payer: ticket.payer,
            execution: Some(id),
            demand: lane.demand,
            stage: RunStage::Fetching,
            since: self.now,
            timeout,
            overstays: self.now.after(timeout).after(self.config.overstay),
        };
        self.assignments.insert(assignment, attempt);
        self.expect_end(assignment);
        if let Some(execution) = self.executions.get_mut(&id) {
            execution.attempts = execution.attempts.saturating_add(1);
            execution.state = State::Running(assignment);
        }
        self.fleet.change(worker, |worker| {
            worker.free = worker.free.minus(lane.demand);
            worker.assignments.insert(assignment);
        });
        self.fleet.warm_up(worker, invocation);
        effects.push(Effect::Assign { worker, assignment, execution: id });
    }

    fn charge_tenant(&mut self, worker: WorkerId, payer: Payer, cost: u64) {
        let class = self.fleet.get(worker).map(|worker| worker.class);
        if let Some(class) = class.and_then(|class| self.fleet.class_mut(class)) {
            class.tenants.charge(&payer, cost);
        }
    }
}

/// What a dispatch costs its tenant: thousandths of a core, or 4 MiB each, whichever are more.
pub(super) fn cost(demand: Resources) -> u64 {
    const GRAIN: u64 = 1 << 10;
    u64::from(demand.milli_cores).max(demand.memory_bytes >> 22).saturating_mul(GRAIN)
}

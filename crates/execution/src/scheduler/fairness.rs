//! Start-time fair queueing: who of those that wait is served next, so that all get the same.
//!
//! Each flow has a tag: what it was given, in units of cost. The lowest tag is served first; the flow that has stood
//! longest at its tag comes first among equals. A clock runs with what is given to all, divided by those that wait, as
//! if all were served at the same time.
//!
//! What always holds:
//! - Of two flows that wait all the time and are always served when it is their turn, neither gets more than one
//!   dispatch beyond the other; of dispatches that cost differently, more than the dearest.
//! - A flow that comes, or comes back, starts at the clock: it cannot ask for what it did not want before. Nor does it
//!   start below what it was given lately: coming and going gains nothing.
//! - Every flow has its turn: the tag of a flow that waits does not move, while the clock moves with every dispatch, and
//!   whoever comes after it passed the tag stands behind. With ever more flows that may take long: the share of each
//!   becomes ever smaller.
//! - Only flows that wait, and those that were given more than the clock shows, are kept.

use std::collections::BTreeSet;
use std::hash::Hash;

use super::lookup::Lookup;

/// A flow that was passed over for long, since nothing fitted it, may catch up on so many dispatches.
const CREDIT_DISPATCHES: u64 = 4;

/// Flows, in the order in which they are served.
#[derive(Debug)]
pub(super) struct FairOrder<K> {
    clock: u64,
    turns: u64,
    /// Looked up, never walked.
    flows: Lookup<K, Flow>,
    waiting: BTreeSet<(u64, u64, K)>,
    /// Those that do not wait but were given more than the clock shows.
    ahead: BTreeSet<(u64, K)>,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    tag: u64,
    /// When it came to stand at its tag; `None` while it does not wait.
    turn: Option<u64>,
}

impl<K> Default for FairOrder<K> {
    fn default() -> Self {
        let (flows, waiting, ahead) = (Lookup::default(), BTreeSet::new(), BTreeSet::new());
        Self { clock: 0, turns: 0, flows, waiting, ahead }
    }
}

impl<K: Copy + Ord + Hash> FairOrder<K> {
    /// It waits from now on.
    pub(super) fn join(&mut self, key: &K) {
        let known = self.flows.get(key).copied();
        if known.is_some_and(|flow| flow.turn.is_some()) {
            return;
        }
        if let Some(flow) = known {
            self.ahead.remove(&(flow.tag, *key));
        }
        let tag = known.map_or(self.clock, |flow| flow.tag.max(self.clock));
        self.stand(key, tag);
    }

    /// It does not wait any more.
    pub(super) fn leave(&mut self, key: &K) {
        let Some(Flow { tag, turn: Some(turn) }) = self.flows.get(key).copied() else { return };
        self.flows.remove(key);
        self.waiting.remove(&(tag, turn, *key));
        if self.waiting.is_empty() {
            // Nobody is left to be fair to.
            self.flows.clear();
            self.ahead.clear();
        } else {
            self.remember(key, tag);
        }
    }

    /// It was given something, whether it waited or not.
    pub(super) fn charge(&mut self, key: &K, cost: u64) {
        let waiting = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        if waiting == 0 {
            return;
        }
        let flow = self.flows.get(key).copied();
        let floor = self.clock.saturating_sub(cost.saturating_mul(CREDIT_DISPATCHES));
        self.clock = self.clock.saturating_add((cost / waiting).max(1));
        match flow {
            Some(Flow { tag, turn: Some(turn) }) => {
                self.clock = self.clock.max(tag);
                self.waiting.remove(&(tag, turn, *key));
                self.stand(key, tag.max(floor).saturating_add(cost));
            }
            Some(Flow { tag, turn: None }) => {
                self.ahead.remove(&(tag, *key));
                self.flows.remove(key);
                self.remember(key, tag.saturating_add(cost));
            }
            None => self.remember(key, self.clock.saturating_add(cost)),
        }
        while let Some((tag, key)) = self.ahead.first()
            && *tag <= self.clock
        {
            self.flows.remove(key);
            self.ahead.pop_first();
        }
    }

    /// Those that wait, in the order in which they are served.
    pub(super) fn iter(&self) -> impl Iterator<Item = &K> {
        self.waiting.iter().map(|(_, _, key)| key)
    }

    /// How many dispatches of `cost` `other` gets before `key` gets the one after its next `after`, if both wait.
    pub(super) fn before(&self, key: &K, after: usize, other: &K, cost: u64) -> usize {
        let Some((Flow { tag, turn: Some(turn) }, Flow { tag: theirs, turn: Some(their_turn) })) =
            self.flows.get(key).copied().zip(self.flows.get(other).copied())
        else {
            return 0;
        };
        let mine = tag.saturating_add(cost.saturating_mul(u64::try_from(after).unwrap_or(u64::MAX)));
        if theirs > mine {
            return 0;
        }
        let apart = mine - theirs;
        let at_my_tag = apart.is_multiple_of(cost.max(1));
        let first_at_it = at_my_tag && their_turn < turn;
        let before = apart.div_ceil(cost.max(1)).saturating_add(u64::from(first_at_it));
        usize::try_from(before).unwrap_or(usize::MAX)
    }

    /// How many flows are kept.
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    fn stand(&mut self, key: &K, tag: u64) {
        self.turns += 1;
        self.flows.insert(*key, Flow { tag, turn: Some(self.turns) });
        self.waiting.insert((tag, self.turns, *key));
    }

    fn remember(&mut self, key: &K, tag: u64) {
        if tag > self.clock {
            self.flows.insert(*key, Flow { tag, turn: None });
            self.ahead.insert((tag, *key));
        }
    }
}

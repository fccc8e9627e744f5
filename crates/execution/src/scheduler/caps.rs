//! How many executions each tenant has on workers, and how many it may have.
//!
//! A tenant that has as many as it may keeps its place in every line, but lends its turn to others: it is passed over until
//! one of its executions ends. Then it is served like one for which nothing fitted: by the turns that it is owed, and up
//! to a bound.
//!
//! What always holds: no tenant is given an execution beyond its cap. What is given counts until its worker says that it
//! ended, or is gone, whether its result is still wanted or not: nobody gets more by cancelling. The execution for which a
//! worker is kept free has its place among those that may run, or what is smaller would take that again and again.
//! Whoever joins an execution under way takes nothing. A cap that is lowered ends nothing.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::lookup::Lookup;
use super::{Effect, ExecutionId, Payer, Scheduler};

/// What a tenant may have on workers at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cap {
    /// Whose it is, for people.
    pub tenant: Arc<str>,
    /// So many executions.
    pub executions: NonZeroU32,
}

/// The caps, and what counts for them.
#[derive(Debug, Default)]
pub(super) struct Caps {
    caps: BTreeMap<Payer, Cap>,
    /// Executions on workers, of the tenants that have some. Looked up, never walked.
    given: Lookup<Payer, u32>,
}

/// What of a tenant may be given to workers now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allowance {
    /// Whatever waits.
    Any,
    /// Nothing but what a worker is kept free for, to that worker or to another.
    Kept(ExecutionId),
    /// Nothing.
    Nothing,
}

impl Caps {
    pub(super) fn get(&self, payer: Payer) -> Option<&Cap> {
        self.caps.get(&payer)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Payer, &Cap)> {
        self.caps.iter().map(|(payer, cap)| (*payer, cap))
    }

    /// How many executions of the tenant are on workers.
    pub(super) fn given(&self, payer: Payer) -> u32 {
        self.given.get(&payer).copied().unwrap_or_default()
    }

    /// One more is.
    pub(super) fn give(&mut self, payer: Payer) {
        *self.given.entry(payer).or_default() += 1;
    }

    /// How many tenants have some.
    pub(super) fn given_len(&self) -> usize {
        self.given.len()
    }

    fn take_back(&mut self, payer: Payer) {
        if let Some(given) = self.given.get_mut(&payer) {
            *given -= 1;
            if *given == 0 {
                self.given.remove(&payer);
            }
        }
    }
}

impl Scheduler {
    /// The cap is this from now on, or there is none.
    pub(super) fn cap(&mut self, payer: Payer, cap: Option<Cap>) {
        match cap {
            Some(cap) => self.caps.caps.insert(payer, cap),
            None => self.caps.caps.remove(&payer),
        };
        let is_used_up = self.caps.get(payer).is_some_and(|cap| self.caps.given(payer) >= cap.executions.get());
        if is_used_up && let Some(worker) = self.kept_for(payer) {
            self.unreserve(worker);
        }
        self.released.insert(payer);
    }

    /// What of the tenant may be given to workers now.
    pub(super) fn allowance(&self, payer: Payer) -> Allowance {
        let Some(cap) = self.caps.get(payer) else { return Allowance::Any };
        let left = cap.executions.get().saturating_sub(self.caps.given(payer));
        if left == 0 {
            return Allowance::Nothing;
        }
        let kept = self.kept_for(payer).and_then(|worker| self.fleet.get(worker)?.reserved);
        kept.filter(|_| left == 1).map_or(Allowance::Any, Allowance::Kept)
    }

    /// Whether the tenant's execution may be given to a worker now.
    pub(super) fn is_allowed(&self, payer: Payer, execution: ExecutionId) -> bool {
        match self.allowance(payer) {
            Allowance::Any => true,
            Allowance::Kept(kept) => kept == execution,
            Allowance::Nothing => false,
        }
    }

    /// One execution of the tenant is on a worker no more.
    pub(super) fn take_back(&mut self, payer: Payer) {
        self.release(payer);
        self.caps.take_back(payer);
    }

    /// More of the tenant may run in a moment: when it could not until now, it is looked at what waits.
    pub(super) fn release(&mut self, payer: Payer) {
        if self.allowance(payer) != Allowance::Any {
            self.released.insert(payer);
        }
    }

    /// Gives what the tenant may run to workers that have room: nobody else has a use for it.
    pub(super) fn serve(&mut self, payer: Payer, effects: &mut Vec<Effect>) {
        while let Some((execution, worker)) = self.next_with_room(payer) {
            self.assign(execution, worker, effects);
        }
    }
}

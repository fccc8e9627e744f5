//! What tenants get while all of them wait.

use std::collections::{BTreeMap, BTreeSet};

use gf_execution::scheduler::{ExecutionId, Payer};

/// Counts what is given to tenants, from when all of them wait until one does not.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    tenants: usize,
    waiting: BTreeMap<Payer, BTreeSet<ExecutionId>>,
    /// In thousandths of a core, of this time in which all wait.
    given: BTreeMap<Payer, u64>,
    /// The most by which one got more than another.
    pub(crate) widest: u64,
    /// The most that one got in one time.
    pub(crate) most: u64,
}

impl Shares {
    pub(crate) fn of(tenants: usize) -> Self {
        Self { tenants, ..Self::default() }
    }

    pub(crate) fn queued(&mut self, payer: Payer, execution: ExecutionId) {
        self.waiting.entry(payer).or_default().insert(execution);
    }

    /// Those of which something waits.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Payer> {
        self.waiting.keys().copied()
    }

    /// It does not wait any more, and was not given anything.
    pub(crate) fn left(&mut self, payer: Payer, execution: ExecutionId) {
        if let Some(waiting) = self.waiting.get_mut(&payer) {
            waiting.remove(&execution);
            if waiting.is_empty() {
                self.waiting.remove(&payer);
                self.given.clear();
            }
        }
    }

    /// It was given so much.
    pub(crate) fn given(&mut self, payer: Payer, execution: ExecutionId, milli_cores: u32) {
        if self.tenants > 0 && self.waiting.len() == self.tenants {
            *self.given.entry(payer).or_default() += u64::from(milli_cores);
            let most = self.given.values().copied().max().unwrap_or_default();
            let all_got_some = self.given.len() == self.tenants;
            let least = if all_got_some { self.given.values().copied().min().unwrap_or_default() } else { 0 };
            self.widest = self.widest.max(most - least);
            self.most = self.most.max(most);
        }
        self.left(payer, execution);
    }
}

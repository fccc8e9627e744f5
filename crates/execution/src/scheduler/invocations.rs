//! Numbers for invocations, so that what clients call them is looked at once for each execution.

use std::sync::Arc;

use super::Payer;
use super::lookup::Lookup;

/// What a client started, named across tenants.
pub(super) type Invocation = (Payer, Arc<str>);

/// An invocation of which something lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct InvocationId(u64);

/// Those of which something lives.
#[derive(Debug, Default)]
pub(super) struct Invocations {
    known: Lookup<Invocation, (InvocationId, usize)>,
    next: u64,
}

impl Invocations {
    /// One more execution of it lives.
    pub(super) fn enter(&mut self, invocation: &Invocation) -> InvocationId {
        if let Some((id, users)) = self.known.get_mut(invocation) {
            *users += 1;
            return *id;
        }
        let id = InvocationId(self.next);
        self.next += 1;
        self.known.insert(invocation.clone(), (id, 1));
        id
    }

    /// One less.
    pub(super) fn exit(&mut self, invocation: &Invocation) {
        let Some((_, users)) = self.known.get_mut(invocation) else { return };
        *users -= 1;
        if *users == 0 {
            self.known.remove(invocation);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

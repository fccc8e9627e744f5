//! The ends that clients and workers hold: dropping one says that it is gone.

use std::fmt;
use std::sync::Arc;

use gf_digest::InstanceName;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Operations;
use super::answer::{Answer, Assignment, Order, Progress};
use crate::actions::{ActionError, read_message};
use crate::scheduler::{AssignmentId, Event, RunStage, WorkerId};

/// The name of an operation: `<instance>/operations/<random>`, or without the first part for the empty instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationName(Arc<str>);

const OPERATIONS: &str = "operations";

impl OperationName {
    pub(super) fn new(instance: &InstanceName) -> Self {
        Self(format!("{}{}", Self::prefix(instance), Uuid::new_v4()).into())
    }

    /// What all names in an instance begin with, and sort behind.
    pub(super) fn prefix(instance: &InstanceName) -> Self {
        Self(match instance.as_str() {
            "" => format!("{OPERATIONS}/").into(),
            instance => format!("{instance}/{OPERATIONS}/").into(),
        })
    }

    /// Takes a name as a client gives it, and the instance that it belongs to; `None` when no operation can have it.
    #[must_use]
    pub fn parse(name: &str) -> Option<(Self, InstanceName)> {
        let (before, random) = name.rsplit_once('/')?;
        Uuid::try_parse(random).ok()?;
        let instance = match before.strip_suffix(OPERATIONS)? {
            "" => "",
            instance => instance.strip_suffix('/')?,
        };
        Some((Self(name.into()), InstanceName::new(instance).ok()?))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A client that waits for an operation.
pub struct Watch {
    operations: Operations,
    name: OperationName,
    progress: watch::Receiver<Progress>,
    /// How many stages were told.
    told: usize,
}

impl Watch {
    pub(super) fn new(operations: Operations, name: OperationName, progress: watch::Receiver<Progress>) -> Self {
        Self { operations, name, progress, told: 0 }
    }

    /// The operation.
    #[must_use]
    pub const fn name(&self) -> &OperationName {
        &self.name
    }

    /// The stages that were not told yet, and the end if it has come: at once when it is called first, later when
    /// there is something new. `None` after the end.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            let now = self.progress.borrow_and_update().clone();
            if now.stages.len() > self.told {
                let stages = now.stages.get(self.told..).unwrap_or_default().to_vec();
                self.told = now.stages.len();
                return Some(Progress { stages, ended: now.ended });
            }
            if now.ended.is_some() || self.progress.changed().await.is_err() {
                return None;
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.operations.act(|desk, at| desk.leave(&self.name, at));
    }
}

/// A worker that is here.
pub struct Attachment {
    operations: Operations,
    id: WorkerId,
    orders: mpsc::Receiver<Order>,
    /// Taken from `orders`, and not complete yet.
    in_hand: Option<Box<Assignment>>,
    hang_up: CancellationToken,
}

impl Attachment {
    pub(super) fn new(
        operations: Operations,
        id: WorkerId,
        orders: mpsc::Receiver<Order>,
        hang_up: CancellationToken,
    ) -> Self {
        Self { operations, id, orders, in_hand: None, hang_up }
    }

    /// The worker, until this is dropped.
    #[must_use]
    pub const fn id(&self) -> WorkerId {
        self.id
    }

    /// What the worker is to be told next; `None` when the stream is to be closed, because the worker was given up
    /// or the server stops. May be dropped while it waits: nothing is lost then.
    pub async fn next_order(&mut self) -> Option<Order> {
        loop {
            let (stopping, hang_up) = (self.operations.0.stopping.clone(), self.hang_up.clone());
            if self.in_hand.is_some() {
                tokio::select! {
                    biased;
                    () = hang_up.cancelled() => return None,
                    () = stopping.cancelled() => return None,
                    read = self.complete() => match read {
                        Ok(()) => return self.in_hand.take().map(Order::Assign),
                        Err(answer) => self.refuse(answer),
                    },
                }
                continue;
            }
            let order = tokio::select! {
                biased;
                () = hang_up.cancelled() => return None,
                () = stopping.cancelled() => return None,
                order = self.orders.recv() => order?,
            };
            match order {
                Order::Assign(assignment) => self.in_hand = Some(assignment),
                Order::Withdraw(_) => return Some(order),
            }
        }
    }

    /// Reads what is sent along with an assignment. Until then it is not held: much may wait.
    async fn complete(&mut self) -> Result<(), Answer> {
        let Some(assignment) = &mut self.in_hand else { return Ok(()) };
        let store = &*self.operations.0.store;
        let read = async {
            let action = read_message(store, &assignment.grant, "action", assignment.digest).await?;
            let command = read_message(store, &assignment.grant, "command", assignment.command_digest).await?;
            Ok::<_, ActionError>((action, command))
        };
        let (action, command) = read.await.map_err(|error| match error {
            ActionError::Missing(digests) => Answer::Missing(digests),
            ActionError::Invalid(reason) => Answer::Invalid(reason),
            ActionError::Store(_) | ActionError::Closure(_) => Answer::Unavailable(error.to_string()),
        })?;
        assignment.action = action;
        assignment.command = command;
        Ok(())
    }

    /// Answers in place of the worker, which was not told.
    fn refuse(&mut self, answer: Answer) {
        if let Some(assignment) = self.in_hand.take() {
            self.operations.worker_answered(self.id, assignment.id, answer);
        }
    }

    /// The end that listens to the worker.
    #[must_use]
    pub fn reports(&self) -> Reports {
        Reports { operations: self.operations.clone(), id: self.id }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.operations.worker_said(Event::WorkerLeft(self.id));
    }
}

/// What a worker says. Said of an assignment that is not its own, it is ignored.
#[derive(Clone)]
pub struct Reports {
    operations: Operations,
    id: WorkerId,
}

impl Reports {
    /// It is alive.
    pub fn heartbeat(&self) {
        self.operations.worker_said(Event::WorkerHeard(self.id));
    }

    /// It takes nothing more.
    pub fn draining(&self) {
        self.operations.worker_said(Event::WorkerDraining(self.id));
    }

    /// An assignment goes on.
    pub fn progressed(&self, assignment: AssignmentId, stage: RunStage) {
        self.operations.worker_got_on(self.id, assignment, stage);
    }

    /// An assignment ended.
    pub fn answered(&self, assignment: AssignmentId, answer: Answer) {
        self.operations.worker_answered(self.id, assignment, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_instance() {
        for instance in ["", "default", "a/b"] {
            let instance = InstanceName::new(instance).unwrap();
            let name = OperationName::new(&instance);
            assert_eq!(OperationName::parse(name.as_str()), Some((name, instance)));
        }
        for wrong in ["", "operations/", "operations/x", "x", "aoperations/8f7c2f6e-9ad4-4c0e-8a1c-3a5d3f1d2b4a"] {
            assert_eq!(OperationName::parse(wrong), None, "{wrong}");
        }
    }
}

//! What the scheduler decided, carried out.

use std::sync::Arc;

use bytes::Bytes;
use gf_reapi::execution::ActionResult;

use super::{Attempt, Desk};
use crate::operations::At;
use crate::operations::answer::{Answer, Assignment, Ended, Order, Stage, Verdict};
use crate::operations::settlement::Settlement;
use crate::scheduler::{AssignmentId, Effect, End, ExecutionId, WorkerId};

/// What was ended for a limit did not succeed, whatever it made of that itself.
fn failed(mut result: ActionResult) -> ActionResult {
    const KILLED: i32 = 137;
    if result.exit_code == 0 {
        result.exit_code = KILLED;
    }
    result
}

impl Desk {
    pub(super) fn perform(&mut self, effect: Effect, at: At<'_>) {
        match effect {
            Effect::Queued(execution) => {
                self.end_attempt(execution);
                self.enter(execution, Stage::Queued);
            }
            Effect::Merged { submitted, into } => self.merge(submitted, into),
            Effect::Assign { worker, assignment, execution } => self.assign(worker, assignment, execution, at),
            // Where exactly a worker is with it is no stage of the protocol.
            Effect::Stage { .. } => {}
            Effect::Withdraw { worker, assignment } => {
                self.running.remove(&assignment);
                self.tell(worker, Order::Withdraw(assignment));
            }
            Effect::Dismiss(worker) => {
                if let Some(link) = self.workers.get(&worker) {
                    link.hang_up.cancel();
                }
            }
            Effect::Complete { execution, end } => self.complete(execution, end, at),
        }
    }

    fn merge(&mut self, submitted: ExecutionId, into: ExecutionId) {
        let Some(merged) = self.forget(submitted) else { return };
        let Some(execution) = self.executions.get_mut(&into) else { return };
        let stage = if execution.attempt.is_some() { Stage::Executing } else { Stage::Queued };
        for name in merged.operations {
            if let Some(operation) = self.operations.get_mut(&name) {
                operation.execution = Some(into);
                operation.enter(Stage::Queued);
                operation.enter(stage);
            }
            execution.operations.push(name);
        }
    }

    fn assign(&mut self, worker: WorkerId, assignment: AssignmentId, id: ExecutionId, at: At<'_>) {
        let Some(execution) = self.executions.get_mut(&id) else { return };
        let loan = match at.access.lend(&execution.grant) {
            Ok(loan) => loan,
            Err(error) => {
                tracing::error!(%error, "no credential could be made for an assignment");
                // Its leaving gives the assignment back.
                if let Some(link) = self.workers.get(&worker) {
                    link.hang_up.cancel();
                }
                return;
            }
        };
        let action = &execution.action;
        let order = Assignment {
            id: assignment,
            instance: execution.grant.instance().clone(),
            digest: action.digest,
            action: Bytes::new(),
            command: Bytes::new(),
            command_digest: action.command,
            grant: execution.grant.clone(),
            timeout: action.timeout,
            demand: action.demand,
            credential: loan.credential().clone(),
            queued: execution.queued,
            closure: action.closure.clone(),
        };
        // Now: when it answers, it may have left.
        let origin = self.workers.get(&worker).map(|link| link.origin.clone()).unwrap_or_default();
        execution.attempt = Some(Attempt { worker, assignment, origin, _loan: loan });
        self.running.insert(assignment, id);
        // An execution that went straight to a worker was queued for a moment, too.
        self.enter(id, Stage::Queued);
        self.enter(id, Stage::Executing);
        self.tell(worker, Order::Assign(Box::new(order)));
    }

    /// A worker that does not take what it is told is hung up on; its leaving gives everything back.
    fn tell(&self, worker: WorkerId, order: Order) {
        if let Some(link) = self.workers.get(&worker)
            && link.orders.try_send(order).is_err()
        {
            link.hang_up.cancel();
        }
    }

    fn complete(&mut self, id: ExecutionId, end: End, at: At<'_>) {
        let verdict = match end {
            End::Answered(assignment) => match self.answer.take_if(|(answered, _)| *answered == assignment) {
                Some((_, answer)) => return self.answered(id, answer, at),
                None => Verdict::Unavailable("the answer of the worker was lost".to_owned()),
            },
            End::Cancelled => Verdict::Cancelled,
            End::NoWorker(reason) => Verdict::NoWorker(reason),
            End::GivenUp { attempts } => {
                let last = self.executions.get(&id).map(|execution| execution.last_failure.clone()).unwrap_or_default();
                Verdict::GivenUp { attempts, last }
            }
            End::QueueFull => Verdict::QueueFull,
        };
        self.end_all(id, &Ended::without_result(verdict), at);
    }

    fn answered(&mut self, id: ExecutionId, answer: Answer, at: At<'_>) {
        let (verdict, result, message) = match answer {
            Answer::Completed(result) => (Verdict::Completed, result, String::new()),
            Answer::TimedOut(result, message) => (Verdict::TimedOut, result, message),
            Answer::LimitReached(result, message) => (Verdict::LimitReached, failed(result), message),
            Answer::Unfit(result, reason) => (Verdict::Unfit(reason), result, String::new()),
            Answer::Missing(digests) => return self.end_all(id, &Ended::without_result(Verdict::Missing(digests)), at),
            Answer::Invalid(reason) => return self.end_all(id, &Ended::without_result(Verdict::Invalid(reason)), at),
            // These are no answers for the client: the scheduler does not complete an execution with one.
            Answer::Unavailable(reason) | Answer::WorkerFailed(reason) | Answer::HandedBack(reason) => {
                return self.end_all(id, &Ended::without_result(Verdict::Unavailable(reason)), at);
            }
            Answer::Cancelled => return self.end_all(id, &Ended::without_result(Verdict::Cancelled), at),
        };
        let origin = self.end_attempt(id).map(|attempt| attempt.origin).unwrap_or_default();
        self.count(&verdict);
        let Some(execution) = self.executions.get_mut(&id) else { return };
        execution.is_settling = true;
        if let Some(key) = &execution.submission.merge {
            self.settling.insert(key.clone(), id);
        }
        self.follow_up.push(Settlement {
            execution: id,
            grant: execution.grant.clone(),
            action: Arc::clone(&execution.action),
            verdict,
            result,
            message,
            origin,
        });
    }

    fn count(&mut self, verdict: &Verdict) {
        *self.ends.entry(verdict.as_str()).or_default() += 1;
    }

    fn end_attempt(&mut self, id: ExecutionId) -> Option<Attempt> {
        let attempt = self.executions.get_mut(&id)?.attempt.take()?;
        self.running.remove(&attempt.assignment);
        Some(attempt)
    }

    fn end_all(&mut self, id: ExecutionId, ended: &Ended, at: At<'_>) {
        self.count(&ended.verdict);
        for name in self.forget(id).map(|execution| execution.operations).unwrap_or_default() {
            self.end(&name, ended.clone(), at);
        }
    }

    fn enter(&self, id: ExecutionId, stage: Stage) {
        let names = self.executions.get(&id).map(|execution| execution.operations.as_slice()).unwrap_or_default();
        for name in names {
            if let Some(operation) = self.operations.get(name) {
                operation.enter(stage);
            }
        }
    }
}

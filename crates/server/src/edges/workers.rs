//! Workers: one stream each, from their arrival to their end.
//!
//! Deliberately absent: what is assigned to whom. What always holds: the stream is the worker; when it ends, whatever
//! it had is given back, and it ends soon after its credential did. A worker is given actions of all tenants, so it is
//! let in by whoever may attach workers for all of them. A worker runs hostile code and may be hostile itself: what it says is bounded before it is
//! kept, logged or repeated.

mod messages;
mod stay;

use std::collections::HashSet;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use gf_execution::Operations;
use gf_execution::operations::{Attachment, Order, Reports};
use gf_execution::scheduler::AssignmentId;
use gf_reapi::worker::{self, FromWorker, Hello, ToWorker, from_worker, to_worker};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::grpc::{self, Messages};
use super::reapi::MAX_BATCH_TOTAL_BYTES;
pub(super) use messages::LISTS;
use messages::{answer, assignment, encode, offer, run_stage};
pub(super) use stay::Admitted;
use stay::Stay;

/// How often a worker says that it is alive.
const HEARTBEAT: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };
/// How long a worker has to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// How soon a worker is sent away whose credential counts no more.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// A worker and both directions of its stream.
struct Conversation {
    /// A stream keeps what it has of a message while the other direction has its turn.
    messages: BoxStream<'static, Result<FromWorker, Status>>,
    attachment: Attachment,
    reports: Reports,
    welcome: Option<ToWorker>,
    /// Assignments that it has no answer for.
    outstanding: HashSet<AssignmentId>,
    stopping: CancellationToken,
    is_stopping: bool,
    stay: Stay,
    checks: Interval,
}

/// What happened first.
enum Turn {
    Said(Box<FromWorker>),
    Left,
    Told(Order),
    HungUp,
    Stopping,
    Check,
}

/// Takes a worker in; the answer is what it is told until one side hangs up.
pub(super) async fn attach(
    operations: &Operations,
    admitted: Admitted,
    mut messages: Messages,
    stopping: CancellationToken,
) -> Result<grpc::Frames, Status> {
    let hello = hello(&mut messages, &stopping).await?;
    let offer = offer(hello)?;
    let (name, limitations) = (offer.name.clone(), offer.limitations.clone());
    let attachment = operations.attach(offer).map_err(|error| Status::unavailable(error.to_string()))?;
    tracing::info!(worker = &*name, id = %attachment.id(), "a worker came");
    for limitation in &*limitations {
        tracing::warn!(worker = &*name, limitation, "a worker is limited");
    }
    let stay = admitted.begin(&name, attachment.id());
    let welcome = worker::Welcome {
        worker_id: attachment.id().to_string(),
        heartbeat: Some(HEARTBEAT),
        max_batch_total_size_bytes: MAX_BATCH_TOTAL_BYTES,
    };
    let messages = stream::try_unfold(messages, |mut messages| async {
        Ok(messages.next::<FromWorker>().await?.map(|message| (message, messages)))
    });
    let conversation = Conversation {
        messages: messages.boxed(),
        reports: attachment.reports(),
        attachment,
        welcome: Some(ToWorker { message: Some(to_worker::Message::Welcome(welcome)) }),
        outstanding: HashSet::new(),
        stopping,
        is_stopping: false,
        stay,
        checks: checks(),
    };
    let parts = stream::try_unfold(conversation, |mut conversation| async {
        Ok(conversation.next().await?.map(|message| (grpc::encode(&message), conversation)))
    });
    Ok(Box::pin(parts))
}

/// The first message of a worker. One that says nothing is not waited for.
async fn hello(messages: &mut Messages, stopping: &CancellationToken) -> Result<Hello, Status> {
    let first = stopping.run_until_cancelled(timeout(HELLO_TIMEOUT, messages.next::<FromWorker>())).await;
    let first = first.ok_or_else(hung_up)?;
    let first = first.map_err(|_| Status::deadline_exceeded("the worker did not say who it is"))??;
    match first.and_then(|first| first.message) {
        Some(from_worker::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a worker must be `hello`")),
    }
}

impl Conversation {
    /// What the worker is told next; what it says meanwhile is passed on. `None` at the end.
    async fn next(&mut self) -> Result<Option<ToWorker>, Status> {
        if let Some(welcome) = self.welcome.take() {
            return Ok(Some(welcome));
        }
        loop {
            if self.is_stopping && self.outstanding.is_empty() {
                return Err(hung_up());
            }
            let turn = tokio::select! {
                said = self.messages.try_next() => said?.map_or(Turn::Left, |said| Turn::Said(Box::new(said))),
                told = self.attachment.next_order() => told.map_or(Turn::HungUp, Turn::Told),
                () = self.stopping.cancelled(), if !self.is_stopping => Turn::Stopping,
                _ = self.checks.tick() => Turn::Check,
            };
            match turn {
                Turn::Said(message) => self.hear(*message)?,
                Turn::Told(order) => {
                    if let Order::Assign(assignment) = &order {
                        self.stay.check()?;
                        self.outstanding.insert(assignment.id);
                    }
                    return Ok(Some(ToWorker { message: Some(encode(order)) }));
                }
                Turn::Check => self.stay.check()?,
                Turn::Left => return Ok(None),
                Turn::HungUp => return Err(hung_up()),
                Turn::Stopping => {
                    self.is_stopping = true;
                    self.reports.draining();
                }
            }
        }
    }

    fn hear(&mut self, message: FromWorker) -> Result<(), Status> {
        match message.message {
            Some(from_worker::Message::Heartbeat(_)) => self.reports.heartbeat(),
            Some(from_worker::Message::Draining(_)) => self.reports.draining(),
            Some(from_worker::Message::Progress(progress)) => {
                if let Some(stage) = run_stage(progress.stage) {
                    self.reports.progressed(assignment(&progress.assignment_id)?, stage);
                }
            }
            Some(from_worker::Message::Finished(finished)) => {
                let assignment = assignment(&finished.assignment_id)?;
                // Said of what it was never given, or said twice, it is of no use to anybody.
                if self.outstanding.remove(&assignment) {
                    self.reports.answered(assignment, answer(finished));
                }
            }
            Some(from_worker::Message::Hello(_)) => return Err(Status::invalid_argument("a second `hello`")),
            // Something newer: it may be left out.
            None => {}
        }
        Ok(())
    }
}

fn checks() -> Interval {
    let mut checks = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    checks
}

fn hung_up() -> Status {
    Status::unavailable("the server gave this worker up, or stops: attach again")
}

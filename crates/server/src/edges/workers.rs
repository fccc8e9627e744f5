//! Workers: one stream each, from their arrival to their end.
//!
//! Deliberately absent: what is assigned to whom. What always holds: the stream is the worker; when it ends, whatever
//! it had is given back.

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use gf_digest::{Digest, DigestFunction};
use gf_execution::Operations;
use gf_execution::operations::{Answer, Assignment, Attachment, Order, Reports};
use gf_execution::scheduler::{AssignmentId, Offer, Property, Resources, RunStage};
use gf_reapi::worker::{self, FromWorker, ToWorker, finished, from_worker, progress, to_worker};
use gf_reapi::{WireDigest, rpc};
use prost::Message;
use prost_types::Timestamp;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::grpc::{self, Messages};
use super::reapi::MAX_BATCH_TOTAL_BYTES;

/// How often a worker says that it is alive.
const HEARTBEAT: prost_types::Duration = prost_types::Duration { seconds: 10, nanos: 0 };
/// What a worker may offer.
const MAX_PROPERTIES: usize = 1000;
const MAX_TEXT_BYTES: usize = 4096;

/// A worker and both directions of its stream.
struct Conversation {
    /// A stream keeps what it has of a message while the other direction has its turn.
    messages: BoxStream<'static, Result<FromWorker, Status>>,
    attachment: Attachment,
    reports: Reports,
    welcome: Option<ToWorker>,
    /// Assignments that it has no answer for.
    outstanding: usize,
    stopping: CancellationToken,
    is_stopping: bool,
}

/// What happened first.
enum Turn {
    Said(FromWorker),
    Left,
    Told(Order),
    HungUp,
    Stopping,
}

/// Takes a worker in; the answer is what it is told until one side hangs up.
pub(super) async fn attach(
    operations: &Operations,
    mut messages: Messages,
    stopping: CancellationToken,
) -> Result<grpc::Frames, Status> {
    let first: Option<FromWorker> = messages.next().await?;
    let Some(from_worker::Message::Hello(hello)) = first.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message of a worker must be `hello`"));
    };
    let name = hello.name.clone();
    for limitation in &hello.limitations {
        tracing::warn!(worker = name, limitation, "a worker is limited");
    }
    let attachment = operations.attach(offer(hello)?);
    tracing::info!(worker = name, id = %attachment.id(), "a worker came");
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
        outstanding: 0,
        stopping,
        is_stopping: false,
    };
    let parts = stream::try_unfold(conversation, |mut conversation| async {
        Ok(conversation.next().await?.map(|message| (grpc::encode(&message), conversation)))
    });
    Ok(Box::pin(parts))
}

impl Conversation {
    /// What the worker is told next; what it says meanwhile is passed on. `None` at the end.
    async fn next(&mut self) -> Result<Option<ToWorker>, Status> {
        if let Some(welcome) = self.welcome.take() {
            return Ok(Some(welcome));
        }
        loop {
            if self.is_stopping && self.outstanding == 0 {
                return Err(hung_up());
            }
            let turn = tokio::select! {
                said = self.messages.try_next() => said?.map_or(Turn::Left, Turn::Said),
                told = self.attachment.next_order() => told.map_or(Turn::HungUp, Turn::Told),
                () = self.stopping.cancelled(), if !self.is_stopping => Turn::Stopping,
            };
            match turn {
                Turn::Said(message) => self.hear(message)?,
                Turn::Told(order) => {
                    self.outstanding += usize::from(matches!(order, Order::Assign(_)));
                    return Ok(Some(ToWorker { message: Some(encode(order)) }));
                }
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
                self.outstanding = self.outstanding.saturating_sub(1);
                self.reports.answered(assignment(&finished.assignment_id)?, answer(finished));
            }
            Some(from_worker::Message::Hello(_)) => return Err(Status::invalid_argument("a second `hello`")),
            // Something newer: it may be left out.
            None => {}
        }
        Ok(())
    }
}

fn hung_up() -> Status {
    Status::unavailable("the server gave this worker up, or stops: attach again")
}

fn assignment(id: &str) -> Result<AssignmentId, Status> {
    id.parse().map(AssignmentId).map_err(|_| Status::invalid_argument(format!("{id:?} is no assignment")))
}

fn run_stage(stage: i32) -> Option<RunStage> {
    match progress::Stage::try_from(stage) {
        Ok(progress::Stage::Fetching) => Some(RunStage::Fetching),
        Ok(progress::Stage::Running) => Some(RunStage::Running),
        Ok(progress::Stage::Uploading) => Some(RunStage::Uploading),
        Ok(progress::Stage::Unknown) | Err(_) => None,
    }
}

fn offer(hello: worker::Hello) -> Result<Offer, Status> {
    if hello.properties.len() > MAX_PROPERTIES {
        return Err(Status::invalid_argument(format!("a worker may have at most {MAX_PROPERTIES} properties")));
    }
    let is_long = |text: &String| text.len() > MAX_TEXT_BYTES;
    if is_long(&hello.name)
        || hello.properties.iter().any(|property| is_long(&property.name) || is_long(&property.value))
    {
        return Err(Status::invalid_argument(format!("a name or a property is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let capacity = hello.capacity.unwrap_or_default();
    if capacity.milli_cores == 0 {
        return Err(Status::invalid_argument("a worker without cores runs nothing"));
    }
    let property = |property: worker::Property| Property { name: property.name.into(), value: property.value.into() };
    Ok(Offer {
        name: hello.name.into(),
        properties: hello.properties.into_iter().map(property).collect(),
        capacity: Resources { milli_cores: capacity.milli_cores, memory_bytes: capacity.memory_bytes },
    })
}

fn encode(order: Order) -> to_worker::Message {
    match order {
        Order::Withdraw(assignment) => {
            to_worker::Message::Cancel(worker::Cancel { assignment_id: assignment.to_string() })
        }
        Order::Assign(assignment) => to_worker::Message::Assignment(encode_assignment(*assignment)),
    }
}

fn encode_assignment(assignment: Assignment) -> worker::Assignment {
    let Resources { milli_cores, memory_bytes } = assignment.demand;
    worker::Assignment {
        assignment_id: assignment.id.to_string(),
        instance_name: assignment.instance.as_str().to_owned(),
        digest_function: assignment.digest.function().number(),
        action_digest: Some(WireDigest::from(&assignment.digest)),
        action: assignment.action,
        command: assignment.command,
        timeout: assignment.timeout.try_into().ok(),
        reserved: Some(worker::Resources { milli_cores, memory_bytes }),
        credential: assignment.credential.expose().to_owned(),
        queued_timestamp: Some(Timestamp::from(assignment.queued)),
    }
}

/// What a worker says becomes an answer. One that makes no sense is a failure of the worker.
fn answer(finished: worker::Finished) -> Answer {
    let status = finished.status.unwrap_or_default();
    let code = Code::from(status.code);
    let text = if finished.message.is_empty() { status.message.clone() } else { finished.message };
    match (finished::Verdict::try_from(finished.verdict), finished.result) {
        (Ok(finished::Verdict::Completed), Some(result)) => Answer::Completed(result),
        (Ok(finished::Verdict::Ended), result) if code == Code::DeadlineExceeded => {
            Answer::TimedOut(result.unwrap_or_default(), text)
        }
        (Ok(finished::Verdict::Ended), result) => Answer::LimitReached(result.unwrap_or_default(), text),
        (Ok(finished::Verdict::Refused), _) => refusal(code, &status, text),
        (Ok(finished::Verdict::Cancelled), _) => Answer::Cancelled,
        (Ok(finished::Verdict::WorkerFailed), _) => Answer::WorkerFailed(text),
        (Ok(finished::Verdict::Completed | finished::Verdict::Unknown) | Err(_), _) => {
            Answer::WorkerFailed("its answer has no verdict or no result".to_owned())
        }
    }
}

fn refusal(code: Code, status: &rpc::Status, text: String) -> Answer {
    let missing = missing(status);
    match code {
        Code::FailedPrecondition if !missing.is_empty() => Answer::Missing(missing),
        Code::InvalidArgument => Answer::Invalid(text),
        _ => Answer::Unfit(text),
    }
}

/// The blobs that a status names as missing.
fn missing(status: &rpc::Status) -> Vec<Digest> {
    let details = status.details.iter().filter(|detail| detail.type_url.ends_with("/google.rpc.PreconditionFailure"));
    let failures = details.filter_map(|detail| rpc::PreconditionFailure::decode(detail.value.as_slice()).ok());
    let violations = failures.flat_map(|failure| failure.violations);
    violations.filter(|violation| violation.r#type == "MISSING").filter_map(|v| subject(&v.subject)).collect()
}

/// `blobs/<hash>/<size>`, or `blobs/<function>/<hash>/<size>`.
fn subject(subject: &str) -> Option<Digest> {
    let parts: Vec<&str> = subject.split('/').collect();
    let (function, hash, size) = match parts.as_slice() {
        ["blobs", hash, size] => (DigestFunction::Sha256, hash, size),
        ["blobs", "blake3", hash, size] => (DigestFunction::Blake3, hash, size),
        _ => return None,
    };
    Digest::parse(function, hash, size.parse().ok()?).ok()
}

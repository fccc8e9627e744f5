//! One attachment to a server: what it says, what is said to it, and what runs meanwhile.
//!
//! What always holds: when the stream ends, everything that was assigned over it is ended before another stream begins.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gf_reapi::execution::ActionResult;
use gf_reapi::worker::finished::Verdict;
use gf_reapi::worker::workers_client::WorkersClient;
use gf_reapi::worker::{
    Assignment, Draining, Finished, FromWorker, Heartbeat, Hello, Progress, Resources, ToWorker, Welcome, from_worker,
    progress, to_worker,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::execute::{Surroundings, Workshop};
use crate::failure::status;
use crate::times::read_duration;

/// Messages that wait for the connection; what is said beyond that waits with its assignment.
const MESSAGES_AHEAD: usize = 1024;
/// A server that is silent for so long at the beginning is none.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
const USUAL_HEARTBEAT: Duration = Duration::from_secs(10);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(100);
/// Assignments and cancels are small; a command with 6 MiB of arguments still fits.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The server takes 5 MiB; what takes more would end the connection and all that runs over it.
const MAX_FINISHED_BYTES: usize = 4 << 20;

/// How an attachment ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The worker was told to stop, and everything that ran is over.
    Drained,
    /// It ended before the server said welcome.
    Unwelcome(Status),
    /// The connection or the server ended it later.
    Lost(Status),
}

/// What a worker says of itself, and how it behaves.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) hello: Hello,
    pub(crate) authorization: MetadataValue<Ascii>,
    pub(crate) drain_deadline: Duration,
}

/// Attaches, and works until one side wants no more.
pub(crate) async fn attach(workshop: &Arc<Workshop>, offer: &Offer, channel: Channel, stop: &CancellationToken) -> End {
    let (say, said) = mpsc::channel(MESSAGES_AHEAD);
    // It cannot be full: it is new.
    let _ = say.try_send(from_worker::Message::Hello(offer.hello.clone()).into_message());
    let mut request = tonic::Request::new(ReceiverStream::new(said));
    request.metadata_mut().insert("authorization", offer.authorization.clone());
    let mut client = WorkersClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let welcomed = timeout(WELCOME_TIMEOUT, async {
        let mut orders = client.attach(request).await?.into_inner();
        let welcome = welcome(&mut orders).await?;
        Ok::<_, Status>((orders, welcome))
    });
    let (orders, welcome) = match welcomed.await {
        Ok(Ok(welcomed)) => welcomed,
        Ok(Err(status)) => return End::Unwelcome(status),
        Err(_) => return End::Unwelcome(Status::deadline_exceeded("the server does not say welcome")),
    };
    tracing::info!(id = welcome.worker_id, "attached to the server");
    let session = Session {
        workshop,
        channel,
        max_batch_bytes: welcome.max_batch_total_size_bytes,
        capacity: offer.hello.capacity.unwrap_or_default(),
        drain_deadline: offer.drain_deadline,
        say: Some(say),
        running: HashMap::new(),
        tasks: JoinSet::new(),
        ids: HashMap::new(),
    };
    let heartbeat = welcome.heartbeat.as_ref().and_then(read_duration).unwrap_or(USUAL_HEARTBEAT);
    session.work(orders, heartbeat.max(SHORTEST_HEARTBEAT), stop).await
}

async fn welcome(orders: &mut Streaming<ToWorker>) -> Result<Welcome, Status> {
    match orders.message().await?.and_then(|first| first.message) {
        Some(to_worker::Message::Welcome(welcome)) => Ok(welcome),
        _ => Err(Status::failed_precondition("the first message of the server is no welcome")),
    }
}

struct Session<'a> {
    workshop: &'a Arc<Workshop>,
    channel: Channel,
    max_batch_bytes: u64,
    capacity: Resources,
    drain_deadline: Duration,
    /// `None` once everything is said.
    say: Option<mpsc::Sender<FromWorker>>,
    running: HashMap<String, Running>,
    tasks: JoinSet<Finished>,
    ids: HashMap<Id, String>,
}

struct Running {
    cancel: CancellationToken,
    reserved: Resources,
}

/// What happened first.
#[expect(clippy::large_enum_variant, reason = "there is one, and it is taken apart at once")]
enum Turn {
    Told(Result<Option<ToWorker>, Status>),
    Done(Result<(Id, Finished), JoinError>),
    Beat,
    Stop,
    DrainedTooLong,
}

impl Session<'_> {
    async fn work(mut self, mut orders: Streaming<ToWorker>, heartbeat: Duration, stop: &CancellationToken) -> End {
        let mut beats = interval(heartbeat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drained_by: Option<Instant> = None;
        let end = loop {
            if drained_by.is_some() && self.running.is_empty() {
                break End::Drained;
            }
            let deadline = drained_by;
            let turn = tokio::select! {
                told = orders.message() => Turn::Told(told),
                Some(done) = self.tasks.join_next_with_id() => Turn::Done(done),
                _ = beats.tick() => Turn::Beat,
                () = stop.cancelled(), if deadline.is_none() => Turn::Stop,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Turn::DrainedTooLong,
            };
            match turn {
                Turn::Told(Ok(Some(order))) => self.told(order, drained_by.is_some()).await,
                Turn::Told(Ok(None)) => break End::Lost(Status::unavailable("the server ended the stream")),
                Turn::Told(Err(status)) => break End::Lost(status),
                Turn::Done(done) => self.done(done).await,
                Turn::Beat => self.beat(),
                Turn::Stop => {
                    tracing::info!(running = self.running.len(), "draining");
                    self.say(from_worker::Message::Draining(Draining {})).await;
                    drained_by = Some(Instant::now() + self.drain_deadline);
                }
                Turn::DrainedTooLong => {
                    tracing::warn!(running = self.running.len(), "actions take too long: ending them");
                    break End::Drained;
                }
            }
        };
        self.end(orders).await;
        end
    }

    async fn told(&mut self, order: ToWorker, is_draining: bool) {
        match order.message {
            Some(to_worker::Message::Assignment(assignment)) if is_draining => {
                self.refuse(assignment, "this worker is draining").await;
            }
            Some(to_worker::Message::Assignment(assignment)) => match self.why_not(&assignment) {
                Some(reason) => self.refuse(assignment, reason).await,
                None => self.start(assignment),
            },
            Some(to_worker::Message::Cancel(cancel)) => {
                if let Some(running) = self.running.get(&cancel.assignment_id) {
                    running.cancel.cancel();
                }
            }
            Some(to_worker::Message::Welcome(_)) | None => {}
        }
    }

    /// What speaks against taking it: the server counts too, so this is its mistake.
    fn why_not(&self, assignment: &Assignment) -> Option<&'static str> {
        if self.running.contains_key(&assignment.assignment_id) {
            return Some("the assignment is here already");
        }
        let reserved = assignment.reserved.unwrap_or_default();
        let (mut cores, mut memory) = (u64::from(reserved.milli_cores), reserved.memory_bytes);
        for running in self.running.values() {
            cores += u64::from(running.reserved.milli_cores);
            memory = memory.saturating_add(running.reserved.memory_bytes);
        }
        let fits = cores <= u64::from(self.capacity.milli_cores) && memory <= self.capacity.memory_bytes;
        (!fits).then_some("more was assigned than this worker offers")
    }

    async fn refuse(&mut self, assignment: Assignment, reason: &str) {
        tracing::warn!(reason, "an assignment is handed back");
        let finished = unanswered(assignment.assignment_id, Verdict::HandedBack, reason);
        self.say(from_worker::Message::Finished(finished)).await;
    }

    fn start(&mut self, assignment: Assignment) {
        let id = assignment.assignment_id.clone();
        let cancel = CancellationToken::new();
        let reserved = assignment.reserved.unwrap_or_default();
        self.running.insert(id.clone(), Running { cancel: cancel.clone(), reserved });
        let (say, named) = (self.say.clone(), id.clone());
        let around = Surroundings {
            channel: self.channel.clone(),
            max_batch_bytes: self.max_batch_bytes,
            cancel,
            progress: Box::new(move |stage: progress::Stage| {
                let progress = Progress { assignment_id: named.clone(), stage: stage as i32 };
                // It is for people who look: where there is no room, it is not said.
                let message = from_worker::Message::Progress(progress).into_message();
                if let Some(say) = &say {
                    let _ = say.try_send(message);
                }
            }),
        };
        let workshop = Arc::clone(self.workshop);
        let task = self.tasks.spawn(async move { Box::pin(workshop.execute(assignment, &around)).await });
        self.ids.insert(task.id(), id);
    }

    async fn done(&mut self, done: Result<(Id, Finished), JoinError>) {
        let finished = match done {
            Ok((task, finished)) => {
                self.ids.remove(&task);
                finished
            }
            Err(error) => {
                tracing::error!(%error, "an assignment ended by a mistake of this program");
                let Some(id) = self.ids.remove(&error.id()) else { return };
                unanswered(id, Verdict::WorkerFailed, "the worker made a mistake")
            }
        };
        self.running.remove(&finished.assignment_id);
        self.say(from_worker::Message::Finished(bounded(finished))).await;
    }

    fn beat(&self) {
        self.workshop.persistent.tend();
        // With a full queue there is other proof of life.
        let beat = from_worker::Message::Heartbeat(Heartbeat {}).into_message();
        if let Some(say) = &self.say {
            let _ = say.try_send(beat);
        }
    }

    /// A connection that is gone takes nothing; its stream says so.
    async fn say(&self, message: from_worker::Message) {
        if let Some(say) = &self.say {
            let _ = say.send(message.into_message()).await;
        }
    }

    /// Ends what runs. What was said last goes out first, when the server still listens.
    async fn end(mut self, mut orders: Streaming<ToWorker>) {
        const LAST_WORDS: Duration = Duration::from_secs(2);
        self.running.values().for_each(|running| running.cancel.cancel());
        while let Some(done) = self.tasks.join_next_with_id().await {
            if let (Ok((_, finished)), Some(say)) = (done, &self.say) {
                let _ = say.try_send(from_worker::Message::Finished(bounded(finished)).into_message());
            }
        }
        // The next server may be another, and its tenants others.
        self.workshop.persistent.clear().await;
        self.say = None;
        let hung_up = async { while let Ok(Some(_)) = orders.message().await {} };
        let _ = timeout(LAST_WORDS, hung_up).await;
    }
}

/// An answer that the server takes: it lists every output, and a command may ask for too many.
fn bounded(finished: Finished) -> Finished {
    let size = finished.encoded_len();
    if size <= MAX_FINISHED_BYTES {
        return finished;
    }
    let message = format!(
        "the outputs take {size} bytes to list, more than the limit of {MAX_FINISHED_BYTES}; ask for the folder that holds \
         them"
    );
    let metadata = finished.result.and_then(|result| result.execution_metadata);
    Finished {
        assignment_id: finished.assignment_id,
        verdict: Verdict::Refused as i32,
        result: Some(ActionResult { execution_metadata: metadata, ..ActionResult::default() }),
        status: Some(status(Code::FailedPrecondition, message.clone())),
        message,
    }
}

fn unanswered(assignment_id: String, verdict: Verdict, reason: &str) -> Finished {
    Finished {
        assignment_id,
        verdict: verdict as i32,
        result: None,
        status: Some(status(Code::Unavailable, reason.to_owned())),
        message: reason.to_owned(),
    }
}

trait IntoMessage {
    fn into_message(self) -> FromWorker;
}

impl IntoMessage for from_worker::Message {
    fn into_message(self) -> FromWorker {
        FromWorker { message: Some(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gf_reapi::execution::OutputFile;

    #[test]
    fn an_answer_that_is_too_large_for_the_server_is_refused_by_name() {
        let answer = |files: usize| {
            let file = OutputFile { path: "a".repeat(1000), ..OutputFile::default() };
            let result = ActionResult { output_files: vec![file; files], ..ActionResult::default() };
            Finished { assignment_id: "id".to_owned(), result: Some(result), ..Finished::default() }
        };
        assert_eq!(bounded(answer(4000)), answer(4000));
        let refused = bounded(answer(5000));
        assert_eq!((refused.assignment_id.as_str(), refused.verdict), ("id", Verdict::Refused as i32));
        assert_eq!(refused.status.as_ref().map(|status| status.code), Some(Code::FailedPrecondition as i32));
        assert!(refused.message.contains("4194304") && refused.encoded_len() < 1000);
    }
}

//! How executions go and end, in terms of the domain: edges put them into the words of their protocol.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use gf_digest::{Digest, InstanceName};
use gf_reapi::execution::ActionResult;
use gf_tenancy::{Authorized, Execute, Secret};
use prost::Message;

use crate::closures::Closure;
use crate::scheduler::{AssignmentId, NoWorker, Resources};

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is looked for in the action cache, read and checked.
    CacheCheck,
    /// It waits for a worker.
    Queued,
    /// A worker has it.
    Executing,
    /// It is over.
    Completed,
}

/// How far an operation got.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Every stage so far, in order; the last is where it is. An execution whose worker was lost is queued again.
    pub stages: Vec<Stage>,
    /// Set when it is over.
    pub ended: Option<Arc<Ended>>,
}

impl Progress {
    /// A worker may be lost a few times, not for ever: what comes after so many stages is not told apart.
    const MAX_STAGES: usize = 32;

    pub(super) fn begin() -> Self {
        Self { stages: vec![Stage::CacheCheck], ended: None }
    }

    pub(super) fn enter(&mut self, stage: Stage) -> bool {
        let is_new = self.stages.last() != Some(&stage);
        if is_new {
            // The end is always told; what is left out are returns to the queue.
            if self.stages.len() < Self::MAX_STAGES || stage == Stage::Completed {
                self.stages.push(stage);
            }
        }
        is_new
    }
}

/// The end of an operation.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What the client learns.
    pub verdict: Verdict,
    /// The result; a part of it where the action was ended early. Everything that it names is stored.
    pub result: Option<ActionResult>,
    /// Whether it was found, not made.
    pub is_cached: bool,
    /// For people.
    pub message: String,
}

impl Ended {
    /// What it takes to remember it, roughly.
    pub(super) fn size_bytes(&self) -> usize {
        let verdict = match &self.verdict {
            Verdict::Missing(digests) => digests.len() * size_of::<Digest>(),
            Verdict::Invalid(text) | Verdict::Unfit(text) | Verdict::Unavailable(text) => text.len(),
            Verdict::GivenUp { last, .. } => last.len(),
            _ => 0,
        };
        self.result.as_ref().map_or(0, Message::encoded_len) + self.message.len() + verdict
    }

    pub(super) fn without_result(verdict: Verdict) -> Self {
        Self { verdict, result: None, is_cached: false, message: String::new() }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The process ran to its end, whatever its exit code.
    Completed,
    /// The process was ended because its time was over.
    TimedOut,
    /// The process was ended for another limit of its own.
    LimitReached,
    /// These blobs must be uploaded first.
    Missing(Vec<Digest>),
    /// It can never be run as it is.
    Invalid(String),
    /// It ran, or was about to, but what it met or left cannot be: an output that is neither file nor folder.
    Unfit(String),
    /// No worker here can run it.
    NoWorker(NoWorker),
    /// Somebody cancelled it, or nobody waited any more.
    Cancelled,
    /// Workers failed or were lost this many times.
    GivenUp {
        /// How often it was tried.
        attempts: u32,
        /// What the last one said, if it said anything.
        last: String,
    },
    /// Too much waits already.
    QueueFull,
    /// The store failed.
    Unavailable(String),
}

impl Verdict {
    /// A word for it, for counting.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::TimedOut => "timed_out",
            Self::LimitReached => "limit_reached",
            Self::Missing(_) => "missing",
            Self::Invalid(_) => "invalid",
            Self::Unfit(_) => "unfit",
            Self::NoWorker(_) => "no_worker",
            Self::Cancelled => "cancelled",
            Self::GivenUp { .. } => "given_up",
            Self::QueueFull => "queue_full",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

impl fmt::Display for Verdict {
    /// What a client is told of it, in a sentence that says what to do where something can be done.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed => f.write_str("the process ran to its end"),
            Self::TimedOut => f.write_str("the process was ended because its time was over"),
            Self::LimitReached => f.write_str("the process was ended for a limit of its own"),
            Self::Missing(digests) => match digests.as_slice() {
                [one] => write!(f, "the blob {one} must be uploaded first"),
                several => write!(f, "{} blobs must be uploaded first", several.len()),
            },
            Self::Invalid(reason) | Self::Unfit(reason) | Self::Unavailable(reason) => f.write_str(reason),
            Self::NoWorker(reason) => reason.fmt(f),
            Self::Cancelled => f.write_str("the operation was cancelled"),
            Self::GivenUp { attempts, last } => {
                let last = if last.is_empty() { "the worker was lost" } else { last };
                write!(f, "given up after {attempts} attempts on workers; the last one: {last}")
            }
            Self::QueueFull => f.write_str("too many actions are waiting; try again later"),
        }
    }
}

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// Run this.
    Assign(Box<Assignment>),
    /// The result is not wanted any more.
    Withdraw(AssignmentId),
}

/// One attempt to run an action.
#[derive(Debug)]
pub struct Assignment {
    /// Its name.
    pub id: AssignmentId,
    /// Whose blobs it reads and writes.
    pub instance: InstanceName,
    /// The action.
    pub digest: Digest,
    /// The encoded `Action`, as it is stored.
    pub action: Bytes,
    /// The encoded `Command`, as it is stored.
    pub command: Bytes,
    /// Where the command is.
    pub(super) command_digest: Digest,
    /// Whose it is.
    pub(super) grant: Authorized<Execute>,
    /// From the start of the process to its end.
    pub timeout: Duration,
    /// What is counted for it.
    pub demand: Resources,
    /// The bearer token for blobs of the tenant; it ends with the assignment. Never logged.
    pub credential: Secret,
    /// When the client asked for it.
    pub queued: SystemTime,
    /// The store paths that it sees, and no others.
    pub closure: Closure,
}

/// How an assignment ended, as the worker says.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The process ran to its end.
    Completed(ActionResult),
    /// The process was ended because its time was over; with what it had written.
    TimedOut(ActionResult, String),
    /// The process was ended for another limit; with what it had written.
    LimitReached(ActionResult, String),
    /// Inputs went missing.
    Missing(Vec<Digest>),
    /// It can never be run as it is.
    Invalid(String),
    /// What it met or left cannot be; with what it had written.
    Unfit(ActionResult, String),
    /// The store failed before the worker was told.
    Unavailable(String),
    /// The worker failed; another may succeed.
    WorkerFailed(String),
    /// The worker did not begin it, and says why: another one will do.
    HandedBack(String),
    /// The worker ended it because it was told to.
    Cancelled,
}

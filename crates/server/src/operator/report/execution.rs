//! What `/api/v1/` says of remote execution.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Remote execution in one line, within `GET /api/v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionSummary {
    /// Workers that are here.
    pub workers: usize,
    /// All their cores, in thousandths.
    pub milli_cores: u64,
    /// Of them those that are free.
    pub free_milli_cores: u64,
    /// Executions that wait.
    pub queued: usize,
    /// Executions on workers.
    pub running: usize,
    /// The worker inside the server.
    pub own_worker: OwnWorker,
}

/// What became of the worker inside the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OwnWorker {
    /// It is switched off.
    #[default]
    Off,
    /// Its process is there.
    Running,
    /// It ended, and the next one follows after a pause.
    Restarting {
        /// What it said last, or how it ended.
        reason: String,
    },
    /// It cannot run on this machine, and is not tried again.
    GivenUp {
        /// What it said last, or how it ended.
        reason: String,
    },
    /// Something that a newer server has a word for.
    #[serde(other)]
    Unknown,
}

/// `GET /api/v1/execution`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionReport {
    /// Executions that wait.
    pub queued: usize,
    /// Executions on workers.
    pub running: usize,
    /// For each platform that is asked for; those first where something waits longest.
    pub queues: Vec<QueueReport>,
    /// How many more there are than `queues` tells of.
    pub queues_left_out: usize,
    /// Every tenant that may run only so many executions at one time and has some here; those first of which most wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareReport>,
    /// How many more there are than `shares` tells of.
    #[serde(default)]
    pub shares_left_out: usize,
    /// Every worker, in the order of their arrival.
    pub workers: Vec<WorkerReport>,
    /// How many more there are than `workers` tells of.
    pub workers_left_out: usize,
    /// Executions that ended since the start, by how.
    pub ends: BTreeMap<String, u64>,
    /// The worker inside the server.
    pub own_worker: OwnWorker,
}

/// A platform property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PropertyReport {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// What asks for one platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// The properties that a worker must have, all of them.
    pub platform: Vec<PropertyReport>,
    /// How many executions wait.
    pub queued: usize,
    /// How many run.
    pub running: usize,
    /// How long the one waits that waits longest; absent when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait_seconds: Option<u64>,
    /// Workers that have all the properties, whatever their size.
    pub matching_workers: usize,
}

/// A tenant that may run only so many executions at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareReport {
    /// Its name.
    pub tenant: String,
    /// How many of its executions wait.
    pub queued: usize,
    /// How many are on workers, until those say that they ended.
    pub running: u32,
    /// How many may be there.
    pub most: u32,
}

/// A worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The server's number for it, until its connection ends.
    pub id: u64,
    /// What people call it.
    pub name: String,
    /// What actions may ask for.
    pub properties: Vec<PropertyReport>,
    /// Its cores, in thousandths.
    pub milli_cores: u32,
    /// Of them those that are free.
    pub free_milli_cores: u32,
    /// Its memory.
    pub memory_bytes: u64,
    /// Of it what is free.
    pub free_memory_bytes: u64,
    /// What it runs, oldest first.
    pub running: Vec<RunReport>,
    /// What its sandbox lacks there and what to do about it, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limitations: Vec<String>,
    /// Whether it takes nothing more and leaves when what it runs is over.
    pub draining: bool,
    /// It failed too often, and gets nothing for so long; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_for_seconds: Option<u64>,
    /// Whether it is kept free for an execution that needs much of it.
    pub kept_free: bool,
}

/// What a worker runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// An operation that waits for it; absent when nobody does any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The action; absent when its result is not wanted any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionReport>,
    /// Who pays for it; absent as the action is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// `fetching`, `running` or `uploading`.
    pub stage: String,
    /// Since it was given to the worker.
    pub lasts_seconds: u64,
}

/// The digest of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionReport {
    /// The hash, in hexadecimal.
    pub hash: String,
    /// The size of the encoded action.
    pub size_bytes: u64,
    /// `sha256` or `blake3`.
    pub digest_function: String,
}

/// `GET /api/v1/operations/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationReport {
    /// Its name, as clients see it.
    pub name: String,
    /// `cache_check`, `queued`, `executing` or `completed`.
    pub stage: String,
    /// What it is to run.
    pub action: ActionReport,
    /// Where it is and why, in a sentence.
    pub sentence: String,
    /// What can be done about it, in a sentence.
    pub next_step: String,
    /// Why it waits, or where it runs; absent before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<ExplanationReport>,
    /// How it ended; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<EndReport>,
}

/// How an operation ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndReport {
    /// The word under which it is counted in `ends`.
    pub verdict: String,
    /// The exit code of the process; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the result was found in the cache.
    pub is_cached: bool,
}

/// Why an operation waits, or where it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplanationReport {
    /// How many clients wait for the execution, which several operations may share.
    pub waiters: usize,
    /// How often it was given to a worker.
    pub attempts: u32,
    /// Where it is.
    #[serde(flatten)]
    pub situation: SituationReport,
}

/// Where an execution is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "situation", rename_all = "snake_case")]
pub enum SituationReport {
    /// On a worker.
    Running {
        /// Its name.
        worker: String,
        /// `fetching`, `running` or `uploading`.
        stage: String,
        /// How long this attempt goes on.
        lasts_seconds: u64,
    },
    /// In line.
    Queued {
        /// Since it was submitted.
        waited_seconds: u64,
        /// Its place in the line: 1 is next.
        position: usize,
        /// What is served before it.
        ahead: AheadReport,
        /// The workers that have what it asks for.
        matching: MatchingReport,
        /// What there is too little of.
        scarce: ScarceReport,
    },
    /// Something that a newer server has a word for.
    #[serde(other)]
    Unknown,
}

/// What is served before an execution, of those that ask for the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AheadReport {
    /// Executions of the same tenant.
    pub own: usize,
    /// Of how many of its other invocations.
    pub own_invocations: usize,
    /// Executions of other tenants.
    pub others: usize,
    /// Of how many.
    pub other_tenants: usize,
}

/// The workers that have all properties that an execution asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchingReport {
    /// How many.
    pub workers: usize,
    /// Of them those that are too small even when idle.
    pub too_small: usize,
    /// Of them those that take nothing now.
    pub closed: usize,
    /// Of them those that are large enough but have not room now.
    pub busy: usize,
}

/// What there is too little of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ScarceReport {
    /// No worker has what it asks for, or none is large enough.
    Workers {
        /// Which one comes nearest, and what it lacks, in a sentence.
        lacking: String,
        /// It fails when none comes within this time.
        fails_in_seconds: u64,
    },
    /// Few workers have this property, and they are busy.
    Property {
        /// Which.
        property: PropertyReport,
        /// How many have it.
        workers: usize,
        /// Of how many.
        of: usize,
    },
    /// Most workers that match lack free cores.
    Cores {
        /// What it asks for, in thousandths.
        wanted_milli_cores: u32,
        /// The most that is free on one of them.
        most_free_milli_cores: u32,
    },
    /// Most workers that match lack free memory.
    Memory {
        /// What it asks for.
        wanted_bytes: u64,
        /// The most that is free on one of them.
        most_free_bytes: u64,
    },
    /// A worker is kept free for it and finishes what it runs.
    KeptFree {
        /// Its name.
        worker: String,
    },
    /// It failed on the worker that has room, and waits a moment for another one.
    OtherWorker,
    /// Its tenant runs as many executions as it may, counted with the one for which a worker is kept free.
    Share {
        /// The tenant.
        tenant: String,
        /// How many it runs.
        runs: u32,
        /// How many it may run.
        most: u32,
    },
    /// Something that a newer server has a word for.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_server_says_can_be_read() {
        let newer = r#"{"waiters": 1, "attempts": 0, "more": 1, "situation": "suspended", "until": 5}"#;
        let read: ExplanationReport = serde_json::from_str(newer).unwrap();
        assert_eq!(read.situation, SituationReport::Unknown);
        let newer = r#"{"state": "asleep", "since": 5}"#;
        assert_eq!(serde_json::from_str::<OwnWorker>(newer).unwrap(), OwnWorker::Unknown);
        let newer = r#"{"kind": "licenses", "left": 0}"#;
        assert_eq!(serde_json::from_str::<ScarceReport>(newer).unwrap(), ScarceReport::Unknown);
    }

    #[test]
    fn what_is_said_reads_back() {
        let scarce = ScarceReport::Memory { wanted_bytes: 2, most_free_bytes: 1 };
        let situation = SituationReport::Queued {
            waited_seconds: 3,
            position: 1,
            ahead: AheadReport::default(),
            matching: MatchingReport::default(),
            scarce,
        };
        let explanation = ExplanationReport { waiters: 1, attempts: 0, situation };
        let text = serde_json::to_string(&explanation).unwrap();
        assert!(text.contains(r#""situation":"queued""#) && text.contains(r#""kind":"memory""#), "{text}");
        assert_eq!(serde_json::from_str::<ExplanationReport>(&text).unwrap(), explanation);
    }
}

//! Remote execution as operators see it: all tenants' queues and workers, and why one operation is where it is.
//!
//! Deliberately absent: the reasons themselves, which the scheduler knows. What always holds: an answer is bounded,
//! whatever workers and clients call what they have.

use std::cmp::Reverse;
use std::time::Duration;

use gf_digest::{Digest, DigestFunction};
use gf_execution::operations::{OperationName, Overview, RunningAction, Stage};
use gf_execution::scheduler::{
    Ahead, CapState, Explanation, Matching, Property, QueueState, RunStage, RunningState, Scarce, Situation, Snapshot,
    WorkerState,
};
use gf_tenancy::{Authorized, Operate};

use super::report::{
    ActionReport, AheadReport, EndReport, ExecutionReport, ExecutionSummary, ExplanationReport, MatchingReport,
    OperationReport, PropertyReport, QueueReport, RunReport, ScarceReport, ShareReport, SituationReport, WorkerReport,
};
use super::{Operator, advice};

/// Platforms, tenants and workers in one answer.
const MAX_QUEUES: usize = 200;
const MAX_SHARES: usize = 200;
const MAX_WORKERS: usize = 1000;
/// The name or the value of a property is shown up to this length.
const MAX_SHOWN_CHARS: usize = 200;

impl Operator {
    pub(super) fn execution_summary(&self, _: &Authorized<Operate>) -> ExecutionSummary {
        let Snapshot { queued, running, workers, .. } = self.operations.snapshot();
        ExecutionSummary {
            workers: workers.len(),
            milli_cores: workers.iter().map(|worker| u64::from(worker.capacity.milli_cores)).sum(),
            free_milli_cores: workers.iter().map(|worker| u64::from(worker.free.milli_cores)).sum(),
            queued,
            running,
            own_worker: self.own_worker.get(),
        }
    }

    pub(super) fn execution(&self, operator: &Authorized<Operate>) -> ExecutionReport {
        let Overview { snapshot, running } = self.operations.overview(operator);
        let Snapshot { mut queues, workers, mut caps, .. } = snapshot;
        queues.sort_by_key(|queue| Reverse((queue.oldest_wait, queue.running)));
        caps.sort_by_key(|cap| Reverse(cap.queued));
        let run = |state: &RunningState| run_report(state, state.execution.and_then(|id| running.get(&id)));
        ExecutionReport {
            queued: snapshot.queued,
            running: snapshot.running,
            queues: queues.iter().take(MAX_QUEUES).map(|queue| queue_report(queue, &workers)).collect(),
            queues_left_out: queues.len().saturating_sub(MAX_QUEUES),
            shares: caps.iter().take(MAX_SHARES).map(share_report).collect(),
            shares_left_out: caps.len().saturating_sub(MAX_SHARES),
            workers: workers.iter().take(MAX_WORKERS).map(|worker| worker_report(worker, run)).collect(),
            workers_left_out: workers.len().saturating_sub(MAX_WORKERS),
            ends: self.operations.ends().into_iter().map(|(end, count)| (end.to_owned(), count)).collect(),
            own_worker: self.own_worker.get(),
        }
    }

    /// `None` when no operation of this name is known.
    pub(super) fn operation(&self, operator: &Authorized<Operate>, name: &str) -> Option<OperationReport> {
        let (name, _) = OperationName::parse(name)?;
        let found = self.operations.inspect(operator, &name)?;
        let ended = found.progress.ended.as_deref();
        let (sentence, next_step) = match (&found.explanation, ended) {
            (Some(explanation), _) => (explanation.to_string(), advice::of_situation(&explanation.situation)),
            (None, Some(ended)) => advice::of_end(ended),
            (None, None) => advice::in_between(),
        };
        Some(OperationReport {
            name: name.to_string(),
            stage: stage_word(found.progress.stages.last().copied().unwrap_or(Stage::CacheCheck)).to_owned(),
            action: action_report(&found.action),
            sentence,
            next_step,
            explanation: found.explanation.map(explanation_report),
            end: ended.map(|ended| EndReport {
                verdict: ended.verdict.as_str().to_owned(),
                exit_code: ended.result.as_ref().map(|result| result.exit_code),
                is_cached: ended.is_cached,
            }),
        })
    }
}

const fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::CacheCheck => "cache_check",
        Stage::Queued => "queued",
        Stage::Executing => "executing",
        Stage::Completed => "completed",
    }
}

fn run_stage_word(stage: RunStage) -> String {
    match stage {
        RunStage::Fetching => "fetching",
        RunStage::Running => "running",
        RunStage::Uploading => "uploading",
    }
    .to_owned()
}

fn action_report(digest: &Digest) -> ActionReport {
    let digest_function = match digest.function() {
        DigestFunction::Sha256 => "sha256",
        DigestFunction::Blake3 => "blake3",
    };
    ActionReport {
        hash: digest.hash_hex().as_str().to_owned(),
        size_bytes: digest.size_bytes(),
        digest_function: digest_function.to_owned(),
    }
}

fn property_report(property: &Property) -> PropertyReport {
    PropertyReport { name: shorten(&property.name), value: shorten(&property.value) }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn queue_report(queue: &QueueState, workers: &[WorkerState]) -> QueueReport {
    let wanted = queue.platform.properties();
    let has_all = |worker: &&WorkerState| wanted.iter().all(|property| worker.properties.contains(property));
    QueueReport {
        platform: wanted.iter().map(property_report).collect(),
        queued: queue.queued,
        running: queue.running,
        oldest_wait_seconds: queue.oldest_wait.as_ref().map(Duration::as_secs),
        matching_workers: workers.iter().filter(has_all).count(),
    }
}

fn share_report(cap: &CapState) -> ShareReport {
    let CapState { tenant, queued, running, most } = cap;
    ShareReport { tenant: tenant.to_string(), queued: *queued, running: *running, most: *most }
}

fn worker_report(worker: &WorkerState, run: impl Fn(&RunningState) -> RunReport) -> WorkerReport {
    WorkerReport {
        id: worker.id.0,
        name: worker.name.to_string(),
        properties: worker.properties.iter().map(property_report).collect(),
        milli_cores: worker.capacity.milli_cores,
        free_milli_cores: worker.free.milli_cores,
        memory_bytes: worker.capacity.memory_bytes,
        free_memory_bytes: worker.free.memory_bytes,
        running: worker.running.iter().map(run).collect(),
        limitations: worker.limitations.to_vec(),
        draining: worker.draining,
        rests_for_seconds: worker.rests.as_ref().map(Duration::as_secs),
        kept_free: worker.kept_free_for.is_some(),
    }
}

fn run_report(state: &RunningState, action: Option<&RunningAction>) -> RunReport {
    RunReport {
        operation: action.and_then(|action| action.operation.as_ref()).map(ToString::to_string),
        action: action.map(|action| action_report(&action.action)),
        tenant: action.map(|action| action.tenant.to_string()),
        stage: run_stage_word(state.stage),
        lasts_seconds: state.lasts.as_secs(),
    }
}

fn explanation_report(explanation: Explanation) -> ExplanationReport {
    let Explanation { waiters, attempts, situation, .. } = explanation;
    let situation = match situation {
        Situation::Running { worker, stage, lasts } => SituationReport::Running {
            worker: worker.to_string(),
            stage: run_stage_word(stage),
            lasts_seconds: lasts.as_secs(),
        },
        Situation::Queued { waited, ahead, matching, scarce } => SituationReport::Queued {
            waited_seconds: waited.as_secs(),
            position: ahead.position(),
            ahead: ahead_report(ahead),
            matching: matching_report(matching),
            scarce: scarce_report(scarce),
        },
    };
    ExplanationReport { waiters, attempts, situation }
}

const fn ahead_report(ahead: Ahead) -> AheadReport {
    let Ahead { own, own_invocations, others, other_tenants } = ahead;
    AheadReport { own, own_invocations, others, other_tenants }
}

const fn matching_report(matching: Matching) -> MatchingReport {
    let Matching { workers, too_small, closed, busy } = matching;
    MatchingReport { workers, too_small, closed, busy }
}

fn scarce_report(scarce: Scarce) -> ScarceReport {
    match scarce {
        Scarce::Workers { lacking, fails_in } => {
            ScarceReport::Workers { lacking: lacking.to_string(), fails_in_seconds: fails_in.as_secs() }
        }
        Scarce::Property { property, workers, of } => {
            ScarceReport::Property { property: property_report(&property), workers, of }
        }
        Scarce::Cores { wanted, most_free } => {
            ScarceReport::Cores { wanted_milli_cores: wanted, most_free_milli_cores: most_free }
        }
        Scarce::Memory { wanted, most_free } => {
            ScarceReport::Memory { wanted_bytes: wanted, most_free_bytes: most_free }
        }
        Scarce::KeptFree { worker } => ScarceReport::KeptFree { worker: worker.to_string() },
        Scarce::OtherWorker => ScarceReport::OtherWorker,
        Scarce::Share { tenant, runs, most } => ScarceReport::Share { tenant: tenant.to_string(), runs, most },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shown_in_part() {
        let property = |value: &str| Property { name: "image".into(), value: value.into() };
        assert_eq!(property_report(&property(&"ä".repeat(200))).value, "ä".repeat(200));
        assert_eq!(property_report(&property(&"ä".repeat(4000))).value, format!("{}…", "ä".repeat(200)));
    }
}

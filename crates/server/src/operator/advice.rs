//! What can be done about an operation that is not where somebody wants it to be: one sentence each, for people.

use gf_execution::operations::{Ended, Verdict};
use gf_execution::scheduler::{RunStage, Scarce, Situation};

/// The next step for an operation that waits or runs.
pub(super) fn of_situation(situation: &Situation) -> String {
    match situation {
        Situation::Running { stage: RunStage::Fetching, .. } => {
            "its inputs are on their way to the worker: wait, or look at that worker's log when this takes long"
        }
        Situation::Running { stage: RunStage::Running, .. } => {
            "wait; it is ended when its timeout is over, and cancelled when its client goes away"
        }
        Situation::Running { stage: RunStage::Uploading, .. } => {
            "its process is over and its outputs are being stored: wait a moment"
        }
        Situation::Queued { scarce, .. } => return of_scarcity(scarce),
    }
    .to_owned()
}

fn of_scarcity(scarce: &Scarce) -> String {
    match scarce {
        Scarce::Workers { lacking, .. } if lacking.nearest.is_none() => {
            "attach a worker with `gf worker --server URL`; `gf status` says what became of the server's own".to_owned()
        }
        Scarce::Workers { .. } => {
            "attach a worker that has all of it with `gf worker --server URL --property NAME=VALUE`, or change the \
             platform that the build asks for (Bazel: exec_properties); `gf workers` shows what there is"
                .to_owned()
        }
        Scarce::Property { property, .. } => format!(
            "wait, or attach more workers that have it: `gf worker --server URL --property {property}`; `gf workers` \
             shows what they are busy with"
        ),
        Scarce::Cores { .. } => "wait, attach more workers with `gf worker --server URL`, or let the action ask for \
                                 fewer with the platform property cpus"
            .to_owned(),
        Scarce::Memory { .. } => "wait, attach more workers with `gf worker --server URL`, or let the action ask for \
                                  less with the platform property memory"
            .to_owned(),
        Scarce::KeptFree { .. } => "wait: it is next on that worker".to_owned(),
        Scarce::Share { .. } => "wait until one of the tenant's actions ends, or have the operator set a larger \
                                 tenant.quota.executions"
            .to_owned(),
        Scarce::OtherWorker => "wait: within seconds it goes to any worker that has room".to_owned(),
    }
}

/// How an operation ended, and the next step.
pub(super) fn of_end(ended: &Ended) -> (String, String) {
    let mut sentence = format!("it is over: {}", ended.verdict);
    if let Some(result) = ended.result.as_ref().filter(|_| ended.verdict == Verdict::Completed) {
        let found = if ended.is_cached { " (found in the cache)" } else { "" };
        sentence = format!("it is over: the process ended with exit code {}{found}", result.exit_code);
    }
    if !ended.message.is_empty() {
        sentence += &format!("; {}", ended.message);
    }
    let failed = ended.result.as_ref().is_some_and(|result| result.exit_code != 0);
    let next_step = match ended.verdict {
        Verdict::Completed if failed => "look at what the process printed: its client has it",
        Verdict::Completed => "nothing is to be done",
        Verdict::TimedOut => {
            "let the action ask for more time, or raise default_timeout and max_timeout under [execution]"
        }
        Verdict::LimitReached => {
            "let the action use less, or ask for more with the platform properties cpus and memory"
        }
        Verdict::Missing(_) => "upload them and execute the action again; Bazel does both by itself",
        Verdict::Invalid(_) | Verdict::Unfit(_) => "change the action: no worker can run it as it is",
        Verdict::NoWorker(_) => {
            "attach a worker that has what it asks for with `gf worker --server URL --property NAME=VALUE`, or change \
             the platform that the build asks for; `gf workers` shows what there is"
        }
        Verdict::Cancelled => "execute it again if it is still wanted: somebody cancelled it, or its client went away",
        Verdict::GivenUp { .. } => "look at the logs of the workers, and at their memory and disks; then try again",
        Verdict::QueueFull => "try again later, or attach more workers with `gf worker --server URL`",
        Verdict::Unavailable(_) => "look at the server's log and its disk, then try again",
    };
    (sentence, next_step.to_owned())
}

/// It neither waits, nor runs, nor is over.
pub(super) fn in_between() -> (String, String) {
    let sentence = "it is at the server: looked for in the cache and checked, or its result is being stored";
    (sentence.to_owned(), "wait a moment and ask again".to_owned())
}

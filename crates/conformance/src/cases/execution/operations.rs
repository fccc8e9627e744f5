//! Cases 36, 37 and 62: what an operation tells on its way, and where it puts an error.

use gf_reapi::execution::ExecutedActionMetadata;
use gf_reapi::longrunning::operation;
use prost_types::Timestamp;
use tokio::time::Instant;
use tonic::Code;

use crate::cases::cases;
use crate::execution::{Stage, metadata, stage};
use crate::finding::{Checked, Finding, ensure, require, succeeds};
use crate::probe::Probe;

cases! {
    "36-errors-in-the-response" => errors_in_the_response(),
    "36-types-of-response-and-metadata" => types(),
    "37-done-when-completed" => done_when_completed(),
    "37-first-message-at-once" => first_message_at_once(),
    "58-worker-dies" => worker_dies(),
    "62-timestamps-in-order" => timestamps_in_order(),
    "62-duration-of-the-action" => duration_of_the_action(),
}

async fn errors_in_the_response(probe: &mut Probe<'_>) -> Checked {
    let lacking = probe.job("echo never")?;
    let mut nothing = probe.job("echo never")?;
    nothing.command.arguments.clear();
    probe.upload_by(lacking.function, &[lacking.action_blob(), lacking.input_root.clone()]).await?;
    probe.upload_job(&nothing).await?;
    let mut details = Vec::new();
    for (what, job) in [("an action without its command", lacking), ("a command without arguments", nothing)] {
        let ended = probe.execute(&job).await?;
        let error = ended.operations.iter().any(|one| matches!(one.result, Some(operation::Result::Error(_))));
        ensure!(!error, "{what}: Operation.error is set");
        details.push(ended.expect_refused(what, &[Code::FailedPrecondition, Code::InvalidArgument])?);
    }
    Ok(details.join("; "))
}

async fn types(probe: &mut Probe<'_>) -> Checked {
    const RESPONSE: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse";
    const METADATA: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata";
    let job = probe.job("echo done")?;
    let ended = probe.run(&job).await?;
    ended.result()?;
    let name = ended.operations.first().map(|first| first.name.as_str()).unwrap_or_default();
    ensure!(!name.is_empty(), "the operation has no name");
    for operation in &ended.operations {
        ensure!(operation.name == name, "the name changes from {name} to {}", operation.name);
        if let Some(any) = &operation.metadata {
            ensure!(any.type_url == METADATA, "the metadata is a {}", any.type_url);
        }
        if let Some(operation::Result::Response(any)) = &operation.result {
            ensure!(any.type_url == RESPONSE, "the response is a {}", any.type_url);
        }
    }
    let last = ended.operations.last().and_then(metadata);
    let last = last.ok_or_else(|| Finding::Fail("the last message has no ExecuteOperationMetadata".into()))?;
    let digest = last.action_digest.ok_or_else(|| Finding::Fail("the metadata has no action digest".into()))?;
    ensure!(digest == job.action_blob().wire(), "the metadata names the action {digest:?}");
    Ok(format!("{} messages", ended.operations.len()))
}

async fn done_when_completed(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo done")?;
    let ended = probe.run(&job).await?;
    ended.result()?;
    let stages: Vec<_> = ended.operations.iter().map(|operation| (stage(operation), operation.done)).collect();
    for (stage, done) in &stages {
        ensure!((*stage == Stage::Completed) == *done, "done is {done} in stage {stage:?}; {stages:?}");
    }
    let before = stages.iter().filter(|(_, done)| *done).count();
    ensure!(before == 1, "{before} messages are done");
    let order = |stage: Stage| stage as i32;
    ensure!(stages.is_sorted_by_key(|(stage, _)| order(*stage)), "the stages go backwards: {stages:?}");
    Ok(stages.iter().map(|(stage, _)| format!("{stage:?}")).collect::<Vec<_>>().join(", "))
}

async fn first_message_at_once(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("sleep 1; echo done")?;
    probe.upload_job(&job).await?;
    let begin = Instant::now();
    let mut watch = succeeds("Execute", probe.start(&job).await)?;
    let first = succeeds("the first message", watch.next().await?)?;
    let first = first.ok_or_else(|| Finding::Fail("the stream has no message".into()))?;
    let waited = begin.elapsed();
    ensure!(!first.done, "the first message of an action that takes a second comes when it is done");
    let ended = watch.end().await?;
    ended.result()?;
    let whole = begin.elapsed();
    Ok(format!("after {waited:.0?} of {whole:.0?}, in stage {:?}", stage(&first)))
}

async fn worker_dies(probe: &mut Probe<'_>) -> Checked {
    probe.require_execution()?;
    require!(false, "no client can end a worker from outside");
    Ok(String::new())
}

/// The result's metadata, of an action that printed what it should.
async fn executed(probe: &mut Probe<'_>, script: &str) -> Checked<ExecutedActionMetadata> {
    let job = probe.job(&format!("{script}echo done"))?;
    let result = probe.succeed(&job).await?;
    let said = probe.stdout(&job, &result).await?;
    ensure!(said == "done", "the action printed `{said}`");
    result.execution_metadata.ok_or_else(|| Finding::Skip("the server tells nothing of the execution".into()))
}

async fn timestamps_in_order(probe: &mut Probe<'_>) -> Checked {
    let metadata = executed(probe, "").await?;
    let stated = [
        ("queued", &metadata.queued_timestamp),
        ("worker_start", &metadata.worker_start_timestamp),
        ("input_fetch_start", &metadata.input_fetch_start_timestamp),
        ("input_fetch_completed", &metadata.input_fetch_completed_timestamp),
        ("execution_start", &metadata.execution_start_timestamp),
        ("execution_completed", &metadata.execution_completed_timestamp),
        ("output_upload_start", &metadata.output_upload_start_timestamp),
        ("output_upload_completed", &metadata.output_upload_completed_timestamp),
        ("worker_completed", &metadata.worker_completed_timestamp),
    ];
    let stated: Vec<_> =
        stated.into_iter().filter_map(|(name, time)| time.as_ref().map(|time| (name, nanos(time)))).collect();
    for pair in stated.windows(2) {
        if let [(before, earlier), (after, later)] = pair {
            ensure!(earlier <= later, "{after} is {} ns before {before}", earlier - later);
        }
    }
    require!(!stated.is_empty(), "the server states no times");
    Ok(format!("{} stated", stated.len()))
}

async fn duration_of_the_action(probe: &mut Probe<'_>) -> Checked {
    const SLEPT: i128 = 250_000_000;
    let metadata = executed(probe, "sleep 0.25; ").await?;
    let (start, end) = (metadata.execution_start_timestamp, metadata.execution_completed_timestamp);
    let measured = start.zip(end).map(|(start, end)| nanos(&end) - nanos(&start));
    let stated = metadata.virtual_execution_duration;
    let stated = stated.map(|stated| i128::from(stated.seconds) * 1_000_000_000 + i128::from(stated.nanos));
    for (what, nanos) in [("start to completion", measured), ("virtual_execution_duration", stated)] {
        let Some(nanos) = nanos else { continue };
        ensure!(nanos >= SLEPT, "{what}: {nanos} ns for an action that sleeps {SLEPT}");
        ensure!(nanos < 60 * 1_000_000_000, "{what}: {nanos} ns for an action that sleeps {SLEPT}");
    }
    require!(measured.is_some() || stated.is_some(), "the server states no duration");
    Ok(format!("measured {measured:?} ns, stated {stated:?} ns"))
}

fn nanos(time: &Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

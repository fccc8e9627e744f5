//! Cases 57 and 59: waiting for an execution that was asked for before, and ending one.

use std::time::Duration;

use futures::future::try_join_all;
use gf_reapi::longrunning::CancelOperationRequest;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cases::action_cache::get;
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, succeeds};
use crate::probe::Probe;

use super::PRINT_UNIQUE;

cases! {
    "57-wait-state-at-once" => state_at_once(),
    "57-wait-after-the-stream-is-cut" => after_the_stream_is_cut(),
    "57-wait-several" => several(),
    "57-wait-after-completion" => after_completion(),
    "57-wait-unknown" => unknown(),
    "59-cancel-executing" => cancel_executing(),
    "59-cancel-then-execute" => cancel_then_execute(),
    "59-cancel-completed" => cancel_completed(),
    "59-cancel-unknown" => cancel_unknown(),
}

/// Long enough for what has to come at once, with the machine busy.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn state_at_once(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("sleep 1; echo done")?;
    probe.upload_job(&job).await?;
    let mut watch = succeeds("Execute", probe.start(&job).await)?;
    let name = watch.name().await?;
    let begin = Instant::now();
    let mut waiting = succeeds("WaitExecution", probe.wait(&name).await)?;
    let first = succeeds("the first message", waiting.next().await?)?;
    let first = first.ok_or_else(|| Finding::Fail("the stream has no message".into()))?;
    let waited = begin.elapsed();
    ensure!(!first.done, "WaitExecution is silent until the operation is done");
    ensure!(first.name == name, "WaitExecution of {name} tells of {}", first.name);
    let (one, other) = (watch.end().await?, waiting.end().await?);
    one.result()?;
    ensure!(one.response == other.response, "Execute and WaitExecution end with two responses");
    Ok(format!("after {waited:.0?}"))
}

async fn after_the_stream_is_cut(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("sleep 0.7; echo done")?;
    probe.upload_job(&job).await?;
    let mut watch = succeeds("Execute", probe.start(&job).await)?;
    let name = watch.name().await?;
    drop(watch);
    // The server hears of the cut before it hears of the client again.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ended = succeeds("WaitExecution after the stream was cut", probe.wait(&name).await)?.end().await?;
    let said = probe.stdout(&job, ended.result()?).await?;
    ensure!(said == "done", "the action printed `{said}`");
    Ok("the execution went on".into())
}

async fn several(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(&format!("sleep 0.5; {PRINT_UNIQUE}"))?;
    probe.upload_job(&job).await?;
    let mut watch = succeeds("Execute", probe.start(&job).await)?;
    let name = watch.name().await?;
    let waiting = try_join_all((0..5).map(|_| probe.wait(&name))).await;
    let waiting = succeeds("WaitExecution", waiting)?;
    let ended = try_join_all(waiting.into_iter().chain([watch]).map(crate::execution::Watch::end)).await?;
    let expected = ended[0].result()?;
    let same = ended.iter().all(|ended| ended.response.result.as_ref() == Some(expected));
    ensure!(same, "six clients that wait for one operation have several results");
    Ok("six clients, one result".into())
}

async fn after_completion(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo done")?;
    let ended = probe.run(&job).await?;
    ended.result()?;
    let name = ended.operations.first().map(|first| first.name.clone()).unwrap_or_default();
    ensure!(!name.is_empty(), "the operation has no name");
    let again = match probe.wait(&name).await {
        Ok(watch) => watch.end().await?,
        Err(status) => return refused("WaitExecution after completion", Err::<(), _>(status), &[Code::NotFound]),
    };
    // A server may keep what it completed for a time, or for none; a client then executes again.
    if again.status.code() == Code::NotFound {
        return Ok("forgotten".into());
    }
    ensure!(again.response == ended.response, "WaitExecution after completion ends with another response");
    Ok("the same response".into())
}

async fn unknown(probe: &mut Probe<'_>) -> Checked {
    probe.require_execution()?;
    let mut details = Vec::new();
    let uuid = probe.uuid();
    for name in [uuid.clone(), probe.name_of(&format!("operations/{uuid}"))] {
        let answer = match probe.wait(&name).await {
            Ok(mut watch) => watch.next().await?.map(|_| ()),
            Err(status) => Err(status),
        };
        details.push(refused("a name that no operation has", answer, &[Code::NotFound])?);
    }
    Ok(details.join("; "))
}

/// Asks for the end of an operation; skips the check where nobody can.
async fn cancel(probe: &Probe<'_>, name: &str) -> Checked<Result<(), Status>> {
    let request = CancelOperationRequest { name: name.to_owned() };
    match probe.operations().cancel_operation(request).await {
        Err(status) if status.code() == Code::Unimplemented => {
            Err(Finding::Skip(format!("CancelOperation: {}", describe(&status))))
        }
        answer => Ok(answer.map(|_| ())),
    }
}

async fn cancel_executing(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("sleep 10; echo never")?;
    probe.upload_job(&job).await?;
    let mut watch = succeeds("Execute", probe.start(&job).await)?;
    let name = watch.name().await?;
    let executing = watch.executing(AT_ONCE).await?;
    let begin = Instant::now();
    succeeds("CancelOperation", cancel(probe, &name).await?)?;
    let ended = watch.end().await?;
    let detail = ended.expect_refused("an execution that was cancelled", &[Code::Cancelled])?;
    let took = begin.elapsed();
    ensure!(took < probe.patience() / 2, "an execution ended {took:?} after it was cancelled");
    refused("looking up what was cancelled", get(probe, &job.action_blob()).await, &[Code::NotFound])?;
    let when = if executing { "while it was executed" } else { "before it was seen to be executed" };
    Ok(format!("{when}, after {took:.1?}: {detail}"))
}

async fn cancel_then_execute(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("sleep 0.7; echo done")?;
    probe.upload_job(&job).await?;
    let mut watch = succeeds("Execute", probe.start(&job).await)?;
    let name = watch.name().await?;
    succeeds("CancelOperation", cancel(probe, &name).await?)?;
    watch.end().await?.expect_refused("an execution that was cancelled", &[Code::Cancelled])?;
    let ended = probe.execute(&job).await?;
    let said = probe.stdout(&job, ended.result()?).await?;
    ensure!(said == "done", "the action printed `{said}`");
    Ok("asked for again, it is executed".into())
}

async fn cancel_completed(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo done")?;
    let ended = probe.run(&job).await?;
    ended.result()?;
    let name = ended.operations.first().map(|first| first.name.clone()).unwrap_or_default();
    let detail = match cancel(probe, &name).await? {
        Ok(()) => "OK".to_owned(),
        answer => refused("CancelOperation after completion", answer, &[Code::NotFound, Code::FailedPrecondition])?,
    };
    let result = succeeds("looking up the result", get(probe, &job.action_blob()).await)?;
    let said = probe.stdout(&job, &result).await?;
    ensure!(said == "done", "after it was cancelled, the completed action printed `{said}`");
    Ok(detail)
}

async fn cancel_unknown(probe: &mut Probe<'_>) -> Checked {
    probe.require_execution()?;
    let name = probe.uuid();
    let answer = cancel(probe, &name).await?;
    // Cancelling promises an attempt and no more, so OK says nothing wrong.
    if answer.is_ok() {
        return Ok("OK".into());
    }
    refused("CancelOperation of a name that no operation has", answer, &[Code::NotFound, Code::InvalidArgument])
}

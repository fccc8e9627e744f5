//! Cases 41 to 44: when an action runs again, and when a result serves twice.

use futures::future::try_join_all;
use gf_reapi::execution::platform::Property;
use tonic::Code;

use crate::cases::action_cache::get;
use crate::cases::cases;
use crate::execution::Ended;
use crate::finding::{Checked, Finding, describe, ensure, refused, require, succeeds};
use crate::job::{Job, platform};
use crate::probe::Probe;

use super::PRINT_UNIQUE;

cases! {
    "41-do-not-cache" => do_not_cache(),
    "41-do-not-cache-not-merged" => do_not_cache_not_merged(),
    "42-cached-result" => cached_result(),
    "42-skip-cache-lookup" => skip_cache_lookup(),
    "43-salt" => salt(),
    "43-platform-of-the-action" => platform_of_the_action(),
    "43-platform-of-the-command" => platform_of_the_command(),
    "44-in-flight-executed-once" => in_flight_executed_once(),
    "44-one-client-goes" => one_client_goes(),
}

/// What a run printed; two of the same text are one execution.
async fn printed(probe: &Probe<'_>, job: &Job, ended: &Ended) -> Checked {
    let printed = probe.stdout(job, ended.result()?).await?;
    ensure!(printed.len() == 36, "the action printed `{printed}`, not a UUID");
    Ok(printed)
}

async fn do_not_cache(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(PRINT_UNIQUE)?.do_not_cache();
    let first = printed(probe, &job, &probe.run(&job).await?).await?;
    let detail = refused("looking up the result", get(probe, &job.action_blob()).await, &[Code::NotFound])?;
    let ended = probe.execute(&job).await?;
    ensure!(!ended.response.cached_result, "asked again, the server says that the result is cached");
    ensure!(printed(probe, &job, &ended).await? != first, "asked again, the server answers with the old result");
    Ok(detail)
}

async fn do_not_cache_not_merged(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(&format!("sleep 0.5; {PRINT_UNIQUE}"))?.do_not_cache();
    probe.upload_job(&job).await?;
    let both = try_join_all([probe.execute(&job), probe.execute(&job)]).await?;
    let (one, other) = (printed(probe, &job, &both[0]).await?, printed(probe, &job, &both[1]).await?);
    ensure!(one != other, "two requests in flight were answered with one execution");
    Ok("two executions".into())
}

async fn cached_result(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(PRINT_UNIQUE)?;
    let ended = probe.run(&job).await?;
    ensure!(!ended.response.cached_result, "cached_result is true for what was never executed");
    let first = printed(probe, &job, &ended).await?;
    let result = succeeds("looking up the result", get(probe, &job.action_blob()).await)?;
    ensure!(probe.stdout(&job, &result).await? == first, "another result is in the action cache");
    let ended = probe.execute(&job).await?;
    ensure!(printed(probe, &job, &ended).await? == first, "asked again, the server executes again");
    ensure!(ended.response.cached_result, "cached_result is false for a result from the cache");
    Ok("the second request is answered from the cache".into())
}

async fn skip_cache_lookup(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(PRINT_UNIQUE)?;
    let first = printed(probe, &job, &probe.run(&job).await?).await?;
    let ended = probe.execute(&job.clone().skip_cache_lookup()).await?;
    let second = printed(probe, &job, &ended).await?;
    ensure!(first != second, "skip_cache_lookup is answered from the cache");
    ensure!(!ended.response.cached_result, "cached_result is true although the lookup was skipped");
    let result = succeeds("looking up the result", get(probe, &job.action_blob()).await)?;
    // A server should overwrite what it has, and need not.
    let kept = if probe.stdout(&job, &result).await? == second { "newer" } else { "older" };
    Ok(format!("executed again; the action cache has the {kept} result"))
}

async fn salt(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(PRINT_UNIQUE)?;
    let mut salted = job.clone();
    salted.action.salt = probe.uuid().into();
    let plain = printed(probe, &job, &probe.run(&job).await?).await?;
    let first = printed(probe, &salted, &probe.run(&salted).await?).await?;
    ensure!(plain != first, "the salted action is answered with the result of the plain one");
    let again = printed(probe, &salted, &probe.execute(&salted).await?).await?;
    ensure!(again == first, "the salted action is executed again");
    Ok("one result for each salt".into())
}

/// A requirement that no worker meets.
fn impossible() -> gf_reapi::execution::Platform {
    platform(&[("gf-conformance-no-such-property".into(), "none".into())])
}

#[allow(deprecated, reason = "the field is deprecated, and the case is about it")]
async fn platform_of_the_action(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo done")?;
    require!(!probe.session.config.platform.is_empty(), "without --platform an action has no platform to prefer");
    job.command.platform = Some(impossible());
    probe.expect_says(&job, "done").await?;
    Ok("preferred to the platform of the command".into())
}

#[allow(deprecated, reason = "the field is deprecated, and the case is about it")]
async fn platform_of_the_command(probe: &mut Probe<'_>) -> Checked {
    // As clients before 2.2 send it.
    let mut job = probe.job("echo done")?;
    job.action.platform = None;
    probe.expect_says(&job, "done").await?;
    let mut refused = probe.job("echo done")?;
    refused.action.platform = None;
    let properties = vec![Property { name: "gf-conformance-no-such-property".into(), value: "none".into() }];
    refused.command.platform = Some(gf_reapi::execution::Platform { properties });
    let ended = probe.run(&refused).await?;
    match ended.status.code() {
        Code::Ok => Ok("taken, but requirements in it are not heeded".into()),
        _ => ended.expect_refused("a requirement that no worker meets", super::platform::NOT_MET),
    }
}

async fn in_flight_executed_once(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(&format!("sleep 0.7; {PRINT_UNIQUE}"))?;
    probe.upload_job(&job).await?;
    let ended = try_join_all((0..3).map(|_| probe.execute(&job))).await?;
    let mut texts = Vec::new();
    for ended in &ended {
        texts.push(printed(probe, &job, ended).await?);
    }
    texts.sort();
    texts.dedup();
    match texts.len() {
        1 => Ok("three requests, one execution".into()),
        count => Err(Finding::Skip(format!("three requests in flight are {count} executions, which may be"))),
    }
}

async fn one_client_goes(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(&format!("sleep 0.7; {PRINT_UNIQUE}"))?;
    probe.upload_job(&job).await?;
    let mut leaving = succeeds("Execute", probe.start(&job).await)?;
    leaving.name().await?;
    let mut staying = succeeds("Execute of the same action", probe.start(&job).await)?;
    staying.name().await?;
    drop(leaving);
    let ended = staying.end().await?;
    ensure!(ended.status.code() == Code::Ok, "the other client went, and: {}", describe(&ended.status));
    printed(probe, &job, &ended).await?;
    Ok("the other client has its result".into())
}

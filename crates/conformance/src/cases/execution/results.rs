//! Cases 38 to 40: actions that fail, and actions that take too long.

use gf_reapi::execution::ActionResult;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cases::action_cache::get;
use crate::cases::cases;
use crate::finding::{Checked, Finding, describe, ensure, refused, require};
use crate::job::Job;
use crate::probe::Probe;

cases! {
    "38-non-zero-exit" => non_zero_exit(),
    "38-failure-not-cached" => failure_not_cached(),
    "38-ended-by-a-signal" => ended_by_a_signal(),
    "39-timeout" => timeout("sleep 20"),
    "39-timeout-of-processes-left-behind" => timeout("sleep 20 & sleep 20"),
    "39-timeout-partial-output" => timeout_partial_output(),
    "40-timeout-too-large" => timeout_too_large(),
    "40-timeout-not-reached" => timeout_not_reached(),
    "40-timeout-counts-execution-only" => timeout_counts_execution_only(),
}

async fn cached(probe: &Probe<'_>, job: &Job) -> Result<ActionResult, Status> {
    get(probe, &job.action_blob()).await
}

async fn non_zero_exit(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo out; echo err >&2; echo made >file; exit 7")?.outputs(&["file"]);
    let ended = probe.run(&job).await?;
    let result = ended.result()?;
    ensure!(result.exit_code == 7, "exit code {}, not 7", result.exit_code);
    let stdout = probe.stdout(&job, result).await?;
    ensure!(stdout == "out", "stdout is `{stdout}`");
    let stderr = probe.stream(job.function, &result.stderr_raw, result.stderr_digest.as_ref()).await?;
    ensure!(stderr == b"err\n", "stderr is `{}`", String::from_utf8_lossy(&stderr));
    let file = probe.output(&job, result, "file").await?;
    ensure!(file == b"made\n", "the output of the failed action is `{}`", String::from_utf8_lossy(&file));
    Ok("OK with exit code 7, both streams and the output".into())
}

async fn failure_not_cached(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job(&format!("{}; exit 7", super::PRINT_UNIQUE))?;
    let mut printed = Vec::new();
    for _ in 0..2 {
        let ended = probe.run(&job).await?;
        let result = ended.result()?;
        ensure!(result.exit_code == 7, "exit code {}, not 7", result.exit_code);
        printed.push(probe.stdout(&job, result).await?);
    }
    // The protocol leaves it to the server; with a cache, a passing disturbance is seen for ever.
    require!(printed[0] != printed[1], "asked again, the server answers with the old failure, as it may");
    refused("looking up the failure", cached(probe, &job).await, &[Code::NotFound])
}

async fn ended_by_a_signal(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo before; kill -9 $$")?;
    let ended = probe.run(&job).await?;
    let result = ended.result()?;
    ensure!(result.exit_code != 0, "exit code 0 for a process that was killed");
    let stdout = probe.stdout(&job, result).await?;
    ensure!(stdout == "before", "stdout is `{stdout}`");
    Ok(format!("exit code {}", result.exit_code))
}

async fn timeout(probe: &mut Probe<'_>, script: &str) -> Checked {
    let job = probe.job(script)?.timeout(1);
    let begin = Instant::now();
    let ended = probe.run(&job).await?;
    let detail = ended.expect_refused("an action beyond its timeout", &[Code::DeadlineExceeded])?;
    let took = begin.elapsed();
    ensure!(took < probe.patience(), "a timeout of one second took {took:?}");
    refused("looking up what timed out", cached(probe, &job).await, &[Code::NotFound])?;
    Ok(format!("after {took:.1?}: {detail}"))
}

async fn timeout_partial_output(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo partial; echo warning >&2; sleep 20")?.timeout(1);
    let ended = probe.run(&job).await?;
    ended.expect_refused("an action beyond its timeout", &[Code::DeadlineExceeded])?;
    let result = ended.response.result.clone();
    let result = result.ok_or_else(|| Finding::Skip("no result comes with DEADLINE_EXCEEDED, which may be".into()))?;
    let stdout = probe.stdout(&job, &result).await?;
    if stdout.is_empty() {
        return Err(Finding::Skip("the result of a timeout has no output, which may be".into()));
    }
    ensure!(stdout == "partial", "stdout is `{stdout}`");
    let stderr = probe.stream(job.function, &result.stderr_raw, result.stderr_digest.as_ref()).await?;
    ensure!(stderr.starts_with(b"warning"), "stderr is `{}`", String::from_utf8_lossy(&stderr));
    Ok("both streams up to the timeout".into())
}

async fn timeout_too_large(probe: &mut Probe<'_>) -> Checked {
    // Ten thousand years, the most that a Duration holds.
    let job = probe.job("echo done")?.timeout(315_576_000_000);
    let ended = probe.run(&job).await?;
    match ended.status.code() {
        Code::Ok => {
            let said = probe.stdout(&job, ended.result()?).await?;
            ensure!(said == "done", "the action printed `{said}`");
            Ok("accepted: the server has no maximum".into())
        }
        _ => ended.expect_refused("a timeout of ten thousand years", &[Code::InvalidArgument]),
    }
}

async fn timeout_not_reached(probe: &mut Probe<'_>) -> Checked {
    let job = probe.job("echo done")?.timeout(10);
    probe.expect_says(&job, "done").await?;
    let mut unset = probe.job("sleep 0.1; echo done")?;
    unset.action.timeout = None;
    probe.expect_says(&unset, "done").await?;
    Ok("with a timeout of ten seconds, and with none".into())
}

async fn timeout_counts_execution_only(probe: &mut Probe<'_>) -> Checked {
    // More than a worker of a few slots runs at once: with the time in the queue, the last would be too late.
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(probe.job("sleep 0.7; echo done")?.timeout(2));
    }
    let begin = Instant::now();
    let ended = futures::future::try_join_all(jobs.iter().map(|job| probe.run(job))).await?;
    for (job, ended) in jobs.iter().zip(&ended) {
        if ended.status.code() == Code::DeadlineExceeded {
            return Err(Finding::Fail(format!("an action that sleeps 0.7 s timed out: {}", describe(&ended.status))));
        }
        let said = probe.stdout(job, ended.result()?).await?;
        ensure!(said == "done", "the action printed `{said}`");
    }
    Ok(format!("eight actions of 0.7 s with timeouts of 2 s, done within {:.1?}", begin.elapsed()))
}

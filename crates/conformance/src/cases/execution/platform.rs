//! Cases 45 and 56: requirements that no worker meets, and priorities.

use tokio::time::Instant;
use tonic::Code;

use crate::cases::cases;
use crate::finding::{Checked, Finding, ensure, require};
use crate::job::platform;
use crate::probe::Probe;

cases! {
    "45-unknown-property" => unmet("gf-conformance-no-such-property", "none"),
    "45-unknown-value" => unmet("OSFamily", "gf-conformance-no-such-system"),
    "56-priority-advertised" => priority_advertised(),
    "56-priority-outside" => priority_outside(),
}

/// What a server says when no worker is suitable: that none is, or that the property makes no sense.
pub(super) const NOT_MET: &[Code] = &[Code::FailedPrecondition, Code::InvalidArgument];

async fn unmet(probe: &mut Probe<'_>, name: &str, value: &str) -> Checked {
    let mut job = probe.job("echo executed")?;
    let mut properties = probe.session.config.platform.clone();
    properties.retain(|(present, _)| present != name);
    properties.push((name.into(), value.into()));
    job.action.platform = Some(platform(&properties));
    #[allow(deprecated, reason = "clients set the platform in both places")]
    job.command.platform.clone_from(&job.action.platform);
    let begin = Instant::now();
    let ended = probe.run(&job).await?;
    if ended.status.code() == Code::Ok {
        let said = probe.stdout(&job, ended.result()?).await?;
        ensure!(said == "executed", "the action printed `{said}`");
        return Err(Finding::Skip("executed all the same, which should not be, but may".into()));
    }
    let detail = ended.expect_refused(&format!("the requirement {name}={value}"), NOT_MET)?;
    Ok(format!("after {:.1?}: {detail}", begin.elapsed()))
}

/// The ranges of priorities that the server advertises, lowest and highest.
fn ranges(probe: &Probe<'_>) -> Checked<Vec<(i32, i32)>> {
    let execution = probe.session.capabilities()?.execution_capabilities.as_ref();
    let priorities = execution.and_then(|execution| execution.execution_priority_capabilities.as_ref());
    let ranges = priorities.into_iter().flat_map(|priorities| &priorities.priorities);
    Ok(ranges.map(|range| (range.min_priority, range.max_priority)).collect())
}

async fn priority_advertised(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo done")?;
    probe.expect_says(&job, "done").await?;
    let ranges = ranges(probe)?;
    require!(!ranges.is_empty(), "the server advertises no priorities");
    for (lowest, highest) in &ranges {
        ensure!(lowest <= highest, "a range from {lowest} to {highest} is advertised");
        for priority in [*lowest, *highest] {
            job = probe.job("echo done")?;
            job.priority = priority;
            probe.expect_says(&job, "done").await?;
        }
    }
    Ok(format!("from lowest to highest: {ranges:?}"))
}

async fn priority_outside(probe: &mut Probe<'_>) -> Checked {
    let mut job = probe.job("echo done")?;
    let ranges = ranges(probe)?;
    let advertised = |wanted: &i32| ranges.iter().any(|(low, high)| (low..=high).contains(&wanted));
    let Some(outside) = [i32::MAX, i32::MIN, 77_777].into_iter().find(|wanted| !advertised(wanted)) else {
        probe.expect_says(&job, "done").await?;
        return Ok("every priority is advertised".into());
    };
    job.priority = outside;
    let ended = probe.run(&job).await?;
    if ended.status.code() == Code::Ok {
        let said = probe.stdout(&job, ended.result()?).await?;
        ensure!(said == "done", "the action printed `{said}`");
        return Ok(format!("the priority {outside} does no harm"));
    }
    ended.expect_refused(&format!("the priority {outside}"), &[Code::InvalidArgument])
}

//! `gf status`: what the server says about itself.

use gf_server::config::show_size;
use gf_server::operator::report::{ExecutionSummary, OwnWorker, QuotaReport, Status, TenantReport};

use crate::args::QuestionArgs;
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print, show_age, show_cores};
use crate::store_command::show_stats;

pub(crate) fn run(args: QuestionArgs) -> Result<(), Failure> {
    let server = args.server.url();
    let status: Status = Client::new(args.server)?.get("/api/v1/status")?;
    print(Format::from(args.json), &status, |status| show(&server, status))?;
    match status.not_ready {
        None => Ok(()),
        Some(reason) => Err(Failure::new(FailureKind::NotSo, reason)),
    }
}

fn show(server: &str, status: &Status) -> String {
    let Status { version, uptime_seconds, not_ready, full, tenants, tenant_use, store, execution } = status;
    let ready = match (not_ready, full) {
        (Some(_), _) => "NOT READY",
        (None, Some(_)) => "FULL",
        (None, None) => "ready",
    };
    let full = full.as_ref().map(|reason| format!("writes    refused: {}\n", plain(reason))).unwrap_or_default();
    let uptime = show_age(*uptime_seconds);
    let tenants = tenants.join(", ");
    let execution = execution.as_ref().map(show_execution).unwrap_or_default();
    format!(
        "server    {server}, gf {version}, {ready}, up for {uptime}\ntenants   {tenants}\n{}{full}{execution}{}",
        show_use(tenant_use),
        show_stats(store)
    )
}

/// What tenants use that may not use everything.
fn show_use(tenants: &[TenantReport]) -> String {
    let size = |quota: &QuotaReport| quota.limit.map(|limit| (show_size(quota.used), show_size(limit)));
    let mut text = String::new();
    for tenant in tenants {
        let TenantReport { name, stored_bytes, uploaded_bytes_today, executions, requests_a_second } = tenant;
        let mut parts = Vec::new();
        parts.extend(size(stored_bytes).map(|(used, limit)| format!("stores {used} of {limit}")));
        parts.extend(size(uploaded_bytes_today).map(|(used, limit)| format!("uploaded {used} of {limit} today")));
        parts.extend(executions.limit.map(|limit| format!("runs {} of {limit} actions", executions.used)));
        parts.extend(requests_a_second.limit.map(|limit| format!("at most {limit} requests a second")));
        let quotas = [stored_bytes, uploaded_bytes_today, requests_a_second];
        let refused: u64 = quotas.iter().map(|quota| quota.refused).sum();
        if refused > 0 {
            parts.push(format!("{refused} times refused"));
        }
        if !parts.is_empty() {
            text += &format!("          {name}: {}\n", parts.join(", "));
        }
    }
    text
}

fn show_execution(execution: &ExecutionSummary) -> String {
    let ExecutionSummary { workers, milli_cores, free_milli_cores, queued, running, own_worker } = execution;
    let line = match workers {
        0 => format!("execution no workers, {queued} waiting\n"),
        _ => {
            let workers = if *workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
            let (free, all) = (show_cores(*free_milli_cores), show_cores(*milli_cores));
            format!("execution {workers}, {free} of {all} cores free, {running} running, {queued} waiting\n")
        }
    };
    match own_worker {
        OwnWorker::Running if *workers > 0 => line,
        own_worker => line + &show_own_worker(own_worker),
    }
}

/// Why the worker inside the server is not there, and what helps.
fn show_own_worker(own_worker: &OwnWorker) -> String {
    match own_worker {
        OwnWorker::Off => "          the server's own worker is switched off; `gf worker` attaches others\n".to_owned(),
        OwnWorker::Running => "          the server's own worker is starting\n".to_owned(),
        OwnWorker::Restarting { reason } => {
            format!("          the server's own worker is started again; it ended: {}\n", plain(reason))
        }
        OwnWorker::GivenUp { reason } => format!(
            "          the server's own worker cannot run here: {}; `gf worker` attaches others\n",
            plain(reason)
        ),
        OwnWorker::Unknown => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_worker_is_explained() {
        let reason = "the sandbox\u{1b}[2J needs user namespaces".to_owned();
        let summary = ExecutionSummary { own_worker: OwnWorker::GivenUp { reason }, queued: 3, ..Default::default() };
        let shown = show_execution(&summary);
        assert!(shown.starts_with("execution no workers, 3 waiting\n"), "{shown}");
        assert!(shown.contains("cannot run here: the sandbox\\u{1b}[2J needs user namespaces;"), "{shown}");

        let own_worker = OwnWorker::Running;
        let (milli_cores, free_milli_cores) = (8000, 2500);
        let busy = ExecutionSummary { workers: 2, milli_cores, free_milli_cores, running: 6, own_worker, queued: 0 };
        assert_eq!(show_execution(&busy), "execution 2 workers, 2.5 of 8 cores free, 6 running, 0 waiting\n");
    }
}

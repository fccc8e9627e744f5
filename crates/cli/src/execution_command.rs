//! `gf workers`, `gf queue` and `gf why`: what runs where, what waits, and why.

use gf_server::config::show_size;
use gf_server::operator::report::{
    ExecutionReport, OperationReport, PropertyReport, QueueReport, ShareReport, WorkerReport,
};

use crate::args::{QuestionArgs, WhyArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, plain, print, show_age, show_cores};
use crate::table::table;

const EXECUTION: &str = "/api/v1/execution";

pub(crate) fn workers(args: QuestionArgs) -> Result<(), Failure> {
    let report: ExecutionReport = Client::new(args.server)?.get(EXECUTION)?;
    print(Format::from(args.json), &report, show_workers)
}

pub(crate) fn queue(args: QuestionArgs) -> Result<(), Failure> {
    let report: ExecutionReport = Client::new(args.server)?.get(EXECUTION)?;
    print(Format::from(args.json), &report, show_queue)
}

pub(crate) fn why(args: WhyArgs) -> Result<(), Failure> {
    let path = format!("/api/v1/operations/{}", in_path(args.operation.trim_matches('/')));
    let report: OperationReport = Client::new(args.server)?.get(&path)?;
    print(Format::from(args.json), &report, show_operation)
}

/// As it stands in a URL: instances may have names of any characters.
fn in_path(name: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    name.bytes().map(byte).collect()
}

fn show_workers(report: &ExecutionReport) -> String {
    if report.workers.is_empty() {
        return "no workers: `gf status` says what became of the server's own; `gf worker --server URL` attaches others"
            .to_owned();
    }
    let rows: Vec<_> = report.workers.iter().map(worker_row).collect();
    let mut text = table(["NAME", "CORES", "MEMORY", "RUNNING", "STATE", "PROPERTIES"], &rows);
    for worker in &report.workers {
        for run in &worker.running {
            let what = match (&run.operation, &run.action) {
                (Some(operation), _) => operation.clone(),
                (None, Some(action)) => format!("action {}/{}", action.hash, action.size_bytes),
                (None, None) => "what nobody wants any more".to_owned(),
            };
            let (what, name) = (plain(&what), plain(&worker.name));
            text += &format!("\n{} for {} on {name}: {what}", run.stage, show_age(run.lasts_seconds));
        }
    }
    for worker in &report.workers {
        let name = plain(&worker.name);
        for limitation in &worker.limitations {
            text += &format!("\n{name} is limited: {}", plain(limitation));
        }
    }
    text + &left_out(report.workers_left_out, "workers")
}

/// Used and total, each.
fn worker_row(worker: &WorkerReport) -> [String; 6] {
    let used = u64::from(worker.milli_cores.saturating_sub(worker.free_milli_cores));
    let used_memory = worker.memory_bytes.saturating_sub(worker.free_memory_bytes);
    let state = match (worker.rests_for_seconds, worker.draining) {
        (Some(seconds), _) => format!("rests for {}", show_age(seconds)),
        (None, true) => "draining".to_owned(),
        (None, false) if worker.kept_free => "kept free".to_owned(),
        (None, false) => "ready".to_owned(),
    };
    [
        plain(&worker.name),
        format!("{}/{}", show_cores(used), show_cores(worker.milli_cores.into())),
        format!("{}/{}", show_size(used_memory), show_size(worker.memory_bytes)),
        worker.running.len().to_string(),
        state,
        show_properties(&worker.properties),
    ]
}

fn show_properties(properties: &[PropertyReport]) -> String {
    let shown = properties.iter().map(|property| plain(&format!("{}={}", property.name, property.value)));
    shown.collect::<Vec<_>>().join(" ")
}

fn left_out(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!("\n{count} more {what} are not shown") }
}

fn show_queue(report: &ExecutionReport) -> String {
    if report.queues.is_empty() {
        return "nothing waits, and nothing runs".to_owned();
    }
    let rows: Vec<_> = report.queues.iter().map(queue_row).collect();
    let mut text = table(["WAITING", "RUNNING", "OLDEST", "WORKERS", "PLATFORM"], &rows);
    for queue in report.queues.iter().filter(|queue| queue.queued > 0 && queue.matching_workers == 0) {
        text += &format!(
            "\nno worker matches {}: attach one with `gf worker --server URL{}`, or it fails soon",
            show_platform(queue),
            queue.platform.iter().map(option).collect::<String>(),
        );
    }
    text += &left_out(report.queues_left_out, "platforms");
    for share in report.shares.iter().filter(|share| share.queued > 0) {
        text += &format!("\n{}", show_share(share));
    }
    text + &left_out(report.shares_left_out, "tenants with a share")
}

fn show_share(share: &ShareReport) -> String {
    let ShareReport { tenant, queued, running, most } = share;
    format!("the tenant {} runs {running} of its {most} executions, and {queued} wait", plain(tenant))
}

fn option(property: &PropertyReport) -> String {
    format!(" --property '{}'", plain(&format!("{}={}", property.name, property.value)))
}

fn queue_row(queue: &QueueReport) -> [String; 5] {
    [
        queue.queued.to_string(),
        queue.running.to_string(),
        queue.oldest_wait_seconds.map_or_else(|| "-".to_owned(), show_age),
        queue.matching_workers.to_string(),
        show_platform(queue),
    ]
}

fn show_platform(queue: &QueueReport) -> String {
    if queue.platform.is_empty() { "any platform".to_owned() } else { show_properties(&queue.platform) }
}

fn show_operation(report: &OperationReport) -> String {
    let action = &report.action;
    format!(
        "operation {}\naction    {}/{} ({})\nwhy       {}\nnext      {}",
        plain(&report.name),
        action.hash,
        action.size_bytes,
        action.digest_function,
        plain(&report.sentence),
        plain(&report.next_step),
    )
}

#[cfg(test)]
mod tests {
    use gf_server::operator::report::{OwnWorker, RunReport};

    use super::*;

    fn property(name: &str, value: &str) -> PropertyReport {
        PropertyReport { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn names_stand_in_urls() {
        assert_eq!(in_path("a b/ä/operations/8f7c2f6e-9ad4"), "a%20b/%C3%A4/operations/8f7c2f6e-9ad4");
        assert_eq!(in_path("../status?x#y%"), "../status%3Fx%23y%25");
    }

    #[test]
    fn workers_and_what_they_run() {
        let run = RunReport {
            operation: Some("operations/1".to_owned()),
            stage: "running".to_owned(),
            lasts_seconds: 125,
            ..RunReport::default()
        };
        let busy = WorkerReport {
            name: "big\u{7}".to_owned(),
            properties: vec![property("os", "linux"), property("pool", "gpu")],
            milli_cores: 8000,
            free_milli_cores: 6500,
            memory_bytes: 16 << 30,
            free_memory_bytes: 15 << 30,
            running: vec![run],
            limitations: vec!["no overlays".to_owned()],
            ..WorkerReport::default()
        };
        let idle = WorkerReport { name: "small".to_owned(), milli_cores: 1000, free_milli_cores: 1000, ..busy.clone() };
        let idle = WorkerReport {
            running: Vec::new(),
            draining: true,
            properties: Vec::new(),
            limitations: Vec::new(),
            ..idle
        };
        let report = ExecutionReport { workers: vec![busy, idle], workers_left_out: 2, ..ExecutionReport::default() };
        assert_eq!(
            show_workers(&report),
            "NAME      CORES  MEMORY            RUNNING  STATE     PROPERTIES\n\
             big\\u{7}  1.5/8  1.0 GiB/16.0 GiB  1        ready     os=linux pool=gpu\n\
             small     0/1    1.0 GiB/16.0 GiB  0        draining\n\
             running for 2 min on big\\u{7}: operations/1\n\
             big\\u{7} is limited: no overlays\n\
             2 more workers are not shown"
        );
        let none = ExecutionReport { own_worker: OwnWorker::Off, ..ExecutionReport::default() };
        assert!(show_workers(&none).starts_with("no workers"));
    }

    #[test]
    fn what_no_worker_matches_is_pointed_out() {
        let served = QueueReport { running: 2, matching_workers: 1, ..QueueReport::default() };
        let unserved = QueueReport {
            platform: vec![property("pool", "gpu")],
            queued: 3,
            oldest_wait_seconds: Some(61),
            ..QueueReport::default()
        };
        let report = ExecutionReport { queues: vec![unserved, served], ..ExecutionReport::default() };
        assert_eq!(
            show_queue(&report),
            "WAITING  RUNNING  OLDEST  WORKERS  PLATFORM\n\
             3        0        1 min   0        pool=gpu\n\
             0        2        -       1        any platform\n\
             no worker matches pool=gpu: attach one with `gf worker --server URL --property 'pool=gpu'`, or it fails soon"
        );
        let share = ShareReport { tenant: "org-acme".to_owned(), queued: 3, running: 4, most: 4 };
        let unused = ShareReport { queued: 0, ..share.clone() };
        let said = show_queue(&ExecutionReport { shares: vec![share, unused], ..report });
        assert!(said.ends_with("it fails soon\nthe tenant org-acme runs 4 of its 4 executions, and 3 wait"), "{said}");
        assert_eq!(show_queue(&ExecutionReport::default()), "nothing waits, and nothing runs");
    }
}

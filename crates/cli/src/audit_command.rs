//! `gf audit`: what was done and refused, and the proof that nothing of it was changed.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gf_server::access_api::report::{AuditPage, AuditRecord, AuditVerdict};
use hyper::Method;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::access_command::query;
use crate::args::{AuditArgs, AuditCommand, AuditExportArgs, QuestionArgs};
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print};
use crate::table::table;

const AUDIT: &str = "/api/v1/access/audit";

pub(crate) fn run(args: AuditArgs) -> Result<(), Failure> {
    match args.command {
        None => search(args),
        Some(AuditCommand::Verify(args)) => verify(args),
        Some(AuditCommand::Export(args)) => export(args),
    }
}

fn search(args: AuditArgs) -> Result<(), Failure> {
    let client = Client::new(args.server)?;
    let since = args.since.map(since_ms).map(|since| since.to_string());
    let given = [
        ("principal", &args.principal),
        ("action", &args.action),
        ("subject", &args.subject),
        ("outcome", &args.outcome),
        ("trace", &args.trace),
        ("since_ms", &since),
    ];
    let fields: Vec<(&str, &str)> = given.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let records = pages(&client, &fields, args.limit)?;
    if args.json {
        return records.iter().try_for_each(line);
    }
    print(Format::Text, &records, |records| {
        let rows: Vec<[String; 6]> = records.iter().map(row).collect();
        table(["WHEN", "WHO", "FROM", "WHAT", "OUTCOME", "DETAIL"], &rows)
    })
}

/// Page after page, until there are as many as are wanted or no more.
fn pages(client: &Client, fields: &[(&str, &str)], limit: usize) -> Result<Vec<AuditRecord>, Failure> {
    let mut records: Vec<AuditRecord> = Vec::new();
    let mut before = String::new();
    while records.len() < limit {
        let page: AuditPage = client.get(&format!("{AUDIT}?{}{before}", query(fields)))?;
        records.extend(page.records);
        match page.next {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    records.truncate(limit);
    Ok(records)
}

/// One record on a line of its own.
fn line(record: &AuditRecord) -> Result<(), Failure> {
    let text = serde_json::to_string(record).map_err(Failure::failed)?;
    write_out(format!("{text}\n").as_bytes())
}

fn row(record: &AuditRecord) -> [String; 6] {
    let what = match record.subject.as_str() {
        "" => plain(&record.action),
        subject => format!("{} {}", plain(&record.action), plain(subject)),
    };
    let [who, source, outcome, detail] =
        [&record.who, &record.source, &record.outcome, &record.detail].map(|text| plain(text));
    [show_time(record.at_ms), who, source, what, outcome, detail]
}

/// In the form of RFC 3339, to the second.
fn show_time(at_ms: u64) -> String {
    let time = i64::try_from(at_ms / 1000).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| at_ms.to_string())
}

fn since_ms(ago: Duration) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ago);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn verify(args: QuestionArgs) -> Result<(), Failure> {
    let verdict: AuditVerdict = Client::new(args.server)?.post(&format!("{AUDIT}/verify"), &serde_json::json!({}))?;
    print(Format::from(args.json), &verdict, |verdict| match &verdict.hash {
        Some(hash) => format!("{} records: {}\nhead {} {hash}", verdict.records, verdict.sentence, verdict.records),
        None => format!("{} records are whole; {}", verdict.records, verdict.sentence),
    })?;
    match verdict.is_whole {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::NotSo, "")),
    }
}

/// Page after page, so that neither side holds all of it.
fn export(args: AuditExportArgs) -> Result<(), Failure> {
    let client = Client::new(args.server)?;
    let mut after = args.after;
    loop {
        let lines = client.bytes(Method::GET, &format!("{AUDIT}/export?after={after}&limit=10000"))?;
        let Some(last) = lines.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().filter(|last| !last.is_empty())
        else {
            return Ok(());
        };
        let last: AuditRecord = serde_json::from_slice(last).map_err(|error| client.not_ours(error))?;
        write_out(&lines)?;
        after = last.number;
    }
}

fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let written = io::stdout().lock().write_all(bytes);
    written.map_err(|error| Failure::failed(format!("cannot write the answer: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_to_the_second() {
        assert_eq!(show_time(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(show_time(u64::MAX), u64::MAX.to_string());
    }
}

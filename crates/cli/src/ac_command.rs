//! `gf ac show|why|remove`: one action's result, who wrote it, and taking it out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gf_server::config::show_duration;
use gf_server::operator::report::{
    ActionName, ActionResultRemoval, ActionResultRemoved, ActionResultReport, OutputReport, ProvenanceReport,
    ResultReport, TombstoneReport,
};

use crate::args::{AcArgs, AcCommand, AcRemoveArgs};
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print, say, show_age};

pub(crate) fn run(command: AcCommand) -> Result<(), Failure> {
    match command {
        AcCommand::Show(args) => show(args),
        AcCommand::Why(args) => why(args),
        AcCommand::Remove(args) => remove(args),
    }
}

fn show(args: AcArgs) -> Result<(), Failure> {
    let format = Format::from(args.json);
    let report = ask(args)?;
    print(format, &report, |report| show_result(report, now_ms()))?;
    if report.standing == "shown" { Ok(()) } else { Err(Failure::new(FailureKind::NotSo, plain(&report.sentence))) }
}

fn why(args: AcArgs) -> Result<(), Failure> {
    let format = Format::from(args.json);
    print(format, &ask(args)?, |report| show_why(report, now_ms()))
}

fn ask(args: AcArgs) -> Result<ActionResultReport, Failure> {
    let query = [("instance", &args.instance), ("action", &args.action), ("digest_function", &args.digest_function)];
    let query = query.map(|(name, value)| format!("{name}={}", in_query(value))).join("&");
    Client::new(args.server)?.get(&format!("/api/v1/action-results?{query}"))
}

fn remove(args: AcRemoveArgs) -> Result<(), Failure> {
    let AcRemoveArgs { action, reason, quarantine, yes } = args;
    let AcArgs { action, instance, digest_function, server, json } = action;
    let name = ActionName { instance, action, digest_function };
    let request = ActionResultRemoval { name, reason, quarantine_seconds: quarantine.as_secs(), dry_run: !yes };
    let removed: ActionResultRemoved = Client::new(server)?.post("/api/v1/action-results/remove", &request)?;
    print(Format::from(json), &removed, |removed| show_removed(removed, quarantine))?;
    if !yes {
        say("gf: nothing was changed: say --yes to do it");
    }
    Ok(())
}

fn show_removed(removed: &ActionResultRemoved, quarantine: Duration) -> String {
    let before = show_result(&removed.before, now_ms());
    let quarantine = show_duration(quarantine);
    let end = match removed.dry_run {
        true => format!("would be hidden from everybody now, and none taken for {quarantine}"),
        false => format!("is hidden from everybody, and none is taken for {quarantine}"),
    };
    format!("{before}\nremoval   {end}")
}

fn show_why(report: &ActionResultReport, now_ms: u64) -> String {
    let mut text = format!("{}\n{}", plain(&report.sentence), show_origin(report, now_ms));
    for blob in &report.missing {
        text += &format!("missing   {}\n", plain(blob));
    }
    if report.missing_count > report.missing.len() as u64 {
        text += &format!("          and {} more\n", report.missing_count - report.missing.len() as u64);
    }
    text + &format!("next      {}", plain(&report.next_step))
}

fn show_result(report: &ActionResultReport, now_ms: u64) -> String {
    let instance = if report.name.instance.is_empty() { "the default instance" } else { &report.name.instance };
    let mut text = format!("action    {} in {}\n", plain(&report.name.action), plain(instance));
    text += &format!("standing  {}: {}\n", plain(&report.standing), plain(&report.sentence));
    text += &show_origin(report, now_ms);
    if let Some(ResultReport { exit_code, files, directories, outputs }) = &report.result {
        let blobs = report.blobs.map(|blobs| format!(", {blobs} blobs in all")).unwrap_or_default();
        text += &format!("result    exit code {exit_code}, {outputs} outputs{blobs}\n");
        for OutputReport { path, digest } in files.iter().chain(directories) {
            text += &format!("          {} {}\n", plain(path), plain(digest));
        }
    }
    text.trim_end().to_owned()
}

/// Who wrote it, and who removed it.
fn show_origin(report: &ActionResultReport, now_ms: u64) -> String {
    let mut text = String::new();
    if let Some(ProvenanceReport { at_ms, principal, worker, image }) = &report.written {
        let age = show_age(now_ms.saturating_sub(*at_ms) / 1000);
        text += &match worker {
            None => format!("written   {age} ago, brought by {}\n", plain(principal)),
            Some(worker) => {
                let image = image.as_ref().map(|image| format!(" in {}", plain(image))).unwrap_or_default();
                format!("written   {age} ago, run by the worker {}{image} for {}\n", plain(worker), plain(principal))
            }
        };
    }
    if let Some(TombstoneReport { at_s, until_s, principal, reason }) = &report.removed {
        let (age, left) = ((now_ms / 1000).saturating_sub(*at_s), until_s.saturating_sub(now_ms / 1000));
        text += &format!("removed   {} ago by {}: {}\n", show_age(age), plain(principal), plain(reason));
        text += &format!("          none is taken for {} more\n", show_age(left));
    }
    text
}

/// As a value stands in the query of a URL.
fn in_query(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    value.bytes().map(byte).collect()
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_and_cannot_write_to_the_terminal() {
        let written = ProvenanceReport {
            at_ms: 1_000_000,
            principal: "token:7\u{1b}[2J".to_owned(),
            worker: Some("host-3".to_owned()),
            image: Some("debian:12".to_owned()),
        };
        let report = ActionResultReport {
            name: ActionName { action: "ab".to_owned(), ..ActionName::default() },
            standing: "shown".to_owned(),
            sentence: "a hit".to_owned(),
            next_step: "go on".to_owned(),
            written: Some(written),
            removed: None,
            result: None,
            blobs: None,
            missing: vec!["sha256:cd/5".to_owned()],
            missing_count: 3,
        };
        let shown = show_why(&report, 1_000_000 + 7_200_000);
        let expected = "a hit\nwritten   2 h ago, run by the worker host-3 in debian:12 for token:7\\u{1b}[2J\n\
                        missing   sha256:cd/5\n          and 2 more\nnext      go on";
        assert_eq!(shown, expected);
    }
}

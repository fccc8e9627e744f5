//! `gf nix verify` and `gf nix gc`.

use gf_server::config::show_size;
use gf_server::operator::report::{NixCollectReport, NixCollectRequest, NixVerifyReport, NixVerifyRequest};

use super::remote::RemoteCache;
use crate::args::{CacheArgs, NixGcArgs};
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, plain, print};

pub(super) fn verify(args: CacheArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let path = format!("/api/v1/nix/caches/{}/verify", cache.name);
    let found: NixVerifyReport = cache.client.post(&path, &NixVerifyRequest {})?;
    print(Format::from(args.json), &found, show_verified)?;
    match found.problem_count {
        0 => Ok(()),
        count => {
            Err(Failure::new(FailureKind::NotSo, format!("{count} problems: push the paths again that they name")))
        }
    }
}

fn show_verified(found: &NixVerifyReport) -> String {
    let NixVerifyReport { paths, not_fetched, nar_bytes, .. } = found;
    let mut text = format!("{paths} paths verified, {} of archives read and hashed", show_size(*nar_bytes));
    if *not_fetched > 0 {
        text += &format!("; {not_fetched} are still to be fetched from upstreams");
    }
    found.problems.iter().for_each(|problem| text += &format!("\n{}", plain(problem)));
    text
}

pub(super) fn collect(args: NixGcArgs) -> Result<(), Failure> {
    let cache = RemoteCache::new(args.server, &args.cache)?;
    let path = format!("/api/v1/nix/caches/{}/collect", cache.name);
    let report: NixCollectReport = cache.client.post(&path, &NixCollectRequest { dry_run: args.dry_run })?;
    print(Format::from(args.json), &report, |report| show_collected(report, args.dry_run))
}

fn show_collected(report: &NixCollectReport, is_plan: bool) -> String {
    let mut text = String::new();
    for removal in &report.removals {
        let (path, size) = (plain(&removal.path), show_size(removal.nar_bytes));
        text += &format!("{path}  {}, {size}\n", plain(&removal.reason));
    }
    let bytes = show_size(report.removals.iter().map(|removal| removal.nar_bytes).sum());
    let (count, verb) =
        (report.removals.len() - report.spared.min(report.removals.len()), if is_plan { "would go" } else { "went" });
    text + &format!("{count} paths {verb}; their archives were {bytes}, of which others may have a part")
}

#[cfg(test)]
mod tests {
    use gf_server::operator::report::NixRemovalReport;

    use super::*;

    #[test]
    fn what_goes_is_told_with_its_reason() {
        let removal =
            NixRemovalReport { path: "p".to_owned(), reason: "not used for 90d".to_owned(), nar_bytes: 1 << 20 };
        let report = NixCollectReport { removals: vec![removal; 2], spared: 1 };
        let text = show_collected(&report, false);
        assert!(text.starts_with("p  not used for 90d, 1.0 MiB\n") && text.contains("\n1 paths went; "), "{text}");
    }
}

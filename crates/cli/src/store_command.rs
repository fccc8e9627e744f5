//! `gf store stats|verify|gc`: the store of a running server; `verify` also works on the files of a stopped one.

use std::time::Duration;

use gf_server::config::{show_duration, show_size};
use gf_server::operator::report::{GcRequest, GcResult, ScrubStatus, StoreStatus, VerifyRequest, VerifyResult};

use crate::args::{QuestionArgs, StoreCommand, StoreGcArgs, StoreVerifyArgs};
use crate::client::Client;
use crate::failure::{Failure, FailureKind};
use crate::output::{Format, print, show_age};

pub(crate) fn run(command: StoreCommand) -> Result<(), Failure> {
    match command {
        StoreCommand::Stats(args) => stats(args),
        StoreCommand::Verify(args) => verify(args),
        StoreCommand::Gc(args) => gc(args),
    }
}

fn stats(args: QuestionArgs) -> Result<(), Failure> {
    let stats: StoreStatus = Client::new(args.server)?.get("/api/v1/store/stats")?;
    print(Format::from(args.json), &stats, show_stats)
}

fn verify(args: StoreVerifyArgs) -> Result<(), Failure> {
    let request = VerifyRequest { repair: args.repair };
    let result: VerifyResult = match &args.data_dir {
        Some(data_dir) => gf_server::operator::verify_offline(data_dir, request).map_err(Failure::failed)?,
        None => Client::new(args.server)?.post("/api/v1/store/verify", &request)?,
    };
    print(Format::from(args.json), &result, show_verify)?;
    match (result.clean, args.repair) {
        (true, _) => Ok(()),
        (false, true) => Err(Failure::new(FailureKind::NotSo, "damage was found and dealt with, as told above")),
        (false, false) => Err(Failure::new(
            FailureKind::NotSo,
            "damage was found: run `gf store verify --repair` to mend what can be",
        )),
    }
}

fn gc(args: StoreGcArgs) -> Result<(), Failure> {
    let request = GcRequest { free_bytes: args.free, dry_run: args.dry_run };
    let result: GcResult = Client::new(args.server)?.post("/api/v1/store/gc", &request)?;
    print(Format::from(args.json), &result, show_gc)
}

pub(crate) fn show_stats(stats: &StoreStatus) -> String {
    let StoreStatus { capacity_bytes, used_bytes, reserved_bytes, leased_bytes, .. } = *stats;
    let percent = used_bytes.saturating_mul(100) / capacity_bytes.max(1);
    let evicted = match stats.youngest_evicted_age_seconds {
        None => "nothing since the start".to_owned(),
        Some(age) => format!(
            "{} blobs, {} since the start; the youngest was last used {} ago",
            stats.evicted_blobs,
            show_size(stats.evicted_bytes),
            show_duration(Duration::from_secs(age)),
        ),
    };
    format!(
        "space     {} of {} used ({percent} %), {} under lease, {} reserved, {} free on the disk\n\
         blobs     {} keys known, {} saved by sharing, {} quarantined\n\
         evicted   {evicted}\n\
         {}\
         promises  kept for {} after use; safe against power loss after {}",
        show_size(used_bytes),
        show_size(capacity_bytes),
        show_size(leased_bytes),
        show_size(reserved_bytes),
        show_size(stats.free_disk_bytes),
        stats.keys,
        show_size(stats.deduplicated_bytes),
        stats.quarantined_blobs,
        stats.scrub.as_ref().map(show_scrub).unwrap_or_default(),
        show_duration(Duration::from_secs(stats.lease_seconds)),
        show_duration(Duration::from_millis(stats.sync_window_ms)),
    )
}

fn show_scrub(scrub: &ScrubStatus) -> String {
    let ScrubStatus { last_pass_age_seconds, blobs, bytes, damaged, unreadable, .. } = *scrub;
    let last = match last_pass_age_seconds {
        Some(age) => format!("everything was last read back {} ago", show_age(age)),
        None => "not everything was read back yet".to_owned(),
    };
    let bytes = show_size(bytes);
    let mut line = format!("scrub     {last}; {blobs} blobs of {bytes} so far, {damaged} damaged");
    if unreadable > 0 {
        line += &format!("; the disk failed to read {unreadable} times");
    }
    line + "\n"
}

fn show_verify(result: &VerifyResult) -> String {
    let mut text = format!(
        "verified  {} blobs, {}: read and hashed to their digests; {} entries: checksums match\n",
        result.blobs,
        show_size(result.bytes),
        result.entries,
    );
    if result.lost_count > 0 {
        text += &format!("damaged   {}; reported absent from now on:\n", result.lost_count);
        for name in &result.lost {
            text += &format!("          {name}\n");
        }
    }
    if !result.index_was_whole {
        text += "index     had lost a part\n";
    }
    if let Some(repaired) = result.repaired {
        text += &format!(
            "repaired  {} keys restored, {} dropped, {} stray files removed\n",
            repaired.restored, repaired.dropped, repaired.orphans_removed,
        );
    }
    text + if result.clean { "result    nothing is wrong" } else { "result    damage was found" }
}

fn show_gc(result: &GcResult) -> String {
    let (evicted, freed) = if result.dry_run { ("would evict", "would free") } else { ("evicted", "freed") };
    format!(
        "{evicted} {} blobs of {}, {freed} {}; {} are under lease and stay",
        result.evicted_blobs,
        show_size(result.evicted_bytes),
        show_size(result.freed_bytes),
        show_size(result.leased_bytes),
    )
}

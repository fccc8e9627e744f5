//! The table: which rows there are, what each must reach, and which of them are asked for.

use crate::execution::Execution;
use crate::nix::Nix;
use crate::works::{
    BatchRead, BatchUpdate, ByteStreamRead, ByteStreamWrite, FindMissing, GetActionResult, Mix, UpdateActionResult,
    Work,
};

/// What a row is measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    /// The product must do at least this share of the reference.
    Share(f64),
    /// The product may take at most so many times what its reference takes.
    Times(f64),
    /// The figure itself must not be above this.
    AtMost(f64),
    /// The figure itself must not be below this.
    AtLeast(f64),
    /// Shown for scale.
    None,
}

/// How a row is measured.
#[derive(Clone, Copy)]
pub(crate) enum Measure {
    /// Calls, beside the floor.
    Work(fn() -> Box<dyn Work>),
    /// Like [`Self::Work`], but its reference is what one core hashes.
    WorkOfOneCore(fn() -> Box<dyn Work>),
    /// The 99th percentile of `get-action-result`.
    HitP99,
    /// Resident memory after the rows before it.
    Memory,
    /// Start with so many blobs stored.
    Start(u64),
    /// The store's index beside an LSM.
    Index,
    /// The scheduler without a server around it.
    Scheduler,
    /// Finding out who presents a token, without a server around it.
    TokenLookup,
    /// Whether the time of a denial tells what is there, by a server of the row's own.
    Denials,
    /// Actions, by servers and workers of the row's own.
    Execution(Execution),
    /// The Nix cache, by servers of the row's own.
    Nix(Nix),
}

/// A row of the table.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// Its stable name.
    pub(crate) name: &'static str,
    /// What is done, for people.
    pub(crate) about: &'static str,
    /// The unit of its figure. Bytes are counted and shown as MB.
    pub(crate) unit: &'static str,
    /// What it must reach.
    pub(crate) limit: Limit,
    /// Whether it is measured when no row is named.
    pub(crate) usual: bool,
    /// How.
    pub(crate) measure: Measure,
}

/// The row that [`Measure::HitP99`] is taken from.
pub(crate) const HIT_ROW: &str = "get-action-result";

const fn work(
    name: &'static str,
    about: &'static str,
    unit: &'static str,
    share: f64,
    work: fn() -> Box<dyn Work>,
) -> Row {
    Row { name, about, unit, limit: Limit::Share(share), usual: true, measure: Measure::Work(work) }
}

const fn execution(
    name: &'static str,
    about: &'static str,
    unit: &'static str,
    limit: Limit,
    execution: Execution,
) -> Row {
    Row { name, about, unit, limit, usual: true, measure: Measure::Execution(execution) }
}

const fn nix(name: &'static str, about: &'static str, unit: &'static str, limit: Limit, nix: Nix) -> Row {
    Row { name, about, unit, limit, usual: true, measure: Measure::Nix(nix) }
}

/// All rows, in the order in which they are measured.
pub(crate) const ROWS: &[Row] = &[
    work("find-missing", "FindMissingBlobs of 100, 90 % present, 16 clients", "calls/s", 0.6, || {
        Box::<FindMissing>::default()
    }),
    work(HIT_ROW, "GetActionResult, hits with 5 outputs, 16 clients", "calls/s", 0.5, || {
        Box::<GetActionResult>::default()
    }),
    Row {
        name: "get-action-result-p99",
        about: "  of these calls the 99th percentile",
        unit: "ms",
        limit: Limit::AtMost(4.0),
        usual: true,
        measure: Measure::HitP99,
    },
    work("update-action-result", "UpdateActionResult, 16 clients", "calls/s", 0.5, || {
        Box::<UpdateActionResult>::default()
    }),
    work("batch-update", "BatchUpdateBlobs, 20 x 4 KiB, 16 clients", "blobs/s", 0.45, || Box::<BatchUpdate>::default()),
    work("batch-read", "BatchReadBlobs, 20 x 4 KiB, 16 clients", "blobs/s", 0.7, || Box::<BatchRead>::default()),
    work("bytestream-write", "ByteStream write, 4 streams of 16 MiB", "MB/s", 0.5, || {
        Box::new(ByteStreamWrite::new(4, 48))
    }),
    Row {
        measure: Measure::WorkOfOneCore(|| Box::new(ByteStreamWrite::new(1, 24))),
        ..work("bytestream-write-one", "  one stream alone, beside a core's SHA-256", "MB/s", 0.6, || {
            Box::new(ByteStreamWrite::new(1, 24))
        })
    },
    work("bytestream-read", "ByteStream read, 4 streams of 16 MiB, warm", "MB/s", 1.0, || {
        Box::<ByteStreamRead>::default()
    }),
    work("mix", "60 % hits, 30 % misses, 10 % of 1-8 MiB, 16 clients", "/s", 0.7, || Box::<Mix>::default()),
    Row {
        name: "memory",
        about: "resident memory after all of that",
        unit: "MiB",
        limit: Limit::AtMost(400.0),
        usual: true,
        measure: Measure::Memory,
    },
    Row {
        name: "scheduler-core",
        about: "the scheduler alone, 10,000 queued, 1,000 workers",
        unit: "/s",
        limit: Limit::AtLeast(200_000.0),
        usual: true,
        measure: Measure::Scheduler,
    },
    Row {
        name: "token-lookup",
        about: "who presents this token, and may they read, 10,000 tokens",
        unit: "µs",
        limit: Limit::AtMost(20.0),
        usual: true,
        measure: Measure::TokenLookup,
    },
    Row {
        name: "denial-timing",
        about: "by how much a denial differs for what is there (95 %)",
        unit: "µs",
        limit: Limit::AtMost(25.0),
        usual: true,
        measure: Measure::Denials,
    },
    execution("execute-trivial", "/bin/true through Execute, uncached, 16 clients", "/s", Limit::Share(0.4), {
        Execution::Trivial
    }),
    execution("execute-latency", "  the same, 1 client: half of the calls", "ms", Limit::AtMost(15.0), {
        Execution::Latency
    }),
    execution("input-root-again", "10,000 inputs in 1,000 folders, one file changed", "ms", Limit::AtMost(30.0), {
        Execution::InputRootAgain
    }),
    execution("input-root-cold", "  the same on a worker that has nothing yet", "s", Limit::AtMost(1.5), {
        Execution::InputRootCold
    }),
    execution("cpp-workspace", "300 C++ compilations by Bazel, beside its own sandbox", "s", Limit::Times(1.25), {
        Execution::CppWorkspace
    }),
    nix("nix-narinfo", "100,000 narinfos, 16 clients, beside nginx", "/s", Limit::Share(0.4), Nix::NarInfo),
    nix("nix-many-files", "an archive of 1 GiB in small files, warm", "MB/s", Limit::AtLeast(500.0), Nix::ManyFiles),
    nix("nix-one-file", "an archive of 1 GiB in one file, beside nginx", "MB/s", Limit::Share(0.5), Nix::OneFile),
    nix(
        "nix-push",
        "a closure of 1 GiB by gf nix push, beside a core's SHA-256",
        "MB/s",
        Limit::Share(0.25),
        Nix::Push,
    ),
    nix("nix-versions", "5 versions of a closure, beside their zstd", "MB", Limit::Times(0.35), Nix::Versions),
    Row {
        name: "start-1m",
        about: "start with 1 million blobs",
        unit: "s",
        limit: Limit::AtMost(1.0),
        usual: true,
        measure: Measure::Start(1_000_000),
    },
    Row {
        name: "start-10m",
        about: "start with 10 million blobs",
        unit: "s",
        limit: Limit::AtMost(1.0),
        usual: false,
        measure: Measure::Start(10_000_000),
    },
    Row {
        name: "index",
        about: "the store's index beside an LSM, 1 million keys",
        unit: "/s",
        limit: Limit::None,
        usual: false,
        measure: Measure::Index,
    },
];

/// The rows named, or the usual ones; `None`, after a word to the user, when a name is unknown.
pub(crate) fn select(names: &[String]) -> Option<Vec<&'static Row>> {
    if let Some(unknown) = names.iter().find(|name| ROWS.iter().all(|row| row.name != name.as_str())) {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        eprintln!("there is no row {unknown}; the rows are {}", known.join(", "));
        return None;
    }
    let asked = |row: &&Row| if names.is_empty() { row.usual } else { names.iter().any(|name| name == row.name) };
    Some(ROWS.iter().filter(asked).collect())
}

/// The rows, for `--help`.
pub(crate) fn help() -> String {
    let line = |row: &Row| format!("  {}{:24}{}", if row.usual { '*' } else { ' ' }, row.name, row.about.trim_start());
    format!("Rows:\n{}", ROWS.iter().map(line).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_selected_in_the_order_of_the_table() {
        for (place, row) in ROWS.iter().enumerate() {
            assert!(ROWS[place + 1..].iter().all(|other| other.name != row.name), "{} twice", row.name);
        }
        let rows = select(&["mix".into(), "find-missing".into()]).unwrap();
        assert_eq!(rows.iter().map(|row| row.name).collect::<Vec<_>>(), ["find-missing", "mix"]);
        assert!(select(&["mixed".into()]).is_none());
        assert!(select(&[]).unwrap().iter().all(|row| row.usual));
    }
}

//! Runs the rows that were asked for: floor and product in alternating rounds, then memory, execution, start-up and index.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::access;
use crate::connection::{Connections, Side};
use crate::data::sha256_bytes_per_second;
use crate::execution::Bench;
use crate::fixture::Fixture;
use crate::load::{Round, as_float, median};
use crate::machine::Machine;
use crate::process::{Paused, Server, processor_time, program};
use crate::report::{Absent, Line, Outcome};
use crate::rows::{HIT_ROW, Limit, Measure, Row};
use crate::start;
use crate::works::{Portion, Work};

/// What to measure.
pub(crate) struct Plan {
    /// The rows, in the order of the table.
    pub(crate) rows: Vec<&'static Row>,
    /// The program, if it is not to be built.
    pub(crate) gf: Option<PathBuf>,
    /// Where data go, if not into a temporary folder.
    pub(crate) data_dir: Option<PathBuf>,
    /// Rounds of each row.
    pub(crate) rounds: usize,
    /// Of a timed round.
    pub(crate) round_length: Duration,
    /// Share of the usual amount that an uploading round moves.
    pub(crate) amount: f64,
}

/// Measures every row of the plan. A row that goes wrong is reported as such and the others go on.
pub(crate) async fn run(plan: &Plan) -> anyhow::Result<Vec<Line>> {
    let folder = match &plan.data_dir {
        Some(data_dir) => {
            std::fs::create_dir_all(data_dir)?;
            TempDir::with_prefix_in("gf-bench-", data_dir)?
        }
        None => TempDir::with_prefix("gf-bench-")?,
    };
    let mut lines = Vec::new();
    let needs_program = |row: &&Row| !matches!(row.measure, Measure::Index | Measure::Scheduler | Measure::TokenLookup);
    let mut gf = PathBuf::new();
    if plan.rows.iter().any(needs_program) {
        gf = program(plan.gf.as_deref()).await?;
        eprintln!("touching memory, measuring this machine …");
        eprintln!("{}", tokio::task::block_in_place(|| Machine::prepare(folder.path()))?);
    }
    if plan.rows.iter().any(|row| is_call(row)) {
        lines.extend(calls(plan, &gf, &folder.path().join("calls")).await?);
    }
    for row in &plan.rows {
        match row.measure {
            Measure::Start(blobs) => {
                eprintln!("{} …", row.name);
                lines.extend(start::measure(row, &gf, &folder.path().join(row.name), blobs).await);
            }
            Measure::Index => lines.extend(index(row, folder.path())),
            Measure::Scheduler => {
                eprintln!("{} …", row.name);
                lines.push(line(row, crate::works::scheduler_core(plan.rounds)));
            }
            Measure::TokenLookup => {
                eprintln!("{} …", row.name);
                lines.push(line(row, access::token_lookup(plan.rounds).await));
            }
            Measure::Denials => {
                eprintln!("{} …", row.name);
                lines.push(line(row, access::denials(&gf, &folder.path().join(row.name)).await));
            }
            Measure::Execution(execution) => {
                eprintln!("{} …", row.name);
                let bench = Bench { gf: &gf, folder: folder.path(), rounds: plan.rounds, amount: plan.amount };
                lines.extend(execution.measure(row, &bench).await);
            }
            Measure::Nix(nix) => {
                eprintln!("{} …", row.name);
                let bench = Bench { gf: &gf, folder: folder.path(), rounds: plan.rounds, amount: plan.amount };
                lines.extend(nix.measure(row, &bench).await);
            }
            _ => {}
        }
    }
    Ok(lines)
}

fn is_call(row: &Row) -> bool {
    !matches!(
        row.measure,
        Measure::Start(_)
            | Measure::Index
            | Measure::Scheduler
            | Measure::TokenLookup
            | Measure::Denials
            | Measure::Execution(_)
            | Measure::Nix(_)
    )
}

async fn calls(plan: &Plan, gf: &Path, data_dir: &Path) -> anyhow::Result<Vec<Line>> {
    let (floor, product) = (Server::floor().await?, Server::product(gf, data_dir).await?);
    let run = Run {
        floor: Connections::open(Side::Floor, &floor.url).await?,
        product: Connections::open(Side::Product, &product.url).await?,
        pids: (floor.pid(), product.pid()),
        plan,
        data_dir,
    };
    let fixture = Fixture::store(&run.product).await.context("fill the product")?;
    let mut lines = Vec::new();
    // The percentile is taken from the rounds of the row before it, which is run for it if need be.
    let mut hits: Option<Result<Compared, String>> = None;
    for row in plan.rows.iter().filter(|row| is_call(row)) {
        eprintln!("{} …", row.name);
        match row.measure {
            Measure::Work(work) | Measure::WorkOfOneCore(work) => {
                let compared = run.row(work(), &fixture, row.measure).await.map_err(|wrong| format!("{wrong:#}"));
                if row.name == HIT_ROW {
                    hits = Some(compared.clone());
                }
                lines.push(line(row, compared.map(|compared| compared.outcome(row))));
            }
            Measure::HitP99 => {
                if hits.is_none() {
                    let work = Box::<crate::works::GetActionResult>::default();
                    hits = Some(run.row(work, &fixture, row.measure).await.map_err(|wrong| format!("{wrong:#}")));
                }
                let compared = hits.clone().unwrap_or_else(|| Err("no rounds".into()));
                lines.push(line(row, compared.map(|compared| compared.p99())));
            }
            Measure::Memory => lines.push(line(row, memory(&product))),
            Measure::Start(_)
            | Measure::Index
            | Measure::Scheduler
            | Measure::TokenLookup
            | Measure::Denials
            | Measure::Execution(_)
            | Measure::Nix(_) => {}
        }
    }
    drop(run);
    floor.kill().await?;
    if let Err(wrong) = product.stop().await {
        let (work, about) = ("stop".into(), "stop after all of that".into());
        lines.push(Line { work, about, unit: "", limit: Limit::None, outcome: Err(wrong.into()) });
    }
    Ok(lines)
}

fn memory(product: &Server) -> anyhow::Result<Outcome> {
    let resident = product.resident()?;
    let note = format!("of it {:.0} MiB not backed by files", mebibytes(resident.anonymous));
    Ok(Outcome { figure: mebibytes(resident.total), note, ..Outcome::default() })
}

/// Both servers, as long as the rows last.
struct Run<'a> {
    floor: Connections,
    product: Connections,
    /// The processes of floor and product.
    pids: (i32, i32),
    plan: &'a Plan,
    data_dir: &'a Path,
}

/// The rounds of one row; those at the same place were run one after the other.
#[derive(Clone)]
struct Compared {
    floor: Vec<Timed>,
    product: Vec<Timed>,
    /// Bytes a second that one core hashed beside each round, where the row asks for it.
    sha256: Vec<f64>,
}

/// A round, and the processor time that it took on either side, in microseconds a unit. Unlike the clock's time it
/// says the same when the machine has other work to do.
#[derive(Clone, Copy)]
struct Timed {
    round: Round,
    server_us: f64,
    load_us: f64,
}

impl Run<'_> {
    async fn row(&self, mut work: Box<dyn Work>, fixture: &Fixture, measure: Measure) -> anyhow::Result<Compared> {
        let mut compared = Compared { floor: Vec::new(), product: Vec::new(), sha256: Vec::new() };
        // Neither side is cold in the first round that counts.
        work.prepare(fixture, Portion { time: self.plan.round_length / 8, amount: self.plan.amount / 8.0 });
        self.round(&*work, &self.floor).await?;
        self.round(&*work, &self.product).await?;
        for number in 0..self.plan.rounds {
            work.prepare(fixture, Portion { time: self.plan.round_length, amount: self.plan.amount });
            if matches!(measure, Measure::WorkOfOneCore(_)) {
                compared.sha256.push(sha256_bytes_per_second());
            }
            // A machine that grows slower or faster while this runs favours neither side.
            if number % 2 == 0 {
                compared.floor.push(self.round(&*work, &self.floor).await?);
                compared.product.push(self.round(&*work, &self.product).await?);
            } else {
                compared.product.push(self.round(&*work, &self.product).await?);
                compared.floor.push(self.round(&*work, &self.floor).await?);
            }
        }
        Ok(compared)
    }

    async fn round(&self, work: &dyn Work, side: &Connections) -> anyhow::Result<Timed> {
        // What an earlier round left to be written must not be charged to this one.
        sync(self.data_dir)?;
        let (server, other) = if side.side == Side::Floor { self.pids } else { (self.pids.1, self.pids.0) };
        // What the product does when nobody asks it for anything must not slow the floor down.
        let _paused = Paused::begin(other)?;
        let load = i32::try_from(std::process::id())?;
        let before = (processor_time(server)?, processor_time(load)?);
        let round = work.round(side).await?;
        let spent = (processor_time(server)? - before.0, processor_time(load)? - before.1);
        if side.side == Side::Product {
            work.verify(side).await?;
        }
        let a_unit = |time: Duration| time.as_secs_f64() * 1e6 / round.units.max(1.0);
        Ok(Timed { round, server_us: a_unit(spent.0), load_us: a_unit(spent.1) })
    }
}

fn sync(data_dir: &Path) -> anyhow::Result<()> {
    rustix::fs::syncfs(std::fs::File::open(data_dir)?).context("write back what is dirty")
}

impl Compared {
    fn outcome(&self, row: &Row) -> Outcome {
        let scale = if row.unit == "MB/s" { 1e-6 } else { 1.0 };
        let speed = |timed: &Timed| timed.round.per_second;
        let reference: Vec<f64> = match row.measure {
            Measure::WorkOfOneCore(_) => self.sha256.clone(),
            _ => self.floor.iter().map(speed).collect(),
        };
        let ratios: Vec<f64> =
            self.product.iter().zip(&reference).map(|(timed, reference)| speed(timed) / reference).collect();
        Outcome {
            figure: middle(&self.product, speed) * scale,
            floor: Some(middle(&self.floor, speed) * scale),
            note: self.note(&ratios, if row.unit == "MB/s" { ("MB", 1e6) } else { ("unit", 1.0) }),
            ratio: Some(median(ratios)),
            latency: Some((latency(&self.product, |round| round.p50), latency(&self.product, |round| round.p99))),
        }
    }

    fn note(&self, ratios: &[f64], (unit, units): (&str, f64)) -> String {
        let [product, floor] = [&self.product, &self.floor].map(|timed| {
            (middle(timed, |timed| timed.server_us) * units, middle(timed, |timed| timed.load_us) * units)
        });
        let mut note = format!(
            "rounds {}; processor us a {unit}: product {:.1} + load {:.1}, floor {:.1} + load {:.1}, by which {:.2}",
            ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" "),
            product.0,
            product.1,
            floor.0,
            floor.1,
            (floor.0 + floor.1) / (product.0 + product.1),
        );
        if !self.sha256.is_empty() {
            note = format!("{note}; a core hashes {:.0} MB/s", median(self.sha256.iter().copied()) * 1e-6);
        }
        note
    }

    fn p99(&self) -> Outcome {
        let p99 = |timed: &[Timed]| latency(timed, |round| round.p99).as_secs_f64() * 1e3;
        Outcome { figure: p99(&self.product), floor: Some(p99(&self.floor)), ..Outcome::default() }
    }
}

fn middle(timed: &[Timed], figure: impl Fn(&Timed) -> f64) -> f64 {
    median(timed.iter().map(figure))
}

fn latency(timed: &[Timed], of: fn(&Round) -> Duration) -> Duration {
    Duration::from_secs_f64(middle(timed, |timed| of(&timed.round).as_secs_f64()))
}

/// The line of a row that has one.
pub(crate) fn line(row: &Row, outcome: Result<Outcome, impl Into<Absent>>) -> Line {
    let outcome = outcome.map_err(Into::into);
    Line { work: row.name.into(), about: row.about.into(), unit: row.unit, limit: row.limit, outcome }
}

/// Bytes in MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    as_float(bytes) / f64::from(1 << 20)
}

#[cfg(feature = "index-comparison")]
fn index(row: &Row, folder: &Path) -> Vec<Line> {
    crate::index::measure(row, folder)
}

#[cfg(not(feature = "index-comparison"))]
fn index(row: &Row, _: &Path) -> Vec<Line> {
    let how = "built without the LSM: run `cargo run --release -p gf-bench --features index-comparison -- index`";
    vec![line(row, Err::<Outcome, String>(how.into()))]
}

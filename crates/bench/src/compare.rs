//! Runs the rows that were asked for: floor and product in alternating rounds, then memory, start-up and index.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;

use crate::connection::{Connections, Side};
use crate::data::sha256_bytes_per_second;
use crate::fixture::Fixture;
use crate::load::{Round, as_float, median};
use crate::process::{Server, program};
use crate::report::{Line, Outcome};
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
    let only_index = plan.rows.iter().all(|row| matches!(row.measure, Measure::Index));
    let gf = if only_index { PathBuf::new() } else { program(plan.gf.as_deref()).await? };
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
            _ => {}
        }
    }
    Ok(lines)
}

fn is_call(row: &Row) -> bool {
    !matches!(row.measure, Measure::Start(_) | Measure::Index)
}

async fn calls(plan: &Plan, gf: &Path, data_dir: &Path) -> anyhow::Result<Vec<Line>> {
    let (floor, product) = (Server::floor().await?, Server::product(gf, data_dir).await?);
    let run = Run {
        floor: Connections::open(Side::Floor, &floor.url).await?,
        product: Connections::open(Side::Product, &product.url).await?,
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
            Measure::Memory => lines.push(line(row, memory(&product).map_err(|wrong| format!("{wrong:#}")))),
            Measure::Start(_) | Measure::Index => {}
        }
    }
    drop(run);
    floor.kill().await?;
    if let Err(wrong) = product.stop().await {
        let (work, about) = ("stop".into(), "stop after all of that".into());
        lines.push(Line { work, about, unit: "", limit: Limit::None, outcome: Err(format!("{wrong:#}")) });
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
    plan: &'a Plan,
    data_dir: &'a Path,
}

/// The rounds of one row; those at the same place were run one after the other.
#[derive(Clone)]
struct Compared {
    floor: Vec<Round>,
    product: Vec<Round>,
    /// Bytes a second that one core hashed beside each round, where the row asks for it.
    sha256: Vec<f64>,
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

    async fn round(&self, work: &dyn Work, side: &Connections) -> anyhow::Result<Round> {
        // What an earlier round left to be written must not be charged to this one.
        sync(self.data_dir)?;
        let round = work.round(side).await?;
        if side.side == Side::Product {
            work.verify(side).await?;
        }
        Ok(round)
    }
}

fn sync(data_dir: &Path) -> anyhow::Result<()> {
    rustix::fs::syncfs(std::fs::File::open(data_dir)?).context("write back what is dirty")
}

impl Compared {
    fn outcome(&self, row: &Row) -> Outcome {
        let scale = if row.unit == "MB/s" { 1e-6 } else { 1.0 };
        let figures = |rounds: &[Round]| median(rounds.iter().map(|round| round.per_second)) * scale;
        let reference: Vec<f64> = match row.measure {
            Measure::WorkOfOneCore(_) => self.sha256.clone(),
            _ => self.floor.iter().map(|round| round.per_second).collect(),
        };
        let ratios: Vec<f64> =
            self.product.iter().zip(&reference).map(|(round, reference)| round.per_second / reference).collect();
        let spread = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" ");
        let mut note =
            format!("rounds {spread}; floor p50 {} p99 {}", self.floor_ms(|r| r.p50), self.floor_ms(|r| r.p99));
        if !self.sha256.is_empty() {
            note = format!("{note}; a core hashes {:.0} MB/s", median(self.sha256.iter().copied()) * 1e-6);
        }
        Outcome {
            figure: figures(&self.product),
            floor: Some(figures(&self.floor)),
            ratio: Some(median(ratios)),
            latency: Some((self.latency(|round| round.p50), self.latency(|round| round.p99))),
            note,
        }
    }

    fn p99(&self) -> Outcome {
        let p99 = |rounds: &[Round]| median(rounds.iter().map(|round| round.p99.as_secs_f64() * 1e3));
        Outcome { figure: p99(&self.product), floor: Some(p99(&self.floor)), ..Outcome::default() }
    }

    fn latency(&self, of: fn(&Round) -> Duration) -> Duration {
        Duration::from_secs_f64(median(self.product.iter().map(|round| of(round).as_secs_f64())))
    }

    fn floor_ms(&self, of: fn(&Round) -> Duration) -> String {
        format!("{:.2} ms", median(self.floor.iter().map(|round| of(round).as_secs_f64())) * 1e3)
    }
}

fn line(row: &Row, outcome: Result<Outcome, String>) -> Line {
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
    vec![line(row, Err(how.into()))]
}

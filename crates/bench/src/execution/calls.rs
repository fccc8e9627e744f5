//! Small actions through Execute: how many a second beside the bare sandbox, and how long one takes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;
use bazel_remote_apis::google::protobuf::Timestamp;
use gf_worker::sandbox::Network;

use super::Bench;
use super::actions::{between, blob_of, execute, fresh, upload_all, wait_for_worker};
use super::sandboxes::per_second;
use crate::compare::line;
use crate::connection::{Connections, Side};
use crate::data::{Blob, Source};
use crate::load::{Length, Round, drive, median};
use crate::process::Server;
use crate::report::{Line, Outcome};
use crate::rows::{Limit, Row};

const CLIENTS: usize = 16;
/// Actions of a round by all clients.
const ACTIONS: usize = 1500;
/// Actions of the client that is alone.
const ACTIONS_ALONE: usize = 300;
/// Of these numbers of sandboxes at one time, the floor has the fastest.
const AT_ONCE: [usize; 3] = [1, 2, 16];
/// What the table asks for beside the share of the floor.
const LEAST_PER_SECOND: f64 = 300.0;

type Moment = fn(&rex::ExecutedActionMetadata) -> Option<&Timestamp>;
/// Its name, its beginning and its end.
type Stage = (&'static str, Moment, Moment);

/// One after the other; each begins where the one before it ended.
const STAGES: [Stage; 6] = [
    ("queue", |of| of.queued_timestamp.as_ref(), |of| of.worker_start_timestamp.as_ref()),
    ("order", |of| of.worker_start_timestamp.as_ref(), |of| of.input_fetch_start_timestamp.as_ref()),
    ("inputs", |of| of.input_fetch_start_timestamp.as_ref(), |of| of.input_fetch_completed_timestamp.as_ref()),
    ("sandbox", |of| of.input_fetch_completed_timestamp.as_ref(), |of| of.execution_start_timestamp.as_ref()),
    ("command", |of| of.execution_start_timestamp.as_ref(), |of| of.execution_completed_timestamp.as_ref()),
    ("outputs", |of| of.execution_completed_timestamp.as_ref(), |of| of.output_upload_completed_timestamp.as_ref()),
];

/// A line for the share of the floor, one for the rate.
pub(super) async fn throughput(row: &Row, bench: &Bench<'_>) -> Vec<Line> {
    match compare(bench).await {
        Ok(outcome) => {
            let rate = Outcome { figure: outcome.figure, ..Outcome::default() };
            let rate = Line {
                work: format!("{}-rate", row.name),
                about: "  the same, whatever the floor".into(),
                unit: row.unit,
                limit: Limit::AtLeast(LEAST_PER_SECOND),
                outcome: Ok(rate),
            };
            vec![line(row, anyhow::Ok(outcome)), rate]
        }
        Err(wrong) => vec![line(row, Err::<Outcome, _>(wrong))],
    }
}

async fn compare(bench: &Bench<'_>) -> anyhow::Result<Outcome> {
    let product = Product::start(bench, "execute-trivial").await?;
    let count = bench.portion(ACTIONS);
    let at_once = Product::fastest_at_once(bench, count.div_ceil(3)).await?;
    product.round(CLIENTS, count.div_ceil(3)).await?;
    let (mut rounds, mut floors, mut in_host_network) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..bench.rounds {
        // A machine that grows slower or faster while this runs favours neither side.
        if number % 2 == 0 {
            floors.push(floor(bench, count, at_once, Network::Loopback).await?);
        }
        rounds.push(product.round(CLIENTS, count).await?);
        if number % 2 == 1 {
            floors.push(floor(bench, count, at_once, Network::Loopback).await?);
        }
        in_host_network.push(floor(bench, count, at_once, Network::Host).await?);
    }
    product.server.stop().await?;
    let share = |floors: &[f64]| {
        let ratios = rounds.iter().zip(floors).map(|(round, floor)| round.per_second / floor);
        ratios.collect::<Vec<_>>()
    };
    let ratios = share(&floors);
    let note = format!(
        "rounds {}; floor: one process, one thread, {at_once} sandboxes at once, each with a network namespace of its \
         own; beside a floor that makes none ({:.0} /s) the ratio is {:.2}",
        ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" "),
        median(in_host_network.iter().copied()),
        median(share(&in_host_network)),
    );
    Ok(Outcome {
        figure: median(rounds.iter().map(|round| round.per_second)),
        floor: Some(median(floors)),
        ratio: Some(median(ratios)),
        latency: Some((middle(&rounds, |round| round.p50), middle(&rounds, |round| round.p99))),
        note,
    })
}

/// Sandboxes a second. The server has nothing to do meanwhile; it is not made to stand still, because it takes a
/// connection whose peer was not heard for half a minute for dead, and its worker with it.
async fn floor(bench: &Bench<'_>, count: usize, at_once: usize, network: Network) -> anyhow::Result<f64> {
    per_second(bench.folder, count, at_once, network).await
}

/// Half of the calls of one client alone, in milliseconds.
pub(super) async fn latency(bench: &Bench<'_>) -> anyhow::Result<Outcome> {
    let product = Product::start(bench, "execute-latency").await?;
    let count = bench.portion(ACTIONS_ALONE);
    product.round(1, count.div_ceil(4)).await?;
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        rounds.push(product.round(1, count).await?);
    }
    let stages = product.stages(count.div_ceil(4)).await?;
    product.server.stop().await?;
    let (p50, p99) = (middle(&rounds, |round| round.p50), middle(&rounds, |round| round.p99));
    let each: Vec<_> = rounds.iter().map(|round| format!("{:.1}", round.p50.as_secs_f64() * 1e3)).collect();
    let note = format!("rounds {}; of it in the worker, in ms: {stages}", each.join(" "));
    Ok(Outcome { figure: p50.as_secs_f64() * 1e3, latency: Some((p50, p99)), note, ..Outcome::default() })
}

fn middle(rounds: &[Round], of: fn(&Round) -> Duration) -> Duration {
    Duration::from_secs_f64(median(rounds.iter().map(|round| of(round).as_secs_f64())))
}

impl Bench<'_> {
    /// The share of `usual`, at least one.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "amounts are small and positive")]
    fn portion(&self, usual: usize) -> usize {
        let usual = crate::load::as_float(u64::try_from(usual).unwrap_or(u64::MAX));
        ((usual * self.amount) as usize).max(1)
    }
}

/// A server with its worker inside, and nothing said to it.
struct Product {
    server: Server,
    connections: Connections,
    empty: Blob,
}

impl Product {
    async fn start(bench: &Bench<'_>, name: &str) -> anyhow::Result<Self> {
        let server = Server::product(bench.gf, &bench.folder.join(name)).await?;
        let connections = Connections::open(Side::Product, &server.url).await?;
        wait_for_worker(&connections.of_caller(0)).await?;
        Ok(Self { server, connections, empty: blob_of(&rex::Directory::default()) })
    }

    /// So many actions that differ in their salt alone. They are uploaded before the clock starts.
    async fn round(&self, clients: usize, count: usize) -> anyhow::Result<Round> {
        let mut source = Source::fresh();
        let made: Vec<_> = (0..count).map(|_| fresh(&mut source, &["/bin/true"], &self.empty.digest)).collect();
        let blobs: Vec<Blob> = made.iter().flat_map(|made| made.blobs.iter().cloned()).collect();
        upload_all(&self.connections.of_caller(0), &blobs).await?;
        let requests: Arc<[_]> = made.into_iter().map(|made| made.request).collect();
        let connections = self.connections.clone();
        let call = move |caller, number: usize| {
            let (connection, requests) = (connections.of_caller(caller), Arc::clone(&requests));
            async move {
                let request = requests.get(number).context("there is no such action")?;
                execute(&connection, Arc::clone(request)).await?;
                Ok(1)
            }
        };
        drive(clients, Length::Calls(count), call).await
    }

    /// Half of the times of each stage, as the worker says them of so many actions.
    async fn stages(&self, count: usize) -> anyhow::Result<String> {
        let connection = self.connections.of_caller(0);
        let mut source = Source::fresh();
        let mut taken: [Vec<f64>; STAGES.len()] = Default::default();
        for _ in 0..count {
            let made = fresh(&mut source, &["/bin/true"], &self.empty.digest);
            upload_all(&connection, &made.blobs).await?;
            let metadata = execute(&connection, made.request).await?.execution_metadata.unwrap_or_default();
            for ((_, from, to), taken) in STAGES.iter().zip(&mut taken) {
                taken
                    .push(between(from(&metadata), to(&metadata)).context("a stage has no times")?.as_secs_f64() * 1e3);
            }
        }
        let stage = |((name, ..), taken): (&Stage, &Vec<f64>)| format!("{name} {:.1}", median(taken.iter().copied()));
        Ok(STAGES.iter().zip(&taken).map(stage).collect::<Vec<_>>().join(", "))
    }

    async fn fastest_at_once(bench: &Bench<'_>, count: usize) -> anyhow::Result<usize> {
        let mut fastest = (0.0, 1);
        for at_once in AT_ONCE {
            let speed = floor(bench, count, at_once, Network::Loopback).await?;
            if speed > fastest.0 {
                fastest = (speed, at_once);
            }
        }
        Ok(fastest.1)
    }
}

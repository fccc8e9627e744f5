//! Many narinfos, asked for by clients that keep their connections, as Nix does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::sync::Mutex;

use super::CACHE;
use super::archive::{Archive, path_hash};
use super::http::Connection;
use super::nginx::{self, Nginx};
use crate::compare::line;
use crate::data::Source;
use crate::execution::Bench;
use crate::load::{Length, Round, drive, median};
use crate::process::Server;
use crate::report::{Absent, Line, Outcome};
use crate::rows::{Limit, Row};

const PATHS: usize = 100_000;
const CLIENTS: usize = 16;
const P99_MS: f64 = 3.0;
const ROUND: Duration = Duration::from_secs(2);
/// No narinfo here is longer.
const MAX_BYTES: usize = 4 << 10;

/// A line for the rate beside nginx, and one for the slowest of a hundred.
pub(super) async fn measure(row: &Row, bench: &Bench<'_>) -> Vec<Line> {
    let compared = compare(bench).await;
    let slowest = compared.as_ref().map(|outcome| {
        let p99 = outcome.latency.map_or(f64::NAN, |(_, p99)| p99.as_secs_f64() * 1e3);
        Outcome { figure: p99, ..Outcome::default() }
    });
    let slowest = Line {
        work: format!("{}-p99", row.name),
        about: "  of these calls the 99th percentile".into(),
        unit: "ms",
        limit: Limit::AtMost(P99_MS),
        outcome: slowest.map_err(Clone::clone),
    };
    vec![line(row, compared), slowest]
}

async fn compare(bench: &Bench<'_>) -> Result<Outcome, Absent> {
    let program = nginx::find()?;
    Ok(beside(bench, &program).await?)
}

async fn beside(bench: &Bench<'_>, program: &Path) -> anyhow::Result<Outcome> {
    let folder = bench.folder.join("narinfo");
    let files = folder.join("files");
    std::fs::create_dir_all(&files)?;
    let server = Server::product(bench.gf, &folder.join("data")).await?;
    let hashes = Arc::new(publish(&server, amount(bench)).await.context("publish")?);
    copy(&server, &hashes, &files).await.context("copy for nginx")?;
    let nginx = Nginx::start(program, &folder.join("nginx"), &files).await?;
    let ours = Clients::open(&format!("{}{CACHE}", server.url)).await?;
    let theirs = Clients::open(&nginx.url).await?;
    let (mut product, mut floor) = (Vec::new(), Vec::new());
    ours.round(&hashes, Length::Calls(hashes.len())).await?;
    theirs.round(&hashes, Length::Calls(hashes.len())).await?;
    for _ in 0..bench.rounds {
        floor.push(theirs.round(&hashes, Length::Time(ROUND)).await?);
        product.push(ours.round(&hashes, Length::Time(ROUND)).await?);
    }
    nginx.stop().await?;
    server.stop().await?;
    Ok(outcome(&product, &floor))
}

fn amount(bench: &Bench<'_>) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a size")]
    let paths = (PATHS as f64 * bench.amount) as usize;
    paths.max(100)
}

fn outcome(product: &[Round], floor: &[Round]) -> Outcome {
    let ratios: Vec<f64> =
        product.iter().zip(floor).map(|(product, floor)| product.per_second / floor.per_second).collect();
    let note = format!(
        "rounds {}; nginx p99 {:.2} ms",
        ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" "),
        median(floor.iter().map(|round| round.p99.as_secs_f64() * 1e3)),
    );
    let middle = |of: fn(&Round) -> Duration| {
        Duration::from_secs_f64(median(product.iter().map(|round| of(round).as_secs_f64())))
    };
    Outcome {
        figure: median(product.iter().map(|round| round.per_second)),
        floor: Some(median(floor.iter().map(|round| round.per_second))),
        ratio: Some(median(ratios)),
        latency: Some((middle(|round| round.p50), middle(|round| round.p99))),
        note,
    }
}

/// Publishes so many paths that are all the same small archive. Their hashes.
async fn publish(server: &Server, paths: usize) -> anyhow::Result<Vec<String>> {
    let mut source = Source::fresh();
    let archive = Arc::new(Archive::of_file(&source.blob(1000).bytes));
    let hashes: Arc<Vec<String>> = Arc::new((0..paths).map(|_| path_hash(&mut source)).collect());
    let clients = Clients::open(&format!("{}{CACHE}", server.url)).await?;
    let path = format!("{}/{}", clients.prefix, archive.url());
    clients.connections[0].lock().await.put(&path, &archive.bytes).await?;
    let (all, given) = (clients.clone(), Arc::clone(&hashes));
    let call = move |client: usize, number: usize| {
        let (all, hashes, archive) = (all.clone(), Arc::clone(&given), Arc::clone(&archive));
        async move {
            let hash = &hashes[number];
            let mut connection = all.connections[client].lock().await;
            connection.put(&format!("{}/{hash}.narinfo", all.prefix), archive.narinfo(hash).as_bytes()).await?;
            Ok(1)
        }
    };
    drive(CLIENTS, Length::Calls(paths), call).await?;
    Ok(Arc::unwrap_or_clone(hashes))
}

/// The same bytes as files.
async fn copy(server: &Server, hashes: &[String], files: &Path) -> anyhow::Result<()> {
    let mut connection = Connection::open(&server.url).await?;
    for hash in hashes {
        let answer = connection.get(&format!("{CACHE}/{hash}.narinfo"), MAX_BYTES).await?;
        ensure!(answer.status == 200 && !answer.body.is_empty(), "{hash}: {}", answer.status);
        ensure!(String::from_utf8_lossy(&answer.body).contains("\nSig: "), "{hash} is not signed");
        std::fs::write(files.join(format!("{hash}.narinfo")), &answer.body)?;
    }
    Ok(())
}

/// Connections that are kept, one for each client.
#[derive(Clone)]
struct Clients {
    connections: Arc<Vec<Mutex<Connection>>>,
    /// What stands before the name of a narinfo.
    prefix: Arc<str>,
}

impl Clients {
    /// Of `http://ADDRESS:PORT` and what follows.
    async fn open(url: &str) -> anyhow::Result<Self> {
        let end = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
        let (server, prefix) = url.split_at(end);
        let mut connections = Vec::new();
        for _ in 0..CLIENTS {
            connections.push(Mutex::new(Connection::open(server).await?));
        }
        Ok(Self { connections: Arc::new(connections), prefix: prefix.into() })
    }

    /// Asks for one after the other.
    async fn round(&self, hashes: &Arc<Vec<String>>, length: Length) -> anyhow::Result<Round> {
        let (all, hashes) = (self.clone(), Arc::clone(hashes));
        let call = move |client: usize, number: usize| {
            let (all, hashes) = (all.clone(), Arc::clone(&hashes));
            async move {
                // A step that is prime to the number of paths: none is asked for twice in a row.
                let hash = &hashes[number.wrapping_mul(7919) % hashes.len()];
                let path = format!("{}/{hash}.narinfo", all.prefix);
                let answer = all.connections[client].lock().await.get(&path, MAX_BYTES).await?;
                ensure!(answer.status == 200 && answer.body.len() > 100, "{path}: {}", answer.status);
                Ok(1)
            }
        };
        drive(CLIENTS, length, call).await
    }
}

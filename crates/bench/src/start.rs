//! How fast a server with many blobs is ready, after a stop and after a kill, and what memory each blob takes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use bazel_remote_apis::build::bazel::remote::execution::v2 as rex;

use crate::compare::mebibytes;
use crate::connection::{Connections, Side};
use crate::data::{Blob, Source};
use crate::fixture::{batch_request, check_present, check_small, upload_batch};
use crate::load::{Length, as_float, drive, median};
use crate::process::{Resident, Server};
use crate::report::{Line, Outcome};
use crate::rows::{Limit, Row};

/// Callers that fill the store and ask about it.
const CALLERS: usize = 8;
/// Blobs in one batch.
const BATCH: u64 = 1000;
/// Bytes of a blob: what a small header or a stamp file has.
const BLOB_BYTES: usize = 100;
/// Memory that a blob may take.
const BYTES_PER_BLOB: f64 = 100.0;
const RESTARTS: usize = 3;

/// Lines for a start after a stop, for one after a kill, and for the memory of a blob.
pub(crate) async fn measure(row: &Row, gf: &Path, data_dir: &Path, blobs: u64) -> Vec<Line> {
    let line = |suffix: &str, about: String, unit, limit, outcome| Line {
        work: format!("{}{suffix}", row.name),
        about,
        unit,
        limit,
        outcome,
    };
    let found = match run(gf, data_dir, blobs).await {
        Ok(found) => found,
        Err(wrong) => return vec![line("", row.about.into(), row.unit, row.limit, Err(wrong.into()))],
    };
    let each = |figure: f64, note: String| Ok(Outcome { figure, note, ..Outcome::default() });
    let starts: Vec<String> = found.starts.iter().map(|start| format!("{:.3}", start.as_secs_f64())).collect();
    let stored = format!("starts {}; stored at {:.0} blobs/s", starts.join(" "), found.stored_per_second);
    let memory = format!(
        "empty {:.0} MiB; after start {:.0}; after every blob was asked about {:.0}, of it {:.0} not backed by files",
        mebibytes(found.empty.total),
        mebibytes(found.ready.total),
        mebibytes(found.asked.total),
        mebibytes(found.asked.anonymous),
    );
    let per_blob = as_float(found.asked.total.saturating_sub(found.empty.total)) / as_float(blobs);
    vec![
        line("", row.about.into(), row.unit, row.limit, each(median(seconds(&found.starts)), stored)),
        line("-killed", "  the same after kill -9".into(), row.unit, Limit::None, {
            each(found.after_kill.as_secs_f64(), String::new())
        }),
        line("-memory", "  memory of a blob".into(), "bytes", Limit::AtMost(BYTES_PER_BLOB), each(per_blob, memory)),
    ]
}

struct Found {
    stored_per_second: f64,
    starts: Vec<Duration>,
    after_kill: Duration,
    empty: Resident,
    ready: Resident,
    asked: Resident,
}

fn seconds(times: &[Duration]) -> impl Iterator<Item = f64> {
    times.iter().map(Duration::as_secs_f64)
}

async fn run(gf: &Path, data_dir: &Path, blobs: u64) -> anyhow::Result<Found> {
    let server = Server::product(gf, data_dir).await?;
    let empty = server.resident()?;
    let stored = Stored { seed: Source::fresh().seed(), batches: usize::try_from(blobs / BATCH)? };
    let stored_per_second = stored.fill(&server).await.context("fill the store")?;
    server.stop().await.context("stop the full server")?;
    let mut starts = Vec::new();
    let mut server = Server::product(gf, data_dir).await?;
    starts.push(server.started_in);
    for _ in 1..RESTARTS {
        server.stop().await.context("stop the restarted server")?;
        server = Server::product(gf, data_dir).await?;
        starts.push(server.started_in);
    }
    let ready = server.resident()?;
    stored.check(&server, 1).await.context("after a restart")?;
    let asked = server.resident()?;
    server.kill().await?;
    let server = Server::product(gf, data_dir).await?;
    let after_kill = server.started_in;
    stored.check(&server, 10).await.context("after a kill")?;
    server.stop().await?;
    Ok(Found { stored_per_second, starts, after_kill, empty, ready, asked })
}

/// Blobs that are made anew from a seed whenever they are needed, so that ten million fit.
#[derive(Clone, Copy)]
struct Stored {
    seed: u64,
    batches: usize,
}

impl Stored {
    fn batch(self, number: usize) -> Vec<Blob> {
        let mut source = Source::seeded(self.seed.wrapping_add(u64::try_from(number).unwrap_or(u64::MAX)));
        (0..BATCH).map(|_| source.blob(BLOB_BYTES)).collect()
    }

    fn digests(self, number: usize) -> Vec<rex::Digest> {
        self.batch(number).into_iter().map(|blob| blob.digest).collect()
    }

    async fn fill(self, server: &Server) -> anyhow::Result<f64> {
        let connections = Connections::open(Side::Product, &server.url).await?;
        let call = move |caller, number| {
            let connection = connections.of_caller(caller);
            async move { upload_batch(&connection, Arc::new(batch_request(&self.batch(number)))).await }
        };
        Ok(drive(CALLERS, Length::Calls(self.batches), call).await?.per_second)
    }

    /// Asks about the blobs of every `step`th batch, and reads some back.
    async fn check(self, server: &Server, step: usize) -> anyhow::Result<()> {
        let connections = Connections::open(Side::Product, &server.url).await?;
        let call = move |caller, number: usize| {
            let connection = connections.of_caller(caller);
            async move {
                let digests = self.digests(number * step);
                let some: Vec<_> = digests.iter().step_by(97).cloned().collect();
                check_present(&connection, digests).await?;
                check_small(&connection, some).await?;
                Ok(1)
            }
        };
        let asked = drive(CALLERS, Length::Calls(self.batches.div_ceil(step)), call).await?;
        ensure!(asked.per_second > 0.0, "nothing was asked");
        Ok(())
    }
}

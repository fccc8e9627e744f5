//! Archives of a GiB, put together again for one client.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::CACHE;
use super::archive::{Archive, path_hash};
use super::http::Connection;
use super::nginx::{self, Nginx};
use crate::data::Source;
use crate::execution::Bench;
use crate::load::{as_float, median};
use crate::process::Server;
use crate::report::{Absent, Outcome};

const BYTES: f64 = (1 << 30) as f64;
/// Of a file in an archive of many: what a source file or a header has.
const FILE_BYTES: usize = 16 << 10;
const FILES_OF_A_FOLDER: usize = 64;

/// MB a second of an archive of many small files.
pub(super) async fn many_files(bench: &Bench<'_>) -> anyhow::Result<Outcome> {
    let mut source = Source::fresh();
    let folders = size(bench) / (FILE_BYTES * FILES_OF_A_FOLDER);
    let folder = |source: &mut Source| (0..FILES_OF_A_FOLDER).map(|_| source.blob(FILE_BYTES).bytes).collect();
    let archive = Archive::of_folders(&(0..folders.max(1)).map(|_| folder(&mut source)).collect::<Vec<_>>());
    let server = Server::product(bench.gf, &bench.folder.join("many-files")).await?;
    let put = publish(&server, &archive, &mut source).await?;
    let mut rounds = Vec::new();
    // Read once before, so that it is warm.
    for round in 0..=bench.rounds {
        let took = read(&format!("{}{CACHE}/{}", server.url, archive.url()), &archive).await?;
        rounds.extend((round > 0).then(|| speed(&archive, took)));
    }
    server.stop().await?;
    let note = format!("{} files; put at {:.0} MB/s", folders * FILES_OF_A_FOLDER, speed(&archive, put));
    Ok(Outcome { figure: median(rounds), note, ..Outcome::default() })
}

/// MB a second of an archive of one file, beside nginx.
pub(super) async fn one_file(bench: &Bench<'_>) -> Result<Outcome, Absent> {
    let program = nginx::find()?;
    Ok(beside(bench, &program).await?)
}

async fn beside(bench: &Bench<'_>, program: &Path) -> anyhow::Result<Outcome> {
    let mut source = Source::fresh();
    let archive = Archive::of_file(&source.blob(size(bench)).bytes);
    let folder = bench.folder.join("one-file");
    let files = folder.join("files");
    std::fs::create_dir_all(files.join("nar"))?;
    std::fs::write(files.join(archive.url()), &archive.bytes)?;
    let server = Server::product(bench.gf, &folder.join("data")).await?;
    let put = publish(&server, &archive, &mut source).await?;
    let nginx = Nginx::start(program, &folder.join("nginx"), &files).await?;
    let (mut product, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=bench.rounds {
        let theirs = read(&format!("{}/{}", nginx.url, archive.url()), &archive).await?;
        let ours = read(&format!("{}{CACHE}/{}", server.url, archive.url()), &archive).await?;
        if round > 0 {
            floor.push(speed(&archive, theirs));
            product.push(speed(&archive, ours));
        }
    }
    nginx.stop().await?;
    server.stop().await?;
    let ratios: Vec<f64> = product.iter().zip(&floor).map(|(product, floor)| product / floor).collect();
    let shown = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect::<Vec<_>>().join(" ");
    let note = format!("rounds {shown}; put at {:.0} MB/s", speed(&archive, put));
    let (figure, floor) = (median(product), Some(median(floor)));
    Ok(Outcome { figure, floor, ratio: Some(median(ratios)), note, ..Outcome::default() })
}

fn size(bench: &Bench<'_>) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
    let size = (BYTES * bench.amount) as usize;
    size.max(1 << 20)
}

fn speed(archive: &Archive, took: Duration) -> f64 {
    as_float(archive.bytes.len() as u64) / took.as_secs_f64() / 1e6
}

/// Puts the archive and a path that is it. How long the archive took.
async fn publish(server: &Server, archive: &Archive, source: &mut Source) -> anyhow::Result<Duration> {
    let mut connection = Connection::open(&server.url).await?;
    let begun = Instant::now();
    connection.put(&format!("{CACHE}/{}", archive.url()), &archive.bytes).await?;
    let took = begun.elapsed();
    let hash = path_hash(source);
    connection.put(&format!("{CACHE}/{hash}.narinfo"), archive.narinfo(&hash).as_bytes()).await?;
    Ok(took)
}

/// How long reading it takes; all of it must come, and its first and last bytes are looked at.
async fn read(url: &str, archive: &Archive) -> anyhow::Result<Duration> {
    let end = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
    let (server, path) = url.split_at(end);
    let mut connection = Connection::open(server).await?;
    let begun = Instant::now();
    let answer = connection.get(path, 4096).await?;
    let took = begun.elapsed();
    ensure!(answer.status == 200, "{path}: {}", answer.status);
    ensure!(answer.length == archive.bytes.len() as u64, "{path} has {} bytes", answer.length);
    ensure!(archive.bytes.starts_with(&answer.body), "{path} begins with other bytes");
    Ok(took)
}

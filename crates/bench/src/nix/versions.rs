//! Versions of a closure, as updates make them: every path has a new name, and few files are other ones.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::CACHE;
use super::archive::{Archive, path_hash};
use super::http::Connection;
use crate::data::Source;
use crate::execution::Bench;
use crate::load::as_float;
use crate::process::Server;
use crate::report::Outcome;

const VERSIONS: usize = 5;
const PATHS: usize = 20;
const FILES: usize = 400;
const FILE_BYTES: usize = 25 << 10;
/// One file of so many is another one in the next version.
const CHANGED: usize = 20;
const WORDS: usize = 4000;
/// What `zstd` and Nix choose.
const LEVEL: i32 = 3;
/// The store rests when nothing changed for so long.
const REST: Duration = Duration::from_secs(10);
const REST_LIMIT: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the store takes, as a share of all archives compressed one by one.
pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Outcome> {
    let server = Server::product(bench.gf, &bench.folder.join("versions")).await?;
    let mut connection = Connection::open(&server.url).await?;
    let before = used_bytes(&mut connection).await?;
    let mut source = Source::fresh();
    let words: Vec<Vec<u8>> = (0..WORDS).map(|_| word(&mut source)).collect();
    let mut paths: Vec<Vec<Vec<u8>>> =
        (0..PATHS).map(|_| (0..FILES).map(|_| text(&mut source, &words)).collect()).collect();
    let (mut plain, mut compressed) = (0, 0);
    for version in 0..VERSIONS {
        for files in &mut paths {
            for file in files.iter_mut().filter(|_| version > 0) {
                if source.below(CHANGED) == 0 {
                    *file = text(&mut source, &words);
                }
            }
            let folders: Vec<Vec<Vec<u8>>> = files.chunks(40).map(<[Vec<u8>]>::to_vec).collect();
            let archive = Archive::of_folders(&folders);
            plain += archive.bytes.len();
            compressed += zstd::bulk::compress(&archive.bytes, LEVEL)?.len();
            connection.put(&format!("{CACHE}/{}", archive.url()), &archive.bytes).await?;
            let hash = path_hash(&mut source);
            connection.put(&format!("{CACHE}/{hash}.narinfo"), archive.narinfo(&hash).as_bytes()).await?;
        }
    }
    let at_once = used_bytes(&mut connection).await? - before;
    let stored = used_at_rest(&mut connection).await? - before;
    server.stop().await?;
    ensure!(stored > 0, "nothing was stored");
    let megabytes = |bytes: u64| as_float(bytes) / 1e6;
    let (stored, compressed) = (megabytes(stored), megabytes(compressed as u64));
    let note = format!(
        "{:.0} MB of archives, which are {compressed:.0} MB in zstd; {:.0} MB before they rested",
        megabytes(plain as u64),
        megabytes(at_once),
    );
    Ok(Outcome {
        figure: stored,
        floor: Some(compressed),
        ratio: Some(stored / compressed),
        note,
        ..Outcome::default()
    })
}

/// What is used once that has not changed for a while: the store compresses what rests.
async fn used_at_rest(connection: &mut Connection) -> anyhow::Result<u64> {
    let (begun, mut since) = (Instant::now(), Instant::now());
    let mut used = used_bytes(connection).await?;
    while since.elapsed() < REST {
        ensure!(begun.elapsed() < REST_LIMIT, "the store does not come to rest");
        sleep(LOOK_EVERY).await;
        let now = used_bytes(connection).await?;
        if now != used {
            (used, since) = (now, Instant::now());
        }
    }
    Ok(used)
}

async fn used_bytes(connection: &mut Connection) -> anyhow::Result<u64> {
    let answer = connection.get("/api/v1/store/stats", 64 << 10).await?;
    let stats: serde_json::Value = serde_json::from_slice(&answer.body)?;
    stats["used_bytes"].as_u64().context("the store does not say what it holds")
}

/// Between two and nine letters.
fn word(source: &mut Source) -> Vec<u8> {
    let length = 2 + source.below(8);
    source.key()[..length].iter().map(|byte| b'a' + byte % 26).chain([b' ']).collect()
}

/// Words, the first ones of the list far more often, as in text and in code.
fn text(source: &mut Source, words: &[Vec<u8>]) -> Vec<u8> {
    let mut text = Vec::with_capacity(FILE_BYTES + 16);
    while text.len() < FILE_BYTES {
        let most = 1 + source.below(words.len());
        text.extend_from_slice(&words[source.below(most)]);
    }
    text
}

//! A closure of a GiB, pushed by `nix copy` and by `gf nix push`.

use std::path::Path;
use std::time::Duration;

use super::CACHE;
use super::closure::{Closure, place};
use super::nginx::{self, Nginx};
use crate::data::sha256_bytes_per_second;
use crate::execution::Bench;
use crate::load::{as_float, median};
use crate::process::Server;
use crate::report::{Absent, Line, Outcome};
use crate::rows::{Limit, Row};

const PATHS: usize = 200;
const BYTES_A_PATH: f64 = 5.24e6;
const MOST_ROUNDS: usize = 3;
const LEAST_MB: f64 = 250.0;
const MOST_TIMES: f64 = 1.3;

/// How often a client pushes, and how fast.
struct Pushed {
    bytes: u64,
    /// MB a second that a core hashed beside each round.
    sha256: Vec<f64>,
    folder: Vec<Duration>,
    /// To nginx, which writes what is put to files; none where it is not here.
    nginx: Vec<Duration>,
    nix: Vec<Duration>,
    own: Vec<Duration>,
}

/// Lines for both clients beside a core's SHA-256 and as they are, and one for `nix copy` beside a plain folder.
pub(super) async fn measure(row: &Row, bench: &Bench<'_>) -> Vec<Line> {
    let pushed = push(bench).await;
    let line = |suffix: &str, about: &str, unit, limit, outcome: Result<Outcome, Absent>| Line {
        work: format!("{}{suffix}", row.name),
        about: about.into(),
        unit,
        limit,
        outcome,
    };
    let of = |outcome: fn(&Pushed) -> Outcome| pushed.as_ref().map(outcome).map_err(Clone::clone);
    vec![
        line("", row.about, row.unit, row.limit, of(|pushed| pushed.beside_sha256(&pushed.own))),
        line("-rate", "  the same, whatever a core hashes", row.unit, Limit::AtLeast(LEAST_MB), {
            of(|pushed| pushed.as_it_is(&pushed.own))
        }),
        line("-by-nix", "  by nix copy", row.unit, row.limit, of(|pushed| pushed.beside_sha256(&pushed.nix))),
        line("-by-nix-rate", "  by nix copy, whatever a core hashes", row.unit, Limit::AtLeast(LEAST_MB), {
            of(|pushed| pushed.as_it_is(&pushed.nix))
        }),
        line("-by-nix-folder", "  by nix copy, beside nix copy to a plain folder", "s", Limit::Times(MOST_TIMES), {
            of(Pushed::beside_a_folder)
        }),
    ]
}

async fn push(bench: &Bench<'_>) -> Result<Pushed, Absent> {
    let place = place()?;
    Ok(rounds(bench, &place).await?)
}

async fn rounds(bench: &Bench<'_>, place: &gf_tests::Place) -> anyhow::Result<Pushed> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
    let bytes = (BYTES_A_PATH * bench.amount) as usize;
    let closure = tokio::task::block_in_place(|| Closure::make(place, PATHS, bytes))?;
    let program = nginx::find().ok();
    let (mut folder, mut nginx, mut nix, mut own) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut sha256 = Vec::new();
    for round in 0..bench.rounds.min(MOST_ROUNDS) {
        sha256.push(sha256_bytes_per_second() / 1e6);
        let plain = closure.empty_folder("plain")?;
        let plain = format!("file://{plain}?compression=none");
        folder.push(tokio::task::block_in_place(|| closure.copy_to(&plain))?);
        if let Some(program) = &program {
            nginx.push(copy_to_nginx(program, bench, &closure, round).await?);
        }
        let server = Server::product(bench.gf, &bench.folder.join(format!("push-nix-{round}"))).await?;
        let store = format!("{}{CACHE}?compression=none", server.url);
        nix.push(tokio::task::block_in_place(|| closure.copy_to(&store))?);
        server.stop().await?;
        let server = Server::product(bench.gf, &bench.folder.join(format!("push-gf-{round}"))).await?;
        let arguments = ["nix", "push", "--server", &server.url, "main", &closure.top];
        own.push(tokio::task::block_in_place(|| closure.run(bench.gf, &arguments))?);
        server.stop().await?;
    }
    Ok(Pushed { bytes: closure.bytes, sha256, folder, nginx, nix, own })
}

/// What `nix copy` takes for a server that neither hashes nor checks, and that waits for no disk.
async fn copy_to_nginx(
    program: &Path,
    bench: &Bench<'_>,
    closure: &Closure<'_>,
    round: usize,
) -> anyhow::Result<Duration> {
    let folder = bench.folder.join(format!("push-nginx-{round}"));
    let files = folder.join("files");
    std::fs::create_dir_all(&files)?;
    std::fs::write(files.join("nix-cache-info"), "StoreDir: /nix/store\n")?;
    let nginx = Nginx::start(program, &folder, &files).await?;
    let store = format!("{}?compression=none", nginx.url);
    let took = tokio::task::block_in_place(|| closure.copy_to(&store))?;
    nginx.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    Ok(took)
}

impl Pushed {
    fn speeds(&self, times: &[Duration]) -> Vec<f64> {
        times.iter().map(|time| as_float(self.bytes) / time.as_secs_f64() / 1e6).collect()
    }

    fn as_it_is(&self, times: &[Duration]) -> Outcome {
        Outcome { figure: median(self.speeds(times)), ..Outcome::default() }
    }

    fn beside_sha256(&self, times: &[Duration]) -> Outcome {
        let speeds = self.speeds(times);
        let ratios = speeds.iter().zip(&self.sha256).map(|(speed, sha256)| speed / sha256);
        let (ratio, figure, floor) = (Some(median(ratios)), median(speeds.clone()), Some(median(self.sha256.clone())));
        Outcome { figure, floor, ratio, ..Outcome::default() }
    }

    fn beside_a_folder(&self) -> Outcome {
        let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        let (nix, folder) = (seconds(&self.nix), seconds(&self.folder));
        let ratio = Some(median(nix.iter().zip(&folder).map(|(nix, folder)| nix / folder)));
        let note = match self.nginx.as_slice() {
            [] => String::new(),
            nginx => format!("to nginx, which only writes files: {:.2} s", median(seconds(nginx))),
        };
        Outcome { figure: median(nix), floor: Some(median(folder)), ratio, note, ..Outcome::default() }
    }
}

//! `gf-bench`: how fast `gf serve` is, beside the floor of the same run.
//!
//! The floor is a plain in-memory tonic server with generated stubs that hashes, checks and stores nothing. Machines
//! differ by 2-5x, so a figure counts only as a share of the floor, measured in alternating rounds with the same
//! load, on the same connections, from the same client. Floor, product and load are three processes.
//!
//! It does not look inside the product: what it knows, it knows through the public edge and `/proc`. Every answer is
//! checked; a wrong answer fails its row whatever its speed. The rows `index`, `scheduler-core` and `token-lookup` are the
//! exceptions: they measure a part of the product alone. The floor of `execute-trivial` is another: it makes the product's sandboxes
//! without the product.

mod access;
mod compare;
mod connection;
mod data;
mod execution;
mod fixture;
mod floor;
#[cfg(feature = "index-comparison")]
mod index;
mod load;
mod machine;
mod nix;
mod process;
mod report;
mod rows;
mod start;
mod works;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Measures `gf serve` beside the floor of the same run. Exits 1 when a row is under its limit or an answer is wrong.
#[derive(Parser)]
#[command(name = "gf-bench", args_conflicts_with_subcommands = true, after_help = rows::help())]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The rows to measure; without names, all those marked with `*`.
    rows: Vec<String>,
    /// Also write one JSON object a line into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The `gf` program to measure; by default a release build of this workspace.
    #[arg(long, value_name = "PATH")]
    gf: Option<PathBuf>,
    /// Where the product keeps its data while it is measured; by default a temporary folder.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Rounds of each row; the median round counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// Seconds of a timed round; rows that upload move a fixed amount in each round instead.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The amount that rows which upload move in a round, as a share of the usual.
    #[arg(long, default_value_t = 1.0)]
    amount: f64,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the floor, until it is killed.
    Floor {
        /// Where to listen; port 0 takes a free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Makes sandboxes for /bin/true, one after the other or some at once, and says how many seconds that took.
    #[command(hide = true)]
    Sandboxes(execution::sandboxes::Sandboxes),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gf-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(Command::Sandboxes(sandboxes)) = &arguments.command {
        // Before there is a second thread.
        sandboxes.run()?;
        return Ok(ExitCode::SUCCESS);
    }
    // Two workers on both sides: the load and the server under it share the machine in the same way.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(Command::Floor { listen }) = arguments.command {
        runtime.block_on(floor::listen(listen))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(rows) = rows::select(&arguments.rows) else {
        return Ok(ExitCode::from(2));
    };
    let plan = compare::Plan {
        rows,
        gf: arguments.gf,
        data_dir: arguments.data_dir,
        rounds: arguments.rounds.into(),
        round_length: Duration::try_from_secs_f64(arguments.seconds.clamp(0.05, 600.0))?,
        amount: arguments.amount.clamp(0.001, 100.0),
    };
    let lines = runtime.block_on(compare::run(&plan))?;
    report::print(&lines);
    if let Some(path) = arguments.json {
        report::write_json(&path, &lines)?;
    }
    Ok(if lines.iter().all(report::Line::passes) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

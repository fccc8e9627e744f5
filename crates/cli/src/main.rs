//! `gf`: the server, and the commands that people run against it.
//!
//! `main` parses, runs one command and turns its end into an exit code: 0 done, 1 failed, 2 wrong usage, 3 the thing
//! asked about is not so. Deliberately absent: everything that another front end would need too; that is below.

mod args;
mod client;
mod config_command;
mod execution_command;
mod failure;
mod nix;
mod output;
mod serve;
mod status_command;
mod store_command;
mod table;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, ConfigCommand};

fn main() -> ExitCode {
    // Before there is a second thread, and before anybody reads the command line.
    if let Some(ended) = gf_worker::sandbox::run_if_launcher() {
        return ended;
    }
    let result = match Args::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Status(args) => status_command::run(args),
        Command::Workers(args) => execution_command::workers(args),
        Command::Queue(args) => execution_command::queue(args),
        Command::Why(args) => execution_command::why(args),
        Command::Store { command } => store_command::run(command),
        Command::Nix { command } => nix::run(command),
        Command::Config { command: ConfigCommand::Check(args) } => config_command::check(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

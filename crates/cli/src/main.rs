//! `gf`: the server, and the commands that people run against it.
//!
//! `main` parses, runs one command and turns its end into an exit code: 0 done, 1 failed, 2 wrong usage, 3 the thing
//! asked about is not so. Deliberately absent: everything that another front end would need too; that is below.

mod ac_command;
mod access_command;
mod args;
mod audit_command;
mod client;
mod config_command;
mod credential_helper;
mod execution_command;
mod facts_command;
mod failure;
mod init_command;
mod login_command;
mod logins;
mod nix;
mod output;
mod serve;
mod status_command;
mod store_command;
mod table;
mod token_command;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command, ConfigCommand};

fn main() -> ExitCode {
    // Before there is a second thread, and before anybody reads the command line.
    if let Some(ended) = gf_worker::sandbox::run_if_launcher() {
        return ended;
    }
    let result = match Args::parse_from(args::by_name(std::env::args_os())).command {
        Command::Serve(args) => serve::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Status(args) => status_command::run(args),
        Command::Workers(args) => execution_command::workers(args),
        Command::Queue(args) => execution_command::queue(args),
        Command::Why(args) => execution_command::why(args),
        Command::Ac { command } => ac_command::run(command),
        Command::Store { command } => store_command::run(command),
        Command::Nix { command } => nix::run(command),
        Command::CredentialHelper { command } => credential_helper::run(command),
        Command::Init(args) => init_command::run(args),
        Command::Login(args) => login_command::run(args),
        Command::Whoami(args) => access_command::who_am_i(args),
        Command::Token { command } => token_command::run(command),
        Command::Access { command } => access_command::run(command),
        Command::Audit(args) => audit_command::run(args),
        Command::Backup(args) => facts_command::back_up(args),
        Command::Restore(args) => facts_command::restore(args),
        Command::Config { command: ConfigCommand::Check(args) } => config_command::check(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

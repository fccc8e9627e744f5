//! `gf nix`: the Nix binary caches of a server, from a machine that has Nix.
//!
//! What Nix knows of its store is asked of Nix; archives are made here. Deliberately absent: changing the store of this
//! machine, which is Nix's own business.

mod archive;
mod cache;
mod configuration;
mod folder;
mod local_store;
mod memory;
mod pins;
mod push;
mod remote;
mod upkeep;
mod watch;
mod why;

use crate::args::{CacheCommand, NixCommand, PinCommand};
use crate::failure::Failure;

pub(crate) fn run(command: NixCommand) -> Result<(), Failure> {
    match command {
        NixCommand::Cache { command: CacheCommand::Create(args) } => cache::create(args),
        NixCommand::Cache { command: CacheCommand::List(args) } => cache::list(args),
        NixCommand::Cache { command: CacheCommand::Show(args) } => cache::show(args),
        NixCommand::Cache { command: CacheCommand::Set(args) } => cache::set(args),
        NixCommand::Cache { command: CacheCommand::Use(args) } => configuration::use_cache(args),
        NixCommand::Push(args) => push::run(args),
        NixCommand::WatchStore(args) => watch::run(args),
        NixCommand::Pin { command: PinCommand::Set(args) } => pins::set(args),
        NixCommand::Pin { command: PinCommand::List(args) } => pins::list(args),
        NixCommand::Pin { command: PinCommand::Remove(args) } => pins::remove(args),
        NixCommand::Why(args) => why::run(args),
        NixCommand::Verify(args) => upkeep::verify(args),
        NixCommand::Gc(args) => upkeep::collect(args),
        NixCommand::Export(args) => folder::export(args),
        NixCommand::Import(args) => folder::import(args),
    }
}

/// Runs what waits for a server.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(Failure::failed)?;
    let done = runtime.block_on(work);
    // What still reads a file for an upload that failed is not waited for.
    runtime.shutdown_background();
    done
}

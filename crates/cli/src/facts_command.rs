//! `gf backup` and `gf restore`: what a server knows, to a file and back.

use std::future::Future;

use gf_server::config::{Config, Environment, Overrides};
use gf_server::facts::{self, FactsError, Restored};

use crate::args::{BackupArgs, PlaceArgs, RestoreArgs};
use crate::failure::{Failure, FailureKind};
use crate::output::say;

pub(crate) fn back_up(args: BackupArgs) -> Result<(), Failure> {
    let (config, file) = (config(args.place)?, args.file);
    run(facts::back_up(&config, &file))?;
    say(format_args!("{} has what the server knows; it has no blobs", file.display()));
    Ok(())
}

pub(crate) fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let (config, file) = (config(args.place)?, args.file);
    std::fs::create_dir_all(&config.data_dir).map_err(Failure::failed)?;
    let Restored { good_tokens, last_record } = run(facts::restore(&config, &file))?;
    say(format_args!("restored into {}; start the server with `gf serve`", config.database));
    say(format_args!(
        "the audit log goes on after record {last_record}; {good_tokens} tokens are good, those among them that were revoked \
         after the copy was made: see `gf token list`, and revoke them again"
    ));
    Ok(())
}

fn config(place: PlaceArgs) -> Result<Config, Failure> {
    let overrides = Overrides { listen: None, data_dir: place.data_dir };
    Config::load(place.config.as_deref(), overrides, &Environment::of_process())
        .map_err(|errors| Failure::new(FailureKind::Usage, errors))
}

fn run<T>(work: impl Future<Output = Result<T, FactsError>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    runtime.block_on(work).map_err(Failure::failed)
}

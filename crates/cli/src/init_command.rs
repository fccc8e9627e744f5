//! `gf init`: a configuration that lets nobody in without a token, and the first token.
//!
//! What always holds: no file that is there is written over, and the token stands in no file.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use gf_server::config::{Config, Environment, Overrides};

use crate::args::InitArgs;
use crate::failure::{Failure, FailureKind};
use crate::output::say;

pub(crate) fn run(args: InitArgs) -> Result<(), Failure> {
    let text = text(&args)?;
    let config = Config::parse(Some(&args.config), &text, Overrides::default(), &Environment::of_process())
        .map_err(|errors| Failure::new(FailureKind::Usage, errors))?;
    // First of all, so that a second one does not make a second token.
    write_new(&args.config, &text)?;
    let made = make_token(&config);
    if made.is_err() {
        // Without a token nobody could use it, and it would be in the way of the next try.
        let _ = std::fs::remove_file(&args.config);
    }
    let token = made?;
    let (file, listen) = (args.config.display(), args.listen);
    say(format_args!(
        "{file} is written, and this is your token. It administers everything, is good for a year, and is not shown \
         again:"
    ));
    crate::output::print(crate::output::Format::Text, &(), |()| token)?;
    say(format_args!(
        "Next:\n    gf serve --config {file}\n    gf login --server http://{listen}    # and paste the token\n    gf \
         token issue ci --grant operator    # less for everybody else"
    ));
    Ok(())
}

fn text(args: &InitArgs) -> Result<String, Failure> {
    let data_dir = match &args.data_dir {
        Some(path) => format!("data_dir = {}\n", quoted(path)?),
        None => String::new(),
    };
    Ok(format!(
        "# Written by `gf init`. `gf config check` says what is wrong with it.\nlisten = \"{listen}\"\n{data_dir}\n\
         [access]\n# Nobody gets in without a credential. Tokens are in the database: `gf token issue|list|revoke`.\n\
         require_token = true\n",
        listen = args.listen,
    ))
}

/// A path as TOML has it, and independent of where the configuration is.
fn quoted(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(Failure::failed)?;
    let wrong = || Failure::new(FailureKind::Usage, format!("--data-dir {}: write it in plain text", path.display()));
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control)).ok_or_else(wrong)?;
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            let message =
                format!("{} is there already, and is not written over: name another with --config", path.display());
            Failure::new(FailureKind::Usage, message)
        }
        _ => Failure::failed(format!("{} cannot be written: {error}", path.display())),
    })
}

fn make_token(config: &Config) -> Result<String, Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(&config.data_dir);
    made.map_err(|error| Failure::failed(format!("{} cannot be made: {error}", config.data_dir.display())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let token = runtime.block_on(gf_server::issue_first_token(config)).map_err(Failure::failed)?;
    Ok(token.expose().to_owned())
}

//! The command line. Its help is what people read first.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

/// A self-hosted build platform: one server for Bazel's remote cache and its relatives.
///
/// Start with `gf serve`, then point a build at it:
///     bazel build --remote_cache=grpc://127.0.0.1:8980 //...
#[derive(Debug, Parser)]
#[command(name = "gf", version, verbatim_doc_comment, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server until SIGTERM or Ctrl-C
    Serve(ServeArgs),
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// Run the server until SIGTERM or Ctrl-C.
///
/// Without a file and a flag it listens on 127.0.0.1:8980, for this machine only, and keeps its data under
/// ~/.local/state/gloriousflywheel (as root: /var/lib/gloriousflywheel).
///
/// The first SIGTERM or Ctrl-C lets requests under way finish; a second one exits at once.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct ServeArgs {
    /// The configuration; `gf config check FILE` tries it out
    #[arg(long, value_name = "FILE", env = "GF_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one. Wins over the file
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where to keep all data. Wins over the file
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say every mistake of a configuration, with its line; exits 3 when there is one
    Check(ConfigCheckArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ConfigCheckArgs {
    /// The configuration
    #[arg(value_name = "FILE", default_value = "gf.toml")]
    pub(crate) file: PathBuf,
    /// Print the mistakes for programs
    #[arg(long)]
    pub(crate) json: bool,
}

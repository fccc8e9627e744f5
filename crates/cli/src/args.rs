//! The command line. Its help is what people read first.

mod ac;
mod access;
mod credential_helper;
mod facts;
mod nix;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

pub(crate) use ac::*;
pub(crate) use access::*;
pub(crate) use credential_helper::*;
pub(crate) use facts::*;
pub(crate) use nix::*;

/// A self-hosted build platform: one server that keeps what builds made, and runs what they ask for.
///
/// Start with `gf serve`, then point a build at it. To share what was built:
///     bazel build --remote_cache=grpc://127.0.0.1:8980 //...
/// To run the actions there, too:
///     bazel build --remote_executor=grpc://127.0.0.1:8980 --jobs=50 //...
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
    /// Run actions for a server until SIGTERM or Ctrl-C
    Worker(WorkerArgs),
    /// Say whether a server is ready, what it runs, and how full it is; exits 3 when it is not ready
    Status(QuestionArgs),
    /// Show the workers of a server, and what they run
    Workers(QuestionArgs),
    /// Show what waits for workers, and for how long
    Queue(QuestionArgs),
    /// Say why an operation waits, or how it ended; exits 3 when it is not known
    Why(WhyArgs),
    /// Look into the store of a server, and mend it
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
    /// Look at the result of an action: what it is, who wrote it, why it hits or misses
    Ac {
        #[command(subcommand)]
        command: AcCommand,
    },
    /// Use the Nix binary caches of a server
    Nix {
        #[command(subcommand)]
        command: NixCommand,
    },
    /// Tell Bazel what to present to a server
    CredentialHelper {
        #[command(subcommand)]
        command: CredentialHelperCommand,
    },
    /// Write a configuration that asks for a token, and make the first one
    Init(InitArgs),
    /// Store the token for a server, so that every gf command presents it
    Login(LoginArgs),
    /// Say who a server takes you for, and what you may do there
    Whoami(QuestionArgs),
    /// Make, list and revoke tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Ask who may do what, and why
    Access {
        #[command(subcommand)]
        command: AccessCommand,
    },
    /// Search the audit log: what was done and refused
    Audit(AuditArgs),
    /// Copy what a server knows to a file, while it serves or not
    Backup(BackupArgs),
    /// Put a copy back where a server has no database yet
    Restore(RestoreArgs),
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

/// Run actions for a server until SIGTERM or Ctrl-C.
///
/// The server has a worker of its own; this attaches another one. Its token is taken from --token-file or from the
/// environment variable GF_WORKER_TOKEN.
///
/// The first SIGTERM or Ctrl-C lets actions under way finish; a second one exits at once.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct WorkerArgs {
    /// The server to work for
    #[arg(long, value_name = "URL", env = "GF_SERVER", default_value = "http://127.0.0.1:8980")]
    pub(crate) server: String,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE", env = "GF_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// A file with the token of this worker
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// What people call this worker; the host name unless told
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Where to keep inputs and running actions; of this worker alone
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The cores to offer; all of the machine unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) cores: Option<u32>,
    /// The memory to offer, such as 16GiB; most of the machine's unless told
    #[arg(long, value_name = "SIZE", value_parser = gf_server::config::parse_size)]
    pub(crate) memory: Option<u64>,
    /// The most that kept inputs may take on the disk, and as much again kept Nix store paths
    #[arg(long, value_name = "SIZE", value_parser = gf_server::config::parse_size)]
    pub(crate) cache: Option<u64>,
    /// What actions may ask for as a platform property; may be given more than once
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = parse_property)]
    pub(crate) properties: Vec<(String, String)>,
    /// Show actions the tools of this root file system instead of the machine's
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Give the network to actions that ask for it with the platform property network=on
    #[arg(long)]
    pub(crate) network: bool,
    /// Run every action alone, also those that ask for a process that stays
    #[arg(long)]
    pub(crate) no_persistent: bool,
    /// The most that one action may write, such as 10GiB
    #[arg(long, value_name = "SIZE", value_parser = gf_server::config::parse_size)]
    pub(crate) action_disk: Option<u64>,
    /// The most that one action may print to each of stdout and stderr
    #[arg(long, value_name = "SIZE", value_parser = gf_server::config::parse_size)]
    pub(crate) action_log: Option<u64>,
    /// The files, folders and links that one action may make
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(100..))]
    pub(crate) action_files: Option<u64>,
    /// The processes and threads that one action may have at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=4_194_304))]
    pub(crate) action_processes: Option<u32>,
    /// Use a connection that the server opened, which is this descriptor
    #[arg(long, value_name = "FD", hide = true, value_parser = clap::value_parser!(i32).range(0..=0))]
    pub(crate) inherited_connection: Option<i32>,
}

fn parse_property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no property: write NAME=VALUE")),
    }
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

/// Which server to ask, and who asks.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct ServerArgs {
    /// The server, on this machine unless told. A token is taken from the environment variable GF_TOKEN, or is what `gf
    /// login` stored
    #[arg(long, value_name = "URL", env = "GF_SERVER")]
    pub(crate) server: Option<String>,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE", env = "GF_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// Present the certificate in this PEM file, followed by those that it was signed with
    #[arg(long, value_name = "FILE", env = "GF_CLIENT_CERT", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The key of that certificate, in a PEM file
    #[arg(long, value_name = "FILE", env = "GF_CLIENT_KEY", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
}

impl ServerArgs {
    /// Where the server is.
    pub(crate) fn url(&self) -> String {
        self.server.clone().unwrap_or_else(|| "http://127.0.0.1:8980".to_owned())
    }
}

/// A question that names nothing but the server.
#[derive(Debug, ClapArgs)]
pub(crate) struct QuestionArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say why an operation waits, or how it ended; exits 3 when it is not known.
///
/// Its name is what the server told the client: operations/<uuid>, or <instance>/operations/<uuid>. `gf workers`
/// shows the names of those that run; they are forgotten a few minutes after their end.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct WhyArgs {
    /// The operation
    #[arg(value_name = "OPERATION")]
    pub(crate) operation: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Say how full the store is, what it evicted, and what was read back
    Stats(QuestionArgs),
    /// Read every blob and compare it with its digest; exits 3 when something is damaged
    Verify(StoreVerifyArgs),
    /// Give back space that nothing uses
    Gc(StoreGcArgs),
}

/// Read every blob and compare it with its digest; exits 3 when something is damaged.
///
/// The server goes on serving meanwhile. What is damaged is set aside and reported absent, so that clients make it
/// again; it is never served.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct StoreVerifyArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Also rebuild what the index lost, and remove files that belong to nothing
    #[arg(long)]
    pub(crate) repair: bool,
    /// Verify the files in DIR, of a server that is stopped
    #[arg(long, value_name = "DIR", conflicts_with = "ca")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Give back space that nothing uses.
///
/// The server does this by itself when it is full. With --free it also evicts what was used least recently, but
/// never what is under lease.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct StoreGcArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// How much to free, such as 10GiB
    #[arg(long, value_name = "SIZE", default_value = "0B", value_parser = gf_server::config::parse_size)]
    pub(crate) free: u64,
    /// Say what would go, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

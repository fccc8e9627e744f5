//! The words of `gf nix`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::ServerArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum NixCommand {
    /// Make, list and show caches, and have this machine use one
    Cache {
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Push store paths with all that they refer to
    Push(PushArgs),
    /// Push what is added to the store of this machine from now on, until SIGTERM or Ctrl-C
    WatchStore(WatchStoreArgs),
    /// Keep store paths for as long as a name refers to them
    Pin {
        #[command(subcommand)]
        command: PinCommand,
    },
    /// Say why a path is here, is missing, or is not substituted; exits 3 when a client would not get it
    Why(WhyPathArgs),
    /// Read all of a cache, and compare it with its hashes and signatures; exits 3 when something is wrong
    Verify(CacheArgs),
    /// Remove what retention and quota say; the server does so by itself every now and then
    Gc(NixGcArgs),
    /// Write store paths with all that they refer to into a folder, which is a binary cache of its own
    Export(ExportArgs),
    /// Push everything in a folder that is a binary cache
    Import(ImportArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Make a cache with a signing key of its own
    Create(CreateArgs),
    /// List the caches that may be read
    List(ListArgs),
    /// Say how a cache is set up and how much is in it
    Show(CacheArgs),
    /// Change how a cache is set up
    Set(SetArgs),
    /// Have Nix on this machine use a cache: adds to nix.conf and netrc, after asking
    Use(UseArgs),
}

/// A cache of a server.
#[derive(Debug, ClapArgs)]
pub(crate) struct CacheArgs {
    /// The cache
    #[arg(value_name = "CACHE", default_value = "main")]
    pub(crate) cache: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CreateArgs {
    /// Its name
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// Let everybody read it; without this, only those with a token that allows it
    #[arg(long)]
    pub(crate) public: bool,
    /// Whose it is to be; without this, the first tenant's, or that of the only one where you may make it
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    pub(crate) tenant: Option<String>,
    /// Clients ask caches with a lower number first
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub(crate) priority: u32,
    /// A key of caches that every client has too; what it signed is not pushed. May be given more than once
    #[arg(long = "upstream-key", value_name = "NAME", default_value = "cache.nixos.org-1")]
    pub(crate) upstream_keys: Vec<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UseArgs {
    /// The cache
    #[arg(value_name = "CACHE", default_value = "main")]
    pub(crate) cache: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Write the token into netrc even though everybody may read the cache: `nix copy --to` needs it
    #[arg(long)]
    pub(crate) push: bool,
    /// The folder of nix.conf and netrc; /etc/nix for root, ~/.config/nix for others
    #[arg(long, value_name = "DIR")]
    pub(crate) conf_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Push store paths with all that they refer to.
///
/// What the cache has, and what is signed by one of the caches that it counts on, is not sent. A push that was cut off
/// goes on where it was when it is begun again.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct PushArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// The paths, or links to them such as ./result
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// So many archives at one time
    #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: u16,
    /// Push these alone, and nothing that they refer to
    #[arg(long)]
    pub(crate) no_closure: bool,
    /// Push also what other caches signed
    #[arg(long)]
    pub(crate) with_upstream: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WatchStoreArgs {
    /// The cache
    #[arg(value_name = "CACHE", default_value = "main")]
    pub(crate) cache: String,
    /// So many archives at one time
    #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) jobs: u16,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PinCommand {
    /// Pin a path, or move a pin to another path
    Set(PinSetArgs),
    /// List the pins of a cache
    List(CacheArgs),
    /// Remove a pin; the path stays for as long as any other
    Remove(PinRemoveArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PinSetArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// The name of the pin
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The path, or a link to it
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PinRemoveArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// The name of the pin
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WhyPathArgs {
    /// The path
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// The cache
    #[arg(long, value_name = "CACHE", default_value = "main")]
    pub(crate) cache: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// The folder; what it has already is kept
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// The paths
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// The folder
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NixGcArgs {
    /// The cache
    #[arg(value_name = "CACHE", default_value = "main")]
    pub(crate) cache: String,
    /// Say what would go, and why, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Change how a cache is set up. What is not named stays as it is.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct SetArgs {
    /// The cache
    #[arg(value_name = "CACHE")]
    pub(crate) cache: String,
    /// Let everybody read it, or only those with a token that allows it
    #[arg(long, value_name = "BOOL")]
    pub(crate) public: Option<bool>,
    /// Clients ask caches with a lower number first
    #[arg(long, value_name = "N")]
    pub(crate) priority: Option<u32>,
    /// Look there too for what is not here, such as https://cache.example. May be given more than once
    #[arg(long = "upstream", value_name = "URL", requires = "upstream_keys", conflicts_with = "no_upstream")]
    pub(crate) upstreams: Vec<String>,
    /// A key that what comes from upstreams must be signed with. May be given more than once
    #[arg(long = "upstream-public-key", value_name = "NAME:KEY")]
    pub(crate) upstream_keys: Vec<String>,
    /// Look nowhere else
    #[arg(long)]
    pub(crate) no_upstream: bool,
    /// Let actions name its paths as their tools; whoever may push to it then decides what they run
    #[arg(long, value_name = "BOOL")]
    pub(crate) toolchains: Option<bool>,
    /// Keep what was used in this time, such as 90d; 0s keeps everything
    #[arg(long, value_name = "TIME", value_parser = gf_server::config::parse_duration)]
    pub(crate) retention: Option<std::time::Duration>,
    /// Keep what a client was told of for this time, whatever else is set
    #[arg(long, value_name = "TIME", value_parser = gf_server::config::parse_duration)]
    pub(crate) grace: Option<std::time::Duration>,
    /// The most that its archives may take, uncompressed; 0B is no limit
    #[arg(long, value_name = "SIZE", value_parser = gf_server::config::parse_size)]
    pub(crate) quota: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The name of a tenant, which goes into a URL. Which there are, the server says.
fn tenant(text: &str) -> Result<String, String> {
    let is_of_a_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !text.is_empty() && text.bytes().all(is_of_a_name) {
        true => Ok(text.to_owned()),
        false => Err("a tenant is called `default`, `spoke-<slug>` or `org-<owner>`, of a-z, 0-9 and `-`".to_owned()),
    }
}

//! `gf ac`.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use super::ServerArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum AcCommand {
    /// Say what the result of an action is, and who wrote it; exits 3 when there is none to show
    Show(AcArgs),
    /// Say why an action hits or misses
    Why(AcArgs),
    /// Take the result of an action out, and let none be written for a while
    Remove(AcRemoveArgs),
}

/// An action, by the digest of its `Action` message: Bazel shows it with --execution_log_json_file, and as the digest of
/// a remote action in its error messages.
#[derive(Debug, ClapArgs)]
pub(crate) struct AcArgs {
    /// The digest of the action: HASH or HASH/SIZE
    #[arg(value_name = "DIGEST")]
    pub(crate) action: String,
    /// The instance that the build names with --remote_instance_name
    #[arg(long, value_name = "NAME", default_value = "")]
    pub(crate) instance: String,
    /// The digest function of the build
    #[arg(long, value_name = "FUNCTION", value_parser = ["sha256", "blake3"], default_value = "sha256")]
    pub(crate) digest_function: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Take the result of an action out, and let none be written for a while.
///
/// Without --yes it says what would go, and changes nothing. The reason is shown to whoever finds the result missing, and
/// is in the audit log.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct AcRemoveArgs {
    #[command(flatten)]
    pub(crate) action: AcArgs,
    /// Why, in a sentence
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// How long none may be written, such as 24h
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = gf_server::config::parse_duration)]
    pub(crate) quarantine: Duration,
    /// Do it
    #[arg(long)]
    pub(crate) yes: bool,
}

//! Arguments of the commands about access: tokens, who somebody is, why, the audit log, setting up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use gf_server::config::parse_duration;

use super::{QuestionArgs, ServerArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; its text is shown once
    Issue(TokenIssueArgs),
    /// List the tokens that you could have made
    List(TokenListArgs),
    /// Revoke a token: nothing that begins after this is let in by it
    Revoke(TokenRevokeArgs),
}

/// Make a token; its text is shown once.
///
/// A grant is WHAT, WHAT@TENANT or WHAT@TENANT/NAME: WHAT is a role (viewer, operator, admin) or a permission such as
/// cas:read or nix:push, NAME an instance or a Nix cache, and * stands for anything. Nobody hands out more than what
/// they hold.
///
///     gf token issue ci-main --grant operator@default --lifetime 30d
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct TokenIssueArgs {
    /// What people call it: who uses it, and for what
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// What it grants; may be given more than once
    #[arg(long = "grant", value_name = "GRANT", required = true)]
    pub(crate) grants: Vec<String>,
    /// How long it is good, at most a year
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = parse_duration)]
    pub(crate) lifetime: Duration,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print the same facts for programs
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TokenListArgs {
    /// Also those that ended or were revoked in the last week
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) question: QuestionArgs,
}

/// Revoke a token, or all that identities of an issuer were exchanged for.
///
/// It counts from the next request on. With --issuer, --subject and --rule all tokens end that such identities were
/// exchanged for, and what was signed before is exchanged no more; of those that are named, all have to fit.
///
/// With --attic it is a token in Attic's format, which is read from standard input, or named by its fingerprint: the SHA-256
/// of what stands before its last dot.
///
///     gf token revoke 0123456789
///     gf token revoke --attic < stolen-token
///     gf token revoke --made-by certificate:cn:ann
///     gf token revoke --issuer https://token.actions.githubusercontent.com --subject repo:acme/app:ref:refs/heads/main
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct TokenRevokeArgs {
    /// Which one, as `gf token list` shows it; with --attic, its fingerprint
    #[arg(value_name = "ID", required_unless_present_any = ["issuer", "subject", "rule", "attic", "made_by"])]
    pub(crate) id: Option<String>,
    /// Also refuse whoever's identity it was exchanged for: what was signed until now is exchanged no more
    #[arg(long, requires = "id", conflicts_with = "attic")]
    pub(crate) cut_off: bool,
    /// One in Attic's format
    #[arg(long, conflicts_with_all = ["issuer", "subject", "rule", "made_by"])]
    pub(crate) attic: bool,
    /// All that this principal made, as the audit log has it: certificate:cn:NAME, token:ID, static-token
    #[arg(long, value_name = "PRINCIPAL", conflicts_with_all = ["id", "issuer", "subject", "rule"])]
    pub(crate) made_by: Option<String>,
    /// Of this issuer
    #[arg(long, value_name = "URL", conflicts_with = "id")]
    pub(crate) issuer: Option<String>,
    /// Of this subject, as its issuer calls it
    #[arg(long, value_name = "SUB", conflicts_with = "id")]
    pub(crate) subject: Option<String>,
    /// By this rule of [[access.trust]]
    #[arg(long, value_name = "NAME", conflicts_with = "id")]
    pub(crate) rule: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AccessCommand {
    /// Say why somebody may do something, or not; exits 3 when they may not
    Why(AccessWhyArgs),
}

/// Say why somebody may do something, or not; exits 3 when they may not.
///
///     gf access why me cas:write default
///     gf access why token:0123456789 nix:push cache:main
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct AccessWhyArgs {
    /// Who: `me`, or a name as the audit log has it, such as anonymous or token:ID
    #[arg(value_name = "PRINCIPAL")]
    pub(crate) principal: String,
    /// The permission, such as cas:read, execute or nix:push
    #[arg(value_name = "PERMISSION")]
    pub(crate) permission: String,
    /// With what: an instance, or a Nix cache; `instance:NAME` or `cache:NAME` where the permission does not tell
    #[arg(value_name = "THING")]
    pub(crate) thing: String,
    #[command(flatten)]
    pub(crate) question: QuestionArgs,
}

/// Search the audit log, the newest first.
///
/// What happens often is counted: one record for each caller and kind a minute. Who administers a tenant is shown the
/// records of that tenant.
///
///     gf audit --principal token:0123456789 --since 2d
///     gf audit --outcome denied --json
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    pub(crate) command: Option<AuditCommand>,
    /// By this principal, as it shows itself: anonymous, static-token, token:ID
    #[arg(long, value_name = "PRINCIPAL")]
    pub(crate) principal: Option<String>,
    /// Of this action, or of its kind: token.issue, or token; of a denial, the permission
    #[arg(long, value_name = "ACTION")]
    pub(crate) action: Option<String>,
    /// With this thing
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) subject: Option<String>,
    /// With this outcome: done, denied or failed
    #[arg(long, value_name = "OUTCOME")]
    pub(crate) outcome: Option<String>,
    /// Under this trace, which a refusal told its caller
    #[arg(long, value_name = "TRACE")]
    pub(crate) trace: Option<String>,
    /// Not longer ago than this, such as 2h or 7d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// The most records to show
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: usize,
    /// Print each record as a line of JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Prove that no record was changed or taken out; exits 3 when one was
    Verify(QuestionArgs),
    /// Print all records as lines of JSON, the oldest first
    Export(AuditExportArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AuditExportArgs {
    /// Only those after the record of this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) after: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Write a configuration that asks for a token, and make the first one, which is shown once.
///
/// The token administers everything and is good for a year. An existing configuration is not touched.
///
///     gf init --listen 0.0.0.0:8980 --config gf.toml
///     gf serve --config gf.toml
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct InitArgs {
    /// The configuration to write
    #[arg(long, value_name = "FILE", default_value = "gf.toml")]
    pub(crate) config: PathBuf,
    /// Where the server is to listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8980")]
    pub(crate) listen: SocketAddr,
    /// Where it is to keep all data
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Store the token for a server, so that every gf command presents it.
///
/// The token is read from standard input, or from the environment variable GF_TOKEN, and tried out. It is stored in
/// ~/.config/gloriousflywheel/logins.json, which only you can read. With --client-cert and --client-key it is that
/// certificate which every command presents; what is stored is where the two files are.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct LoginArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Forget what is stored for this server
    #[arg(long)]
    pub(crate) forget: bool,
}

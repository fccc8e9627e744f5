//! `gf backup` and `gf restore`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// Copy what a server knows to a file, while it serves or not.
///
/// The copy has tokens, the audit log, what Nix caches know and which action results were removed, as they are at one
/// moment, and is for its owner alone. It has no blobs: builds make those again. Whether the server has SQLite or
/// PostgreSQL, the copy is a file of SQLite's, and can be put back into either.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct BackupArgs {
    /// The file to make; one that is there is never replaced
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

/// Put a copy back where a server has no database yet.
///
/// The copy is checked, and brought to what this program knows, before it takes the place. The place is the one that the
/// configuration names, a file or a PostgreSQL database that is empty. Start the server afterwards. Tokens that were revoked
/// after the copy was made are good again: revoke them anew.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct RestoreArgs {
    /// What `gf backup` made
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
}

/// Whose facts.
#[derive(Debug, ClapArgs)]
pub(crate) struct PlaceArgs {
    /// The configuration of the server
    #[arg(long, value_name = "FILE", env = "GF_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where the server keeps its data. Wins over the file
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

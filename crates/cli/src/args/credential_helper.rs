//! `gf credential-helper`, and the name by which Bazel runs it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};

/// A program of this name is the helper: Bazel gives it no other argument than `get`.
const HELPER: &str = "gf-credential-helper";

/// The command line, where the program may have been called by another name.
pub(crate) fn by_name(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    if name == Some(OsStr::new(HELPER)) {
        arguments.insert(1, "credential-helper".into());
    }
    arguments
}

#[derive(Debug, Subcommand)]
pub(crate) enum CredentialHelperCommand {
    /// Answer one question of Bazel, which stands on standard input
    Get(CredentialHelperArgs),
}

/// Answer one question of Bazel, which stands on standard input.
///
/// Make a link to this program that is called gf-credential-helper, and tell Bazel where it is:
///     build --credential_helper=build.example=%workspace%/tools/gf-credential-helper
///
/// What is presented to the server that GF_SERVER names is, in this order: the token in GF_TOKEN; what the server exchanges
/// for the identity of the job, from a file, from the environment, or from the forge (GitHub and Forgejo Actions, with
/// `id-token: write`); what `gf login` stored. Other hosts get nothing, and without GF_SERVER each gets what a login to
/// it stored.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub(crate) struct CredentialHelperArgs {
    /// Your server: what stands in the environment is presented to it alone
    #[arg(long, value_name = "URL", env = "GF_SERVER")]
    pub(crate) server: Option<String>,
    /// Trust the certificates in this PEM file instead of the system's
    #[arg(long, value_name = "FILE", env = "GF_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// A file with the identity token, as a cluster mounts one
    #[arg(long, value_name = "FILE", env = "GF_ID_TOKEN_FILE")]
    pub(crate) id_token_file: Option<PathBuf>,
    /// The environment variable with the identity token, as GitLab sets one
    #[arg(long, value_name = "NAME", env = "GF_ID_TOKEN_ENV", default_value = "GF_ID_TOKEN")]
    pub(crate) id_token_env: String,
    /// Whom the forge is to make an identity token for; the URL of the server unless told
    #[arg(long, value_name = "TEXT", env = "GF_AUDIENCE")]
    pub(crate) audience: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_says_what_it_is() {
        let check = |given: &[&str], expected: &[&str]| {
            let texts = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
            assert_eq!(by_name(texts(given)), texts(expected));
        };
        check(&["/opt/gf-credential-helper", "get"], &["/opt/gf-credential-helper", "credential-helper", "get"]);
        check(&["/opt/gf", "status"], &["/opt/gf", "status"]);
        check(&[], &[]);
    }
}

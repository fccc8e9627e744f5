//! Who a job is, by the word of its CI or cluster: a token in the environment or in a file, or one that the forge gives
//! when it is asked.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use gf_fetch::{Client, Reach};
use serde::Deserialize;

use crate::args::CredentialHelperArgs;
use crate::failure::{Failure, FailureKind};

/// The longest token of an issuer, and the longest answer with one.
const MAX_TOKEN_BYTES: u64 = 32 << 10;

/// Where the token of an identity comes from.
pub(super) enum Identity {
    /// It is at hand.
    Token(String),
    /// The forge makes one for an audience, as GitHub and Forgejo do.
    Forge {
        /// Where to ask.
        url: String,
        /// What to present there.
        token: String,
    },
}

#[derive(Deserialize)]
struct Made {
    value: String,
}

impl Identity {
    /// The identity of this process, if it has one.
    pub(super) fn find(args: &CredentialHelperArgs, audience: &str) -> Result<Option<Self>, Failure> {
        if let Some(path) = &args.id_token_file {
            return read(path).map(|token| Some(Self::Token(token)));
        }
        if let Some(token) = variable(&args.id_token_env) {
            return Ok(Some(Self::Token(token)));
        }
        let asked = (variable("ACTIONS_ID_TOKEN_REQUEST_URL"), variable("ACTIONS_ID_TOKEN_REQUEST_TOKEN"));
        let (Some(url), Some(token)) = asked else { return Ok(None) };
        let separator = if url.contains('?') { '&' } else { '?' };
        let audience = percent_encoding::utf8_percent_encode(audience, percent_encoding::NON_ALPHANUMERIC);
        Ok(Some(Self::Forge { url: format!("{url}{separator}audience={audience}"), token }))
    }

    /// What tells this identity from others of the same machine, for knowing again what was exchanged for it.
    pub(super) fn parts(&self) -> [&str; 2] {
        match self {
            Self::Token(token) => ["", token],
            Self::Forge { url, token } => [url, token],
        }
    }

    /// The token that its issuer signed.
    pub(super) async fn token(self) -> Result<String, Failure> {
        let (url, token) = match self {
            Self::Token(token) => return Ok(token),
            Self::Forge { url, token } => (url, token),
        };
        let failed = |reason: String| {
            Failure::failed(format!(
                "the forge gives no identity token ({reason}): check that the job may have one (GitHub: `permissions: \
                 id-token: write`)"
            ))
        };
        let max_bytes = usize::try_from(MAX_TOKEN_BYTES).unwrap_or(usize::MAX);
        let answer = Client::new(Reach::Authentic).get_small_as(&url, &token, max_bytes).await.map_err(failed)?;
        let answer = answer.ok_or_else(|| failed("it refuses".to_owned()))?;
        let Made { value } = serde_json::from_slice(&answer).map_err(|error| failed(error.to_string()))?;
        Ok(value)
    }
}

fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().trim().to_owned();
    Some(value).filter(|value| !value.is_empty())
}

fn read(path: &Path) -> Result<String, Failure> {
    let wrong = |reason: &dyn std::fmt::Display| {
        let message = format!("the identity token in {} cannot be read: {reason}", path.display());
        Failure::new(FailureKind::Usage, message)
    };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| wrong(&error))?;
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    let token = text.trim().to_owned();
    if token.is_empty() { Err(wrong(&"there is none")) } else { Ok(token) }
}
